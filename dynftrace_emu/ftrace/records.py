"""Recorded call sites: pages of ``struct dyn_ftrace`` in guest memory (S2, S3).

The pages and the hash are the guest's own data, in the original's shape. Only the host writes them;
guest code looks sites up without a lock, so a node is complete before a single 8-byte store to the
hash head shows it, and a node that left the hash keeps its memory and its link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.kernel.structs import (
    DYN_FTRACE,
    ENTRIES_PER_PAGE,
    FTRACE_HASHBITS,
    FTRACE_HASHSIZE,
    FTRACE_PAGE,
    GOLDEN_RATIO_PRIME_64,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dynftrace_emu.kernel.guest import GuestKernel
    from dynftrace_emu.machine.memory import GuestMemory

__all__ = ["FtraceHash", "RecordPages", "hash_long"]

_MASK = 0xFFFF_FFFF_FFFF_FFFF


def hash_long(value: int, bits: int = FTRACE_HASHBITS) -> int:
    """``hash_long()`` of 2008 (include/linux/hash.h)."""
    return (value * GOLDEN_RATIO_PRIME_64 & _MASK) >> (64 - bits)


def _hash_array(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    with np.errstate(over="ignore"):
        product = values * np.uint64(GOLDEN_RATIO_PRIME_64)
    return (product >> np.uint64(64 - FTRACE_HASHBITS)).astype(np.int64)


class RecordPages:
    """The list of record pages; slots are given out in order and never taken back."""

    def __init__(self, kernel: GuestKernel) -> None:
        self._kernel = kernel
        self._memory: GuestMemory = kernel.machine.memory
        self.pages: list[int] = []
        self._in_use = 0  # index into pages of the one slots come from

    @property
    def capacity(self) -> int:
        """Slots in all pages."""
        return len(self.pages) * ENTRIES_PER_PAGE

    @property
    def used(self) -> int:
        """Slots given out."""
        if not self.pages:
            return 0
        in_use = self._in_use
        return in_use * ENTRIES_PER_PAGE + self._index(self.pages[in_use])

    @property
    def needs_page(self) -> bool:
        """Whether the page in use has no successor (S3)."""
        return self._in_use + 1 >= len(self.pages)

    def add_page(self) -> None:
        """Append an empty page; the guest sees it by one store."""
        name = f"ftrace records {len(self.pages)}"
        page = self._memory.alloc_pages(1, name, "call sites recorded by mcount").address
        if self.pages:
            self._memory.write_u64(self.pages[-1] + FTRACE_PAGE.offset("next"), page)
        else:
            self._kernel.write("ftrace_pages", page)
        self.pages.append(page)

    def take_slot(self) -> int | None:
        """The address of a free record, or None if there is no slot (S4)."""
        if not self.pages:
            return None
        if self._index(self.pages[self._in_use]) == ENTRIES_PER_PAGE:
            if self.needs_page:
                return None
            self._in_use += 1
            self._kernel.write("ftrace_pages", self.pages[self._in_use])
        page = self.pages[self._in_use]
        index = self._index(page)
        self._header(page)["index"] = index + 1
        return page + FTRACE_PAGE.size + index * DYN_FTRACE.size

    def add_many(self, ips: NDArray[np.uint64]) -> None:
        """Make a record of each ip at once, adding pages as they are needed."""
        while self.capacity - self.used < len(ips):
            self.add_page()
        done = 0
        while done < len(ips):
            page = self.pages[self._in_use]
            index = self._index(page)
            count = min(len(ips) - done, ENTRIES_PER_PAGE - index)
            where = page + FTRACE_PAGE.size + index * DYN_FTRACE.size
            self._memory.view(where, DYN_FTRACE.dtype, count)["ip"] = ips[done : done + count]
            self._header(page)["index"] = index + count
            done += count
            if done < len(ips):
                self._in_use += 1
        if self.pages:
            self._kernel.write("ftrace_pages", self.pages[self._in_use])

    def place(self, number: int) -> tuple[int, int]:
        """Page and slot of record ``number``, both from 0."""
        return divmod(number, ENTRIES_PER_PAGE)

    def address(self, number: int) -> int:
        """Where record ``number`` lies."""
        page, slot = self.place(number)
        return self.pages[page] + FTRACE_PAGE.size + slot * DYN_FTRACE.size

    def ips(self, start: int = 0) -> NDArray[np.uint64]:
        """The ``ip`` of each record from number ``start`` on, in the order they were made."""
        return self._column("ip", start).astype(np.uint64)

    def failed(self, start: int = 0) -> NDArray[np.bool_]:
        """Likewise, whether it is marked failed."""
        marks: NDArray[np.uint32] = self._column("failed", start)
        return marks.astype(np.bool_)

    def mark_failed(self, numbers: NDArray[np.int64]) -> None:
        """Mark records that must never be tried again."""
        for number in numbers.tolist():
            self._memory.view(self.address(number), DYN_FTRACE.dtype)[0]["failed"] = 1

    def _column(self, name: str, start: int) -> NDArray[Any]:
        parts = [view[name] for view in self._views()]
        if not parts:
            return np.zeros(0, dtype=DYN_FTRACE.dtype[name])
        return np.concatenate(parts)[start:]

    def _views(self) -> Iterator[NDArray[Any]]:
        for page in self.pages[: self._in_use + 1]:
            yield self._memory.view(page + FTRACE_PAGE.size, DYN_FTRACE.dtype, self._index(page))

    def _header(self, page: int) -> Any:
        return self._memory.view(page, FTRACE_PAGE.dtype)[0]

    def _index(self, page: int) -> int:
        return int(self._header(page)["index"])


class FtraceHash:
    """``ftrace_hash``: 1024 hlist heads over the records, keyed by ``hash_long(ip)``."""

    _NEXT, _PPREV, _IP = (DYN_FTRACE.offset(name) for name in ("next", "pprev", "ip"))

    def __init__(self, kernel: GuestKernel) -> None:
        self._memory = kernel.machine.memory
        self._address = kernel.image.address("ftrace_hash")
        self._heads = self._memory.view(self._address, "<u8", FTRACE_HASHSIZE)

    def chain(self, bucket: int) -> Iterator[int]:
        """The nodes of a bucket, by address."""
        node = int(self._heads[bucket])
        while node:
            yield node
            node = self._memory.read_u64(node + self._NEXT)

    def find(self, ip: int) -> int | None:
        """The node that records ``ip``."""
        for node in self.chain(hash_long(ip)):
            if self._memory.read_u64(node + self._IP) == ip:
                return node
        return None

    def add(self, node: int, ip: int) -> None:
        """Fill a record and put it at the head of its chain (``hlist_add_head``)."""
        bucket = hash_long(ip)
        head = int(self._heads[bucket])
        self._memory.write_u64(node + self._NEXT, head)
        self._memory.write_u64(node + self._PPREV, self._head_address(bucket))
        self._memory.write_u64(node + self._IP, ip)
        if head:
            self._memory.write_u64(head + self._PPREV, node + self._NEXT)
        self._heads[bucket] = node

    def drop(self, ips: NDArray[np.uint64], failed: set[int]) -> None:
        """Empty the chains of ``ips`` of everything but what has ``failed`` (S6).

        Nothing else is in them: a record is in the hash until a pass has seen it. Memory and links
        of those that leave stay as they are: a look-up may be standing on one.
        """
        buckets = np.unique(_hash_array(ips))
        if not failed:
            self._heads[buckets] = 0
            return
        for bucket in buckets.tolist():
            self._relink(bucket, failed)

    def _relink(self, bucket: int, failed: set[int]) -> None:
        kept = [n for n in self.chain(bucket) if self._memory.read_u64(n + self._IP) in failed]
        place = self._head_address(bucket)
        for node in kept:
            self._memory.write_u64(place, node)
            self._memory.write_u64(node + self._PPREV, place)
            place = node + self._NEXT
        self._memory.write_u64(place, 0)

    def _head_address(self, bucket: int) -> int:
        return self._address + 8 * bucket

    def __len__(self) -> int:
        return sum(1 for bucket in np.flatnonzero(self._heads).tolist() for _ in self.chain(bucket))
