"""Guest memory: one ``mmap`` that every vCPU shares, and the page tables that lie in it.

Who maps what, where and why stands in one table, :attr:`GuestMemory.regions`. Permissions are W^X:
a region that is executable is not writable for the guest (unless a foreign image wants both of one
page), so text changes only through :meth:`GuestMemory.write`, as through Linux's ``text_poke``
alias. Everything that is not text is
no-execute, also because the engine's stores to executable pages are several times slower.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.errors import AddressSpaceError, ImageError
from dynftrace_emu.machine.paging import ADDRESS_MASK, PAGE_SIZE, PageTables, PageWalk

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PAGE_SIZE", "GuestMemory", "PageWalk", "Region"]

DIRECT_MAP = 0xFFFF_8880_0000_0000
"""Where physical pages given out by :meth:`GuestMemory.alloc_pages` appear (PAGE_OFFSET)."""

COUNTER_PAGE = 0xFFFF_FF00_0000_0000
"""Where guest code sees its vCPU's count of instructions (:meth:`GuestMemory.map_counter`)."""

_FIRST_FREE = 0x1000  # physical page 0 stays unused: no table ever points there
_WORD = 8  # bytes of the longest store


@dataclass(frozen=True, slots=True)
class Region:
    """A contiguous mapping. ``size`` in bytes; ``purpose`` is for people."""

    name: str
    address: int
    physical: int
    size: int
    writable: bool
    executable: bool
    purpose: str

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.address + self.size


class _RegionArrays:
    """The regions of one moment, by address, as arrays; physical is virtual plus the shift."""

    def __init__(self, regions: tuple[Region, ...]) -> None:
        self.regions = regions
        self.starts = np.array([region.address for region in regions], dtype=np.uint64)
        self.ends = np.array([region.end for region in regions], dtype=np.uint64)
        physical = np.array([region.physical for region in regions], dtype=np.uint64)
        with np.errstate(over="ignore"):
            self.shifts = physical - self.starts


