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
    """The list of record pages; slots are given out in order and never taken back.

    A record's ip never changes, and only the host marks records: so both are also kept here, as
    arrays over all records, and a switch of 50,000 sites need not walk their pages.
    """

    def __init__(self, kernel: GuestKernel) -> None:
        self._kernel = kernel
        self._memory: GuestMemory = kernel.machine.memory
        self.pages: list[int] = []
        self._headers: list[Any] = []  # of each page, a view
        self._used = 0
        self._ips = np.zeros(0, dtype=np.uint64)  # of the first records, as far as anyone asked
        self._failed = np.zeros(0, dtype=np.int64)  # numbers

    @property
    def capacity(self) -> int:
        """Slots in all pages."""
        return len(self.pages) * ENTRIES_PER_PAGE

    @property
    def used(self) -> int:
        """Slots given out."""
        return self._used

    @property
    def needs_page(self) -> bool:
        """Whether the page in use has no successor (S3)."""
        return self._in_use + 1 >= len(self.pages)

    @property
    def _in_use(self) -> int:
        """Which page slots come from: one that is full until somebody wants another slot."""
        return max(self._used - 1, 0) // ENTRIES_PER_PAGE

    def add_page(self) -> None:
        """Append an empty page; the guest sees it by one store."""
        name = f"ftrace records {len(self.pages)}"
        page = self._memory.alloc_pages(1, name, "call sites recorded by mcount").address
        if self.pages:
            self._memory.write_u64(self.pages[-1] + FTRACE_PAGE.offset("next"), page)
        else:
            self._kernel.write("ftrace_pages", page)
        self._headers.append(self._memory.view(page, FTRACE_PAGE.dtype)[0])
        self.pages.append(page)

    def take_slot(self, ip: int) -> int | None:
        """The address of a new record of ``ip``, or None if there is no slot (S4)."""
        page, slot = self.place(self._used)
        if page >= len(self.pages):
            return None
        if page and not slot:
            self._kernel.write("ftrace_pages", self.pages[page])
        address = self.address(self._used)
        self._memory.view(address, DYN_FTRACE.dtype)[0]["ip"] = ip
        self._headers[page]["index"] = slot + 1
        self._used += 1
        return address

    def add_many(self, ips: NDArray[np.uint64]) -> None:
        """Make a record of each ip at once, adding pages as they are needed."""
        while self.capacity - self._used < len(ips):
            self.add_page()
        done = 0
        while done < len(ips):
            page, slot = self.place(self._used)
            count = min(len(ips) - done, ENTRIES_PER_PAGE - slot)
            self._view(self._used, count)["ip"] = ips[done : done + count]
            self._headers[page]["index"] = slot + count
            self._used += count
            done += count
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
        used, ips = self._used, self._ips
        if len(ips) < used:
            ips = self._ips = np.concatenate([ips, *self._read_ips(len(ips), used)])
        return ips[start:used]

    def failed(self, start: int = 0) -> NDArray[np.bool_]:
        """Likewise, whether it is marked failed."""
        marks = np.zeros(self._used, dtype=np.bool_)
        marks[self._failed] = True
        return marks[start:]

    def mark_failed(self, numbers: NDArray[np.int64]) -> None:
        """Mark records that must never be tried again."""
        for number in numbers.tolist():
            self._view(number)["failed"] = 1
        self._failed = np.concatenate([self._failed, numbers])

    def _read_ips(self, number: int, end: int) -> Iterator[NDArray[np.uint64]]:
        """Of the records from ``number`` on, page by page."""
        while number < end:
            count = min(end - number, ENTRIES_PER_PAGE - number % ENTRIES_PER_PAGE)
            yield self._view(number, count)["ip"]
            number += count

    def _view(self, number: int, count: int = 1) -> NDArray[Any]:
        """Records of one page from ``number`` on."""
        return self._memory.view(self.address(number), DYN_FTRACE.dtype, count)


class FtraceHash:
    """``ftrace_hash``: 1024 hlist heads over the records, keyed by ``hash_long(ip)``.

    The guest looks sites up in its chains. The host, which alone changes them, also keeps what they
    hold by ip: with 50,000 sites and no pass yet, a chain is 50 long.
    """

    _NEXT, _PPREV, _IP = (DYN_FTRACE.offset(name) for name in ("next", "pprev", "ip"))

    def __init__(self, kernel: GuestKernel) -> None:
        self._memory = kernel.machine.memory
        self._address = kernel.image.address("ftrace_hash")
        self._heads = self._memory.view(self._address, "<u8", FTRACE_HASHSIZE)
        self._nodes: dict[int, int] = {}  # ip: node
        self._lengths = [0] * FTRACE_HASHSIZE

    def chain(self, bucket: int) -> Iterator[int]:
        """The nodes of a bucket, by address."""
        node = int(self._heads[bucket])
        while node:
            yield node
            node = self._memory.read_u64(node + self._NEXT)

    def length(self, bucket: int) -> int:
        """How many nodes a bucket has."""
        return self._lengths[bucket]

    def find(self, ip: int) -> int | None:
        """The node that records ``ip``."""
        return self._nodes.get(ip)

    def add(self, node: int, ip: int) -> None:
        """Fill a record and put it at the head of its chain (``hlist_add_head``)."""
        bucket = hash_long(ip)
        head = int(self._heads[bucket])
        record = head, self._head_address(bucket), ip, 0
        self._memory.view(node, DYN_FTRACE.dtype)[0] = record
        if head:
            self._memory.write_u64(head + self._PPREV, node + self._NEXT)
        self._nodes[ip] = node
        self._lengths[bucket] += 1
        self._heads[bucket] = node

    def drop(self, ips: NDArray[np.uint64], failed: NDArray[np.uint64]) -> None:
        """Empty the chains of ``ips`` of everything but what has ``failed`` (S6).

        Nothing else is in them: a record is in the hash until a pass has seen it. Memory and links
        of those that leave stay as they are: a look-up may be standing on one.
        """
        changing = np.zeros(FTRACE_HASHSIZE, dtype=np.bool_)
        changing[_hash_array(ips)] = True
        kept = np.zeros(FTRACE_HASHSIZE, dtype=np.bool_)
        kept[_hash_array(failed)] = True
        self._heads[changing & ~kept] = 0
        staying = set(failed.tolist())
        for bucket in np.flatnonzero(changing & kept).tolist():
            self._relink(bucket, staying)
        self._nodes = {ip: self._nodes[ip] for ip in staying if ip in self._nodes}
        self._lengths = [0] * FTRACE_HASHSIZE
        for ip in self._nodes:
            self._lengths[hash_long(ip)] += 1

    def _relink(self, bucket: int, staying: set[int]) -> None:
        kept = [n for n in self.chain(bucket) if self._memory.read_u64(n + self._IP) in staying]
        place = self._head_address(bucket)
        for node in kept:
            self._memory.write_u64(place, node)
            self._memory.write_u64(node + self._PPREV, place)
            place = node + self._NEXT
        self._memory.write_u64(place, 0)

    def _head_address(self, bucket: int) -> int:
        return self._address + 8 * bucket

    def __len__(self) -> int:
        return len(self._nodes)
