"""What tracing costs an ELF image, in instructions, exactly: a whole run of it in each mode.

It has no variant without calls and no iterations to count; so each mode runs it from start to
end, and the yardstick is the image with all its calls patched to nops before it starts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynftrace_emu.bench.figures import Figure
from dynftrace_emu.bench.lab import CheckFailed
from dynftrace_emu.bench.modes import MODES, NEVER_S, Filter, Mode
from dynftrace_emu.ftrace.options import EngineName
from dynftrace_emu.machine.engine import RunEnd

if TYPE_CHECKING:
    from dynftrace_emu.bench.figures import Result
    from dynftrace_emu.bench.lab import Lab
    from dynftrace_emu.bench.plan import Plan

__all__ = ["KIND", "PROGRAM_MODES", "PROGRAM_YARDSTICK", "estimate", "measure_program"]

KIND = "program"
PROGRAM_MODES = tuple(
    mode
    for mode in MODES
    if mode.variant == "dynamic" and mode.hook is None and mode.filter is Filter.ALL
)
PROGRAM_YARDSTICK = next(mode for mode in PROGRAM_MODES if mode.name == "patched-nop")
_LONGEST_S = 100.0
"""In virtual seconds; 200,000,000 instructions a vCPU."""
_STEP_S = 2.0


@dataclass(frozen=True, slots=True)
class _Count:
    instructions: int
    events: int
    returned: int | None
    console: tuple[str, ...]


def estimate(plan: Plan) -> float:
    """How long it takes, in seconds, at a guess."""
    return len(plan.modes) * _STEP_S


def measure_program(lab: Lab, plan: Plan, result: Result) -> None:
    """Count the image's instructions in each mode.

    :raises CheckFailed: it does not end by itself, or not alike in each mode.
    """
    lab.step(_STEP_S, f"instructions, {PROGRAM_YARDSTICK.name}")
    base = _count(lab, plan, PROGRAM_YARDSTICK)
    for mode in plan.modes:
        if mode is not PROGRAM_YARDSTICK:
            lab.step(_STEP_S, f"instructions, {mode.name}")
        count = base if mode is PROGRAM_YARDSTICK else _count(lab, plan, mode)
        if (count.returned, count.console) != (base.returned, base.console):
            raise CheckFailed(
                f"{plan.image} does something else in mode {mode.name} than in mode "
                f"{PROGRAM_YARDSTICK.name}: it returns {count.returned}, not {base.returned}, or "
                "prints something else"
            )
        _add(result, mode, count, base)


def _count(lab: Lab, plan: Plan, mode: Mode) -> _Count:
    sites = len(lab.image(plan.image, "dynamic").call_sites)
    options = replace(
        mode.options(plan.image, None, 1, sites),
        engine=EngineName.DETERMINISTIC,
        period=NEVER_S,
        discover="scan" if mode.passes else "runtime",
    )
    writes = (f"current_tracer={mode.tracer}",) if mode.tracer else ()
    with lab.machine(options, writes) as run:
        ended = lab.run(run, _LONGEST_S)
        if ended is RunEnd.TIME:
            raise CheckFailed(
                f"{plan.image} does not end by itself: {_LONGEST_S:g} virtual seconds were given"
            )
        return _Count(
            sum(vcpu.instructions for vcpu in run.machine.vcpus),
            run.kernel.total(mode.counts) if mode.counts is not None else 0,
            run.kernel.returned,
            tuple(line for _, line in run.machine.console.lines),
        )


def _add(result: Result, mode: Mode, count: _Count, base: _Count) -> None:
    added = count.instructions - base.instructions
    where = {"kind": KIND, "workload": "", "subject": mode.name, "round": 0}
    result.rounds.append({**where, "instructions": count.instructions, "events": count.events})
    quantities = [
        ("ratio", "x", count.instructions / base.instructions),
        ("instructions", "1/run", float(count.instructions)),
        ("events", "1/run", float(count.events)),
    ]
    if count.events:
        quantities.append(("added", "1/event", added / count.events))
    result.figures += [
        Figure(KIND, mode.name, quantity, unit, (value,), exact=True)
        for quantity, unit, value in quantities
    ]
