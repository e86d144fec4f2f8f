"""Decodes ring buffer pages in bulk: all take a step at a time, so 170 steps do for any number.

The layout is Linux's (include/linux/ring_buffer.h): a word of ``type_len:5, time_delta:27``, then
data. ``type_len`` 0: the next word is the length, itself included; 29 padding, 30 time extend, 31
time stamp; else the data's length in words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.ftrace.trace_events import EVENT
from dynftrace_emu.kernel.structs import BUFFER_PAGE, PAGE_SIZE, EventId

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["bytes_before", "decode_pages"]

_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_WORDS = PAGE_SIZE // 4
_ULONG_MAX = 0xFFFF_FFFF_FFFF_FFFF
# Where the fields of each kind of event are, in words from its data (formats of events/ftrace/*).
_IP, _PARENT_IP, _DEPTH, _CALLTIME, _RETTIME = 2, 4, 4, 6, 8
_STACK_CALLERS, _PRINT_TEXT, _RAW_ID = 4, 4, 2


def decode_pages(
    raw: NDArray[np.uint8], commit: NDArray[np.int64], first: NDArray[np.int64]
) -> tuple[NDArray[Any], list[object], NDArray[np.int64]]:
    """Decode pages, oldest first.

    :param raw: their bytes, shape (n, 4096).
    :param commit: bytes of events in each.
    :param first: events written before each.
    :returns: a table of dtype EVENT, payloads, and the index of each event's page.
    """
    words = np.ascontiguousarray(raw).view("<u4").reshape(-1)
    page, at, words_long, ts = _walk(words, raw, commit)
    table = np.zeros(len(at), dtype=EVENT)
    counts = np.bincount(page, minlength=len(commit))
    starts = np.cumsum(counts) - counts
    table["number"] = first[page] + np.arange(len(at)) - starts[page]
    table["ts"], table["payload"] = ts, -1
    _decode_common(table, words, at)
    return table, _decode_bodies(table, words, at, words_long), page


def bytes_before(page: NDArray[np.uint8], count: int) -> int:
    """How many bytes of a page's data the first ``count`` events take, with what is before each."""
    words = page.view("<u4")[BUFFER_PAGE.size // 4 :].tolist()
    at = 0
    while count:
        kind = words[at] & 31
        if kind in (_TIME_EXTEND, _TIME_STAMP):
            at += 2
            continue
        at += words[at + 1] // 4 + 1 if kind == 0 else kind + 1
        count -= 1
    return at * 4


def _walk(
    words: NDArray[np.uint32], raw: NDArray[np.uint8], commit: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Of each event: its page, where its data begins and how long it is (in words), its time."""
    nothing = np.zeros(0, dtype=np.int64)
    if not len(commit):
        return nothing, nothing, nothing, nothing.astype(np.uint64)
    header = BUFFER_PAGE.size // 4
    pages = np.arange(len(commit), dtype=np.int64)
    base = pages * _WORDS + header
    end = base + commit // 4
    ts = np.ascontiguousarray(raw).view("<u8").reshape(len(commit), -1)[:, 0].copy()
    at = base.copy()
    steps = []
    while len(pages := pages[at[pages] < end[pages]]):
        here = at[pages]
        word = words[here]
        kind, delta = word & np.uint32(31), (word >> np.uint32(5)).astype(np.uint64)
        extend, zero = kind == _TIME_EXTEND, kind == 0
        following = words[np.minimum(here + 1, len(words) - 1)]
        delta[extend] += following[extend].astype(np.uint64) << np.uint64(27)
        ts[pages] += delta
        size = kind.astype(np.int64) + 1
        size[extend | (kind == _TIME_STAMP)] = 2
        size[zero] = following[zero].astype(np.int64) // 4 + 1
        size[kind == _PADDING] = _WORDS
        at[pages] = here + size
        event = kind < _PADDING
        begin = here + 1 + zero
        steps.append((pages[event], begin[event], (here + size - begin)[event], ts[pages][event]))
    if not steps:
        return nothing, nothing, nothing, nothing.astype(np.uint64)
    page, begin, long, times = (np.concatenate(column) for column in zip(*steps, strict=True))
    order = np.argsort(page, kind="stable")
    return page[order], begin[order], long[order], times[order]


def _decode_common(table: NDArray[Any], words: NDArray[np.uint32], at: NDArray[np.int64]) -> None:
    common = words[at]
    table["type"] = common & np.uint32(0xFFFF)
    table["flags"] = common >> np.uint32(16) & np.uint32(0xFF)
    table["preempt"] = common >> np.uint32(24)
    table["pid"] = words[at + 1].view("<i4")


def _decode_bodies(
    table: NDArray[Any],
    words: NDArray[np.uint32],
    at: NDArray[np.int64],
    words_long: NDArray[np.int64],
) -> list[object]:
    kind = table["type"]
    for event, fields in (
        (EventId.FUNCTION, (("ip", _IP), ("parent_ip", _PARENT_IP))),
        (EventId.GRAPH_ENTRY, (("ip", _IP),)),
        (EventId.GRAPH_EXIT, (("ip", _IP), ("calltime", _CALLTIME), ("rettime", _RETTIME))),
    ):
        rows = np.flatnonzero(kind == event)
        for name, offset in fields:
            table[name][rows] = _u64(words, at[rows] + offset)
        if event != EventId.FUNCTION:
            table["depth"][rows] = words[at[rows] + _DEPTH].view("<i4")
    payloads: list[object] = []
    for row in np.flatnonzero(_has_payload(kind)).tolist():
        begin, long = int(at[row]), int(words_long[row])
        table["payload"][row] = len(payloads)
        payloads.append(_payload(int(kind[row]), words[begin : begin + long]))
    return payloads


def _has_payload(kind: NDArray[np.uint16]) -> NDArray[np.bool_]:
    return np.isin(kind, (EventId.KERNEL_STACK, EventId.PRINT, EventId.RAW_DATA))


def _payload(kind: int, data: NDArray[np.uint32]) -> object:
    if kind == EventId.KERNEL_STACK:
        callers = data[_STACK_CALLERS:].tobytes()
        found = np.frombuffer(callers[: len(callers) // 8 * 8], "<u8").tolist()
        return tuple(found[: found.index(_ULONG_MAX)] if _ULONG_MAX in found else found)
    if kind == EventId.PRINT:
        text = data[_PRINT_TEXT:].tobytes().split(b"\0", 1)[0].decode("utf-8", "replace")
        return text.removesuffix("\n")
    return data[_RAW_ID:].tobytes()


def _u64(words: NDArray[np.uint32], at: NDArray[np.int64]) -> NDArray[np.uint64]:
    return words[at].astype(np.uint64) | words[at + 1].astype(np.uint64) << np.uint64(32)
