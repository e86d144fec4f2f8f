"""Reads ring-buffer pages of a file: as quick as decode_pages, but trusting nothing it finds.

Where the fields are is taken from the file's own format texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.export.trace_dat_format import (
    COMMIT_MASK,
    COMMON_SIZE,
    PADDING,
    PAGE_SPACE,
    RB_MISSED_EVENTS,
    RB_MISSED_STORED,
    TIME_EXTEND,
    TIME_STAMP,
)
from dynftrace_emu.export.trace_dat_pack import LOST_UNKNOWN
from dynftrace_emu.ftrace.trace_events import EVENT
from dynftrace_emu.kernel.structs import BUFFER_PAGE, PAGE_SIZE, EventId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["DamagedPageError", "Found", "Layout", "decode", "lost_before", "walk"]

_WORDS = PAGE_SIZE // 4
_HEADER_WORDS = BUFFER_PAGE.size // 4
_MAX_LOST = 1 << 48
_TIME_STAMP_BITS = np.uint64((1 << 59) - 1)
_ULONG_MAX = 0xFFFF_FFFF_FFFF_FFFF


class DamagedPageError(Exception):
    """A page does not hold what it should; ``page`` is its index."""

    def __init__(self, page: int, why: str) -> None:
        super().__init__(why)
        self.page = page


@dataclass(frozen=True, slots=True)
class Layout:
    """An event format of the file: where each field is (offset, size), and which kind it is."""

    name: str
    fields: Mapping[str, tuple[int, int]]
    event: EventId | None = None  # one of those a table can hold

    @property
    def size(self) -> int:
        """The least number of bytes an event of it has."""
        return max((offset + size for offset, size in self.fields.values()), default=COMMON_SIZE)


@dataclass(frozen=True, slots=True)
class Found:
    """Events in some pages, in the order of the pages: each one's page, data and time."""

    words: NDArray[np.uint32]  # of all pages
    page: NDArray[np.int64]
    at: NDArray[np.int64]  # where the data begins, in words
    long: NDArray[np.int64]  # its length in words
    ts: NDArray[np.uint64]

    @property
    def kind(self) -> NDArray[np.uint32]:
        """The number of each one's format."""
        return self.words[self.at] & np.uint32(0xFFFF)

    def bytes(self, row: int) -> bytes:
        """The data of one."""
        begin = int(self.at[row])
        return self.words[begin : begin + int(self.long[row])].tobytes()


def lost_before(words: NDArray[np.uint32]) -> NDArray[np.int64]:
    """How many events are missing before each page; LOST_UNKNOWN if that is not told."""
    pages = words.reshape(-1, _WORDS)
    commit = pages[:, 2]
    lost = np.zeros(len(pages), np.int64)
    for index in np.flatnonzero(commit & np.uint32(RB_MISSED_EVENTS)).tolist():
        lost[index] = LOST_UNKNOWN
        size = int(commit[index]) & COMMIT_MASK
        if int(commit[index]) & RB_MISSED_STORED and size + 8 <= PAGE_SPACE:
            at = _HEADER_WORDS + size // 4
            count = int(pages[index, at]) | int(pages[index, at + 1]) << 32
            if 0 < count < _MAX_LOST:
                lost[index] = count
    return lost


def walk(words: NDArray[np.uint32]) -> Found:
    """Find the events of whole pages.

    :raises DamagedPageError: naming the first page whose events do not fit it.
    """
    count = len(words) // _WORDS
    pages = np.arange(count, dtype=np.int64)
    commit = (words[2::_WORDS] & np.uint32(COMMIT_MASK)).astype(np.int64)
    _check(pages, (commit > PAGE_SPACE) | (commit % 4 != 0), "its length is impossible")
    base = pages * _WORDS + _HEADER_WORDS
    end = base + commit // 4
    ts = words.reshape(count, _WORDS)[:, :2].copy().view("<u8").reshape(-1)
    at = base.copy()
    steps = []
    while len(pages := pages[at[pages] < end[pages]]):
        here = at[pages]
        event, begin, size = _step(words, here, end[pages], pages, ts)
        _check(pages, here + size > end[pages], "an event goes beyond its end")
        at[pages] = here + size
        long = (here + size - begin)[event]
        _check(pages[event], long * 4 < COMMON_SIZE, "an event is too short")
        steps.append((pages[event], begin[event], long, ts[pages][event]))
    if not steps:
        nothing = np.zeros(0, np.int64)
        return Found(words, nothing, nothing, nothing, nothing.astype(np.uint64))
    page, begin, long, times = (np.concatenate(column) for column in zip(*steps, strict=True))
    order = np.argsort(page, kind="stable")
    return Found(words, page[order], begin[order], long[order], times[order])


