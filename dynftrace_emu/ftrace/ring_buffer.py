"""Ring buffers: the host's side (kernel/trace/ring_buffer.c; pages are laid out as Linux's are).

Each CPU writes its own buffer, in guest code (firmware/trace/ring_buffer.S), and nobody else does
while it runs. The host reads without asking it to wait: pages are counted and never reused, so a
copy of page N is good if the writer has not come to page N + nr_pages when the copy is done, and in
it what was whole before the copy began: what the write word has, or, if that is open, ``commit``.
What was overwritten is not counted by the writer but follows from the numbers of events: so events
+ overruns is what was written, whoever raced.

``_lock`` guards the reader's own state; a leaf, held only while pages are copied.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.ftrace.event_decoder import bytes_before, decode_pages
from dynftrace_emu.ftrace.trace_events import EVENT, Events
from dynftrace_emu.kernel.structs import (
    BUFFER_PAGE,
    PAGE_SIZE,
    PAGE_WRITE,
    RB,
    RB_PAGE,
    WRITE_CLOSED,
    WRITE_COUNT_MASK,
    WRITE_COUNT_SHIFT,
    WRITE_OPEN,
    WRITE_TIME_SHIFT,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynftrace_emu.ftrace.page_pool import PagePool
    from dynftrace_emu.machine.memory import GuestMemory

__all__ = ["CpuStats", "RingBuffer", "RingBufferCpu"]

BUFFER_PAGE_SPACE = PAGE_WRITE - BUFFER_PAGE.size
MIN_PAGES = 2
_TIME_EXTEND = 30
_MAX_DELTA = 1 << 27
_TIME_EXTEND_SIZE = 8
_PLACE = WRITE_CLOSED - 1  # of a write word: the words reserved
_TIMES = 1 << 64 - WRITE_TIME_SHIFT


@dataclass(frozen=True, slots=True)
class CpuStats:
    """What ``per_cpu/cpuN/stats`` says of one CPU's buffer, since it was emptied last."""

    entries: int  # in the buffer, not read
    overrun: int  # overwritten before they were read
    dropped: int  # not written for want of room, or out of an NMI
    read: int  # consumed
    bytes: int  # of the events in the buffer
    oldest: int | None  # time of the oldest event in the buffer


@dataclass(frozen=True, slots=True)
class Pages:
    """Copies of pages: raw bytes (n, 4096), their numbers, and the events written before each."""

    raw: NDArray[np.uint8]
    number: NDArray[np.int64]
    first: NDArray[np.int64]
    commit: NDArray[np.int64]

    def select(self, which: Any) -> Pages:
        """Those that an index, a mask or a slice names."""
        return Pages(self.raw[which], self.number[which], self.first[which], self.commit[which])

    def end(self) -> int:
        """The number of the event that comes behind the last of these, which must not be none."""
        last = self.select(slice(-1, None))
        _, _, page = decode_pages(last.raw, last.commit, last.first)
        return int(self.first[-1]) + len(page)


@dataclass(frozen=True, slots=True)
class PagesRead:
    """Consumed: ``events`` in all, of which ``lost`` more are gone before.

    Where some of the first page had been consumed already, its others come as events in ``rest``;
    they lie before ``pages``.
    """

    rest: Events | None
    pages: Pages
    events: int
    lost: int


