"""A whole trace as ftrace text: what ``report`` shows and ``convert`` writes to a .txt."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.export.text import DEFAULT_OPTIONS, TextStyle, TraceText, header
from dynftrace_emu.ftrace.trace_events import EVENT, Events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dynftrace_emu.export.text import Places
    from dynftrace_emu.export.trace_source import HostEvent, TraceInfo, TraceSource

__all__ = ["InfoNames", "text_lines", "write_text"]

_LINES_AT_ONCE = 1 << 13
_NAMED = 4


class InfoNames:
    """The names a trace carries (:class:`~.text.Names`)."""

    def __init__(self, info: TraceInfo) -> None:
        self._info = info

    def function(self, address: int) -> tuple[str, int, int] | None:
        """Name, offset and size of the function an address is in."""
        return self._info.symbols.find(address)

    def comm(self, pid: int) -> str:
        """A task's name."""
        return self._info.comm(pid)

    def tgid(self, pid: int) -> int | None:
        """A task's thread group: every guest task is one of its own."""
        return pid


def text_lines(source: TraceSource, places: Places | None = None) -> Iterator[str]:
    """The trace, line by line, as ``cat trace`` shows it; with ``places``, source lines in it.

    What the host did comes as comments, in front of the first events that are later.
    """
    info = source.info
    style = TextStyle(info.tracer, DEFAULT_OPTIONS, counter=info.clock == "counter")
    entries, lost = _count(source)
    yield from header(style, entries=entries, written=entries + lost, cpus=info.nr_cpus)
    names = InfoNames(info)
    text = TraceText(style, names, cpus=info.nr_cpus, annotate_start=lost > 0, places=places)
    host = _HostLines(source)
    for events, gone in source.batches():
        for part in host.cut(events):
            yield from host.lines_before(part)
            yield from text.lines(part, gone, last=False)
            gone = {}
    yield from text.lines(Events(np.zeros(0, EVENT)), last=True)
    yield from host.rest()


def _count(source: TraceSource) -> tuple[int, int]:
    entries = lost = 0
    for events, gone in source.batches():
        entries += len(events)
        lost += sum(max(count, 0) for count in gone.values())
    return entries, lost


class _HostLines:
    """What the host did, as comments at their place in time; many at one time are one line."""

    def __init__(self, source: TraceSource) -> None:
        self._info = source.info
        groups = itertools.groupby(source.host_events, key=lambda event: (event.ts, event.name))
        self._groups = [(ts, name, list(events)) for (ts, name), events in groups]
        self._next = 0

    def cut(self, events: Events) -> Iterator[Events]:
        """The events in parts, so that what the host did comes between two of them."""
        ts = events.table["ts"]
        times = np.array([group[0] for group in self._groups[self._next :]], dtype=np.uint64)
        places = np.unique(np.searchsorted(ts, times)).tolist() if len(times) else []
        bounds = [0, *(place for place in places if 0 < place < len(ts)), len(ts)]
        for start, stop in itertools.pairwise(bounds):
            yield Events(events.table[start:stop], events.payloads)

    def lines_before(self, events: Events) -> Iterator[str]:
        """The comments that come before these events."""
        if not len(events):
            return
        first = int(events.table["ts"][0])
        while self._next < len(self._groups) and self._groups[self._next][0] <= first:
            yield self._line(*self._groups[self._next])
            self._next += 1

    def rest(self) -> Iterator[str]:
        """The comments that come last."""
        for group in self._groups[self._next :]:
            yield self._line(*group)

    def _line(self, ts: int, name: str, events: list[HostEvent]) -> str:
        at = str(ts) if self._info.clock == "counter" else f"{ts // 10**9}.{ts // 1000 % 10**6:06d}"
        return f"# {at}: ftraced:{name}{self._what(events)}"

    def _what(self, events: list[HostEvent]) -> str:
        names = [
            self._info.symbols.name(event.fields["ip"]) for event in events if "ip" in event.fields
        ]
        if names:
            more = ", ..." if len(names) > _NAMED else ""
            return f" {len(names)}: {', '.join(names[:_NAMED])}{more}"
        return "".join(f" {key}={value}" for key, value in events[0].fields.items())


def write_text(source: TraceSource, path: Path) -> None:
    """Write the trace's text to a file."""
    with path.open("w") as file:
        lines = text_lines(source)
        while part := list(itertools.islice(lines, _LINES_AT_ONCE)):
            file.write("\n".join(part) + "\n")