def _step(
    words: NDArray[np.uint32],
    here: NDArray[np.int64],
    end: NDArray[np.int64],
    pages: NDArray[np.int64],
    ts: NDArray[np.uint64],
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Of what lies ``here``: is it an event, where does its data begin, how long is it in all.

    Moves ``ts`` on.
    """
    word = words[here]
    following = words[np.minimum(here + 1, len(words) - 1)]
    kind, delta = word & np.uint32(31), (word >> np.uint32(5)).astype(np.uint64)
    extend, stamp, zero = kind == TIME_EXTEND, kind == TIME_STAMP, kind == 0
    padding = kind == PADDING
    discarded = padding & (delta != 0)  # an event that was taken back, not the end of the page
    long_time = extend | stamp
    delta[long_time] += following[long_time].astype(np.uint64) << np.uint64(27)
    moved = ts[pages] + delta
    moved[stamp] = delta[stamp] | (ts[pages][stamp] & ~_TIME_STAMP_BITS)
    ts[pages] = moved
    size = kind.astype(np.int64) + 1
    size[long_time] = 2
    counted = zero | discarded
    size[counted] = np.maximum(-(-following[counted].astype(np.int64) // 4), 1) + 1
    at_end = padding & ~discarded
    size[at_end] = (end - here)[at_end]
    return kind < PADDING, here + 1 + zero, size


def _check(pages: NDArray[np.int64], bad: NDArray[np.bool_], why: str) -> None:
    if bad.any():
        raise DamagedPageError(int(pages[bad].min()), why)


def decode(found: Found, layouts: Mapping[int, Layout]) -> tuple[NDArray[Any], list[object]]:
    """The events found as a table (dtype EVENT) and its payloads.

    Events of other kinds than a table can hold have type 0.
    """
    table = np.zeros(len(found.at), EVENT)
    table["ts"], table["payload"] = found.ts, -1
    common = found.words[found.at]
    table["flags"] = common >> np.uint32(16) & np.uint32(0xFF)
    table["preempt"] = common >> np.uint32(24)
    table["pid"] = found.words[found.at + 1].view("<i4")
    kind = found.kind
    with_payload = np.zeros(len(table), np.bool_)
    for number in np.unique(kind).tolist():
        layout = layouts.get(number)
        if layout is None or layout.event is None:
            continue
        rows = np.flatnonzero(kind == number)
        _check(found.page[rows], found.long[rows] * 4 < layout.size, "an event is too short")
        table["type"][rows] = layout.event
        _decode_fields(table, found, rows, layout)
        if layout.event in (EventId.KERNEL_STACK, EventId.PRINT, EventId.RAW_DATA):
            with_payload[rows] = True
    payloads: list[object] = []
    for row in np.flatnonzero(with_payload).tolist():
        table["payload"][row] = len(payloads)
        layout = layouts[int(kind[row])]
        payloads.append(_payload(layout, found.bytes(row)))
    return table, payloads


_COLUMNS = {"ip": "ip", "parent_ip": "parent_ip", "func": "ip", "depth": "depth",
            "calltime": "calltime", "rettime": "rettime"}  # fmt: skip


def _decode_fields(
    table: NDArray[Any], found: Found, rows: NDArray[np.int64], layout: Layout
) -> None:
    if layout.event == EventId.PRINT:
        return  # what its ip means is not ours to show
    for field, column in _COLUMNS.items():
        if field not in layout.fields:
            continue
        offset, size = layout.fields[field]
        at = found.at[rows] + offset // 4
        if size == 8:
            high = found.words[at + 1].astype(np.uint64)
            table[column][rows] = found.words[at].astype(np.uint64) | high << np.uint64(32)
        else:
            table[column][rows] = found.words[at].view("<i4")


def _payload(layout: Layout, data: bytes) -> object:
    if layout.event == EventId.KERNEL_STACK:
        callers = data[layout.fields["caller"][0] :]
        found = np.frombuffer(callers[: len(callers) // 8 * 8], "<u8").tolist()
        return tuple(found[: found.index(_ULONG_MAX)] if _ULONG_MAX in found else found)
    if layout.event == EventId.PRINT:
        text = data[layout.fields["buf"][0] :].split(b"\0", 1)[0].decode("utf-8", "replace")
        return text.removesuffix("\n")
    return data[layout.fields["id"][0] :]
