"""Reads the Chrome JSON that ``convert`` writes back into a trace.

Functions have names there and no addresses: each gets one of its own. What stack traces and raw
data there were is not in the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.export.trace_file_error import TraceFileError
from dynftrace_emu.export.trace_source import HostEvent, SymbolTable, TraceInfo
from dynftrace_emu.ftrace.trace_events import EVENT, Events
from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["JsonTrace", "read_chrome_json"]

_PART = 1 << 16
_NOT_OURS = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError,
)  # fmt: skip
_FIRST_ADDRESS = 0xFFFF_FFFF_8100_0000
_SPACING = 16


@dataclass
class JsonTrace:
    """A trace out of JSON (:class:`.TraceSource`)."""

    info: TraceInfo
    host_events: list[HostEvent]
    events: Events

    def batches(self) -> Iterator[tuple[Events, Mapping[int, int]]]:
        """All events, some at a time; a file of this kind does not say what was lost."""
        for start in range(0, len(self.events), _PART):
            yield Events(self.events.table[start : start + _PART], self.events.payloads), {}


def read_chrome_json(path: Path) -> JsonTrace:
    """Read a whole file.

    :raises TraceFileError: it is no such JSON.
    """
    try:
        document = json.loads(path.read_bytes())
        reader = _Reader()
        for event in document["traceEvents"]:
            reader.take(event)
        return reader.finish()
    except OSError as error:
        raise TraceFileError(f"{path}: {error.strerror}") from None
    except _NOT_OURS as error:
        what = f"{type(error).__name__}: {error}"
        raise TraceFileError(f"{path}: not the JSON of a trace ({what})") from None


@dataclass
class _Reader:
    """Takes events in the order of the file."""

    processes: dict[int, str] = field(default_factory=dict)
    comms: dict[int, str] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    stacks: dict[tuple[int, int], list[tuple[int, int]]] = field(default_factory=dict)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    payloads: list[object] = field(default_factory=list)
    host: list[HostEvent] = field(default_factory=list)
    timed: bool = False

    def take(self, event: Mapping[str, Any]) -> None:
        phase = event["ph"]
        if phase == "M":
            self._name(event)
        elif self.processes.get(event["pid"]) == "host":
            self._host(event)
        elif phase == "B":
            self._begin(event)
        elif phase == "E":
            self._end(event)
        elif phase == "i":
            self._instant(event)

    def _name(self, event: Mapping[str, Any]) -> None:
        name = str(event["args"]["name"])
        if event["name"] == "process_name":
            self.processes[event["pid"]] = name
        elif self.processes.get(event["pid"]) != "host":
            comm, _, pid = name.rpartition("-")
            if comm and pid.isdigit():
                self.comms[int(pid)] = comm

    def _host(self, event: Mapping[str, Any]) -> None:
        fields = {key: value for key, value in event["args"].items() if isinstance(value, int)}
        if "dur" in event:
            fields["duration_ns"] = _ns(event["dur"])
        self.host.append(HostEvent(_ns(event["ts"]), str(event["name"]), fields))

    def _address(self, name: str) -> int:
        return self.addresses.setdefault(name, _FIRST_ADDRESS + _SPACING * len(self.addresses))

    def _cpu(self, event: Mapping[str, Any]) -> int:
        return int(self.processes[event["pid"]].removeprefix("CPU "))

    def _row(self, event: Mapping[str, Any], kind: EventId, **fields: int) -> None:
        self.rows.append((_ns(event["ts"]), self._cpu(event), int(kind), event["tid"], fields))

    def _begin(self, event: Mapping[str, Any]) -> None:
        self.timed = True
        stack = self.stacks.setdefault((event["pid"], event["tid"]), [])
        ip = self._address(event["name"])
        self._row(event, EventId.GRAPH_ENTRY, ip=ip, depth=len(stack))
        stack.append((ip, _ns(event["ts"])))

    def _end(self, event: Mapping[str, Any]) -> None:
        stack = self.stacks[event["pid"], event["tid"]]
        ip, begin = stack.pop()
        self._row(
            event, EventId.GRAPH_EXIT, ip=ip, depth=len(stack), calltime=begin,
            rettime=_ns(event["ts"]),
        )  # fmt: skip

    def _instant(self, event: Mapping[str, Any]) -> None:
        parent = event.get("args", {}).get("parent")
        if parent is None:
            self._row(event, EventId.PRINT, payload=len(self.payloads))
            self.payloads.append(str(event["name"]))
            return
        ip, parent_ip = self._address(event["name"]), self._address(parent)
        self._row(event, EventId.FUNCTION, ip=ip, parent_ip=parent_ip)

    def finish(self) -> JsonTrace:
        self.rows.sort(key=lambda row: row[0])  # stable: what is at one time stays in order
        table = np.zeros(len(self.rows), dtype=EVENT)
        table["payload"] = -1
        for index, (ts, cpu, kind, pid, fields) in enumerate(self.rows):
            row = table[index]
            row["ts"], row["cpu"], row["type"], row["pid"] = ts, cpu, kind, pid
            for name, value in fields.items():
                row[name] = value
        functions = tuple((address, _SPACING, name) for name, address in self.addresses.items())
        names = [name for name in self.processes.values() if name.startswith("CPU ")]
        nr_cpus = 1 + max((int(name.removeprefix("CPU ")) for name in names), default=0)
        tracer = "function_graph" if self.timed else "function"
        symbols = SymbolTable(functions)
        info = TraceInfo(tracer, nr_cpus, "local", symbols, self.comms, has_addresses=False)
        return JsonTrace(info, self.host, Events(table, tuple(self.payloads)))


def _ns(microseconds: float) -> int:
    return round(microseconds * 1000)
