"""What was traced: trace, trace_pipe, snapshot, and what users add (kernel/trace/trace.c)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ControlFileError
from dynftrace_emu.export.text import TextStyle, TraceText, header
from dynftrace_emu.ftrace.tracing import OPTIONS
from dynftrace_emu.kernel.structs import EventId
from dynftrace_emu.tracefs.buffers import CpuFile
from dynftrace_emu.tracefs.control_file import ControlFile, parse_number
from dynftrace_emu.tracefs.names import SymbolNames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.ftrace.ring_buffer import RingBuffer
    from dynftrace_emu.ftrace.trace_array import TraceArray

__all__ = [
    "CpuSnapshot", "CpuTrace", "CpuTracePipe", "Snapshot", "Trace", "TraceMarker", "TraceMarkerRaw",
    "TracePipe", "trace_text",
]  # fmt: skip

_SNAPSHOT_HELP = """\
# echo 0 > snapshot : Clears and frees snapshot buffer
# echo 1 > snapshot : Allocates snapshot buffer, if not already allocated.
#                      Takes a snapshot of the main buffer.
# echo 2 > snapshot : Clears snapshot buffer (but does not allocate or free)
#                      (Doesn't have to be '2' works with any number that
#                       is not a '0' or '1')
"""
_MARKER_MAX = 1024  # TRACE_BUF_SIZE
_RAW_MAX = 2048


def _style(array: TraceArray) -> TextStyle:
    options = frozenset(name for name in OPTIONS if array.option(name))
    return TextStyle(tracer=array.tracer, options=options, counter=array.clock == "counter")


def trace_text(
    array: TraceArray, buffer: RingBuffer, cpus: list[int] | None = None
) -> Iterator[str]:
    """What a buffer holds, line by line; nothing is consumed."""
    style = _style(array)
    events, _ = buffer.peek(cpus)
    chosen = buffer.cpus if cpus is None else [buffer.cpus[cpu] for cpu in cpus]
    overrun = sum(part.stats().overrun for part in chosen)
    nr_cpus = array.tracing.nr_cpus
    dynamic = array.tracing.dynamic
    corrupted = dynamic is not None and bool(dynamic.arch.patcher.mismatches)
    yield from header(
        style, entries=len(events), written=len(events) + overrun, cpus=nr_cpus, corrupted=corrupted
    )
    names = SymbolNames(array)
    text = TraceText(
        style,
        names,
        buffers=cpus is None,
        annotate_start=overrun > 0,
        cpus=nr_cpus,
        places=array.tracing.places,
    )
    yield from text.lines(events)


def _joined(lines: Iterator[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


class Trace(ControlFile):
    """``trace``: what is in the buffers, not consumed. A write that truncates empties them."""

    name = "trace"

    def read(self) -> str:
        return _joined(trace_text(self.array, self.array.buffer))

    def write(self, text: str, *, append: bool) -> None:
        if not append:
            self.tracing.stop(self.array.discard)  # so that no event is half in


class CpuTrace(CpuFile):
    """``per_cpu/cpuN/trace``."""

    name = "trace"

    def read(self) -> str:
        return _joined(trace_text(self.array, self.array.buffer, [self.cpu]))

    def write(self, text: str, *, append: bool) -> None:
        if not append:
            self.array.buffer.cpus[self.cpu].reset()


class TracePipe(ControlFile):
    """``trace_pipe``: what is there, consumed. It never waits: empty is an empty text."""

    name = "trace_pipe"
    writable = False
    _cpus: list[int] | None = None

    def __init__(self, array: TraceArray) -> None:
        super().__init__(array)
        self._style = _style(array)
        self._text = self._make(self._style)

    def _make(self, style: TextStyle) -> TraceText:
        names = SymbolNames(self.array)
        tracing = self.tracing
        return TraceText(
            style,
            names,
            buffers=self._cpus is None,
            cpus=tracing.nr_cpus,
            places=tracing.places,
        )

    def read(self) -> str:
        style = _style(self.array)
        if style != self._style:
            self._style, self._text = style, self._make(style)
        events, lost = self.array.buffer.read(cpus=self._cpus)
        return _joined(self._text.lines(events, lost))


class CpuTracePipe(TracePipe):
    """``per_cpu/cpuN/trace_pipe``."""

    def __init__(self, array: TraceArray, cpu: int) -> None:
        self._cpus = [cpu]
        super().__init__(array)


class Snapshot(ControlFile):
    """``snapshot``: 1 takes one, 0 frees the spare buffer, any other number empties it."""

    name = "snapshot"

    def read(self) -> str:
        spare = self.array.max_buffer
        if spare is not None and len(spare.peek()[0]):
            return _joined(trace_text(self.array, spare))
        return _snapshot_help(self.array)

    def write(self, text: str, *, append: bool) -> None:
        match parse_number(text):
            case 0:
                self.array.free_snapshot()
            case 1:
                self.array.alloc_snapshot()
                self.tracing.stop(self._take)
            case _:
                if self.array.max_buffer is not None:
                    self.array.max_buffer.reset()

    def _take(self) -> None:
        self.array.before_discard()
        self.array.swap_snapshot()


def _snapshot_help(array: TraceArray) -> str:
    state = "freed" if array.max_buffer is None else "allocated"
    return (
        f"# tracer: {array.tracer}\n#\n#\n# * Snapshot is {state} *\n#\n"
        f"# Snapshot commands:\n{_SNAPSHOT_HELP}"
    )


class CpuSnapshot(CpuFile):
    """``per_cpu/cpuN/snapshot``: one CPU's part. It is taken of all CPUs or none."""

    name = "snapshot"

    def read(self) -> str:
        spare = self.array.max_buffer
        if spare is not None and len(spare.cpus[self.cpu].peek()[0]):
            return _joined(trace_text(self.array, spare, [self.cpu]))
        return _snapshot_help(self.array)

    def write(self, text: str, *, append: bool) -> None:
        number = parse_number(text)
        if number < 2:
            raise ControlFileError(errno.EINVAL, "a snapshot is of all CPUs: write to snapshot")
        if self.array.max_buffer is not None:
            self.array.max_buffer.cpus[self.cpu].reset()


class TraceMarker(ControlFile):
    """``trace_marker``: a message of the user's among the events, on the first CPU traced."""

    name = "trace_marker"
    readable = False

    def write(self, text: str, *, append: bool) -> None:
        data = text.encode("utf-8", "surrogateescape")
        for start in range(0, max(1, len(data)), _MARKER_MAX):  # as who writes to Linux goes on
            part = data[start : start + _MARKER_MAX].removesuffix(b"\n")
            _mark(self.array, EventId.PRINT, struct.pack("<Q", 0) + part + b"\n\0")


class TraceMarkerRaw(ControlFile):
    """``trace_marker_raw``: bytes of the user's, whose first four are an id."""

    name = "trace_marker_raw"
    readable = False

    def write(self, text: str, *, append: bool) -> None:
        data = text.encode("utf-8", "surrogateescape")
        if not 4 <= len(data) <= _RAW_MAX:
            raise ControlFileError(errno.EINVAL, f"{len(data)} bytes: 4 to {_RAW_MAX} are possible")
        _mark(self.array, EventId.RAW_DATA, data)


def _mark(array: TraceArray, event: EventId, body: bytes) -> None:
    if not array.option("markers"):
        raise ControlFileError(errno.EINVAL, "option markers is off")
    if not array.on:
        raise ControlFileError(errno.EBADF, "tracing_on is 0")
    if not array.tracing.mark(array, event, body):
        raise ControlFileError(errno.EBADF, "no CPU's buffer takes it")
