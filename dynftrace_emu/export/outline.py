"""A first look through a trace: its lanes, and what had been called before each part of it began.

An exit tells when its function was entered, also where the entry is not in the trace. So calls can
be shown from their beginning, or from that of the trace, if it is known early enough which they
are: this is what the first look is for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dynftrace_emu.export.lanes import Lane, graph_rows, lane_keys, make_lanes, rows_by_lane
from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dynftrace_emu.export.trace_source import TraceSource

__all__ = ["Enclosing", "Gaps", "Outline", "Segment", "outline"]

_DEEPEST = 1 << 31


class Enclosing(NamedTuple):
    """A call whose entry is not in the trace, or not where it was looked for."""

    depth: int
    ip: int
    calltime: int


@dataclass(slots=True)
class Segment:
    """What a lane did between two losses of its CPU's events."""

    first_ts: int
    lowest: int = _DEEPEST  # the smallest depth of an event
    enclosing: list[Enclosing] = field(default_factory=list)  # innermost first


class Gaps(dict[int, int]):
    """How often each CPU has lost events so far."""

    def __missing__(self, cpu: int) -> int:
        return 0

    def note(self, lost: Mapping[int, int]) -> None:
        """Count what comes with a batch."""
        for cpu, count in lost.items():
            if count:
                self[cpu] += 1


@dataclass(slots=True)
class Outline:
    """The whole trace, from afar. ``ns``: its clock is the one of calltime."""

    ns: bool
    lanes: dict[int, Lane] = field(default_factory=dict)  # by key
    segments: dict[tuple[int, int], Segment] = field(default_factory=dict)  # by key and gap
    first_ts: int = 0
    last_ts: int = 0
    calls: int = 0  # FUNCTION events
    graph: int = 0  # GRAPH_ENTRY and GRAPH_EXIT


def outline(source: TraceSource) -> Outline:
    """Look at all of it, once."""
    found = Outline(ns=source.info.clock != "counter")
    keys: set[int] = set()
    gaps = Gaps()
    started = False
    for events, lost in source.batches():
        gaps.note(lost)
        table = events.table
        if not len(table):
            continue
        if not started:
            found.first_ts, started = int(table["ts"][0]), True
        found.last_ts = max(found.last_ts, int(table["ts"].max()))
        _look(found, table, gaps, keys)
    found.lanes = make_lanes(keys)
    return found


def _look(found: Outline, table: NDArray[Any], gaps: Gaps, keys: set[int]) -> None:
    all_keys = lane_keys(table)
    keys.update(np.unique(all_keys).tolist())
    found.calls += int((table["type"] == EventId.FUNCTION).sum())
    rows = graph_rows(table)
    found.graph += len(rows)
    if not len(rows):
        return
    lane_of = all_keys[rows]
    order, begins = rows_by_lane(lane_of)
    for part in np.split(rows[order], begins[1:]):
        first = part[0]
        name = int(all_keys[first]), gaps[int(table["cpu"][first])]
        segment = found.segments.get(name)
        if segment is None:
            segment = found.segments[name] = Segment(int(table["ts"][first]))
        _enclosing(segment, table, part, ns=found.ns)


def _enclosing(segment: Segment, table: NDArray[Any], part: NDArray[np.intp], *, ns: bool) -> None:
    """Exits that come out of calls deeper than all before: nobody saw them being entered."""
    depth = table["depth"][part]
    lowest = np.minimum.accumulate(np.append(segment.lowest, depth.astype(np.int64)))
    outer = (depth < lowest[:-1]) & (table["type"][part] == EventId.GRAPH_EXIT)
    segment.lowest = int(lowest[-1])
    for row in part[outer].tolist():
        calltime = int(table["calltime"][row])
        if not ns or calltime <= segment.first_ts:
            call = Enclosing(int(table["depth"][row]), int(table["ip"][row]), calltime)
            segment.enclosing.append(call)
