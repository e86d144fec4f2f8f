"""Merges the events of several CPUs into time order, without having them all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.export.trace_dat_pack import add_lost
from dynftrace_emu.ftrace.ring_buffer import merge
from dynftrace_emu.ftrace.trace_events import EVENT, Events

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["merge_streams"]


def merge_streams(
    streams: list[Iterator[tuple[Events, int]]],
) -> Iterator[tuple[Events, Mapping[int, int]]]:
    """Parts in time order; where times are equal, in the order of the streams.

    Each stream gives parts of one CPU's events with what was lost before the first of each.
    """
    heads = [_Head(stream) for stream in streams]
    while _fill(heads):
        live = [(head.last, index) for index, head in enumerate(heads) if head.events]
        horizon, until = min(live)
        yield merge([head.take(horizon, equal=at <= until) for at, head in enumerate(heads)])


def _fill(heads: list[_Head]) -> bool:
    """Let every one have events that still can; False: none can."""
    return sum(head.fill() for head in heads) > 0


class _Head:
    """The next events of a stream."""

    def __init__(self, stream: Iterator[tuple[Events, int]]) -> None:
        self._stream = stream
        self.events: Events | None = None
        self._lost = 0
        self.last = 0  # the greatest time in ``events``

    def fill(self) -> bool:
        """Have events, unless the stream is at its end."""
        while self.events is None:
            events, lost = next(self._stream, (None, 0))
            if events is None:
                return False
            self._lost = add_lost(self._lost, lost)
            if len(events):
                self.events, self.last = events, int(events.table["ts"].max())
        return True

    def take(self, horizon: int, *, equal: bool) -> tuple[Events, int]:
        """The events up to ``horizon``, those at that very time only if ``equal``."""
        if self.events is None:
            return Events(np.zeros(0, EVENT)), 0
        ts = self.events.table["ts"]
        now = ts <= horizon if equal else ts < horizon
        taken, self.events = _select(self.events, now), _select(self.events, ~now)
        if not len(self.events):
            self.events = None
        lost, self._lost = (self._lost, 0) if len(taken) else (0, self._lost)
        return taken, lost


def _select(events: Events, chosen: NDArray[np.bool_]) -> Events:
    """Some of the events, with no payloads but their own."""
    table = events.table[chosen]
    rows = np.flatnonzero(table["payload"] >= 0)
    payloads = tuple(events.payloads[index] for index in table["payload"][rows].tolist())
    table["payload"][rows] = np.arange(len(rows))
    return Events(table, payloads)
