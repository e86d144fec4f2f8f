"""Packs events into ring-buffer pages, as Linux would have written them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.export.trace_dat_format import (
    COMMON_SIZE,
    MAX_DELTA,
    PAGE_SPACE,
    RB_MISSED_EVENTS,
    RB_MISSED_STORED,
    TIME_EXTEND,
    TYPE_LEN_MAX,
)
from dynftrace_emu.kernel.structs import BUFFER_PAGE, PAGE_SIZE, EventId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["LOST_UNKNOWN", "Packer", "add_lost", "copy_pages"]

LOST_UNKNOWN = -1
"""Events were lost, nobody knows how many."""

_WORDS = PAGE_SIZE // 4
_HEADER_WORDS = BUFFER_PAGE.size // 4
_COUNT = 8  # bytes of the number of lost events
_MAX_DATA = PAGE_SPACE - 2 * 4 - _COUNT  # of one event: what fits any page
_MAX_EXTEND = 1 << 59  # ... and a time extend's
_PART = 1 << 17  # events packed at a time

# Fields of 8 and of 4 bytes, with their offsets in words from the data's start.
_LAYOUTS: dict[int, tuple[int, tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]] = {
    EventId.FUNCTION: (24, (("ip", 2), ("parent_ip", 4)), ()),
    EventId.GRAPH_ENTRY: (20, (("ip", 2),), (("depth", 4),)),
    EventId.GRAPH_EXIT: (40, (("ip", 2), ("calltime", 6), ("rettime", 8)), (("depth", 4),)),
}


def add_lost(a: int, b: int) -> int:
    """The sum of two numbers of lost events."""
    return LOST_UNKNOWN if LOST_UNKNOWN in (a, b) else a + b


def copy_pages(raw: NDArray[np.uint8], commit: NDArray[np.int64], lost: int) -> NDArray[np.uint64]:
    """Pages as they go into the file: their commit as given, and ``lost`` told in the first."""
    pages = np.array(raw, np.uint8, order="C").view("<u8").reshape(len(raw), -1)
    pages[:, 1] = commit
    if len(pages) and lost:
        _tell_lost(pages[0], int(commit[0]), lost)
    return pages


def _tell_lost(page: NDArray[np.uint64], commit: int, lost: int) -> None:
    """Linux's way: a flag, and the number behind the data where there is room for it."""
    flags = RB_MISSED_EVENTS
    if lost != LOST_UNKNOWN and commit + _COUNT <= PAGE_SPACE:
        flags |= RB_MISSED_STORED
        at = BUFFER_PAGE.size + commit
        page.view("u1")[at : at + _COUNT] = np.frombuffer(struct.pack("<Q", lost), "u1")
    page[1] = commit | flags


