"""What a site calls changes, or goes away (B6, B8, B9; e21aa341785c)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.protocols import breakpoint_protocol
from dynftrace_emu.explore.scenario import Scenario, own_protocol
from dynftrace_emu.explore.setup import OpsSpec, Setup, SiteSpec
from dynftrace_emu.explore.steps import Free, Store, Sync, WaitForTasks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.poke import Poke
    from dynftrace_emu.explore.steps import Step, TextChange

CALL = "call:ftrace_caller"
WORK, OTHER = ("site_work",), ("site_other",)

# The site stays as it is; the call inside its trampoline changes.
COPIED = Setup(
    name="trampoline-copied-over",
    defines=("LAB_DIRECT",),
    sites=(
        SiteSpec(old="call:ftrace_caller_direct", new="call:ftrace_caller_direct"),
        SiteSpec("ftrace_call", "call:ftrace_stub", "call:tracer_a", traced=False),
    ),
    ops=(OpsSpec(before=(), after=WORK),),
    tasks=(TaskSpec(0),),
)
# tracer_a wants work, tracer_b other; then only tracer_a is left.
TWO_TO_ONE = Setup(
    name="trampoline-direct-early",
    defines=("LAB_LIST",),
    tasks=(TaskSpec(0, ("other",)), TaskSpec(1, ("work",))),
    sites=(SiteSpec(old=CALL, new=CALL), SiteSpec("site_other", CALL, "nop")),
    ops=(OpsSpec(before=WORK, after=WORK), OpsSpec("tracer_b", 2, before=OTHER)),
    words=(
        ("ftrace_func", "ftrace_ops_list_func"),
        ("tracer_a_filter", "site_work"),
        ("tracer_b_filter", "site_other"),
    ),
)
# work goes from tracer_a to tracer_b.
EXCHANGED = Setup(
    name="trampoline-pair-torn",
    defines=("LAB_LIST",),
    sites=(SiteSpec(old=CALL, new=CALL),),
    ops=(OpsSpec(before=WORK), OpsSpec("tracer_b", 2, before=(), after=WORK)),
    words=(("tracer_a_filter", "site_work"),),
)
FREED = Setup(
    name="trampoline-freed",
    sites=(SiteSpec(old="call:trampoline_a", new="nop"),),
)


def ftrace_call_copied(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """The call inside the trampoline is copied over, byte by byte, while CPUs run it."""
    yield Store(change.sites, change.new, width=1)
    yield Sync()


def direct_before_sites(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The trampoline calls the last tracer directly; then the other one's sites become nops."""
    yield poke.set_word("ftrace_func", "tracer_a")
    yield from breakpoint_protocol(change, poke)


def direct_after_sites(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The sites first; then, when nobody is in the trampoline by one of them, the direct call."""
    yield from breakpoint_protocol(change, poke)
    yield _wait_for_tasks(poke, "ftrace_caller")
    yield poke.set_word("ftrace_func", "tracer_a")


def function_then_argument(_change: TextChange, poke: Poke) -> Iterator[Step]:
    """The new function, a sync, the new argument."""
    yield poke.set_word("tracer_b_filter", "site_work")
    yield poke.set_word("ftrace_func", "tracer_b")
    yield Sync()
    yield poke.set_word("ftrace_arg", 2)


def list_function_synced(_change: TextChange, poke: Poke) -> Iterator[Step]:
    """First a function that needs no argument; a sync; the argument; then the new function."""
    yield from _by_list_function(poke, Sync())


def list_function_waited_for(_change: TextChange, poke: Poke) -> Iterator[Step]:
    """The same; instead of a sync, until no task can still hold the old function."""
    yield from _by_list_function(poke, _wait_for_tasks(poke, "ftrace_caller"))


def _by_list_function(poke: Poke, wait: Step) -> Iterator[Step]:
    yield poke.set_word("tracer_b_filter", "site_work")
    yield poke.set_word("ftrace_func", "ftrace_ops_list_func")
    yield wait
    yield poke.set_word("ftrace_arg", 2)
    yield poke.set_word("ftrace_func", "tracer_b")


def freed_at_once(change: TextChange, poke: Poke) -> Iterator[Step]:
    """No site leads to the trampoline any more: it is freed."""
    yield from breakpoint_protocol(change, poke)
    yield _free(poke)


def freed_after_tasks(change: TextChange, poke: Poke) -> Iterator[Step]:
    """It is freed when no task is inside any more (synchronize_rcu_tasks)."""
    yield from breakpoint_protocol(change, poke)
    yield _wait_for_tasks(poke, "trampoline_a")
    yield _free(poke)


def _wait_for_tasks(poke: Poke, trampoline: str) -> Step:
    return WaitForTasks(poke.address(trampoline), poke.size(trampoline), trampoline)


def _free(poke: Poke) -> Step:
    return Free(poke.address("trampoline_a"), poke.size("trampoline_a"), "trampoline_a")


SCENARIOS = (
    own_protocol(
        "the call inside a trampoline is copied over live",
        COPIED,
        ftrace_call_copied,
        expects=FindingClass.TORN_FETCH,
        mended="trampoline-breakpoint",
        story="Sites were patched by int3 already, this call was not (B6, 8a4d0a687a59).",
    ),
    Scenario(
        "it is patched as sites are, by int3",
        replace(COPIED, name="trampoline-breakpoint", protocol="breakpoint"),
    ),
    own_protocol(
        "of two tracers one is left, and is called directly for the other's sites, too",
        TWO_TO_ONE,
        direct_before_sites,
        expects=FindingClass.WRONG_CALLBACK,
        mended="trampoline-direct-late",
        story="B8, 59338f754a55.",
    ),
    own_protocol(
        "the other's sites are patched first",
        replace(TWO_TO_ONE, name="trampoline-direct-late"),
        direct_after_sites,
    ),
    own_protocol(
        "a tracer is called with another's argument",
        EXCHANGED,
        function_then_argument,
        expects=FindingClass.WRONG_CALLBACK,
        mended="trampoline-pair-whole",
        story="The function is there, its argument not yet (B9, 405e1d834807).",
    ),
    own_protocol(
        "a tracer that was loaded before is called with its successor's argument",
        replace(EXCHANGED, name="trampoline-pair-preempted"),
        list_function_synced,
        expects=FindingClass.WRONG_CALLBACK,
        mended="trampoline-pair-whole",
        story=(
            "Who has loaded the function may load its argument much later; a sync does not wait "
            "for that (B9)."
        ),
    ),
    own_protocol(
        "in between, a function that needs no argument, until nobody holds another",
        replace(EXCHANGED, name="trampoline-pair-whole"),
        list_function_waited_for,
    ),
    own_protocol(
        "a trampoline is freed with a task inside",
        FREED,
        freed_at_once,
        expects=FindingClass.USE_AFTER_FREE,
        mended="trampoline-freed-late",
        story="No site leads there any more, but a task was preempted in it (e21aa341785c).",
    ),
    own_protocol(
        "it is freed when no task is inside",
        replace(FREED, name="trampoline-freed-late"),
        freed_after_tasks,
    ),
)
