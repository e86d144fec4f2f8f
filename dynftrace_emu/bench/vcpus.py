"""Throughput and pauses with more and more vCPUs, each a thread of the host."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from dynftrace_emu.bench.figures import Figure
from dynftrace_emu.bench.modes import MODES

if TYPE_CHECKING:
    from dynftrace_emu.bench.figures import Result
    from dynftrace_emu.bench.lab import Lab
    from dynftrace_emu.bench.plan import Plan
    from dynftrace_emu.ftrace.run import Run
    from dynftrace_emu.machine.engine import Kthread

__all__ = ["KIND", "estimate", "measure_vcpus"]

KIND = "vcpus"
_PATCHED = next(mode for mode in MODES if mode.name == "patched-jmp")
_SWITCHES = 3
_BETWEEN_S = 0.03


@dataclass(slots=True)
class _Sample:
    """One round: all vCPUs' iterations in so many seconds, and the pauses to switch a tracer."""

    iterations: int = 0
    wall_s: float = 0.0
    pauses_us: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        """Iterations a second."""
        return self.iterations / self.wall_s


def estimate(plan: Plan) -> float:
    """How long it takes, in seconds, about."""
    return plan.rounds * len(plan.vcpus) * _step_s(plan)


def _step_s(plan: Plan) -> float:
    return 2 * plan.window_s + plan.warm_up_s + 0.3


def measure_vcpus(lab: Lab, plan: Plan, result: Result) -> None:
    """Measure each number of vCPUs of the plan, rounds interleaved."""
    samples: dict[int, dict[int, _Sample]] = defaultdict(dict)
    try:
        for number in range(plan.rounds):
            for vcpus in plan.vcpus:
                lab.step(_step_s(plan), f"{vcpus} vCPUs, round {number + 1}")
                samples[vcpus][number] = _measure(lab, plan, vcpus)
    finally:
        _add(result, samples)


def _measure(lab: Lab, plan: Plan, vcpus: int) -> _Sample:
    sites = len(lab.image(plan.image, "dynamic").call_sites)
    sample = _Sample()
    options = _PATCHED.options(plan.image, plan.workloads[0], vcpus, sites)
    with lab.machine(options) as run:
        lab.settle(run, plan.warm_up_s)
        lab.drive(run, _body(run, 2 * plan.window_s, sample))
    return sample


def _body(run: Run, seconds: float, sample: _Sample) -> Kthread:
    yield _BETWEEN_S  # until every thread is at work
    begin, before = time.perf_counter(), run.kernel.total("iterations")
    yield seconds
    sample.iterations = run.kernel.total("iterations") - before
    sample.wall_s = time.perf_counter() - begin
    pauses = []
    for tracer in ("function", "nop") * _SWITCHES:
        run.tracing.set_tracer(run.tracing.global_array, tracer)
        pauses.append(run.machine.stops[-1].pause_us)
        yield _BETWEEN_S
    sample.pauses_us = tuple(pauses)


def _add(result: Result, samples: dict[int, dict[int, _Sample]]) -> None:
    single = samples.get(1, {})
    for vcpus, rounds in samples.items():
        subject = f"{vcpus} vCPU{'s' if vcpus > 1 else ''}"
        for number, sample in rounds.items():
            where = {"kind": KIND, "workload": "", "subject": subject, "round": number}
            result.rounds.append({**where, **asdict(sample)})

        both = [(sample.rate, single[number].rate) for number, sample in rounds.items()]
        pauses = [median(sample.pauses_us) / 1e3 for sample in rounds.values()]
        result.figures += [
            Figure(KIND, subject, "throughput", "iterations/s", tuple(rate for rate, _ in both)),
            Figure(KIND, subject, "scaling", "x", tuple(rate / one for rate, one in both)),
            Figure(KIND, subject, "pause", "ms", tuple(pauses)),
        ]
