"""int3, sync, tail, sync, head, sync: today's protocol, and what goes wrong without each part."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.model import Bounds
from dynftrace_emu.explore.protocols import INT3, breakpoint_protocol
from dynftrace_emu.explore.scenario import Scenario, own_protocol
from dynftrace_emu.explore.setup import OpsSpec, Setup, SiteSpec
from dynftrace_emu.explore.steps import Store, Sync, WriteData

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.poke import Poke
    from dynftrace_emu.explore.steps import Step, TextChange

CALL = "call:ftrace_caller"
WORK = ("site_work",)

CLEAN = Setup(name="breakpoint", protocol="breakpoint", sites=(SiteSpec(old=CALL, new="nop"),))
TO_CALL = replace(
    CLEAN,
    sites=(SiteSpec(old="nop", new=CALL),),
    ops=(OpsSpec(before=(), after=WORK),),
)
# One tracer, before and after, by another trampoline.
RETARGET = replace(
    CLEAN,
    sites=(SiteSpec(old=CALL, new="call:trampoline_a"),),
    ops=(OpsSpec(before=WORK, after=WORK),),
)
# Somebody runs into an int3 that is not ours all the time: a kprobe's.
FOREIGN = replace(CLEAN, defines=("LAB_KPROBE",), tasks=(TaskSpec(0, ("probed",)),))


def _without_sync(number: int, change: TextChange, poke: Poke) -> Iterator[Step]:
    """The protocol without its sync of that number, from 1."""
    count = 0
    for step in breakpoint_protocol(change, poke):
        count += isinstance(step, Sync)
        if not (isinstance(step, Sync) and count == number):
            yield step


def breakpoint_without_sync_1(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The tail changes while a CPU may still fetch the old first byte."""
    return _without_sync(1, change, poke)


def breakpoint_without_sync_2(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The new first byte may be seen before the new tail."""
    return _without_sync(2, change, poke)


def breakpoint_without_sync_3(change: TextChange, poke: Poke) -> Iterator[Step]:
    """A CPU may still fetch the int3 when nobody knows what it stands for."""
    return _without_sync(3, change, poke)


def breakpoint_head_first(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The first byte comes back before the others have changed."""
    yield from poke.publish(change)
    yield poke.get()
    yield from _int3(change)
    yield Store(change.sites, change.new[:, :1])
    yield Sync()
    yield Store(change.sites + np.uint64(1), change.new[:, 1:], width=4)
    yield Sync()
    yield poke.put()
    yield poke.wait_for_handlers()
    yield poke.clear()


def breakpoint_published_late(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The int3 is there before the handler knows of it."""
    yield from _int3(change)
    yield from poke.publish(change)
    yield poke.get()
    yield from _tail_and_head(change)
    yield poke.put()
    yield poke.wait_for_handlers()
    yield poke.clear()


def breakpoint_skips(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The handler takes every int3 for a nop, though a call is there before and after."""
    for step in breakpoint_protocol(change, poke):
        if isinstance(step, WriteData) and step.what.startswith("poke_vector"):
            site, as_nop, target = step.data[:8], (2).to_bytes(8, "little"), step.data[16:]
            step = WriteData(step.address, site + as_nop + target, step.what)
        yield step


def breakpoint_released_early(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The vector goes when no CPU can fetch one of our int3s any more; nobody counts handlers."""
    yield from poke.publish(change)
    yield from _int3(change)
    yield from _tail_and_head(change)
    yield from _forget(poke)


def breakpoint_released(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The vector goes when no handler holds a reference."""
    yield from poke.publish(change)
    yield poke.get()
    yield from _int3(change)
    yield from _tail_and_head(change)
    yield poke.put()
    yield poke.wait_for_handlers()
    yield from _forget(poke)


def _int3(change: TextChange) -> Iterator[Step]:
    yield Store(change.sites, np.full((len(change.sites), 1), INT3, dtype=np.uint8))
    yield Sync()


def _tail_and_head(change: TextChange) -> Iterator[Step]:
    yield Store(change.sites + np.uint64(1), change.new[:, 1:], width=4)
    yield Sync()
    yield Store(change.sites, change.new[:, :1])
    yield Sync()


def _forget(poke: Poke) -> Iterator[Step]:
    yield poke.set_word("poke_entries", 0)
    yield poke.clear()


SCENARIOS = (
    Scenario(
        "today's protocol, a call becomes a nop",
        CLEAN,
        story="text_poke_bp_batch(): int3, sync, tail, sync, head, sync; references on the vector.",
    ),
    Scenario("the same, a nop becomes a call", replace(TO_CALL, name="breakpoint-to-call")),
    Scenario(
        "the same, and NMIs run into the int3",
        replace(
            CLEAN,
            name="breakpoint-nmi",
            defines=("LAB_NMI_TRACES",),
            tasks=(TaskSpec(0),),
            bounds=Bounds(nmis=1),
            nmi_rule=False,
        ),
    ),
    own_protocol(
        "no sync between the int3 and the tail",
        replace(TO_CALL, name="breakpoint-no-sync-1"),
        breakpoint_without_sync_1,
        expects=FindingClass.TORN_FETCH,
        mended="breakpoint-to-call",
    ),
    own_protocol(
        "no sync between the tail and the head",
        replace(TO_CALL, name="breakpoint-no-sync-2"),
        breakpoint_without_sync_2,
        expects=FindingClass.TORN_FETCH,
        mended="breakpoint-to-call",
        story="Only the relaxed text model shows it.",
    ),
    own_protocol(
        "no sync behind the head",
        replace(TO_CALL, name="breakpoint-no-sync-3"),
        breakpoint_without_sync_3,
        expects=FindingClass.UNCLAIMED_INT3,
        mended="breakpoint-to-call",
    ),
    own_protocol(
        "head before tail",
        replace(TO_CALL, name="breakpoint-head-first"),
        breakpoint_head_first,
        expects=FindingClass.TORN_FETCH,
        mended="breakpoint-to-call",
    ),
    own_protocol(
        "the handler does not know the site yet",
        replace(TO_CALL, name="breakpoint-published-late"),
        breakpoint_published_late,
        expects=FindingClass.UNCLAIMED_INT3,
        mended="breakpoint-to-call",
        story="A key was patched before the handler was registered (B7, 17f41571bb2c).",
    ),
    own_protocol(
        "the handler skips the int3 of a site that goes from one trampoline to another",
        replace(RETARGET, name="breakpoint-skips"),
        breakpoint_skips,
        expects=FindingClass.MISSED_CALLBACK,
        mended="breakpoint-retarget",
        story="A nop is right only if the site is one before or after (B11, 9e298e860408).",
    ),
    Scenario(
        "the handler calls the new trampoline",
        replace(RETARGET, name="breakpoint-retarget"),
    ),
    own_protocol(
        "the vector is released under the handler of an int3 that is not ours",
        replace(
            FOREIGN, name="breakpoint-released-early", defines=("LAB_KPROBE", "LAB_NO_REFERENCES")
        ),
        breakpoint_released_early,
        expects=FindingClass.GUEST_FAULT,
        mended="breakpoint-released",
        story=(
            "Our own int3s are gone by the last sync, but a kprobe's handler asks us first: it "
            "finds the count, and follows NULL (B12, 285a54efe386, 1f676247f36a)."
        ),
    ),
    own_protocol(
        "handlers hold references",
        replace(FOREIGN, name="breakpoint-released"),
        breakpoint_released,
    ),
)
