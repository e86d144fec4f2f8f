"""Writes trace.dat version 6 while a trace runs."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

from dynftrace_emu.export.trace_dat_format import HOST_EVENTS, HOST_PID
from dynftrace_emu.export.trace_dat_header import (
    build_clocks,
    build_header,
    build_table,
    cpu_stat_text,
)
from dynftrace_emu.export.trace_dat_host import host_body
from dynftrace_emu.export.trace_dat_pack import LOST_UNKNOWN, Packer, add_lost, copy_pages
from dynftrace_emu.export.trace_dat_spill import (
    Spill,
    assemble,
    find_spills,
    lock,
    spill_path,
    write_at,
)
from dynftrace_emu.ftrace.trace_events import EVENT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from dynftrace_emu.export.trace_source import HostEvent, TraceInfo
    from dynftrace_emu.ftrace.ring_buffer import CpuStats

__all__ = ["TraceDatWriter"]

_PAGES_AT_ONCE = 1024


class TraceDatWriter:
    """A trace.dat in the making.

    ``target`` is a path, or a binary file that can seek (then what comes in goes to temporary
    files, and a process that dies leaves nothing). Each vCPU's events must come in time order.
    A write that fails raises OSError and loses what it was to write, which the trace then says;
    ``close`` afterwards still makes a file of all that was written before.
    """

    def __init__(self, target: str | Path | BinaryIO, info: TraceInfo) -> None:
        self.info = info  # may be replaced until close: tasks get names while a trace runs
        self._stats: dict[int, str] = {}
        self._path = Path(target) if isinstance(target, str | Path) else None
        self._lock = threading.Lock()
        self._closed = False
        streams = info.nr_cpus + 1  # the last one is the host's
        self._packers = [Packer() for _ in range(streams)]
        self._lost = [0] * streams  # what could not be written
        if self._path is not None:
            self._target: BinaryIO = _open_target(self._path)
        else:
            assert not isinstance(target, str | Path)
            self._target = target
        self._header, self._header_end = b"", 0
        self._write_header(streams)
        self._spills = [self._open_spill(cpu) for cpu in range(streams)]

    def add_pages(
        self, cpu: int, raw: NDArray[np.uint8], commit: NDArray[np.int64], lost: int = 0
    ) -> None:
        """Append whole pages of a vCPU's ring buffer, shape (n, 4096), oldest first.

        :param commit: bytes of events in each.
        :param lost: events gone just before the first; LOST_UNKNOWN (-1): some.
        """
        full = np.flatnonzero(commit)
        with self._lock:
            self._packers[cpu].close_page()
            self._lost[cpu] = add_lost(self._lost[cpu], lost)
            for start in range(0, len(full), _PAGES_AT_ONCE):
                rows = full[start : start + _PAGES_AT_ONCE]
                pages = copy_pages(raw[rows], commit[rows], self._lost[cpu])
                self._write(cpu, pages, replaces=False)

    def add_events(
        self, cpu: int, table: NDArray[Any], payloads: Sequence[object] = (), lost: int = 0
    ) -> None:
        """Append events of one vCPU (dtype EVENT; their ``cpu`` is not looked at), packed anew."""
        with self._lock:
            self._lost[cpu] = add_lost(self._lost[cpu], lost)
            if not len(table):
                return
            pages, replaces = self._packers[cpu].pages(table, payloads, self._lost[cpu])
            self._write(cpu, pages, replaces=replaces)

    def add_host_event(self, event: HostEvent) -> None:
        """Append something that the host did: it goes to one CPU more than the machine has."""
        self.add_host_events([event])

    def add_host_events(self, events: Sequence[HostEvent]) -> None:
        """The same for many, in time order."""
        table = np.zeros(len(events), EVENT)
        table["ts"], table["pid"] = [event.ts for event in events], HOST_PID
        table["type"] = [HOST_EVENTS[event.name].number for event in events]
        table["payload"] = np.arange(len(events))
        self.add_events(self.info.nr_cpus, table, [host_body(event) for event in events])

    def set_stats(self, cpu: int, stats: CpuStats) -> None:
        """What the buffer of ``cpu`` counted in the end."""
        values = asdict(stats)
        shown = {
            "entries": values["entries"] + values["read"],
            "overrun": values["overrun"],
            "commit overrun": 0,
            "bytes": values["bytes"],
            "oldest event ts": _seconds(values["oldest"] or 0),
            "now ts": _seconds(values["oldest"] or 0),
            "dropped events": values["dropped"],
            "read events": values["read"],
        }
        self._stats[cpu] = cpu_stat_text(cpu, shown)

    def close(self) -> None:
        """Make the file whole. May be called twice, and after any of the above has failed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._finish()
            finally:
                for spill in self._spills:
                    spill.close()
                if self._path is not None:
                    self._target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_spill(self, cpu: int) -> Spill:
        if self._path is None:
            return Spill(tempfile.TemporaryFile(buffering=0))
        path = spill_path(self._path, cpu)
        return Spill(path.open("w+b", buffering=0), path)

    def _write(self, cpu: int, pages: NDArray[np.uint64], *, replaces: bool) -> None:
        try:
            self._spills[cpu].write(pages.data.cast("B"), replaces=replaces)
        except BaseException:  # Ctrl-C, too, may come in the middle
            self._packers[cpu].close_page()
            self._lost[cpu] = LOST_UNKNOWN
            raise
        self._lost[cpu] = 0

    def _write_header(self, streams: int) -> None:
        """Put the header, and a table that says nothing yet, into the target, if it is new."""
        header = build_header(self.info, streams, self._stats)
        if header == self._header:
            return
        data = header + build_table([(0, 0)] * streams) + build_clocks(self.info)
        if self._header and self._path is not None:
            self._replace_target(self._path, data)
        else:
            write_at(self._target, 0, data)
        self._header, self._header_end = header, len(data)

    def _replace_target(self, path: Path, data: bytes) -> None:
        """At no time is there half a header."""
        made = path.with_name(f"{path.name}.header.part")
        file = made.open("w+b", buffering=0)
        try:
            lock(file, made)
            write_at(file, 0, data)
            made.replace(path)
        except BaseException:
            file.close()
            made.unlink(missing_ok=True)
            raise
        self._target.close()
        self._target = file

    def _finish(self) -> None:
        nr_cpus = self.info.nr_cpus
        streams = nr_cpus + bool(self._spills[nr_cpus].size)
        try:
            self._write_header(streams)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            streams = nr_cpus + 1  # the disk is full: the first header does
        assemble(self._target, len(self._header), self._header_end, self._spills[:streams])
        for spill in self._spills:
            spill.remove()


def _open_target(path: Path) -> BinaryIO:
    """Open it, empty; what an earlier recording left beside it goes, unless that is going on."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", 0)
    try:
        lock(file, path)
        for stale in find_spills(path).values():
            stale.unlink()
        file.truncate(0)
    except BaseException:
        file.close()
        raise
    return file


def _seconds(ns: int) -> str:
    return f"{ns // 10**9:5d}.{ns // 1000 % 10**6:06d}"
