"""How fast the same work is done in each mode: rounds of all modes, each in a fresh machine.

A ratio is to the yardstick of the same round, so that what changes slowly on the host cancels; the
order turns by one from round to round, so that nothing depends on who comes first.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dynftrace_emu.bench.choice import Choice, choose
from dynftrace_emu.bench.figures import Figure
from dynftrace_emu.bench.modes import YARDSTICK, Mode
from dynftrace_emu.bench.neighbours import install_hook
from dynftrace_emu.bench.sampling import Reference, Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dynftrace_emu.bench.figures import Result
    from dynftrace_emu.bench.lab import Lab
    from dynftrace_emu.bench.plan import Plan
    from dynftrace_emu.ftrace.run import Run

__all__ = ["KIND", "Sample", "estimate", "measure_modes"]

KIND = "modes"


@dataclass(frozen=True, slots=True)
class Sample:
    """One mode in one round: what vCPU 0 did between two looks, and its thread's CPU time."""

    iterations: int
    cpu_s: float
    wall_s: float
    events: int

    @property
    def iteration_us(self) -> float:
        """CPU time an iteration, in microseconds."""
        return self.cpu_s / self.iterations * 1e6


Samples = dict[str, dict[int, Sample]]
"""By mode and round."""


def estimate(plan: Plan) -> float:
    """How long it takes, in seconds, about."""
    measured = plan.rounds * len(plan.modes) * (plan.window_s + plan.warm_up_s)
    return len(plan.workloads) * (plan.warm_up_s + measured)


def measure_modes(lab: Lab, plan: Plan, result: Result) -> None:
    """Measure every mode of the plan under each of its workloads.

    :raises CheckFailed: a mode does other work than the others.
    """
    for workload in plan.workloads:
        samples: Samples = defaultdict(dict)
        try:
            _measure_workload(lab, plan, workload, samples, result)
        finally:
            result.rounds += _rows(workload, samples)
            result.figures += _figures(plan, workload, samples)


def _measure_workload(
    lab: Lab, plan: Plan, workload: str, samples: Samples, result: Result
) -> None:
    lab.step(plan.warm_up_s, f"{workload}: which functions it calls")
    choice = choose(lab, plan, workload)
    reference = Reference(lab, plan.image, workload)
    modes = [mode for mode in plan.modes if choice.allows(mode)]
    for mode in plan.modes:
        if mode not in modes:
            result.notes.append(f"{mode.name}, {workload}: left out, it calls every function")
    for number in range(plan.rounds):
        turn = number % len(modes)
        for mode in [*modes[turn:], *modes[:turn]]:
            lab.step(plan.window_s + plan.warm_up_s, f"{workload}: {mode.name}, round {number + 1}")
            samples[mode.name][number] = _measure(lab, plan, workload, mode, choice, reference)


def _measure(
    lab: Lab, plan: Plan, workload: str, mode: Mode, choice: Choice, reference: Reference
) -> Sample:
    image = lab.image(plan.image, "dynamic")
    options = mode.options(plan.image, workload, 1, len(image.call_sites))
    with lab.machine(options, choice.writes(mode)) as run:
        seen = install_hook(run, mode.hook, image) if mode.hook is not None else []
        sampler = Sampler(run, _counter(run, mode, seen), each=mode.hook is not None)
        lab.settle(run, plan.warm_up_s)
        seen.clear()
        points = sampler.take(lab, plan.window_s)
        reference.check(f"{mode.name}, {workload}", points)
    first, last = points[0], points[-1]
    return Sample(
        last.iterations - first.iterations,
        last.cpu_s - first.cpu_s,
        last.wall_s - first.wall_s,
        last.events - first.events,
    )


def _counter(run: Run, mode: Mode, seen: list[Any]) -> Callable[[], int]:
    if mode.hook is not None:
        return lambda: len(seen)
    if mode.counts is None:
        return lambda: 0
    field, area = mode.counts, run.kernel.pcpu(0)
    return lambda: int(area[field][0])


def _rows(workload: str, samples: Samples) -> Iterator[dict[str, Any]]:
    for name, rounds in samples.items():
        for number, sample in rounds.items():
            where = {"kind": KIND, "workload": workload, "subject": name, "round": number}
            yield {**where, **asdict(sample)}


def _figures(plan: Plan, workload: str, samples: Samples) -> Iterator[Figure]:
    """Of the rounds in which the yardstick was measured, too."""
    yardstick = samples.get(YARDSTICK.name, {})
    for mode in plan.modes:
        both = [
            (sample, yardstick[number])
            for number, sample in sorted(samples.get(mode.name, {}).items())
            if number in yardstick
        ]
        for quantity, unit, value in _quantities(mode, both):
            values = tuple(value(one, base) for one, base in both)
            yield Figure(KIND, mode.name, quantity, unit, values, workload)


def _quantities(
    mode: Mode, both: list[tuple[Sample, Sample]]
) -> Iterator[tuple[str, str, Callable[[Sample, Sample], float]]]:
    """Name, unit, and how it follows from a mode and the yardstick in a round."""
    if not both:
        return
    yield "ratio", "x", lambda one, base: one.iteration_us / base.iteration_us
    yield "time", "us/iteration", lambda one, _: one.iteration_us
    if all(one.events for one, _ in both):
        yield "events", "1/iteration", lambda one, _: one.events / one.iterations
        if mode.has_cost:
            yield "added", "ns/event", _added_ns


def _added_ns(one: Sample, base: Sample) -> float:
    """What an event adds to the work without calls."""
    return (one.cpu_s * 1e6 - base.iteration_us * one.iterations) * 1e3 / one.events
