"""CPUs that a sync does not reach: one that comes online, an emulator's own (B16)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.model import Model, Text
from dynftrace_emu.explore.scenario import Scenario, own_protocol
from dynftrace_emu.explore.setup import OpsSpec, Setup, SiteSpec
from dynftrace_emu.explore.steps import Drop, Resume, Stop, Store, Sync
from dynftrace_emu.machine.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.poke import Poke
    from dynftrace_emu.explore.steps import Step, TextChange

WORK = ("site_work",)

# One store within a line: it is whole, and only the sync matters.
ONLINE = Setup(
    name="online-unsynced",
    tasks=(TaskSpec(0), TaskSpec(1)),
    offline=(1,),
)
# The site's first byte is the last of its page; old and new differ in the second page alone.
ACROSS = Setup(
    name="page-translation-kept",
    tasks=(TaskSpec(0, rounds=2),),
    pad=PAGE_SIZE - 5,
    sites=(SiteSpec(old="call:trampoline_a", new="call:trampoline_b"),),
    ops=(OpsSpec(before=WORK), OpsSpec("tracer_b", 2, before=(), after=WORK)),
    model=Model(text=Text.STALE),
)


def sync_who_was_online(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """Whom the sync goes to was worked out when patching began."""
    yield Store(change.sites, change.new[:, :2])
    yield Sync(cpus=(0,))


def sync_who_is_online(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """It goes to everybody who is online when it is sent."""
    yield Store(change.sites, change.new[:, :2])
    yield Sync()


def drop_written_page(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """An emulator drops the translations that begin in the page that was written to."""
    yield from _store_and_drop(change, 0)


def drop_page_before_too(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """And those that begin in the page before, and may reach across."""
    yield from _store_and_drop(change, PAGE_SIZE)


def _store_and_drop(change: TextChange, more: int) -> Iterator[Step]:
    yield Stop()
    yield Store(change.sites + np.uint64(1), change.new[:, 1:], width=4)
    for site in change.sites.tolist():
        page = (site + 1) // PAGE_SIZE * PAGE_SIZE
        yield Drop(page - more, PAGE_SIZE + more)
    yield Resume()


SCENARIOS = (
    own_protocol(
        "a CPU comes online in the middle, and no sync goes to it",
        ONLINE,
        sync_who_was_online,
        expects=FindingClass.STALE_TEXT,
        mended="online-synced",
        story="It has taken in the old text; the mask of online CPUs is older than that.",
    ),
    own_protocol(
        "the sync goes to whoever is online when it is sent",
        replace(ONLINE, name="online-synced"),
        sync_who_is_online,
    ),
    Scenario(
        "a CPU comes online in the midst of int3, tail and head",
        replace(
            ONLINE,
            name="online-breakpoint",
            protocol="breakpoint",
            sites=(SiteSpec(old="nop", new="call:ftrace_caller"),),
            ops=(OpsSpec(before=(), after=WORK),),
        ),
    ),
    own_protocol(
        "an emulator keeps the translation of a call that reaches into the page written to",
        ACROSS,
        drop_written_page,
        expects=FindingClass.STALE_TEXT,
        mended="page-translations-dropped",
        story="Translations were looked up by the page they begin in (B16, QEMU cb62bd15e14e).",
    ),
    own_protocol(
        "it drops what reaches across, too",
        replace(ACROSS, name="page-translations-dropped"),
        drop_page_before_too,
    ),
)
