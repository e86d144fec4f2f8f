"""Reads trace.dat version 6: ours, and what trace-cmd recorded of the same events."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dynftrace_emu.export.trace_dat_header import Header, read_header
from dynftrace_emu.export.trace_dat_host import HOST_NAMES, host_event
from dynftrace_emu.export.trace_dat_info import has_host, read_info, read_layouts, read_stats
from dynftrace_emu.export.trace_dat_merge import merge_streams
from dynftrace_emu.export.trace_dat_pack import LOST_UNKNOWN, add_lost
from dynftrace_emu.export.trace_dat_spill import recover
from dynftrace_emu.export.trace_dat_unpack import (
    DamagedPageError,
    Found,
    decode,
    lost_before,
    walk,
)
from dynftrace_emu.export.trace_file_error import TraceFileError
from dynftrace_emu.ftrace.trace_events import Events
from dynftrace_emu.kernel.structs import PAGE_SIZE, EventId

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from dynftrace_emu.export.trace_source import HostEvent, TraceInfo

__all__ = ["TraceDat", "read_trace_dat"]

_CHUNK = 512 * PAGE_SIZE  # bytes of a CPU's pages at a time


def read_trace_dat(path: str | Path) -> TraceDat:
    """Open a trace.dat; one whose writer died is put together first.

    :raises TraceFileError: it is cut short, damaged, of another version, or something else.
    """
    path = Path(path)
    try:
        recover(path)
        with path.open("rb") as file:
            size = path.stat().st_size
            header = read_header(file, size, str(path))
    except OSError as error:
        raise TraceFileError(f"{path}: {error.strerror}") from None
    return TraceDat(path, header, size)


class TraceDat:
    """A trace.dat, open for reading from front to back (a TraceSource)."""

    def __init__(self, path: Path, header: Header, size: int) -> None:
        self._path, self._header = path, header
        for cpu, (offset, long) in enumerate(header.table):
            if long % PAGE_SIZE or (long and offset < header.end):
                raise TraceFileError(f"{path}: its table of CPUs is damaged (CPU {cpu})")
            if long and offset + long > size:
                raise TraceFileError(f"{path}: the file is cut short (CPU {cpu}'s events)")
        self._layouts = read_layouts(header, str(path))
        info = read_info(header)
        self._info = info if info.tracer else replace(info, tracer=self._guess_tracer())

    @property
    def info(self) -> TraceInfo:
        """What it is of."""
        return self._info

    @property
    def stats(self) -> dict[int, dict[str, str]]:
        """What each CPU's buffer counted, by the names of ``per_cpu/cpuN/stats``."""
        return read_stats(self._header)

    @cached_property
    def host_events(self) -> list[HostEvent]:
        """What the host did, in time order."""
        ours = has_host(self._header)
        host = self._header.cpus > self._info.nr_cpus
        return list(self._host_events(self._info.nr_cpus)) if ours and host else []

    def batches(self) -> Iterator[tuple[Events, Mapping[int, int]]]:
        """The vCPUs' events, merged in time order, some at a time."""
        return merge_streams([self._stream(cpu) for cpu in range(self._info.nr_cpus)])

    def _stream(self, cpu: int) -> Iterator[tuple[Events, int]]:
        """A vCPU's events, and how many are missing before the first of each part."""
        number = 0
        for at, found, lost in self._found(cpu):
            table, payloads = self._decoded(cpu, at, found)
            table["cpu"] = cpu
            starts = np.flatnonzero(lost)
            missing = np.where(lost == LOST_UNKNOWN, 0, lost).cumsum().astype(np.uint64)
            table["number"] = number + np.arange(len(table), dtype=np.uint64) + missing[found.page]
            number = (number + len(table) + int(missing[-1])) % (1 << 64)
            cuts = np.unique([0, *np.searchsorted(found.page, starts), len(table)]).tolist()
            done = -1
            for start, stop in pairwise(cuts):
                rows = table[start:stop]
                before = _lost_at(lost, found.page, start, done)
                done = int(found.page[start])
                yield Events(rows[rows["type"] != 0], payloads), before

    def _decoded(self, cpu: int, at: int, found: Found) -> tuple[NDArray[Any], tuple[object, ...]]:
        try:
            table, payloads = decode(found, self._layouts)
        except DamagedPageError as error:
            raise self._damaged(cpu, error, at) from None
        return table, tuple(payloads)

    def _found(self, cpu: int) -> Iterator[tuple[int, Found, NDArray[np.int64]]]:
        """What the pages of a CPU hold, some pages at a time.

        Also where in the file they are, and what is lost before each page.
        """
        offset, size = self._header.table[cpu]
        with self._open() as file:
            for at in range(offset, offset + size, _CHUNK):
                count = min(_CHUNK, offset + size - at)
                file.seek(at)
                data = file.read(count)
                if len(data) != count:
                    raise TraceFileError(f"{self._path}: the file is cut short")
                words = np.frombuffer(data, "<u4")
                try:
                    found = walk(words)
                except DamagedPageError as error:
                    raise self._damaged(cpu, error, at) from None
                yield at, found, lost_before(words)

    def _host_events(self, cpu: int) -> Iterator[HostEvent]:
        for _, found, _ in self._found(cpu):
            kinds, times = found.kind.tolist(), found.ts.tolist()
            for row, (kind, ts) in enumerate(zip(kinds, times, strict=True)):
                event = host_event(kind, ts, found.bytes(row)) if kind in HOST_NAMES else None
                if event is not None:
                    yield event

    def _guess_tracer(self) -> str:
        """By the events at the beginning of each CPU's."""
        kinds: set[int] = set()
        for cpu in range(self._header.cpus):
            for _, found, _ in self._found(cpu):
                kinds.update(np.unique(found.kind).tolist())
                break
        events = {self._layouts[kind].event for kind in kinds if kind in self._layouts}
        if EventId.GRAPH_ENTRY in events:
            return "function_graph"
        return "function" if EventId.FUNCTION in events else "nop"

    def _open(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise TraceFileError(f"{self._path}: {error.strerror}") from None

    def _damaged(self, cpu: int, error: DamagedPageError, at: int) -> TraceFileError:
        at += error.page * PAGE_SIZE
        return TraceFileError(f"{self._path}: CPU {cpu}'s page at {at:#x} is damaged: {error}")


def _lost_at(lost: NDArray[np.int64], page: NDArray[np.int64], row: int, before: int) -> int:
    """What is lost before the event in ``row``: also before pages without events ahead of it."""
    total = 0
    for count in lost[before + 1 : int(page[row]) + 1].tolist():
        total = add_lost(total, count)
    return total
