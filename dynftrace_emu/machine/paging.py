"""Four-level page tables in guest RAM (SDM vol. 3A, 4.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["ADDRESS_MASK", "PAGE_SHIFT", "PAGE_SIZE", "PageTables", "PageWalk"]

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
ADDRESS_MASK = 0x000F_FFFF_FFFF_F000
"""The bits of an entry, or of CR3, that are a physical address."""
_PRESENT, _WRITABLE, _USER, _NO_EXECUTE = 1, 2, 4, 1 << 63
_LARGE = 1 << 7
_LEVELS = (39, 30, 21, PAGE_SHIFT)
_ENTRIES = 512


@dataclass(frozen=True, slots=True)
class PageWalk:
    """What the page tables say of one address; ``physical`` is None where nothing is mapped."""

    physical: int | None
    writable: bool = False
    executable: bool = False
    user: bool = False


class PageTables:
    """The tables, and who reads and writes them from the host's side.

    :param words: all RAM, as 8-byte words.
    :param take_page: gives the physical address of a zeroed page for a table.
    """

    def __init__(self, words: NDArray[np.uint64], take_page: Callable[[], int]) -> None:
        self._words = words
        self._take_page = take_page
        self.root = take_page()

    def map(
        self, address: int, physical: int, size: int, *, writable: bool, executable: bool
    ) -> None:
        """Enter ``size`` bytes, whole pages, at ``address``."""
        flags = _PRESENT | (_WRITABLE if writable else 0) | (0 if executable else _NO_EXECUTE)
        end = address + size
        while address < end:
            first = (address >> PAGE_SHIFT) % _ENTRIES
            count = min(_ENTRIES - first, (end - address) >> PAGE_SHIFT)
            entries = np.arange(count, dtype=np.uint64) * np.uint64(PAGE_SIZE)
            entries += np.uint64(physical)
            at = self._table(address) // 8 + first
            self._words[at : at + count] = entries | np.uint64(flags)
            address += count * PAGE_SIZE
            physical += count * PAGE_SIZE

    def _table(self, address: int) -> int:
        """Physical address of the last-level table for ``address``, made if need be."""
        table = self.root
        for shift in _LEVELS[:-1]:
            entry = table // 8 + (address >> shift) % _ENTRIES
            if not int(self._words[entry]) & _PRESENT:
                self._words[entry] = self._take_page() | _PRESENT | _WRITABLE
            table = int(self._words[entry]) & ADDRESS_MASK
        return table

    def walk(self, address: int, root: int | None = None) -> PageWalk:
        """Look ``address`` up as the MMU does; ``root``: another CR3 than ours."""
        table = self.root if root is None else root & ADDRESS_MASK
        writable = executable = user = True
        if not _is_canonical(address):
            return PageWalk(None)
        for shift in _LEVELS:
            entry = table // 8 + (address >> shift) % _ENTRIES
            value = int(self._words[entry]) if entry < len(self._words) else 0
            if not value & _PRESENT:
                return PageWalk(None)
            writable &= bool(value & _WRITABLE)
            user &= bool(value & _USER)
            executable &= not value & _NO_EXECUTE
            table = value & ADDRESS_MASK
            if shift == PAGE_SHIFT or (value & _LARGE and shift in (21, 30)):
                mask = (1 << shift) - 1
                return PageWalk((table & ~mask) | (address & mask), writable, executable, user)
        raise AssertionError("unreachable")


def _is_canonical(address: int) -> bool:
    return address < 1 << 47 or (1 << 64) - (1 << 47) <= address < 1 << 64
