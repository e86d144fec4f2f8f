"""The ring buffers: sizes, clocks, numbers, snapshots (kernel/trace/trace.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ControlFileError
from dynftrace_emu.tracefs.control_file import ControlFile, parse_number

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.trace_array import TraceArray

__all__ = [
    "BufferPercent", "BufferSizeKb", "BufferTotalSizeKb", "CpuBufferSizeKb", "CpuFile",
    "FreeBuffer", "Stats", "TraceClock",
]  # fmt: skip

_LARGEST_KB = 1 << 30


def _parse_size(text: str) -> int:
    size = parse_number(text)
    if not size:
        raise ControlFileError(errno.EINVAL, "a buffer of 0 KiB: 1 or more is needed")
    if size > _LARGEST_KB:
        raise ControlFileError(errno.ENOMEM, f"{size} KiB a CPU: more than any guest has")
    return size


class BufferSizeKb(ControlFile):
    """``buffer_size_kb``: KiB of each CPU's buffer; ``X`` where they differ."""

    name = "buffer_size_kb"

    def read(self) -> str:
        sizes = set(self.array.sizes_kb)
        return f"{sizes.pop()}\n" if len(sizes) == 1 else "X\n"

    def write(self, text: str, *, append: bool) -> None:
        self.array.resize([_parse_size(text)] * self.tracing.nr_cpus)


class BufferTotalSizeKb(ControlFile):
    """``buffer_total_size_kb``: of all CPUs."""

    name = "buffer_total_size_kb"
    writable = False

    def read(self) -> str:
        return f"{sum(self.array.sizes_kb)}\n"


class BufferPercent(ControlFile):
    """``buffer_percent``: how full a buffer is when who waits for it is woken."""

    name = "buffer_percent"

    def read(self) -> str:
        return f"{self.array.buffer_percent}\n"

    def write(self, text: str, *, append: bool) -> None:
        percent = parse_number(text)
        if percent > 100:
            raise ControlFileError(errno.EINVAL, f"{percent}: at most 100 percent")
        self.array.buffer_percent = percent


class FreeBuffer(ControlFile):
    """``free_buffer``: any write shrinks the buffers to the least there can be."""

    name = "free_buffer"
    readable = False

    def write(self, text: str, *, append: bool) -> None:
        if self.array.option("disable_on_free"):
            self.array.set_on(False)
        self.array.resize([1] * self.tracing.nr_cpus)


class TraceClock(ControlFile):
    """``trace_clock``: the clocks there are, the present one in brackets."""

    name = "trace_clock"

    def read(self) -> str:
        names = (f"[{c}]" if c == self.array.clock else c for c in self.tracing.clocks)
        return " ".join(names) + "\n"

    def write(self, text: str, *, append: bool) -> None:
        clock = text.strip()
        if clock not in self.tracing.clocks:
            known = ", ".join(self.tracing.clocks)
            why = " (counter: with --engine deterministic only)" if clock == "counter" else ""
            raise ControlFileError(errno.EINVAL, f"no clock {clock!r}; known: {known}{why}")
        if clock != self.array.clock:
            self.array.set_clock(clock)


class CpuFile(ControlFile):
    """A file of ``per_cpu/cpuN/``."""

    def __init__(self, array: TraceArray, cpu: int) -> None:
        super().__init__(array)
        self.cpu = cpu


class CpuBufferSizeKb(CpuFile):
    """``per_cpu/cpuN/buffer_size_kb``."""

    name = "buffer_size_kb"

    def read(self) -> str:
        return f"{self.array.sizes_kb[self.cpu]}\n"

    def write(self, text: str, *, append: bool) -> None:
        sizes = list(self.array.sizes_kb)
        sizes[self.cpu] = _parse_size(text)
        self.array.resize(sizes)


class Stats(CpuFile):
    """``per_cpu/cpuN/stats``: events written = entries + overrun + dropped events + read events."""

    name = "stats"
    writable = False

    def read(self) -> str:
        stats = self.array.buffer.cpus[self.cpu].stats()
        now = self.tracing.now(self.array, self.cpu)
        return (
            f"entries: {stats.entries}\n"
            f"overrun: {stats.overrun}\n"
            "commit overrun: 0\n"
            f"bytes: {stats.bytes}\n"
            f"oldest event ts: {self._time(stats.oldest or 0)}\n"
            f"now ts: {self._time(now)}\n"
            f"dropped events: {stats.dropped}\n"
            f"read events: {stats.read}\n"
        )

    def _time(self, ts: int) -> str:
        if self.array.clock == "counter":
            return str(ts)
        return f"{ts // 10**9:5d}.{ts // 1000 % 10**6:06d}"