@dataclass(slots=True)
class Packer:
    """Packs one CPU's events. Its last page stays open: later events go on there."""

    _tail: NDArray[np.uint32] | None = None
    _fill: int = 0  # bytes of events in the tail
    _lost: int = field(default=0)  # told in the tail
    _ts: int = 0

    def close_page(self) -> None:
        """Let the next event begin a new page."""
        self._tail, self._lost = None, 0

    def pages(
        self, table: NDArray[Any], payloads: Sequence[object], lost: int
    ) -> tuple[NDArray[np.uint64], bool]:
        """``table`` (dtype EVENT, not empty) in pages; ``lost`` events went before it.

        True: the first of them takes the place of the last one from before.
        """
        ts = table["ts"]
        if lost or int(ts[0]) - self._ts >= _MAX_EXTEND:
            self.close_page()
        replaces = self._tail is not None
        self._lost = self._lost if replaces else lost
        parts: list[NDArray[np.uint64]] = []
        for start, stop, new_page in _parts(ts):
            if new_page:
                self.close_page()
            elif parts:
                parts[-1] = parts[-1][:-1]  # its open page is the first of this part
            parts.append(self._part(table[start:stop], payloads))
        return (np.concatenate(parts) if len(parts) > 1 else parts[0]), replaces

    def _part(self, table: NDArray[Any], payloads: Sequence[object]) -> NDArray[np.uint64]:
        ts = np.maximum.accumulate(table["ts"])
        if self._tail is not None:
            ts = np.maximum(ts, np.uint64(self._ts))
        bodies = {
            row: _body(table[row], payloads)
            for row in np.flatnonzero(~np.isin(table["type"], list(_LAYOUTS))).tolist()
        }
        data = _data_sizes(table["type"], bodies)
        size = data + 4 + 4 * (data > 4 * TYPE_LEN_MAX)
        delta = np.zeros(len(ts), np.uint64)
        delta[1:] = np.diff(ts)
        if self._tail is not None:
            delta[0] = ts[0] - np.uint64(self._ts)
        far = delta >= MAX_DELTA
        starts = self._page_starts(size + 8 * far)
        first = starts[1:] if self._tail is not None else starts
        first = first[first < len(table)]
        delta[first], far[first] = 0, False  # a page's own time is its first event's
        return self._write(table, bodies, data, size, delta, far, starts, ts)

    def _page_starts(self, size: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row each page begins at; the tail, if there is one, begins at 0."""
        end = np.cumsum(size)
        room = PAGE_SPACE - (self._fill if self._tail is not None else 0)
        if self._lost:
            room -= _COUNT
        starts = [0]
        at = int(np.searchsorted(end, room, side="right"))
        while at < len(size):
            starts.append(at)
            base = int(end[at - 1]) if at else 0
            # The first event has no time extend: more room than is used here, which does no harm.
            at = int(np.searchsorted(end, base + PAGE_SPACE, side="right"))
        return np.array(starts, np.int64)

    def _write(
        self,
        table: NDArray[Any],
        bodies: dict[int, bytes],
        data: NDArray[np.int64],
        size: NDArray[np.int64],
        delta: NDArray[np.uint64],
        far: NDArray[np.bool_],
        starts: NDArray[np.int64],
        ts: NDArray[np.uint64],
    ) -> NDArray[np.uint64]:
        words = np.zeros((len(starts), _WORDS), "<u4")
        fill = 0
        if self._tail is not None:
            words[0], fill = self._tail, self._fill
        counts = np.diff(np.append(starts, len(table)))
        page = np.repeat(np.arange(len(starts)), counts)
        whole = size + 8 * far
        ends = np.concatenate([[0], np.cumsum(whole)])
        offset = ends[:-1] - ends[starts][page] + np.where(page == 0, fill, 0)
        flat = words.reshape(-1)
        at = page * _WORDS + _HEADER_WORDS + offset // 4
        _write_headers(flat, at, data, delta, far)
        begin = at + 2 * far + (size - data) // 4
        _write_common(flat, begin, table)
        _write_fields(flat, begin, table)
        for row, body in bodies.items():
            here = int(begin[row]) * 4 + COMMON_SIZE
            flat.view("u1")[here : here + len(body)] = np.frombuffer(body, "u1")
        self._write_pages(words, starts, ends, fill, ts)
        return words.view("<u8")

    def _write_pages(
        self,
        words: NDArray[np.uint32],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        fill: int,
        ts: NDArray[np.uint64],
    ) -> None:
        """The headers of the pages, and what is to be remembered of the last."""
        pages = words.view("<u8")
        used = np.diff(np.append(ends[starts], ends[-1]))
        used[0] += fill
        opened = int(self._tail is not None)
        used_rows = starts[opened:]
        pages[opened:, 0] = ts[np.minimum(used_rows, len(ts) - 1)]
        pages[:, 1] = used
        tail = words[-1].copy()
        if self._lost:
            _tell_lost(pages[0], int(used[0]), self._lost)
        self._tail, self._fill, self._ts = tail, int(used[-1]), int(ts[-1])
        if len(words) > 1:
            self._lost = 0


def _parts(ts: NDArray[np.uint64]) -> list[tuple[int, int, bool]]:
    """Where to cut a table into parts, and if a part needs a page of its own.

    It does where more time has passed than a time extend can tell.
    """
    gaps = np.zeros(len(ts), np.bool_)
    gaps[1:] = (ts[1:] > ts[:-1]) & (ts[1:] - ts[:-1] >= _MAX_EXTEND)
    far = set(np.flatnonzero(gaps).tolist())
    cuts = sorted({*range(0, len(ts), _PART), *far})
    return list(zip(cuts, [*cuts[1:], len(ts)], [cut in far for cut in cuts], strict=True))


def _write_headers(
    flat: NDArray[np.uint32],
    at: NDArray[np.int64],
    data: NDArray[np.int64],
    delta: NDArray[np.uint64],
    far: NDArray[np.bool_],
) -> None:
    low = delta & np.uint64(MAX_DELTA - 1)
    extended = at[far]
    flat[extended] = (low[far] << np.uint64(5) | np.uint64(TIME_EXTEND)).astype(np.uint32)
    flat[extended + 1] = (delta[far] >> np.uint64(27)).astype(np.uint32)
    low[far] = 0
    here = at + 2 * far
    long = data > 4 * TYPE_LEN_MAX
    type_len = np.where(long, 0, data // 4).astype(np.uint64)
    flat[here] = (low << np.uint64(5) | type_len).astype(np.uint32)
    flat[here[long] + 1] = data[long] + 4


def _write_common(flat: NDArray[np.uint32], begin: NDArray[np.int64], table: NDArray[Any]) -> None:
    common = table["type"].astype(np.uint32)
    common |= table["flags"].astype(np.uint32) << np.uint32(16)
    common |= table["preempt"].astype(np.uint32) << np.uint32(24)
    flat[begin] = common
    flat[begin + 1] = table["pid"].astype(np.uint32)


def _write_fields(flat: NDArray[np.uint32], begin: NDArray[np.int64], table: NDArray[Any]) -> None:
    for kind, (_, longs, words) in _LAYOUTS.items():
        rows = np.flatnonzero(table["type"] == kind)
        if not len(rows):
            continue
        here = begin[rows]
        for name, offset in longs:
            value = table[name][rows]
            flat[here + offset] = value.astype(np.uint32)
            flat[here + (offset + 1)] = (value >> np.uint64(32)).astype(np.uint32)
        for name, offset in words:
            flat[here + offset] = table[name][rows].astype(np.uint32)


def _data_sizes(kinds: NDArray[np.uint16], bodies: dict[int, bytes]) -> NDArray[np.int64]:
    by_kind = np.zeros(1 << 16, np.int64)
    for kind, (size, _, _) in _LAYOUTS.items():
        by_kind[kind] = size
    sizes: NDArray[np.int64] = by_kind[kinds]
    for row, body in bodies.items():
        sizes[row] = COMMON_SIZE + -(-len(body) // 4) * 4
    return sizes


def _body(row: Any, payloads: Sequence[object]) -> bytes:
    """What follows the common fields of an event with a payload."""
    index = int(row["payload"])
    payload = payloads[index] if index >= 0 else None
    if isinstance(payload, str):
        text = payload.encode("utf-8", "replace")[: _MAX_DATA - COMMON_SIZE - 8 - 8]
        return struct.pack("<Q", int(row["ip"])) + text + b"\n\0"
    if isinstance(payload, tuple):
        callers = payload[: (_MAX_DATA - COMMON_SIZE - 8) // 8]
        return struct.pack(f"<iI{len(callers)}Q", len(callers), 0, *callers)
    return payload[: _MAX_DATA - COMMON_SIZE] if isinstance(payload, bytes) else b""
