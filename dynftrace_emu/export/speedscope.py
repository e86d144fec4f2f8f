"""speedscope's own format: a profile a vCPU, in which time goes on and calls nest.

When a CPU switches to another task, the calls of the one that leaves are closed, and those of the
one that comes are opened again. A function trace, which has no durations, becomes a profile of
samples: one for each call, the caller and the function. Other events have no place in it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from dynftrace_emu._version import __version__
from dynftrace_emu.export.calls import Calls
from dynftrace_emu.export.destination import opened
from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dynftrace_emu.export.destination import Destination
    from dynftrace_emu.export.trace_source import TraceSource

__all__ = ["write_speedscope"]

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"
_WEIGHTS_AT_ONCE = 1 << 16


def write_speedscope(source: TraceSource, destination: Destination, name: str = "trace") -> None:
    """Write all calls of a trace. The CPUs' profiles follow each other, so they wait in files."""
    calls = Calls(source)
    frames = _Frames(source)
    cpus = sorted({lane.cpu for lane in calls.lanes} | set(range(source.info.nr_cpus)))
    make = _Evented if calls.outline.graph or not calls.outline.calls else _Sampled
    with ExitStack() as stack, opened(destination) as out:
        spills = [cast("BinaryIO", stack.enter_context(tempfile.TemporaryFile())) for _ in cpus]
        profiles: dict[int, _Profile] = {
            cpu: make(cpu, calls, frames, spill) for cpu, spill in zip(cpus, spills, strict=True)
        }
        _fill(calls, profiles)
        head = {"$schema": _SCHEMA, "exporter": f"dynftrace-emu {__version__}", "name": name}
        out.write(json.dumps(head)[:-1].encode() + b',\n"profiles":[')
        for number, profile in enumerate(profiles.values()):
            out.write(b",\n" if number else b"\n")
            profile.write(out)
        shared = {"frames": [{"name": name} for name in frames.names]}
        out.write(f'\n],\n"shared":{json.dumps(shared)}}}\n'.encode())


def _fill(calls: Calls, profiles: dict[int, _Profile]) -> None:
    lane_cpus = np.array([lane.cpu for lane in calls.lanes], np.int64)
    for batch in calls:
        functions = batch.others.table["type"] == EventId.FUNCTION
        for cpu, profile in profiles.items():
            profile.add_calls(batch.calls[lane_cpus[batch.calls["lane"]] == cpu])
            table = batch.others.table
            profile.add_functions(table[functions & (table["cpu"] == cpu)])


class _Frames(dict[int, int]):
    """The number of the function that an address is in."""

    def __init__(self, source: TraceSource) -> None:
        super().__init__()
        self._name = source.info.symbols.name
        self._numbers: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        return list(self._numbers)

    def __missing__(self, ip: int) -> int:
        name = self._name(ip)
        number = self[ip] = self._numbers.setdefault(name, len(self._numbers))
        return number


class _Profile:
    """What one CPU did; the long part of it is in a file."""

    def __init__(self, cpu: int, calls: Calls, frames: _Frames, spill: BinaryIO) -> None:
        self._cpu, self._outline, self._frames, self._spill = cpu, calls.outline, frames, spill
        self._unit = "nanoseconds" if calls.outline.ns else "none"
        self._separator = ""
        self._stacks: list[list[int]] = [[] for _ in calls.lanes]

    def add_calls(self, table: NDArray[Any]) -> None:
        """Calls that begin and end."""

    def add_functions(self, table: NDArray[Any]) -> None:
        """Events of the function tracer."""

    def write(self, out: BinaryIO) -> None:
        """Write it as JSON."""
        raise NotImplementedError

    def _add(self, parts: list[str]) -> None:
        if parts:
            self._spill.write((self._separator + ",".join(parts)).encode())
            self._separator = ",\n"

    def _copy(self, head: dict[str, object], name: str, out: BinaryIO) -> None:
        """The profile up to the end of its long part."""
        out.write(f'{json.dumps(head)[:-1]},"{name}":[\n'.encode())
        self._spill.seek(0)
        shutil.copyfileobj(self._spill, out)
        out.write(b"\n]")

    def _head(self, kind: str, unit: str, start: int, end: int) -> dict[str, object]:
        name = f"CPU {self._cpu}"
        return {"type": kind, "name": name, "unit": unit, "startValue": start, "endValue": end}


class _Evented(_Profile):
    """Calls, opened and closed."""

    def __init__(self, cpu: int, calls: Calls, frames: _Frames, spill: BinaryIO) -> None:
        super().__init__(cpu, calls, frames, spill)
        self._current = -1  # whose calls are open, by lane
        self._at = calls.outline.first_ts

    def add_calls(self, table: NDArray[Any]) -> None:
        frames, stacks = self._frames, self._stacks
        parts: list[str] = []
        ts = np.maximum.accumulate(np.maximum(table["ts"], np.uint64(self._at)))
        columns = (table["begin"], table["made"], table["lane"], table["ip"], ts)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for begin, made, lane, ip, at in rows:
            if lane != self._current:
                if made and not begin:
                    stacks[lane].pop()  # it is closed as it is
                    continue
                parts += self._switch(lane, at)
            if begin:
                frame = frames[ip]
                stacks[lane].append(frame)
                parts.append(f'{{"type":"O","at":{at},"frame":{frame}}}')
            else:
                parts.append(f'{{"type":"C","at":{at},"frame":{stacks[lane].pop()}}}')
        if len(ts):
            self._at = int(ts[-1])
        self._add(parts)

    def _switch(self, lane: int, at: int) -> Iterator[str]:
        if self._current >= 0:
            for frame in reversed(self._stacks[self._current]):
                yield f'{{"type":"C","at":{at},"frame":{frame}}}'
        self._current = lane
        for frame in self._stacks[lane]:
            yield f'{{"type":"O","at":{at},"frame":{frame}}}'

    def write(self, out: BinaryIO) -> None:
        first, last = self._outline.first_ts, self._outline.last_ts
        self._copy(self._head("evented", self._unit, first, last), "events", out)
        out.write(b"}")


class _Sampled(_Profile):
    """Calls that take no time."""

    _count = 0

    def add_functions(self, table: NDArray[Any]) -> None:
        frames = self._frames
        columns = zip(table["parent_ip"].tolist(), table["ip"].tolist(), strict=True)
        self._add([f"[{frames[parent]},{frames[ip]}]" for parent, ip in columns])
        self._count += len(table)

    def write(self, out: BinaryIO) -> None:
        self._copy(self._head("sampled", "none", 0, self._count), "samples", out)
        out.write(b',"weights":[\n')
        for start in range(0, self._count, _WEIGHTS_AT_ONCE):
            some = min(self._count - start, _WEIGHTS_AT_ONCE)
            out.write(b",\n" if start else b"")
            out.write(b"1" + b",1" * (some - 1))
        out.write(b"\n]}")
