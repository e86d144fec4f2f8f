"""A trace as /sys/kernel/tracing/trace shows it (kernel/trace/trace.c, Linux 6.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.export.text_batch import LOST_UNKNOWN, Batch, Lookahead, Row
from dynftrace_emu.export.text_fields import (
    DEFAULT_OPTIONS,
    LatencyFlags,
    Names,
    Places,
    PlainSymbols,
    Symbols,
    TextStyle,
    find_mark,
    message,
    ns2usecs,
)
from dynftrace_emu.export.text_graph import GraphText
from dynftrace_emu.export.text_header import header
from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from dynftrace_emu.ftrace.trace_events import Events

__all__ = ["DEFAULT_OPTIONS", "Names", "Places", "TextStyle", "TraceText", "header"]

_PART = 1 << 13
"""So many events are made text at a time."""

_CALL_GRAPH = (EventId.GRAPH_ENTRY, EventId.GRAPH_EXIT)
_NEVER_DRAWN = (EventId.FUNCTION, EventId.KERNEL_STACK)
"""What function_graph leaves to the usual format."""

_NO_FLAGS = {0: ""}


class _Cache(dict[int, str]):
    """Texts by number, each made once."""

    def __init__(self, make: Callable[[int], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, number: int) -> str:
        text = self[number] = self._make(number)
        return text


class TraceText:
    """Turns a stream of events into lines; what it has seen before matters to later lines.

    ``buffers``: the buffers of all CPUs are shown, not one's alone. ``annotate_start``: some of
    them overran, so say where each begins. ``cpus`` is the number of possible CPUs. With the
    option latency-format, times count from ``time_start``, or else from the first event. With
    ``places`` functions come with the lines they are in, callers with those of the calls.
    """

    def __init__(
        self,
        style: TextStyle,
        names: Names,
        *,
        buffers: bool = True,
        annotate_start: bool = False,
        cpus: int = 1,
        time_start: int | None = None,
        places: Places | None = None,
    ) -> None:
        self._style = style
        self._names = names
        self._annotate = buffers and annotate_start and style.on("annotate")
        self._started: set[int] = set()
        self._printed = 0
        self._time_start = time_start
        self._places = places
        self._symbols = Symbols(names, style, places.where if places else None)
        self._returns = Symbols(names, style, places.where_return if places else None)
        self._parents = _Cache(self._parent)
        self._comms = _Cache(names.comm)
        self._tasks = _Cache(self._task)
        self._cpus = _Cache(lambda cpu: f"[{cpu:03d}] ")
        self._flags = LatencyFlags()
        self._latency = style.on("latency-format")
        self._lookahead = Lookahead(next_ts=self._latency)
        self._graph_tracer = style.tracer == "function_graph"
        self._graph = GraphText(
            style, PlainSymbols(names), self._comms, cpus=cpus, remember=self._graph_tracer
        )

    def lines(
        self, events: Events, lost: Mapping[int, int] | None = None, *, last: bool = True
    ) -> Iterator[str]:
        """The lines of ``events``, which are those of all CPUs in the order of time.

        ``lost`` says of a CPU how many of its events were lost just before its first one here
        (-1: nobody knows). Unless these are the ``last``, an entry whose next event is not here
        waits for the next call, and so does all after it. Events that come after the last ones
        go on where those ended.
        """
        batch = self._lookahead.take(events, lost or {}, last=last)
        if self._time_start is None and len(batch):
            self._time_start = int(batch.table["ts"][0])
        # A name can get known between two calls.
        self._comms.clear()
        self._tasks.clear()
        for start in range(0, len(batch), _PART):
            yield from self._part(batch.part(start, start + _PART))

    def _part(self, part: Batch) -> Iterator[str]:
        """Plain calls go in bulk, everything else one by one."""
        kinds = part.table["type"]
        drawn = self._graph_tracer & ~np.isin(kinds, _NEVER_DRAWN)
        contexts = calls = [""] * len(part)
        if not drawn.all():
            contexts = self._contexts(part)
            calls = self._calls(part.table, contexts)
        if drawn.all() and not part.lost.any():
            yield from self._drawing(part)
            return
        special = np.flatnonzero(
            (kinds != EventId.FUNCTION) | (part.lost != 0) | self._starts(part.table["cpu"], ~drawn)
        )
        done = 0
        for index, row in zip(special.tolist(), part.rows(special), strict=True):
            yield from calls[done:index]
            self._printed += index - done
            yield from self._special(part, index, row, contexts[index], calls[index])
            self._printed += 1
            done = index + 1
        yield from calls[done:]
        self._printed += len(part) - done

    def _drawing(self, part: Batch) -> list[str]:
        """What function_graph draws of events that nothing else is to be said of."""
        lines: list[str] = []
        for index, row in enumerate(part.rows(np.arange(len(part)))):
            lines += self._draw(part, index, row)
        self._printed += len(part)
        return lines

    def _special(self, part: Batch, index: int, row: Row, context: str, call: str) -> Iterator[str]:
        """What ``print_trace_line`` prints of an event."""
        if lost := int(part.lost[index]):
            count = "" if lost == LOST_UNKNOWN else f"{lost} "
            yield f"CPU:{row.cpu} [LOST {count}EVENTS]"
        if self._graph_tracer and row.type not in _NEVER_DRAWN:
            yield from self._draw(part, index, row)
            return
        yield from self._start(row.cpu)
        if row.type == EventId.FUNCTION:
            yield call
            return
        if row.type in _CALL_GRAPH:
            first, *rest = self._draw(part, index, row)
        else:
            first, *rest = message(row.type, part.payload(row), self._returns)
        yield context + first
        yield from rest

    def _draw(self, part: Batch, index: int, row: Row) -> list[str]:
        if row.type == EventId.GRAPH_ENTRY:
            duration = int(part.duration[index]) if part.leaf[index] else None
            return self._placed(self._graph.entry(row, duration), row.ip)
        if row.type == EventId.GRAPH_EXIT:
            return self._graph.exit(row)
        text = message(row.type, part.payload(row), self._returns, bare=True)
        return self._graph.comment(row, text)

    def _placed(self, lines: list[str], ip: int) -> list[str]:
        """The last line is the call."""
        place = self._places.where(ip) if self._places else ""
        return [*lines[:-1], f"{lines[-1]} /* {place} */"] if place else lines

    def _starts(self, cpus: NDArray[np.uint16], shown: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which events are the first ones of their CPU, among those ``shown`` in the usual way."""
        first = np.zeros(len(cpus), np.bool_)
        if self._annotate:
            for cpu in set(cpus[shown].tolist()) - self._started:
                first[np.flatnonzero(shown & (cpus == cpu))[0]] = True
        return first

    def _start(self, cpu: int) -> Iterator[str]:
        """``test_cpu_buff_start``: silent before the first event of the trace."""
        if self._annotate and cpu not in self._started:
            self._started.add(cpu)
            if self._printed:
                yield f"##### CPU {cpu} buffer started ####"

    def _calls(self, table: NDArray[Any], contexts: list[str]) -> list[str]:
        """``trace_fn_trace``. Only what is said of FUNCTION events makes sense."""
        symbols, parents = self._symbols, self._parents
        columns = zip(contexts, table["ip"].tolist(), table["parent_ip"].tolist(), strict=True)
        return [context + symbols[ip] + parents[parent] for context, ip, parent in columns]

    def _parent(self, address: int) -> str:
        shown = address and self._style.on("print-parent")
        return f" <-{self._returns[address]}" if shown else ""

    def _contexts(self, part: Batch) -> list[str]:
        """What comes before an event's own words."""
        if not self._style.on("context-info"):
            return [""] * len(part)
        if self._latency:
            return self._latency_contexts(part)
        tasks, cpus = self._tasks, self._cpus
        flags: dict[int, str] = self._flags
        shown = _flag_keys(part.table).tolist()
        if not self._style.on("irq-info"):
            flags, shown = _NO_FLAGS, [0] * len(part)
        pid, cpu = part.table["pid"].tolist(), part.table["cpu"].tolist()
        ts = part.table["ts"]
        if self._style.counter:
            rows = zip(pid, cpu, shown, ts.tolist(), strict=True)
            return [f"{tasks[p]}{cpus[c]}{flags[f]} {t:12d}: " for p, c, f, t in rows]
        seconds, usecs = np.divmod((ts + np.uint64(500)) // np.uint64(1000), np.uint64(10**6))
        times = zip(pid, cpu, shown, seconds.tolist(), usecs.tolist(), strict=True)
        return [f"{tasks[p]}{cpus[c]}{flags[f]} {s:5d}.{u:06d}: " for p, c, f, s, u in times]

    def _task(self, pid: int) -> str:
        task = f"{self._comms[pid]:>16}-{pid:<7d} "
        if not self._style.on("record-tgid"):
            return task
        tgid = self._names.tgid(pid)
        return f"{task}({tgid:7d}) " if tgid else f"{task}(-------) "

    def _latency_contexts(self, part: Batch) -> list[str]:
        """``trace_print_lat_context``, whatever irq-info says."""
        table = part.table
        rows = zip(
            table["pid"].tolist(),
            table["cpu"].tolist(),
            _flag_keys(table).tolist(),
            table["ts"].tolist(),
            part.next_ts.tolist(),
            strict=True,
        )
        return [
            f"{self._comms[pid][:8]:>8}-{pid:<7d} {cpu:3d}{self._flags[flags]}"
            f"{self._latency_time(ts, next_ts)}"
            for pid, cpu, flags, ts, next_ts in rows
        ]

    def _latency_time(self, ts: int, next_ts: int) -> str:
        """``lat_print_timestamp``: since the start, and a mark if the next event is far off."""
        assert self._time_start is not None
        since = ts - self._time_start
        if self._style.counter:
            return f" {since:4d}: "
        return f" {ns2usecs(since):4d}us{find_mark(ns2usecs(next_ts - ts) * 1000)}: "


def _flag_keys(table: NDArray[Any]) -> NDArray[np.uint16]:
    """``flags`` and ``preempt`` as LatencyFlags wants them."""
    keys: NDArray[np.uint16] = table["preempt"].astype(np.uint16) << 8 | table["flags"]
    return keys
