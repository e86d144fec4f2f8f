"""Entries and exits of function_graph as calls that nest, whatever is missing of them.

What fits together, which is nearly everything, is checked and passed on in bulk. A lane in which
something does not fit is taken event by event (:mod:`.call_repair`), for a part of the trace.

- An exit whose entry is not there: the call begins when the exit says, but not before what is
  known to have come before it.
- An entry whose exit is not there: the call ends with the last event of its lane before the next
  one that contradicts it, or with the trace.
- Lost events: a call that was open before goes on if an exit says so, or if nothing shallower is
  heard of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.export.call_repair import CALL, CallRow, Frame, LaneState
from dynftrace_emu.export.lanes import Lane, graph_rows, lane_keys, rows_by_lane
from dynftrace_emu.export.outline import Gaps, Outline, outline
from dynftrace_emu.export.text_batch import Row
from dynftrace_emu.ftrace.trace_events import EVENT, Events
from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from dynftrace_emu.export.trace_source import TraceSource

__all__ = ["CALL", "CallBatch", "Calls"]

_PART = 1 << 12
"""So many events are dealt with at a time: one that does not fit slows down no more than these."""

_RADIX_SORTED = 1 << 16  # NumPy sorts numbers of 16 bits in linear time


@dataclass(frozen=True, slots=True)
class CallBatch:
    """``calls`` (dtype CALL), in order; ``others`` are the events that are no such thing."""

    calls: NDArray[Any]
    others: Events
    other_lanes: NDArray[np.int64]


class Calls:
    """The calls of a trace. It is read twice: when this is made, and by each iteration."""

    def __init__(self, source: TraceSource) -> None:
        self.source = source
        self.outline: Outline = outline(source)
        self.lanes: list[Lane] = sorted(self.outline.lanes.values(), key=lambda lane: lane.index)
        self._keys = np.array(sorted(self.outline.lanes), np.int64)

    def __iter__(self) -> Iterator[CallBatch]:
        states = [LaneState(lane, self.outline.ns) for lane in self.lanes]
        gaps = Gaps()
        for events, lost in self.source.batches():
            gaps.note(lost)
            for start in range(0, len(events), _PART):
                part = Events(events.table[start : start + _PART], events.payloads)
                yield self._batch(part, states, gaps)
        ends = [row for state in states for row in state.finish(self.outline.last_ts)]
        yield CallBatch(_table(ends), Events(np.zeros(0, EVENT)), np.zeros(0, np.int64))

    def _batch(self, events: Events, states: list[LaneState], gaps: Mapping[int, int]) -> CallBatch:
        table = events.table
        lanes = np.searchsorted(self._keys, lane_keys(table))
        rows = graph_rows(table)
        if len(rows) == len(table):
            graph, others, other = table, table[:0], lanes[:0]
        else:
            rest = np.ones(len(table), np.bool_)
            rest[rows] = False
            graph, others, other = table[rows], table[rest], lanes[rest]
            lanes = lanes[rows]
        calls = _Nesting(graph, lanes, states).calls(self._segments(gaps, states))
        return CallBatch(calls, Events(others, events.payloads), other)

    def _segments(self, gaps: Mapping[int, int], states: list[LaneState]) -> _Segments:
        return _Segments(self.outline, self._keys, gaps, states)


@dataclass(frozen=True, slots=True)
class _Segments:
    """Which segments the lanes are in now."""

    outline: Outline
    keys: NDArray[np.int64]
    gaps: Mapping[int, int]
    states: list[LaneState]

    def begin(self, lane: int, first: Row) -> Iterator[CallRow]:
        """What happens in a lane if ``first`` is the first event of a segment."""
        state = self.states[lane]
        gap = self.gaps[state.lane.cpu]
        if state.segment != gap:
            segment = self.outline.segments[int(self.keys[lane]), gap]
            yield from state.begin_segment(gap, segment, first)


class _Nesting:
    """The entries and exits of one batch, and their lanes."""

    def __init__(
        self, table: NDArray[Any], lanes: NDArray[np.int64], states: list[LaneState]
    ) -> None:
        self._table, self._lanes, self._states = table, lanes, states
        self._entry = table["type"] == EventId.GRAPH_ENTRY
        self._depth = table["depth"].astype(np.int64)
        self._made: list[CallRow] = []
        self._made_at: list[int] = []  # row of the event that each goes before

    def calls(self, segments: _Segments) -> NDArray[Any]:
        """All of them; the lanes move on."""
        if not len(self._table):
            return np.zeros(0, CALL)
        order, begins = rows_by_lane(_sortable(self._lanes))
        for row, first in self._rows(order[begins]):
            for made in segments.begin(int(self._lanes[row]), first):
                self._make(row, made)
        missing = np.array([state.missing for state in self._states], np.int64)
        bad = self._level_breaks(order, begins)
        bad |= self._pair(bad)
        for lane in np.flatnonzero(bad).tolist():
            self._repair(lane, np.flatnonzero(self._lanes == lane))
        self._move_on(order, begins, bad)
        good = np.flatnonzero(~bad[self._lanes])
        return self._merge(good, self._passed(good, missing))

    def _rows(self, rows: NDArray[np.intp]) -> Iterator[tuple[int, Row]]:
        return zip(rows.tolist(), map(Row._make, self._table[rows].tolist()), strict=True)

    def _make(self, row: int, made: CallRow) -> None:
        self._made.append(made)
        self._made_at.append(row)

    def _level_breaks(self, order: NDArray[np.intp], begins: NDArray[np.intp]) -> NDArray[np.bool_]:
        """The lanes in which an event has another depth than the one before lets expect."""
        depth, entry = self._depth[order], self._entry[order]
        lanes = self._lanes[order]
        expected = np.empty(len(order), np.int64)
        expected[1:] = (depth + entry)[:-1]
        expected[begins] = [self._states[lane].level for lane in lanes[begins].tolist()]
        bad = np.zeros(len(self._states), np.bool_)
        bad[lanes[depth + ~entry != expected]] = True
        return bad

    def _pair(self, bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The lanes in which an exit is not from the function that was entered.

        For the others, close and open what this batch leaves closed and open.
        """
        deepest = int(self._depth.max()) + 1
        order, begins = rows_by_lane(_sortable(self._lanes * deepest + self._depth))
        entry, ip = self._entry[order], self._table["ip"][order]
        wrong = ~entry
        wrong[1:] &= ip[1:] != ip[:-1]
        wrong[begins] = False
        found = np.zeros_like(bad)
        found[self._lanes[order[wrong]]] = True
        leaving = order[begins[~entry[begins]]]
        for row in leaving.tolist():
            lane = int(self._lanes[row])
            frame = self._states[lane].frame(int(self._depth[row]))
            found[lane] |= frame is None or frame.ip != int(self._table["ip"][row])
        ends = np.append(begins[1:], len(order)) - 1
        self._update(leaving, order[ends[entry[ends]]], bad | found)
        return found

    def _update(
        self, leaving: NDArray[np.intp], staying: NDArray[np.intp], bad: NDArray[np.bool_]
    ) -> None:
        for row in leaving[~bad[self._lanes[leaving]]].tolist():
            state, depth = self._states[self._lanes[row]], int(self._depth[row])
            state.frames = [frame for frame in state.frames if frame.depth < depth]
        for row in staying[~bad[self._lanes[staying]]].tolist():
            ip, ts = int(self._table["ip"][row]), int(self._table["ts"][row])
            frame = Frame(int(self._depth[row]), ip, ts)
            self._states[self._lanes[row]].frames.append(frame)

    def _repair(self, lane: int, rows: NDArray[np.intp]) -> None:
        state = self._states[lane]
        for row, event in self._rows(rows):
            for made in state.step(event):
                self._make(row, made)

    def _move_on(
        self, order: NDArray[np.intp], begins: NDArray[np.intp], bad: NDArray[np.bool_]
    ) -> None:
        last = order[np.append(begins[1:], len(order)) - 1]
        for row in last[~bad[self._lanes[last]]].tolist():
            state = self._states[self._lanes[row]]
            state.level = int(self._depth[row]) + bool(self._entry[row])
            state.last_ts = int(self._table["ts"][row])

    def _passed(self, rows: NDArray[np.intp], missing: NDArray[np.int64]) -> NDArray[Any]:
        """Events that are calls as they stand."""
        calls = np.zeros(len(rows), CALL)
        events = self._table[rows]
        calls["ts"], calls["ip"], calls["lane"] = events["ts"], events["ip"], self._lanes[rows]
        calls["level"] = self._depth[rows] - missing[calls["lane"]]
        calls["begin"] = self._entry[rows]
        took = events["rettime"].astype(np.int64) - events["calltime"].astype(np.int64)
        calls["ns"] = np.where(calls["begin"], 0, np.maximum(took, 0))
        return calls

    def _merge(self, rows: NDArray[np.intp], passed: NDArray[Any]) -> NDArray[Any]:
        """What was made stands in front of the event that it was made for."""
        if not self._made:
            return passed
        at = np.concatenate([np.array(self._made_at, np.int64) * 2, rows * 2 + 1])
        both = np.concatenate([_table(self._made), passed])
        return both[np.argsort(at, kind="stable")]


def _table(rows: list[CallRow]) -> NDArray[Any]:
    return np.array(list(map(tuple, rows)), CALL)


def _sortable(keys: NDArray[np.int64]) -> NDArray[Any]:
    """The same numbers, in a type that is quick to sort."""
    if int(keys.min()) >= 0 and int(keys.max()) < _RADIX_SORTED:
        return keys.astype(np.uint16)
    return keys
