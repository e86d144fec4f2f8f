"""What the filters of modes come to, for one image and workload: the recorder knows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynftrace_emu.bench.modes import MODES, Filter, Mode, traceable
from dynftrace_emu.ftrace.options import EngineName

if TYPE_CHECKING:
    from dynftrace_emu.bench.lab import Lab
    from dynftrace_emu.bench.plan import Plan

__all__ = ["Choice", "choose"]

_RECORDING = next(mode for mode in MODES if mode.name == "recording")
_VIRTUAL_HZ = 1 << 25
_WATCHED_S = 0.06  # in virtual seconds: two million instructions


@dataclass(frozen=True, slots=True)
class Choice:
    """Which functions there are to choose from."""

    called: tuple[str, ...]
    """The traceable functions that the workload calls, by address."""
    not_called: tuple[str, ...]
    """The others."""

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
            Filter.TENTH: self.called[::10],
        }[mode.filter]
        chosen = (f"set_ftrace_filter={' '.join(functions)}",) if functions else ()
        return (*chosen, f"current_tracer={mode.tracer}")


def choose(lab: Lab, plan: Plan, workload: str) -> Choice:
    """See which functions a workload calls; always the same, as the engine is deterministic."""
    image = lab.image(plan.image, "dynamic")
    options = _RECORDING.options(plan.image, workload, 1, len(image.call_sites))
    options = replace(options, engine=EngineName.DETERMINISTIC, virtual_hz=_VIRTUAL_HZ)
    with lab.machine(options) as run:
        lab.settle(run, _WATCHED_S)
        assert run.dynamic is not None
        sites = set(run.dynamic.arch.sites().tolist())
    names = list(zip(image.call_sites.tolist(), traceable(image), strict=True))
    called = tuple(name for site, name in names if site in sites)
    not_called = tuple(name for site, name in names if site not in sites)
    return Choice(called, not_called)
