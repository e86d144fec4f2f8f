"""Nops of more than one instruction, and nops that are made in place (B3, B15)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.model import Bounds, Model, Text
from dynftrace_emu.explore.scenario import own_protocol
from dynftrace_emu.explore.setup import OpsSpec, Setup, SiteSpec
from dynftrace_emu.explore.steps import (
    CompareExchange,
    Interrupts,
    Resume,
    Stop,
    Store,
    Sync,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.poke import Poke
    from dynftrace_emu.explore.steps import Step, TextChange

CALL = "call:ftrace_caller"

# Two tasks on one CPU: one may be switched out in the midst of the nop.
NOPS = Setup(
    name="nops",
    tasks=(TaskSpec(0), TaskSpec(0)),
    sites=(SiteSpec(old="nops", new=CALL),),
    ops=(OpsSpec(before=(), after=("site_work",)),),
    model=Model(text=Text.COHERENT),
)
# At boot: one CPU, and nobody but the patcher on it.
IN_PLACE = Setup(
    name="nops-in-place",
    defines=("LAB_TIMER_TRACES",),
    tasks=(),
    sites=(SiteSpec(old="nops", new="nop"),),
    ops=(),
    model=Model(text=Text.COHERENT),
    bounds=Bounds(timers=1),
)


def stop_without_a_look(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """stop_machine as it is: where tasks stand that are switched out, nobody looks."""
    yield from _stopped(change, look=False)


def stop_with_a_look(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """The machine goes on until nobody stands inside a site."""
    yield from _stopped(change, look=True)


def _stopped(change: TextChange, *, look: bool) -> Iterator[Step]:
    yield Stop(look=look)
    yield CompareExchange(change.sites, change.old, change.new)
    yield Sync()
    yield Resume()


def nops_in_place(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """optimize_nops(): the better nop is copied over the five, byte by byte."""
    yield Store(change.sites, change.new, width=1)
    yield Sync()


def nops_in_place_interrupts_off(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The same between local_irq_save() and local_irq_restore()."""
    yield Interrupts(on=False)
    yield from nops_in_place(change, poke)
    yield Interrupts(on=True)


SCENARIOS = (
    own_protocol(
        "a task was switched out between two of five one-byte nops",
        NOPS,
        stop_without_a_look,
        expects=FindingClass.MID_INSTRUCTION_RESUME,
        mended="nops-one",
        story="-fpatchable-function-entry=5 makes such sites. The machine was stopped, and yet.",
    ),
    own_protocol(
        "a task was switched out in the midst of a nop of two instructions",
        replace(NOPS, name="nops-two", sites=(SiteSpec(old="nop3+2", new=CALL),)),
        stop_without_a_look,
        expects=FindingClass.MID_INSTRUCTION_RESUME,
        mended="nops-one",
        story="K8_NOP5 was K8_NOP3 and K8_NOP2 (B3).",
    ),
    own_protocol(
        "the nop is one instruction",
        replace(NOPS, name="nops-one", sites=(SiteSpec(old="nop", new=CALL),)),
        stop_without_a_look,
    ),
    own_protocol(
        "five one-byte nops, and the patcher looks where every task stands",
        replace(NOPS, name="nops-looked-at"),
        stop_with_a_look,
    ),
    own_protocol(
        "a nop of two instructions, and the patcher looks where every task stands",
        replace(NOPS, name="nops-two-looked-at", sites=(SiteSpec(old="nop3+2", new=CALL),)),
        stop_with_a_look,
    ),
    own_protocol(
        "an interrupt sees half of a nop that is written byte by byte",
        IN_PLACE,
        nops_in_place,
        expects=FindingClass.TORN_FETCH,
        mended="nops-in-place-interrupts-off",
        story="At boot, on the CPU that patches, with interrupts on (B15, 2dc419613805).",
    ),
    own_protocol(
        "the same with interrupts off",
        replace(IN_PLACE, name="nops-in-place-interrupts-off"),
        nops_in_place_interrupts_off,
    ),
)