class RingBufferCpu:
    """The buffer of one CPU: ``struct rb``, a table, and pages, all in guest memory."""

    def __init__(self, memory: GuestMemory, pool: PagePool, cpu: int, nr_pages: int) -> None:
        self._memory, self._pool, self.cpu, self.nr_pages = memory, pool, cpu, nr_pages
        self._table_pages = -(-(RB.size + nr_pages * RB_PAGE.size) // PAGE_SIZE)
        self.base, self.address = pool.alloc_all([nr_pages, self._table_pages])
        self._rb: NDArray[Any] = memory.view(self.address, RB.dtype)
        self._table = memory.view(self.address + RB.size, RB_PAGE.dtype, nr_pages)
        raw = memory.view(self.base, "u1", nr_pages * PAGE_SIZE)
        self._raw: NDArray[np.uint8] = raw.reshape(nr_pages, PAGE_SIZE)
        words: NDArray[np.uint64] = self._raw.view("<u8")
        self._stamps = words[:, BUFFER_PAGE.offset("time_stamp") // 8]
        self._commits = words[:, BUFFER_PAGE.offset("commit") // 8]
        self._writes = words[:, PAGE_WRITE // 8]
        self._rb["page"], self._rb["base"] = self.base, self.base
        self._rb["end"] = self.base + nr_pages * PAGE_SIZE
        self._rb["nr_pages"], self._rb["table"] = nr_pages, self.address + RB.size
        self._lock = threading.Lock()
        # Guarded by _lock: the events numbered below _next have been consumed, overrun or emptied.
        self._next = 0
        self._read = self._overrun = self._dropped_before = 0

    def free(self) -> None:
        """Give the memory back; nobody may write any more."""
        self._pool.free(self.base, self.nr_pages)
        self._pool.free(self.address, self._table_pages)

    # --- what the host tells the writer ---

    def set(self, field: str, value: int) -> None:
        """Store to a field of ``struct rb``, in one move."""
        self._rb[field] = value

    def get(self, field: str) -> int:
        """A field of ``struct rb``."""
        return int(self._rb[field][0])

    # --- reading ---

    def reset(self) -> None:
        """Forget everything that has been written."""
        with self._lock:
            self._next = self._written()
            self._rb["reader_page"] = self.get("page_no")
            self._read = self._overrun = 0
            self._dropped_before = self.get("dropped")

    def take_over(self, old: RingBufferCpu) -> None:
        """Count on from a buffer that this one replaces: what is in that one is overrun."""
        stats = old.stats()
        with self._lock:
            self._read, self._overrun = stats.read, stats.overrun + stats.entries
            self._dropped_before = self.get("dropped") - stats.dropped

    def _written(self) -> int:
        """How many events have been written since the buffer was made, or begun."""
        while True:
            page = self.get("page_no")
            slot = page % self.nr_pages
            first, word = int(self._table["first"][slot]), int(self._writes[slot])
            if int(self._table["number"][slot]) == page == self.get("page_no"):
                return first + (word >> WRITE_COUNT_SHIFT & WRITE_COUNT_MASK)

    def peek(self) -> tuple[Events, int]:
        """The events in the buffer, and how many were lost before the first of them."""
        with self._lock:
            events, _, lost = self._available()
            return events, lost

    def read(self, limit: int | None = None) -> tuple[Events, int]:
        """Consume events, at most ``limit``, oldest first; also how many were lost before them."""
        with self._lock:
            events, page_numbers, lost = self._available()
            count = len(events) if limit is None else min(limit, len(events))
            if not count:
                return Events(events.table[:0]), 0
            table = events.table[:count]
            self._overrun += lost
            self._read += count
            self._next = int(table["number"][-1]) + 1
            # In a buffer that does not overwrite, this is what makes room.
            self._rb["reader_page"] = int(page_numbers[count - 1])
            return Events(table, events.payloads), lost

    def stats(self) -> CpuStats:
        """The numbers of it, at this moment."""
        with self._lock:
            pages = self._copy()
            events, _, lost = self._decode(pages)
            table = events.table
            used = 0
            if len(table):
                number = int(table["number"][0])
                first = int(np.searchsorted(pages.first, number, side="right")) - 1
                consumed = bytes_before(pages.raw[first], number - int(pages.first[first]))
                used = int(pages.commit[first:].sum()) - consumed
            return CpuStats(
                len(table),
                self._overrun + lost,
                self.get("dropped") - self._dropped_before,
                self._read,
                used,
                int(table["ts"][0]) if len(table) else None,
            )

    def read_pages(self, *, last: bool) -> PagesRead:
        """Consume whole pages: those that nobody writes any more, or, if ``last``, all."""
        with self._lock:
            pages = self._copy()
            if not last:
                pages = pages.select(pages.number < self.get("page_no"))
            if not len(pages.number):
                return PagesRead(None, pages, 0, 0)
            end = pages.end()
            if not last:
                self._rb["reader_page"] = int(pages.number[-1]) + 1
            rest, lost = None, max(0, int(pages.first[0]) - self._next)
            if pages.first[0] < self._next:
                rest, _, _ = self._decode(pages.select(slice(0, 1)))
                pages = pages.select(slice(1, None))
            events = end - self._next - lost
            self._next, self._read, self._overrun = end, self._read + events, self._overrun + lost
            return PagesRead(rest, pages, events, lost)

    def pages(self) -> Pages:
        """Whole pages as they are, from the one that holds the next event to be read on."""
        with self._lock:
            return self._copy()

    def _available(self) -> tuple[Events, NDArray[np.int64], int]:
        return self._decode(self._copy())

    def _decode(self, pages: Pages) -> tuple[Events, NDArray[np.int64], int]:
        """Events from ``_next`` on, the page of each, and how many are gone before them."""
        table, payloads, page = decode_pages(pages.raw, pages.commit, pages.first)
        table["cpu"] = self.cpu
        keep = table["number"] >= self._next
        table, page = table[keep], page[keep]
        lost = int(table["number"][0]) - self._next if len(table) else 0
        return Events(table, tuple(payloads)), pages.number[page], lost

    def _copy(self) -> Pages:
        """Copies of the pages that may hold events from ``_next`` on."""
        newest = self.get("page_no")
        oldest = max(0, newest - self.nr_pages + 1, self._first_page(newest))
        numbers = np.arange(oldest, newest + 1, dtype=np.int64)
        index = numbers % self.nr_pages
        valid = self._table["number"][index].astype(np.int64) == numbers
        writes = self._writes[index]
        # In a page that is closed somebody may be at work still; then nothing behind it counts yet.
        whole = (writes & np.uint64(WRITE_OPEN)) == 0
        reserved = (writes & np.uint64(_PLACE)).astype(np.int64) * 4
        commit = np.where(whole, reserved, self._commits[index].astype(np.int64))
        first = self._table["first"][index].astype(np.int64)
        raw = self._raw[index]
        raw.view("<u8")[:, BUFFER_PAGE.offset("commit") // 8] = commit
        valid &= numbers > self.get("page_no") - self.nr_pages  # nobody has begun to write over it
        valid[1:] &= np.logical_and.accumulate(whole | ~valid)[:-1]
        return Pages(raw[valid], numbers[valid], first[valid], commit[valid])

    def _first_page(self, newest: int) -> int:
        """The page to begin at: the last in memory whose first event is not behind ``_next``."""
        if newest == 0:
            return 0
        numbers = np.arange(max(0, newest - self.nr_pages + 1), newest + 1, dtype=np.int64)
        index = numbers % self.nr_pages
        known = self._table["number"][index].astype(np.int64) == numbers
        behind = known & (self._table["first"][index].astype(np.int64) <= self._next)
        return int(numbers[behind].max()) if behind.any() else 0

    # --- writing, by the host ---

    def write(self, common: int, body: bytes, time: int) -> bool:
        """Write an event while its CPU is stopped, as guest code would; False: it was dropped.

        :param common: the eight bytes every event begins with.
        """
        size = -(-(8 + len(body)) // 4) * 4
        slot = self._slot()
        commit, delta = self._place(slot, time)
        extend = _TIME_EXTEND_SIZE if delta >= _MAX_DELTA else 0
        if commit + extend + 8 + size > BUFFER_PAGE_SPACE:
            if not self._next_page(time):
                self._rb["dropped"] += np.uint64(1)
                return False
            slot = self._slot()
            commit, delta = self._place(slot, time)
            extend = 0
        data = b""
        if extend:
            data = struct.pack("<II", _TIME_EXTEND | (delta & (_MAX_DELTA - 1)) << 5, delta >> 27)
        data += struct.pack("<IIQ", 0 if extend else delta << 5, size + 4, common)
        data += body.ljust(size - 8, b"\0")
        at = BUFFER_PAGE.size + commit
        self._raw[slot][at : at + len(data)] = np.frombuffer(data, np.uint8)
        word = int(self._writes[slot]) + (delta << WRITE_TIME_SHIFT) + (1 << WRITE_COUNT_SHIFT)
        self._writes[slot] = (word + len(data) // 4) % (1 << 64)
        self._commits[slot] = commit + len(data)
        return True

    def _slot(self) -> int:
        """Where in memory the page is that is being written."""
        return (self.get("page") - self.base) // PAGE_SIZE

    def _place(self, slot: int, time: int) -> tuple[int, int]:
        """Where in a page the next event goes, and how much later than the last (or not) it is."""
        word = int(self._writes[slot])
        delta = (time - (word >> WRITE_TIME_SHIFT)) % _TIMES
        return (word & _PLACE) * 4, delta if delta < _TIMES // 2 else 0

    def new_page(self) -> None:
        """Begin a page and a time, while its CPU is stopped; what was written is forgotten."""
        with self._lock:
            self._rb["reader_page"] = self.get("page_no") + 1
            self._next_page(0)

    def _next_page(self, time: int) -> bool:
        rb, slot = self._rb[0], self._slot()
        number = int(rb["page_no"]) + 1
        if not rb["overwrite"] and number - self.nr_pages >= int(rb["reader_page"]):
            return False
        first = self._written()
        self._writes[slot] |= np.uint64(WRITE_CLOSED)
        slot = (slot + 1) % self.nr_pages
        rb["page_no"] = number
        self._stamps[slot], self._commits[slot] = time, 0
        self._writes[slot] = (time << WRITE_TIME_SHIFT) % (1 << 64)
        self._table[slot]["first"] = first
        self._table[slot]["number"] = number
        rb["page"] = self.base + slot * PAGE_SIZE
        return True


class RingBuffer:
    """The buffers of all CPUs of one trace array, main or snapshot.

    :param sizes: pages of each CPU's.
    """

    def __init__(self, memory: GuestMemory, pool: PagePool, sizes: list[int]) -> None:
        self._memory, self._pool = memory, pool
        self.cpus: list[RingBufferCpu] = []
        try:
            for cpu, pages in enumerate(sizes):
                self.cpus.append(RingBufferCpu(memory, pool, cpu, max(MIN_PAGES, pages)))
        except BaseException:
            self.free()
            raise

    @property
    def sizes(self) -> list[int]:
        """Pages of each CPU's buffer."""
        return [buffer.nr_pages for buffer in self.cpus]

    def free(self) -> None:
        """Give all memory back; nobody may write any more."""
        for buffer in self.cpus:
            buffer.free()

    def take_over(self, old: RingBuffer) -> None:
        """Count on from a buffer that this one replaces."""
        for part, before in zip(self.cpus, old.cpus, strict=True):
            part.take_over(before)

    def reset(self) -> None:
        """Empty it."""
        for buffer in self.cpus:
            buffer.reset()

    def set(self, field: str, value: int) -> None:
        """Store to a field of every CPU's ``struct rb``."""
        for buffer in self.cpus:
            buffer.set(field, value)

    def peek(self, cpus: list[int] | None = None) -> tuple[Events, dict[int, int]]:
        """What is in the buffers, merged in time order; and how many were lost on each CPU."""
        return merge([self.cpus[cpu].peek() for cpu in self._chosen(cpus)])

    def read(
        self, limit: int | None = None, cpus: list[int] | None = None
    ) -> tuple[Events, dict[int, int]]:
        """Consume what is there, or the first ``limit`` events in time order, merged."""
        chosen = [self.cpus[cpu] for cpu in self._chosen(cpus)]
        if limit is None:
            return merge([buffer.read() for buffer in chosen])
        there, _ = merge([buffer.peek() for buffer in chosen])
        counts = np.bincount(there.table["cpu"][:limit], minlength=len(self.cpus)).tolist()
        # What has been overwritten since then cannot be read; so many that came later are, instead.
        return merge([buffer.read(counts[buffer.cpu]) for buffer in chosen])

    def _chosen(self, cpus: list[int] | None) -> list[int]:
        return list(range(len(self.cpus))) if cpus is None else cpus


def merge(parts: list[tuple[Events, int]]) -> tuple[Events, dict[int, int]]:
    """Events of several CPUs in time order; where times are equal, in the order of the CPUs."""
    tables = [np.zeros(0, dtype=EVENT)]
    payloads: list[object] = []
    lost: dict[int, int] = {}
    for events, count in parts:
        table = events.table
        if payloads and len(events.payloads):
            table = table.copy()
            table["payload"][table["payload"] >= 0] += len(payloads)
        if count and len(table):
            lost[int(table["cpu"][0])] = count
        tables.append(table)
        payloads += events.payloads
    merged = np.concatenate(tables)
    return Events(merged[np.argsort(merged["ts"], kind="stable")], tuple(payloads)), lost
