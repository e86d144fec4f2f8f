"""What the filters of modes come to, for one image and workload: the function profiler knows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynftrace_emu.bench.modes import MODES, Filter, Mode, traceable
from dynftrace_emu.ftrace.options import EngineName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynftrace_emu.bench.lab import Lab
    from dynftrace_emu.bench.plan import Plan

__all__ = ["Choice", "choose", "tenth"]

_FUNCTION = next(mode for mode in MODES if mode.name == "function")
_VIRTUAL_HZ = 1 << 25
_WATCHED_S = 0.06  # in virtual seconds: two million instructions
_PART = 0.1
_MOST = 0.15
"""No function of a tenth may have more of the calls, if there is another."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which functions there are to choose from."""

    calls: Mapping[str, int]
    """How often the workload calls each function, once the kernel is up."""
    not_called: tuple[str, ...]
    """The traceable functions that have not been called since it started, by address."""

    def allows(self, mode: Mode) -> bool:
        """Whether there is something to choose: a workload may call every function."""
        return mode.filter is not Filter.UNRELATED or bool(self.not_called)

    def writes(self, mode: Mode) -> tuple[str, ...]:
        """What is written to control files before the run, as ``run --set`` has it."""
        if not mode.tracer:
            return ()
        functions = {
            Filter.ALL: (),
            Filter.UNRELATED: self.not_called[:1],
            Filter.TENTH: tenth(self.calls),
        }[mode.filter]
        chosen = (f"set_ftrace_filter={' '.join(functions)}",) if functions else ()
        return (*chosen, f"current_tracer={mode.tracer}")


def tenth(calls: Mapping[str, int]) -> tuple[str, ...]:
    """Functions that together have about a tenth of all calls, by name.

    The most called is looked at first, and taken if the sum comes closer to a tenth with it. One
    with more than 15 % of the calls is taken only if each has: then the least called alone.
    """
    total = sum(calls.values())
    order = sorted(calls, key=lambda name: (-calls[name], name))
    taken, together = [], 0
    for name in order:
        closer = abs(together + calls[name] - _PART * total) < abs(together - _PART * total)
        if calls[name] <= _MOST * total and closer:
            taken.append(name)
            together += calls[name]
    return tuple(sorted(taken or order[-1:]))


def choose(lab: Lab, plan: Plan, workload: str) -> Choice:
    """See which functions a workload calls; always the same, as the engine is deterministic."""
    image = lab.image(plan.image, "dynamic")
    options = _FUNCTION.options(plan.image, workload, 1, len(image.call_sites))
    options = replace(options, engine=EngineName.DETERMINISTIC, virtual_hz=_VIRTUAL_HZ)
    names = dict(zip(image.call_sites.tolist(), traceable(image), strict=True))
    with lab.machine(options, ("function_profile_enabled=1",)) as run:
        profile = run.tracing.profile
        lab.settle(run, _WATCHED_S)
        ever = {row.site for row in profile.rows(0)}
        run.tracing.set_profile(False)
        run.tracing.set_profile(True)  # with empty tables
        lab.run(run, _WATCHED_S)
        calls = {row.site: row.hits for row in profile.rows(0)}
    not_called = tuple(names[site] for site in names if site not in ever | calls.keys())
    return Choice({names[site]: calls[site] for site in sorted(calls)}, not_called)
