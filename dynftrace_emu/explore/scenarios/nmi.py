"""NMIs: nothing holds them off, so they see what nobody else does (S12, B4, B5)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.model import Bounds, Model, Text
from dynftrace_emu.explore.scenario import Scenario, own_protocol
from dynftrace_emu.explore.setup import OpsSpec, Setup, SiteSpec
from dynftrace_emu.explore.steps import (
    CompareExchange,
    Resume,
    Stop,
    Store,
    Sync,
    WaitUntil,
    WriteData,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.poke import Poke
    from dynftrace_emu.explore.steps import Step, TextChange

CALL = "call:ftrace_caller"
WORK, OTHER = ("site_work",), ("site_other",)

HALF = Setup(
    name="nmi-half-written",
    protocol="stop_machine-4+1",
    defines=("LAB_NMI_TRACES",),
    sites=(SiteSpec(old="nop", new=CALL),),
    ops=(OpsSpec(before=(), after=WORK),),
    model=Model(text=Text.COHERENT),
    bounds=Bounds(nmis=1),
    nmi_rule=False,
)
TWO_SITES = replace(
    HALF,
    tasks=(TaskSpec(0, ("other",)),),
    sites=(SiteSpec(old="nop", new=CALL), SiteSpec("site_other", "nop", CALL)),
    ops=(OpsSpec(before=(), after=WORK + OTHER),),
    defines=("LAB_NMI_TRACES", "LAB_NMI_TRACES_OTHER", "LAB_NMI_MODS_CODE"),
)
NESTED = Setup(
    name="nmi-nested",
    protocol="breakpoint",
    defines=("LAB_NMI_TRACES",),
    tasks=(TaskSpec(0, ("plain",)),),  # only NMIs run into the int3
    sites=(SiteSpec(old=CALL, new="nop"),),
    model=Model(text=Text.COHERENT),
    bounds=Bounds(nmis=2),
    nmi_rule=False,
)


def nmi_safe(change: TextChange, poke: Poke) -> Iterator[Step]:
    """ftrace_modify_code() of 2.6.29: NMIs that come in do the same stores first."""
    yield from _nmi_safe(change, poke, before=True, after=True)


def nmi_safe_not_waiting_before(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The same, and an NMI that runs already is not waited for."""
    yield from _nmi_safe(change, poke, before=False, after=True)


def nmi_safe_not_waiting_after(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The same, and an NMI that may still use the buffers is not waited for."""
    yield from _nmi_safe(change, poke, before=True, after=False)


def _nmi_safe(change: TextChange, poke: Poke, *, before: bool, after: bool) -> Iterator[Step]:
    wait_for_nmi = WaitUntil(poke.address("nmi_running"), 0, "nmi_running == 0")
    yield Stop()
    for n, site in enumerate(change.sites.tolist()):
        one = slice(n, n + 1)
        new = change.new[n].tobytes().ljust(8, b"\0")
        yield poke.set_word("mod_code_ip", site)
        yield WriteData(poke.address("mod_code_newcode"), new, f"mod_code_newcode = {new.hex()}")
        yield poke.set_word("mod_code_write", 1)
        if before:
            yield wait_for_nmi
        yield CompareExchange(change.sites[one], change.old[one, :4], change.new[one, :4])
        yield Store(change.sites[one] + np.uint64(4), change.new[one, 4:])
        yield poke.set_word("mod_code_write", 0)
        if after:
            yield wait_for_nmi
    yield Sync()
    yield Resume()


SCENARIOS = (
    Scenario(
        "an NMI calls a traced function whose site is half written",
        HALF,
        expects=FindingClass.TORN_FETCH,
        mended="nmi-notrace",
        story=(
            "stop_machine holds the other CPUs; one takes an NMI between the writer's 4 bytes and "
            "its 1 byte (B4)."
        ),
    ),
    Scenario(
        "the NMI handler calls nothing that is traced (notrace_nmi)",
        replace(HALF, name="nmi-notrace", defines=("LAB_NMI_NOTRACE",)),
    ),
    own_protocol(
        "an NMI that comes in does the same stores first",
        replace(TWO_SITES, name="nmi-mods-code"),
        nmi_safe,
        story="17666f02b118: ip and code in buffers, a flag, and NMIs waited for on both sides.",
    ),
    own_protocol(
        "the same; an NMI that runs already is not waited for",
        replace(TWO_SITES, name="nmi-not-waited-for-before"),
        nmi_safe_not_waiting_before,
        expects=FindingClass.TORN_FETCH,
        mended="nmi-mods-code",
    ),
    own_protocol(
        "the same; an NMI that uses the buffers is not waited for",
        replace(TWO_SITES, name="nmi-not-waited-for-after"),
        nmi_safe_not_waiting_after,
        expects=FindingClass.TORN_FETCH,
        mended="nmi-mods-code",
    ),
    Scenario(
        "an NMI hits an int3, whose iret lets in another one on the same stack",
        NESTED,
        expects=FindingClass.DEADLOCK,
        mended="nmi-repeats",
        story=(
            "The second NMI's frame overwrites the first one's, which then returns into itself for "
            "ever (B5, 3f3c8b8c4b2a)."
        ),
    ),
    Scenario(
        "the first NMI keeps a copy of its frame, and is repeated",
        replace(NESTED, name="nmi-repeats", defines=("LAB_NMI_TRACES", "LAB_NMI_REPEATS")),
    ),
)
