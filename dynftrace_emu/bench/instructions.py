"""Instructions executed in each mode, exactly: figures without noise.

They are counted by the deterministic engine, which runs each vCPU in slices and learns of each how
many instructions it began (:attr:`.VCpu.executed`; :attr:`.VCpu.instructions` is their sum). So
that it is known what an iteration takes, two machines do the same to the instruction, but one goes
offline some iterations later: the difference is what these took, ticks and all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynftrace_emu.bench.choice import Choice, choose
from dynftrace_emu.bench.figures import Figure
from dynftrace_emu.bench.lab import CheckFailed
from dynftrace_emu.bench.modes import PASS_S, YARDSTICK, Mode
from dynftrace_emu.ftrace.options import EngineName

if TYPE_CHECKING:
    from dynftrace_emu.bench.figures import Result
    from dynftrace_emu.bench.lab import Lab
    from dynftrace_emu.bench.plan import Plan
    from dynftrace_emu.ftrace.options import RunOptions

__all__ = ["KIND", "Count", "estimate", "measure_instructions"]

KIND = "instructions"
_VIRTUAL_HZ = 1 << 25
"""A tick is 335,000 instructions: several of them are in what is counted, and weigh little."""
_WARM_UP_S = 2.5 * PASS_S
"""In virtual seconds: recording, and two passes of the daemon."""
_STEP_S = 0.6


@dataclass(frozen=True, slots=True)
class Span:
    """The iterations that are counted: behind number ``begin``, up to ``end``."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Count:
    """What a vCPU has executed when it goes offline."""

    instructions: int
    checksum: int
    events: int


Counts = dict[Mode, tuple[Count, Count]]
"""Of each mode, at both ends of the span."""


def estimate(plan: Plan) -> float:
    """How long it takes, in seconds, about."""
    counted = sum(1 for mode in plan.modes if mode.hook is None)
    return len(plan.workloads) * (1 + counted) * _STEP_S


def measure_instructions(lab: Lab, plan: Plan, result: Result) -> None:
    """Count under each workload, for every mode that runs guest code of its own.

    :raises CheckFailed: a mode does other work than the others.
    """
    for workload in plan.workloads:
        lab.step(_STEP_S, f"{workload}: iterations to count over")
        choice = choose(lab, plan, workload)
        span = _span(lab, plan, workload)
        counts: Counts = {}
        try:
            for mode in plan.modes:
                if mode.hook is None and choice.allows(mode):
                    lab.step(_STEP_S, f"{workload}: instructions, {mode.name}")
                    counts[mode] = (
                        _count(lab, plan, workload, mode, choice, span.begin),
                        _count(lab, plan, workload, mode, choice, span.end),
                    )
                    _check_same_work(workload, mode, counts)
        finally:
            _add(result, workload, span, counts)


def _span(lab: Lab, plan: Plan, workload: str) -> Span:
    """As many iterations as the yardstick does in its warm-up, then half as many."""
    options = _deterministic(YARDSTICK.options(plan.image, workload, 1, 0))
    with lab.machine(options) as run:
        lab.run(run, _WARM_UP_S)
        begin = max(2, run.kernel.total("iterations"))
    return Span(begin, begin + begin // 2)


def _deterministic(options: RunOptions, iterations: int | None = None) -> RunOptions:
    return replace(
        options,
        engine=EngineName.DETERMINISTIC,
        virtual_hz=_VIRTUAL_HZ,
        iterations=iterations,
    )


def _count(
    lab: Lab, plan: Plan, workload: str, mode: Mode, choice: Choice, iterations: int
) -> Count:
    sites = len(lab.image(plan.image, "dynamic").call_sites)
    options = _deterministic(mode.options(plan.image, workload, 1, sites), iterations)
    with lab.machine(options, choice.writes(mode)) as run:
        lab.run(run, None)
        events = run.kernel.total(mode.counts) if mode.counts is not None else 0
        (checksum,) = run.kernel.percpu("checksum")
        return Count(run.machine.vcpus[0].instructions, checksum, events)


def _check_same_work(workload: str, mode: Mode, counts: Counts) -> None:
    for count, expected in zip(counts[mode], counts[YARDSTICK], strict=True):
        if count.checksum != expected.checksum:
            raise CheckFailed(
                f"{mode.name}, {workload} does not do the same work: its checksum is "
                f"{count.checksum:#018x}, without calls it is {expected.checksum:#018x}"
            )


def _add(result: Result, workload: str, span: Span, counts: Counts) -> None:
    iterations = span.end - span.begin
    for mode, (begin, end) in counts.items():
        instructions, events = end.instructions - begin.instructions, end.events - begin.events
        base = counts[YARDSTICK][1].instructions - counts[YARDSTICK][0].instructions
        where = {"kind": KIND, "workload": workload, "subject": mode.name, "round": 0}
        counted = {"iterations": iterations, "instructions": instructions, "events": events}
        result.rounds.append({**where, **counted})
        quantities = [
            ("ratio", "x", instructions / base),
            ("instructions", "1/iteration", instructions / iterations),
        ]
        if mode.has_cost and events:
            quantities.append(("added", "1/event", (instructions - base) / events))
        result.figures += [
            Figure(KIND, mode.name, quantity, unit, (value,), workload, exact=True)
            for quantity, unit, value in quantities
        ]
