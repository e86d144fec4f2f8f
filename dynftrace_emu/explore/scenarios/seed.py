"""The seed's own patch: 2-byte exchanges under stop_machine (S7, S11, S12), and its syncs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.model import Bounds, Model, Text
from dynftrace_emu.explore.scenario import Scenario, own_protocol
from dynftrace_emu.explore.setup import OpsSpec, Setup, SiteSpec
from dynftrace_emu.explore.steps import CompareExchange, Resume, Stop, Sync

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.poke import Poke
    from dynftrace_emu.explore.steps import Step, TextChange

CALL, JMP = "call:mcount", "jmp"
WORK, OTHER = ("site_work",), ("site_other",)

SEED = Setup(name="seed", sites=(SiteSpec(old=CALL, new=JMP),), bounds=Bounds(nmis=1))
STALE = replace(SEED, bounds=Bounds(), model=Model(text=Text.STALE))


def patcher_syncs_alone(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """The seed as it was written: sync_core() on the CPU that patches, and nowhere else."""
    yield Stop()
    yield CompareExchange(change.sites, change.old[:, :2], change.new[:, :2])
    yield Sync(cpus=())
    yield Resume()


SCENARIOS = (
    Scenario(
        "the seed's patch, NMIs that keep the rule",
        SEED,
        story=(
            "Every call becomes jmp +3 by one 16-bit locked exchange, with all CPUs parked and "
            "synced before they go on. An NMI runs no traced function (S12)."
        ),
    ),
    Scenario(
        "the same, the other way: calls are put back",
        replace(
            SEED,
            name="seed-enable",
            sites=(SiteSpec(old=JMP, new=CALL),),
            ops=(OpsSpec(before=(), after=WORK),),
        ),
    ),
    Scenario(
        "the same with two sites",
        replace(
            SEED,
            name="seed-two-sites",
            tasks=(TaskSpec(0, ("work", "other")), TaskSpec(1, ("other",))),
            sites=(SiteSpec(old=CALL, new=JMP), SiteSpec("site_other", CALL, JMP)),
            ops=(OpsSpec(before=WORK + OTHER),),
        ),
    ),
    Scenario(
        "the same with three CPUs beside the patcher's, without NMIs",
        replace(
            SEED,
            name="seed-three-cpus",
            tasks=(TaskSpec(0), TaskSpec(1), TaskSpec(2)),
            bounds=Bounds(),
        ),
    ),
    Scenario(
        "the same store, live, at the last byte of a 64-byte line",
        replace(SEED, name="seed-live-line", protocol="live", pad=59),
        expects=FindingClass.TORN_FETCH,
        mended="seed-line",
        story="LOCK does not make a fetch whole that crosses a line.",
    ),
    Scenario(
        "the same site under stop_machine",
        replace(SEED, name="seed-line", pad=59),
    ),
    Scenario(
        "a CPU is let go without a sync",
        replace(STALE, name="unsynced", protocol="stop_machine-unsynced"),
        expects=FindingClass.STALE_TEXT,
        mended="synced",
        story="It was parked when the text changed, and goes on with what it fetched before.",
    ),
    own_protocol(
        "the seed as written: only the CPU that patches syncs",
        replace(STALE, name="patcher-syncs-alone"),
        patcher_syncs_alone,
        expects=FindingClass.STALE_TEXT,
        mended="synced",
        story=(
            "2008: sync_core() follows the exchange on the CPU that patches. The others wait with "
            "interrupts off, and nothing tells them that text has changed."
        ),
    ),
    Scenario(
        "every CPU syncs before it goes on",
        replace(STALE, name="synced"),
    ),
)
