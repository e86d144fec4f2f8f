"""The recorder and the daemon of 2008: what records are made of, and what becomes of them (B1, B2).

The daemon reads the guest's records and the text of their sites, inside the stop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.scenario import own_protocol
from dynftrace_emu.explore.setup import OpsSpec, Setup, SiteSpec
from dynftrace_emu.explore.steps import CompareExchange, Read, Resume, Stop, Sync, WaitUntil
from dynftrace_emu.explore.watch import RECORD_SIZE
from dynftrace_emu.ftrace.encodings import CALL, JMP

if TYPE_CHECKING:
    from collections.abc import Generator

    from dynftrace_emu.explore.poke import Poke
    from dynftrace_emu.explore.steps import Step, TextChange

    Daemon = Generator[Step, int, None]

CONVERTED, FAILED = 1, 2
_WIDTH = 2  # bytes exchanged

RECORDING = (("ftrace_func", "ftrace_record_ip"),)
# The site is recorded by its first call.
PENDING = Setup(
    name="record-pending",
    defines=("LAB_RECORDS",),
    tasks=(TaskSpec(0),),
    sites=(SiteSpec(old="call:mcount", new="jmp"),),
    ops=(),
    words=RECORDING,
)
# A call of mcount by another name: the site is recorded, and never what the daemon expects.
FAILS = replace(
    PENDING,
    name="record-leaks",
    defines=("LAB_RECORDS", "LAB_FAILED_FORGOTTEN"),
    tasks=(TaskSpec(0, rounds=2),),
    sites=(SiteSpec(old="call:mcount_thunk", new="call:mcount_thunk"),),
)
# A module of one function, which is unloaded when it has run.
MODULE = replace(
    PENDING,
    name="record-of-freed-text",
    tasks=(TaskSpec(0, ("other", "rmmod")),),
    sites=(SiteSpec("site_other", "call:mcount", "jmp"),),
)
MID_CALL = Setup(
    name="enable-mid-call",
    tasks=(TaskSpec(0, rounds=2), TaskSpec(0)),
    sites=(SiteSpec(old="jmp", new="call:mcount"),),
    ops=(OpsSpec(before=(), after=("site_work",)),),
    words=(("ftrace_func", "ftrace_stub"),),
)
# The five bytes are a call of two bytes and a nop of three.
INSIDE = Setup(
    name="enable-mid-call-inside",
    defines=("LAB_MIDCALL",),
    tasks=(TaskSpec(0, ("midcall",)), TaskSpec(1, ("midcall",))),
    sites=(SiteSpec("site_midcall", "ffd00f1f00", "call:lock_irq", traced=False),),
    ops=(),
)


def _record(poke: Poke, number: int) -> Generator[Step, int, tuple[int, int]]:
    at = poke.address("ftrace_records") + RECORD_SIZE * number
    site = yield Read(at, f"records[{number}].site")
    state = yield Read(at + 8, f"records[{number}].state")
    return site, state


def _set_state(poke: Poke, number: int, state: int) -> Step:
    at = poke.address("ftrace_records") + RECORD_SIZE * number + 8
    return poke.set_at(at, state, f"records[{number}].state = {state}")


def _convert(poke: Poke, site: int, *, to_call: bool) -> tuple[Step, bytes, bytes]:
    """The exchange at a site, and the bytes it goes from and to."""
    sites = np.array([site], dtype=np.uint64)
    call = CALL.rows(sites, poke.address("mcount"))
    jmp = JMP.rows(sites, poke.address("mcount"))
    old, new = (jmp, call) if to_call else (call, jmp)
    return CompareExchange(sites, old[:, :_WIDTH], new[:, :_WIDTH]), old.tobytes(), new.tobytes()


def _update(poke: Poke, *, to_call: bool, done_is_failed: bool = False) -> Daemon:
    """Stop the machine and convert what is recorded and has not failed.

    :param done_is_failed: a site that reads as wanted already counts as failed.
    """
    yield Stop()
    count = yield Read(poke.address("ftrace_record_count"), "ftrace_record_count")
    for number in range(count):
        site, state = yield from _record(poke, number)
        if not site or state == FAILED:
            continue
        exchange, old, new = _convert(poke, site, to_call=to_call)
        text = (yield Read(site, "the site")).to_bytes(5, "little")
        if text == old:
            yield exchange
            yield _set_state(poke, number, CONVERTED)
        elif text != new or done_is_failed:
            yield _set_state(poke, number, FAILED)
    yield Sync()
    yield Resume()


def _recorded(poke: Poke) -> Step:
    return WaitUntil(poke.address("ftrace_record_count"), 1, "a site is recorded")


def pending_fails(_change: TextChange, poke: Poke) -> Daemon:
    """Tracing on and off again; a site that reads call already has failed."""
    yield _recorded(poke)
    yield from _update(poke, to_call=True, done_is_failed=True)
    yield from _update(poke, to_call=False)


def pending_is_done(_change: TextChange, poke: Poke) -> Daemon:
    """Tracing on and off again; a site that reads call already is what it should be."""
    yield _recorded(poke)
    yield from _update(poke, to_call=True)
    yield from _update(poke, to_call=False)


def checked_pass(_change: TextChange, poke: Poke) -> Daemon:
    """The daemon wakes up, and reads each site before it writes."""
    yield from _update(poke, to_call=False)


def unchecked_pass(_change: TextChange, poke: Poke) -> Daemon:
    """The daemon finds a record, and exchanges: what does not match, stays as it is."""
    yield _recorded(poke)
    yield Stop()
    count = yield Read(poke.address("ftrace_record_count"), "ftrace_record_count")
    for number in range(count):
        site, _ = yield from _record(poke, number)
        if site:
            yield _convert(poke, site, to_call=False)[0]
    yield Sync()
    yield Resume()


def startup_code(change: TextChange, poke: Poke) -> Daemon:
    """Tracing on: inside the stop every call is put back, and the tracer registered."""
    yield Stop()
    yield CompareExchange(change.sites, change.old[:, :_WIDTH], change.new[:, :_WIDTH])
    yield poke.set_word("ftrace_func", "tracer_a")
    yield Sync()
    yield Resume()


def replace_without_a_look(change: TextChange, _poke: Poke) -> Daemon:
    """Five bytes of several instructions, wherever anybody returns to."""
    yield from _replace(change, look=False)


def replace_with_a_look(change: TextChange, _poke: Poke) -> Daemon:
    """The same when no return address is inside."""
    yield from _replace(change, look=True)


def _replace(change: TextChange, *, look: bool) -> Daemon:
    yield Stop(look=look)
    yield CompareExchange(change.sites, change.old, change.new)
    yield Sync()
    yield Resume()


SCENARIOS = (
    own_protocol(
        "tracing is enabled while a function is in the midst of its call",
        MID_CALL,
        startup_code,
        story="Who is behind the site goes on untraced; on begins with the next call (S9).",
    ),
    own_protocol(
        "a function is in the midst of a call that returns into what is replaced",
        INSIDE,
        replace_without_a_look,
        expects=FindingClass.MID_INSTRUCTION_RESUME,
        mended="enable-mid-call-looked-at",
        story="What a site of exactly one call rules out: its return address is behind it (S11).",
    ),
    own_protocol(
        "the patcher looks for return addresses inside",
        replace(INSIDE, name="enable-mid-call-looked-at"),
        replace_with_a_look,
    ),
    own_protocol(
        "a record that is not converted yet when tracing is enabled has failed",
        PENDING,
        pending_fails,
        expects=FindingClass.WRONG_RESULT,
        mended="record-pending-is-done",
        story="Its site reads call, not jmp; marked failed, it is never converted any more.",
    ),
    own_protocol(
        "a site that reads as wanted is done",
        replace(PENDING, name="record-pending-is-done"),
        pending_is_done,
    ),
    own_protocol(
        "a site that fails is recorded anew, and fails again",
        FAILS,
        checked_pass,
        expects=FindingClass.WRONG_RESULT,
        mended="record-failed-is-kept",
        story="A record leaks each second (B2, 0eb967012ea1).",
    ),
    own_protocol(
        "failures stay in the hash",
        replace(FAILS, name="record-failed-is-kept", defines=("LAB_RECORDS",)),
        checked_pass,
    ),
    own_protocol(
        "the daemon writes to a recorded address whose memory was freed",
        MODULE,
        unchecked_pass,
        expects=FindingClass.USE_AFTER_FREE,
        mended="record-released",
        story=(
            "It had become the flash of a network card; a locked exchange that fails is a write "
            "cycle, too (B1, LWN 304105)."
        ),
    ),
    own_protocol(
        "who frees text releases its records first",
        replace(MODULE, name="record-released", defines=("LAB_RECORDS", "LAB_RELEASE")),
        unchecked_pass,
    ),
)
