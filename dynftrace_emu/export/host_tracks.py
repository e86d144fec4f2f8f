"""What the host did, as two tracks: the daemon's work, and the times when the machine stood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dynftrace_emu.export.trace_source import HostEvent, TraceSource

__all__ = ["DAEMON", "STOPS", "HostMark", "host_marks"]

DAEMON, STOPS = "ftraced", "stop_machine"
"""Names of the tracks."""

_ADDRESSES = ("ip",)


@dataclass(frozen=True, slots=True)
class HostMark:
    """Something on a track; ``duration`` 0: at a moment."""

    ts: int
    track: str
    name: str
    duration: int
    args: Mapping[str, int | str]


def host_marks(source: TraceSource) -> Iterator[HostMark]:
    """In time order. A stop that would overlap the one before begins where that ends."""
    ns = source.info.clock != "counter"
    free = 0
    for event in source.host_events:
        if event.name != "stop":
            yield HostMark(event.ts, DAEMON, event.name, 0, _args(source, event))
            continue
        begin = max(event.ts, free)
        free = event.ts + (event.fields.get("duration_ns", 0) if ns else 0)
        yield HostMark(begin, STOPS, event.name, max(free - begin, 0), _args(source, event))


def _args(source: TraceSource, event: HostEvent) -> dict[str, int | str]:
    args: dict[str, int | str] = dict(event.fields)
    for name in _ADDRESSES:
        if name in event.fields:
            args[name] = f"{event.fields[name]:#x}"
            args["function"] = source.info.symbols.name(event.fields[name])
    return args
