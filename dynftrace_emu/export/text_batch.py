"""Events together with what lies ahead of them, wherever the stream is cut into batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dynftrace_emu.ftrace.trace_events import EVENT, Events
from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["LOST_UNKNOWN", "Batch", "Lookahead", "Row"]

LOST_UNKNOWN = -1
"""Events were lost, nobody knows how many."""

_HELD_AT_MOST = 1 << 16
"""So many events wait for a CPU to come up with its next one; then they go as they are."""


class Row(NamedTuple):
    """One event, its fields in the order of EVENT."""

    ts: int
    number: int
    cpu: int
    type: int
    flags: int
    preempt: int
    pid: int
    ip: int
    parent_ip: int
    depth: int
    calltime: int
    rettime: int
    payload: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Events to print now; a function's exit that goes on the line of its entry is left out."""

    table: NDArray[Any]  # dtype EVENT
    payloads: tuple[object, ...]
    lost: NDArray[np.int64]  # events of its CPU lost just before it, or LOST_UNKNOWN
    next_ts: NDArray[np.uint64]  # time of the event behind it, on any CPU
    leaf: NDArray[np.bool_]  # function_graph: its exit follows at once
    duration: NDArray[np.uint64]  # ... so much later

    def __len__(self) -> int:
        return len(self.table)

    def part(self, start: int, stop: int) -> Batch:
        """The events from ``start`` to ``stop``."""
        rows = slice(start, stop)
        return Batch(
            self.table[rows],
            self.payloads,
            self.lost[rows],
            self.next_ts[rows],
            self.leaf[rows],
            self.duration[rows],
        )

    def rows(self, indexes: NDArray[np.intp]) -> Iterator[Row]:
        """These of the events, as plain numbers."""
        return map(Row._make, self.table[indexes].tolist())

    def payload(self, row: Row) -> object:
        """What does not fit the fields of ``row``."""
        return self.payloads[row.payload] if row.payload >= 0 else None


class Lookahead:
    """Holds events back until it is known what follows them.

    An entry waits for the next event of its CPU, and everything after the entry waits with it,
    so that the lines do not depend on how the stream was cut.
    """

    def __init__(self, *, next_ts: bool) -> None:
        self._next_ts = next_ts  # every event waits for the one behind it
        self._held = Events(np.zeros(0, EVENT))
        self._held_lost = np.zeros(0, np.int64)
        self._lost: Counter[int] = Counter()  # by CPU, of CPUs without an event since

    def take(self, events: Events, lost: Mapping[int, int], *, last: bool) -> Batch:
        """The events that can go now: all of them if these are the ``last``."""
        lost_before = np.concatenate([self._held_lost, self._place_lost(events, lost)])
        events = _joined(self._held, events)
        follow = _next_on_cpu(events.table["cpu"])
        exits = _leaf_exits(events.table, follow, lost_before)
        cut = len(events) if last else self._cut(events.table, follow)
        now = exits[:cut] >= 0
        folded = np.zeros(len(events), np.bool_)
        folded[exits[:cut][now]] = True
        self._hold(events, lost_before, np.flatnonzero(~folded[cut:]) + cut)
        duration = np.zeros(cut, np.uint64)
        leaves = events.table[exits[:cut][now]]
        duration[now] = leaves["rettime"] - leaves["calltime"]
        ts = events.table["ts"]
        keep = np.flatnonzero(~folded[:cut])
        return Batch(
            events.table[keep],
            events.payloads,
            lost_before[keep],
            np.append(ts[1:], ts[-1:])[keep],
            now[keep],
            duration[keep],
        )

    def _place_lost(self, events: Events, lost: Mapping[int, int]) -> NDArray[np.int64]:
        """What was lost before each event: only a CPU's first one here can have a gap before it."""
        for cpu, count in lost.items():
            unknown = LOST_UNKNOWN in (count, self._lost[cpu])
            self._lost[cpu] = LOST_UNKNOWN if unknown else self._lost[cpu] + count
        before = np.zeros(len(events), np.int64)
        for cpu in [cpu for cpu, count in self._lost.items() if count]:
            rows = np.flatnonzero(events.table["cpu"] == cpu)
            if len(rows):
                before[rows[0]] = self._lost.pop(cpu)
        return before

    def _cut(self, table: NDArray[Any], follow: NDArray[np.int64]) -> int:
        """Number of events that need not wait for those to come."""
        ready = max(len(table) - 1, 0) if self._next_ts else len(table)
        waiting = np.flatnonzero((table["type"] == EventId.GRAPH_ENTRY) & (follow < 0))
        if len(waiting) and len(table) - waiting[0] <= _HELD_AT_MOST:
            ready = min(ready, int(waiting[0]))
        return ready

    def _hold(self, events: Events, lost: NDArray[np.int64], rows: NDArray[np.intp]) -> None:
        table = events.table[rows]
        with_payload = np.flatnonzero(table["payload"] >= 0)
        payloads = tuple(events.payloads[index] for index in table["payload"][with_payload])
        table["payload"][with_payload] = np.arange(len(payloads))
        self._held = Events(table, payloads)
        self._held_lost = lost[rows]


def _joined(held: Events, events: Events) -> Events:
    if not len(held):
        return events
    table = events.table.copy()
    table["payload"][table["payload"] >= 0] += len(held.payloads)
    return Events(np.concatenate([held.table, table]), held.payloads + events.payloads)


def _next_on_cpu(cpu: NDArray[np.uint16]) -> NDArray[np.int64]:
    """For each row, the next one of the same CPU; -1 where there is none."""
    follow = np.full(len(cpu), -1, np.int64)
    order = np.argsort(cpu, kind="stable")
    same = cpu[order[1:]] == cpu[order[:-1]]
    follow[order[:-1][same]] = order[1:][same]
    return follow


def _leaf_exits(
    table: NDArray[Any], follow: NDArray[np.int64], lost: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each entry that its exit follows at once, the exit's row (``get_return_for_leaf``).

    -1 for all others, also where events were lost in between: Linux would not look at that.
    """
    exits = np.full(len(table), -1, np.int64)
    entries = np.flatnonzero((table["type"] == EventId.GRAPH_ENTRY) & (follow >= 0))
    entry, after = table[entries], table[follow[entries]]
    leaf = (
        (after["type"] == EventId.GRAPH_EXIT)
        & (after["pid"] == entry["pid"])
        & (after["ip"] == entry["ip"])
        & (lost[follow[entries]] == 0)
    )
    exits[entries[leaf]] = follow[entries[leaf]]
    return exits
