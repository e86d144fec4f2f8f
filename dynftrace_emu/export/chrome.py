"""Chrome's JSON trace events: a process a vCPU, a thread a task; calls as B and E, which nest.

What the host did is a process of its own. Its viewer, and Perfetto's, sort events themselves.
Left out: stack traces and raw data.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.export.calls import Calls
from dynftrace_emu.export.destination import opened
from dynftrace_emu.export.host_tracks import DAEMON, STOPS, host_marks
from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dynftrace_emu.export.calls import CallBatch
    from dynftrace_emu.export.destination import Destination
    from dynftrace_emu.export.trace_source import TraceSource

__all__ = ["write_chrome"]

_HOST_TIDS = {DAEMON: 1, STOPS: 2}
_KEY = np.dtype([("lane", "<u4"), ("begin", "?"), ("ip", "<u8")])


def write_chrome(source: TraceSource, destination: Destination) -> None:
    """Write all of a trace."""
    calls = Calls(source)
    with opened(destination) as out:
        out.write(b'{"displayTimeUnit":"ns","traceEvents":[\n')
        out.write(",\n".join(_metadata(source, calls)).encode())
        text = _Text(source, calls)
        for batch in calls:
            for part in (text.calls(batch), text.functions(batch), text.marks(batch)):
                out.write(part.encode())
        out.write(text.host().encode())
        out.write(b"\n]}\n")


def _metadata(source: TraceSource, calls: Calls) -> Iterator[str]:
    """What the processes and threads are called."""
    info = source.info
    cpus = {lane.cpu for lane in calls.lanes} | set(range(info.nr_cpus))
    for cpu in sorted(cpus):
        yield _named("process_name", f"CPU {cpu}", _pid(cpu), 0)
    for lane in calls.lanes:
        yield _named("thread_name", lane.name(info), _pid(lane.cpu), lane.tid)
    yield _named("process_name", "host", _host_pid(info.nr_cpus, cpus), 0)
    for track, tid in _HOST_TIDS.items():
        yield _named("thread_name", track, _host_pid(info.nr_cpus, cpus), tid)


def _named(kind: str, name: str, pid: int, tid: int) -> str:
    event = {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
    return json.dumps(event, separators=(",", ":"))


def _pid(cpu: int) -> int:
    return cpu + 1  # 0 is taken for the idle task by some viewers


def _host_pid(nr_cpus: int, cpus: set[int]) -> int:
    return max([nr_cpus - 1, *cpus]) + 2


class _Text:
    """Makes the text of events: each begins with a comma."""

    def __init__(self, source: TraceSource, calls: Calls) -> None:
        self._source, self._lanes = source, calls.lanes
        self._ns = calls.outline.ns
        name = source.info.symbols.name
        self._names = _Cache(lambda ip: json.dumps(name(ip)))
        cpus = {lane.cpu for lane in calls.lanes}
        self._host = _host_pid(source.info.nr_cpus, cpus)

    def _where(self, lane: int) -> str:
        of = self._lanes[lane]
        return f'"pid":{_pid(of.cpu)},"tid":{of.tid}'

    def _times(self, ts: NDArray[np.uint64]) -> list[str]:
        """Microseconds, as numbers of JSON: nothing is rounded."""
        if not self._ns:
            return [f"{count}}}" for count in ts.tolist()]
        usecs, rest = np.divmod(ts, np.uint64(1000))
        return [f"{u}.{n:03d}}}" for u, n in zip(usecs.tolist(), rest.tolist(), strict=True)]

    def calls(self, batch: CallBatch) -> str:
        """Calls that begin and end."""
        table = batch.calls
        keys = np.empty(len(table), _KEY)
        keys["lane"], keys["begin"] = table["lane"], table["begin"]
        keys["ip"] = np.where(table["begin"], table["ip"], 0)
        return _join(keys, self._call, self._times(table["ts"]))

    def _call(self, key: tuple[int, bool, int]) -> str:
        lane, begin, ip = key
        if begin:
            return f',\n{{"ph":"B",{self._where(lane)},"name":{self._names[ip]},"ts":'
        return f',\n{{"ph":"E",{self._where(lane)},"ts":'

    def functions(self, batch: CallBatch) -> str:
        """Events of the function tracer: calls that take no time."""
        rows = np.flatnonzero(batch.others.table["type"] == EventId.FUNCTION)
        table = batch.others.table[rows]
        keys = np.empty(len(rows), np.dtype([("lane", "<u4"), ("ip", "<u8"), ("parent", "<u8")]))
        keys["lane"], keys["ip"] = batch.other_lanes[rows], table["ip"]
        keys["parent"] = table["parent_ip"]
        return _join(keys, self._function, self._times(table["ts"]))

    def _function(self, key: tuple[int, int, int]) -> str:
        lane, ip, parent = key
        args = f'"args":{{"parent":{self._names[parent]}}}'
        return f',\n{{"ph":"i","s":"t",{self._where(lane)},"name":{self._names[ip]},{args},"ts":'

    def marks(self, batch: CallBatch) -> str:
        """What was written to trace_marker."""
        table = batch.others.table
        rows = np.flatnonzero(table["type"] == EventId.PRINT)
        times = self._times(table["ts"][rows])
        parts = []
        for row, time in zip(rows.tolist(), times, strict=True):
            name = json.dumps(str(batch.others.payloads[table["payload"][row]]))
            where = self._where(int(batch.other_lanes[row]))
            parts.append(f',\n{{"ph":"i","s":"t",{where},"name":{name},"ts":{time}')
        return "".join(parts)

    def host(self) -> str:
        """What the host did."""
        parts = []
        for mark in host_marks(self._source):
            (time,) = self._times(np.array([mark.ts], np.uint64))
            (took,) = self._times(np.array([mark.duration], np.uint64))
            where = f'"pid":{self._host},"tid":{_HOST_TIDS[mark.track]}'
            what = f'"name":{json.dumps(mark.name)},"args":{json.dumps(dict(mark.args))}'
            kind = f'"ph":"X","dur":{took[:-1]}' if mark.track == STOPS else '"ph":"i","s":"t"'
            parts.append(f',\n{{{kind},{where},{what},"ts":{time}')
        return "".join(parts)


class _Cache(dict[int, str]):
    """Texts by number, each made once."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, number: int) -> str:
        text = self[number] = str(self._make(number))
        return text


def _join(keys: NDArray[Any], make: Any, tails: list[str]) -> str:
    """A head for each key, and the tail that goes with it."""
    heads: dict[Any, str] = {}
    columns = keys.tolist()
    for key in set(columns):
        heads[key] = make(key)
    return "".join([heads[key] + tail for key, tail in zip(columns, tails, strict=True)])
