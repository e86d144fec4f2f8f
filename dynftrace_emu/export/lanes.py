"""Lanes: where calls nest. A task has one on each CPU it ran on, and the NMIs of a CPU have one.

Pid 0 is another idle task on each CPU, so a pid alone does not name a task. Interrupts run on top
of the task they came upon. NMIs have a shadow stack of their own, and so depths of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.ftrace.trace_events import TraceFlag
from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from dynftrace_emu.export.trace_source import TraceInfo

__all__ = ["Lane", "graph_rows", "lane_keys", "make_lanes", "rows_by_lane"]

_CPU_SHIFT, _NMI_SHIFT, _PID_MASK = 33, 32, (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Lane:
    """One of them. ``tid`` is its number where each needs one of its own: the pid if it can be."""

    index: int
    cpu: int
    pid: int
    nmi: bool
    tid: int

    def name(self, info: TraceInfo) -> str:
        """How people would call it."""
        return "NMI" if self.nmi else f"{info.comm(self.pid)}-{self.pid}"


def lane_keys(table: NDArray[Any]) -> NDArray[np.int64]:
    """A number for the lane of each event."""
    keys = table["cpu"].astype(np.int64) << _CPU_SHIFT | table["pid"].astype(np.int64) & _PID_MASK
    nmi = table["flags"] & np.uint8(TraceFlag.NMI) != 0
    keys[nmi] = keys[nmi] & ~np.int64(_PID_MASK) | np.int64(1 << _NMI_SHIFT)
    return keys


def make_lanes(keys: Iterable[int]) -> dict[int, Lane]:
    """The lanes with these keys, ordered by CPU and pid."""
    parts = [(key >> _CPU_SHIFT, key & _PID_MASK, key) for key in sorted(keys)]
    free = 10 ** len(str(max([pid for _, pid, _ in parts], default=0)))
    lanes: dict[int, Lane] = {}
    taken: set[int] = set()
    for index, (cpu, pid, key) in enumerate(parts):
        nmi = bool(key >> _NMI_SHIFT & 1)
        if nmi or not pid or pid in taken:
            tid, free = free, free + 1
        else:
            tid = pid
        taken.add(tid)
        lanes[key] = Lane(index, cpu, pid, nmi, tid)
    return lanes


def graph_rows(table: NDArray[Any]) -> NDArray[np.intp]:
    """Which events are entries to functions and exits from them."""
    kinds = table["type"]
    return np.flatnonzero((kinds == EventId.GRAPH_ENTRY) | (kinds == EventId.GRAPH_EXIT))


def rows_by_lane(keys: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows in an order that keeps each lane's together, and where in it each lane begins."""
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    begins = np.ones(len(keys), np.bool_)
    begins[1:] = in_order[1:] != in_order[:-1]
    return order, np.flatnonzero(begins)