class GuestMemory:
    """Physical memory and the page tables over it.

    Single aligned 8-byte accesses (:meth:`read_u64`, :meth:`write_u64`) are one host move each, so
    a vCPU on another thread sees the old or the new value.

    :param size: bytes of RAM; the host commits pages as they are touched.
    :raises AddressSpaceError: the host gives no address space for so much.
    :raises ImageError: (from the methods that map) when the RAM is used up.
    """

    def __init__(self, size: int) -> None:
        size = -(-size // PAGE_SIZE) * PAGE_SIZE
        self.size = size
        try:
            self._ram = mmap.mmap(-1, size)
        except OSError:
            raise AddressSpaceError(
                f"the guest's RAM needs {size >> 20} MiB of address space, which this host does "
                "not allow: use fewer vCPUs, or raise the limit (ulimit -v)"
            ) from None
        self._bytes = memoryview(self._ram)
        self.ram: NDArray[np.uint8] = np.frombuffer(self._ram, dtype=np.uint8)
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._ram))
        # Replaced as a whole, never changed in place: other threads look regions up meanwhile.
        self._map: tuple[tuple[int, ...], tuple[Region, ...]] = ((), ())
        self._free = _FIRST_FREE
        self._arrays = _RegionArrays(())
        words = np.frombuffer(self._ram, np.uint64)
        self._tables = PageTables(words, lambda: self._take(PAGE_SIZE))

    @property
    def ram_view(self) -> memoryview:
        """All RAM by physical address, writable, for who copies it piece by piece."""
        return self._bytes

    @property
    def root(self) -> int:
        """Physical address of the top page table: what CR3 holds."""
        return self._tables.root

    @property
    def regions(self) -> tuple[Region, ...]:
        """Who maps what, where and why, by address."""
        return self._map[1]

    # --- mapping ---

    def map(
        self,
        name: str,
        address: int,
        size: int,
        *,
        writable: bool = False,
        executable: bool = False,
        purpose: str = "",
    ) -> Region:
        """Back ``size`` bytes (rounded up to pages) at ``address`` with new zeroed RAM.

        :raises ImageError: the RAM is used up, or something is mapped there already.
        """
        size = -(-size // PAGE_SIZE) * PAGE_SIZE
        starts, regions = self._map
        below = bisect.bisect(starts, address + size - 1) - 1
        if below >= 0 and (other := regions[below]).end > address:
            raise ImageError(f"{name} at {address:#x} overlaps {other.name} at {other.address:#x}")
        region = Region(name, address, self._take(size), size, writable, executable, purpose)
        self._tables.map(
            region.address, region.physical, size, writable=writable, executable=executable
        )
        index = bisect.bisect(starts, address)
        self._map = (
            (*starts[:index], address, *starts[index:]),
            (*regions[:index], region, *regions[index:]),
        )
        return region

    def map_counter(self) -> int:
        """Map the page behind the RAM, in which each vCPU sees its own count of instructions.

        Returns its address; guest code can read it, and :meth:`read` finds nothing there.
        """
        self._tables.map(COUNTER_PAGE, self.size, PAGE_SIZE, writable=False, executable=False)
        return COUNTER_PAGE

    def alloc_pages(self, count: int, name: str, purpose: str = "") -> Region:
        """Give out ``count`` zeroed contiguous pages, at their place in the direct map.

        The guest needs no TLB flush for it: an entry that was not present is never cached.
        """
        return self.map(
            name,
            DIRECT_MAP + self._free,  # map() takes the pages before it takes tables for them
            count * PAGE_SIZE,
            writable=True,
            purpose=purpose,
        )

    def _take(self, size: int) -> int:
        physical = self._free
        if physical + size > self.size:
            raise ImageError(f"guest RAM is used up: {self.size >> 20} MiB")
        self._free += size
        return physical

    # --- looking up ---

    def find(self, address: int) -> Region | None:
        """The region that holds ``address``."""
        starts, regions = self._map
        index = bisect.bisect(starts, address) - 1
        if index >= 0 and address < regions[index].end:
            return regions[index]
        return None

    def region(self, name: str) -> Region:
        """The region called ``name``.

        :raises KeyError: there is none.
        """
        for region in self.regions:
            if region.name == name:
                return region
        raise KeyError(name)

    def walk(self, address: int, root: int | None = None) -> PageWalk:
        """Walk the page tables at ``root`` (what CR3 holds; None: the loader's)."""
        return self._tables.walk(address, root)

    # --- access by virtual address ---

    def read(self, address: int, size: int, root: int | None = None) -> bytes | None:
        """``size`` bytes, or None if some of them are not mapped to RAM."""
        parts = []
        while size > 0:
            physical = self._physical(address, root)
            if physical is None:
                return None
            count = min(size, PAGE_SIZE - (address & (PAGE_SIZE - 1)))
            parts.append(bytes(self._bytes[physical : physical + count]))
            address += count
            size -= count
        return b"".join(parts)

    def write(self, address: int, data: bytes, root: int | None = None) -> bool:
        """Store ``data`` whatever the page permissions are; False if it is not mapped to RAM."""
        places = []
        rest = memoryview(data)
        while rest:
            physical = self._physical(address, root)
            if physical is None:
                return False
            count = min(len(rest), PAGE_SIZE - (address & (PAGE_SIZE - 1)))
            places.append((physical, rest[:count]))
            address += count
            rest = rest[count:]
        for physical, part in places:
            self._bytes[physical : physical + len(part)] = part
        return True

    def read_u64(self, address: int) -> int:
        """The 8 bytes at ``address``, which must be mapped; one move."""
        return int(np.frombuffer(self._ram, np.uint64, 1, self._mapped(address))[0])

    def write_u64(self, address: int, value: int) -> None:
        """Store 8 bytes at ``address``, which must be mapped; one move."""
        np.frombuffer(self._ram, np.uint64, 1, self._mapped(address))[0] = value

    def view(self, address: int, dtype: np.dtype[Any] | str, count: int = 1) -> NDArray[Any]:
        """``count`` items at ``address`` as a writable NumPy view on guest memory.

        :raises ImageError: the items are not within one region.
        """
        kind = np.dtype(dtype)
        region = self.find(address)
        if region is None or address + kind.itemsize * count > region.end:
            raise ImageError(f"{count} x {kind} at {address:#x} is not within a mapped region")
        return np.frombuffer(self._ram, kind, count, region.physical + address - region.address)

    def gather(self, addresses: NDArray[np.uint64], size: int) -> NDArray[np.uint8]:
        """``size`` bytes at each of ``addresses``, as rows.

        :raises ImageError: one of them is not mapped.
        """
        first = self._places(addresses, size)
        if 1 < size < _WORD and not (first > self.size - _WORD).any():
            words: NDArray[np.uint64] = self._items(_WORD)[first]  # one load each
            return words.view(np.uint8).reshape(-1, _WORD)[:, :size]
        rows: NDArray[np.uint8] = self.ram[first[:, None] + np.arange(size)]
        return rows

    def scatter(self, addresses: NDArray[np.uint64], rows: NDArray[np.uint8]) -> None:
        """Store a row of bytes at each of ``addresses``; 1, 2, 4 or 8 bytes are one store each.

        :raises ImageError: one of them is not mapped; nothing was stored.
        """
        size = rows.shape[1]
        first, done = self._places(addresses, size), 0
        while done < size:
            width = 1 << min(size - done, _WORD).bit_length() - 1
            part = np.ascontiguousarray(rows[:, done : done + width])
            self._items(width)[first + done] = part.view(f"<u{width}").ravel()
            done += width

    def _items(self, size: int) -> NDArray[Any]:
        """All RAM as numbers of so many bytes, one at each address."""
        return np.lib.stride_tricks.as_strided(
            self.ram[:size].view(f"<u{size}"), shape=(self.size - size + 1,), strides=(1,)
        )

    def _places(self, addresses: NDArray[np.uint64], size: int) -> NDArray[np.int64]:
        """The physical address of each, where ``size`` bytes are to be found."""
        arrays = self._arrays
        if arrays.regions is not self.regions:
            arrays = self._arrays = _RegionArrays(self.regions)
        index = np.searchsorted(arrays.starts, addresses, side="right") - 1
        if (index < 0).any() or (addresses + np.uint64(size) > arrays.ends[index]).any():
            raise ImageError("text outside every mapped region was to be read or changed")
        return (addresses + arrays.shifts[index]).astype(np.int64)

    def _mapped(self, address: int) -> int:
        physical = self._physical(address, None)
        if physical is None:
            raise ImageError(f"address {address:#x} is not mapped")
        return physical

    def _physical(self, address: int, root: int | None) -> int | None:
        if root is None or root & ADDRESS_MASK == self.root:
            region = self.find(address)
            if region is not None:
                return region.physical + address - region.address
        physical = self.walk(address, root).physical
        if physical is None or physical >= self.size:
            return None
        return physical
