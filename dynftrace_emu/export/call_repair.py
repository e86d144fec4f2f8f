"""The calls that are open in a lane, and what to make of events that do not fit them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.export.lanes import Lane
    from dynftrace_emu.export.outline import Segment
    from dynftrace_emu.export.text_batch import Row

__all__ = ["CALL", "CallRow", "Frame", "LaneState"]

CALL = np.dtype(
    [
        ("ts", "<u8"),
        ("ns", "<u8"),  # of an end: how long the call took
        ("ip", "<u8"),
        ("lane", "<u4"),
        ("level", "<u4"),  # calls of its lane that are open around it
        ("begin", "?"),
        ("made", "?"),  # no event says so: it follows from others
    ]
)
"""A call begins or ends. In each lane they nest, and their times ascend."""


class CallRow(NamedTuple):
    """One CALL."""

    ts: int
    ns: int
    ip: int
    lane: int
    level: int
    begin: bool
    made: bool


class Frame(NamedTuple):
    """An open call, at the depth that the tracer gave it."""

    depth: int
    ip: int
    calltime: int


@dataclass(slots=True)
class LaneState:
    """How far a lane has come.

    ``level``: the depth the next entry should have. ``frames``: outermost first; the trace may not
    know all calls that are open, so depths can be missing. ``segment``: the loss they belong to.
    """

    lane: Lane
    ns: bool  # the clock is the one of calltime
    frames: list[Frame] = field(default_factory=list)
    level: int = 0
    last_ts: int = 0
    segment: int = -1

    @property
    def missing(self) -> int:
        """Open calls that nobody knows."""
        return self.level - len(self.frames)

    def frame(self, depth: int) -> Frame | None:
        """The open call at a depth."""
        return next((frame for frame in reversed(self.frames) if frame.depth == depth), None)

    def begin_segment(self, number: int, segment: Segment, first: Row) -> Iterator[CallRow]:
        """Close what cannot be open any more at the event ``first``, and open what must be."""
        self.segment = number
        self.level = first.depth + (first.type == EventId.GRAPH_EXIT)
        keep = 0
        while keep < len(self.frames) and self.frames[keep].depth < segment.lowest:
            keep += 1
        calls = list(reversed(segment.enclosing))
        while calls and keep < len(self.frames) and self._is(self.frames[keep], Frame(*calls[0])):
            calls.pop(0)
            keep += 1
        yield from self._close(keep, self.last_ts)
        for call in calls:
            self.last_ts = max(call.calltime, self.last_ts) if self.ns else first.ts
            yield self._open(Frame(*call), self.last_ts, made=True)

    def _is(self, frame: Frame, call: Frame) -> bool:
        """Whether the call that was found to enclose a segment is one that was open before."""
        same = frame[:2] == call[:2]
        return same and (not self.ns or call.calltime <= self.last_ts)

    def step(self, row: Row) -> Iterator[CallRow]:
        """Take an event, whatever has been missed before it."""
        depth, ip, ts = row.depth, row.ip, row.ts
        if row.type == EventId.GRAPH_ENTRY:
            yield from self._close_from(depth)
            yield self._open(Frame(depth, ip, ts), ts)
            self.level = depth + 1
        else:
            yield from self._exit(row)
            self.level = depth
        self.last_ts = ts

    def _exit(self, row: Row) -> Iterator[CallRow]:
        depth, ip, ts, calltime = row.depth, row.ip, row.ts, row.calltime
        took = max(row.rettime - calltime, 0)
        found = self.frame(depth)
        known = found is not None and found.ip == ip
        yield from self._close_from(depth + known)
        if not known:
            begin = max(self.last_ts, min(calltime, ts)) if self.ns else ts
            yield self._open(Frame(depth, ip, calltime), begin, made=True)
        self.frames.pop()
        yield CallRow(ts, took, ip, self.lane.index, len(self.frames), begin=False, made=False)

    def finish(self, ts: int) -> Iterator[CallRow]:
        """The trace ends."""
        yield from self._close(0, ts)

    def _close_from(self, depth: int) -> Iterator[CallRow]:
        keep = len(self.frames)
        while keep and self.frames[keep - 1].depth >= depth:
            keep -= 1
        yield from self._close(keep, self.last_ts)

    def _close(self, keep: int, ts: int) -> Iterator[CallRow]:
        while len(self.frames) > keep:
            frame = self.frames.pop()
            took = max(ts - frame.calltime, 0) if self.ns else 0
            level = len(self.frames)
            yield CallRow(ts, took, frame.ip, self.lane.index, level, begin=False, made=True)

    def _open(self, frame: Frame, ts: int, *, made: bool = False) -> CallRow:
        self.frames.append(frame)
        level = len(self.frames) - 1
        return CallRow(ts, 0, frame.ip, self.lane.index, level, begin=True, made=made)
