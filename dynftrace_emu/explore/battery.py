"""Small setups that between them show what can be wrong with a protocol, the cheapest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.model import Bounds
from dynftrace_emu.explore.setup import OpsSpec, Setup, SiteSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BATTERY", "setups_for"]

_SITE, _OTHER = "site_work", "site_other"
_CALL = "call:ftrace_caller"
_CROSSING = 59  # bytes in front of work, whose site then has one byte in a chunk, four in the next
_ONE = (TaskSpec(0),)


def _wanted(*, before: bool, after: bool, name: str = "tracer_a", argument: int = 1) -> OpsSpec:
    return OpsSpec(name, argument, (_SITE,) * before, (_SITE,) * after)


_BEFORE, _AFTER = _wanted(before=True, after=False), _wanted(before=False, after=True)

BATTERY = (
    Setup("call->nop", tasks=_ONE, sites=(SiteSpec(_SITE, _CALL, "nop"),), ops=(_BEFORE,)),
    Setup("call->jmp", tasks=_ONE, sites=(SiteSpec(_SITE, _CALL, "jmp"),), ops=(_BEFORE,)),
    Setup("nop->call", tasks=_ONE, sites=(SiteSpec(_SITE, "nop", _CALL),), ops=(_AFTER,)),
    Setup(
        "A->B",
        tasks=_ONE,
        sites=(SiteSpec(_SITE, "call:trampoline_a", "call:trampoline_b"),),
        ops=(_BEFORE, _wanted(before=False, after=True, name="tracer_b", argument=2)),
    ),
    Setup(
        "A->A",
        tasks=_ONE,
        sites=(SiteSpec(_SITE, "call:trampoline_a", _CALL),),
        ops=(_wanted(before=True, after=True),),
    ),
    Setup(
        "crossing", tasks=_ONE, pad=_CROSSING,
        sites=(SiteSpec(_SITE, _CALL, "nop"),), ops=(_BEFORE,),
    ),
    Setup(
        "two sites",
        tasks=(TaskSpec(0, ("work", "other")),),
        sites=(SiteSpec(_SITE, _CALL, "nop"), SiteSpec(_OTHER, _CALL, "nop")),
        ops=(OpsSpec("tracer_a", 1, (_SITE, _OTHER), ()),),
    ),
    Setup(
        "two tasks", tasks=(TaskSpec(0), TaskSpec(0)),
        sites=(SiteSpec(_SITE, _CALL, "nop"),), ops=(_BEFORE,),
    ),
    Setup(
        "NMI", tasks=_ONE, defines=("LAB_NMI_TRACES",), nmi_rule=False, bounds=Bounds(nmis=1),
        sites=(SiteSpec(_SITE, _CALL, "nop"),), ops=(_BEFORE,),
    ),
)  # fmt: skip
"""One task on one CPU, unless the name says otherwise; the patcher has another CPU."""

_STOPPED = (
    Setup(
        "nops->call", tasks=(TaskSpec(0), TaskSpec(0)),
        sites=(SiteSpec(_SITE, "nops", _CALL),), ops=(_AFTER,),
    ),
)  # fmt: skip
"""What only who stops the machine, and looks where everybody is, can do."""


def setups_for(*, stops: bool) -> Iterator[Setup]:
    """The setups for a protocol that stops the machine, or does not."""
    yield from BATTERY
    if stops:
        yield from _STOPPED
