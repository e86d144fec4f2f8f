"""A jump-optimized kprobe is taken back (B13)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.scenario import own_protocol
from dynftrace_emu.explore.setup import Setup, SiteSpec
from dynftrace_emu.explore.steps import Store, Sync

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.poke import Poke
    from dynftrace_emu.explore.steps import Step, TextChange

# jmp kprobe_detour becomes int3; mov rbp, rsp; nop: the probe stays armed.
UNOPTIMIZE = Setup(
    name="kprobe-flag-first",
    defines=("LAB_KPROBE",),
    tasks=(TaskSpec(0, ("probed",)), TaskSpec(1, ("probed",))),
    sites=(SiteSpec("site_probed", "jmp:kprobe_detour", "cc4889e590", traced=False),),
    ops=(),
    words=(("kprobe_optimized", 1),),
)


def unoptimize_flag_first(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The probe counts as unoptimized while the jump's displacement is still there."""
    yield poke.set_word("kprobe_optimized", 0)
    yield from _unoptimize(change)


def unoptimize_flag_last(change: TextChange, poke: Poke) -> Iterator[Step]:
    """It counts as optimized until the instructions are back."""
    yield from _unoptimize(change)
    yield poke.set_word("kprobe_optimized", 0)


def _unoptimize(change: TextChange) -> Iterator[Step]:
    yield Store(change.sites, change.new[:, :1])
    yield Sync()
    yield Store(change.sites + np.uint64(1), change.new[:, 1:], width=4)
    yield Sync()


SCENARIOS = (
    own_protocol(
        "a kprobe counts as unoptimized before the bytes behind its int3 are back",
        UNOPTIMIZE,
        unoptimize_flag_first,
        expects=FindingClass.MID_INSTRUCTION_RESUME,
        mended="kprobe-flag-last",
        story=(
            "The handler emulates the first instruction and returns behind it, into what is left "
            "of the jump's displacement (B13, f66c0447cca1)."
        ),
    ),
    own_protocol(
        "it counts as optimized until they are",
        replace(UNOPTIMIZE, name="kprobe-flag-last"),
        unoptimize_flag_last,
    ),
)
