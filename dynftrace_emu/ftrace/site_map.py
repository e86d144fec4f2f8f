"""``ftrace_map``: for each call site a word that says who wants it, in guest memory.

The map is a shadow of the text: the word of a site lies as far from the map's start as the site's
first four bytes from the text's. A call is five bytes, so no two share a word. Guest code reads it;
the host writes it, together with the text and in the same stop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.kernel.structs import PAGE_SIZE, TraceBit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["SiteMap"]

_KNOWN = np.uint32(1 << TraceBit.KNOWN)


class SiteMap:
    """The map of one kernel; made before the kernel runs."""

    def __init__(self, kernel: GuestKernel) -> None:
        self.text_start, self.text_end = kernel.image.text_range
        pages = -(-(self.text_end - self.text_start) // PAGE_SIZE)
        region = kernel.machine.memory.alloc_pages(pages, "ftrace map", "who wants which site")
        self._words = kernel.machine.memory.view(region.address, "<u4", region.size // 4)
        kernel.write("ftrace_map_bias", (region.address - self.text_start) % (1 << 64))

    def set(self, sites: NDArray[np.uint64], bits: NDArray[np.uint32]) -> None:
        """These sites are known, and wanted by ``bits``."""
        self._words[self._index(sites)] = bits | _KNOWN

    def get(self, sites: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """The words of these sites, :attr:`.TraceBit.KNOWN` included."""
        words: NDArray[np.uint32] = self._words[self._index(sites)]
        return words

    def is_known(self, site: int) -> bool:
        """Whether a pass or a switch has dealt with this site."""
        if not self.text_start <= site < self.text_end:
            return False
        return bool(self._words[(site - self.text_start) >> 2] & _KNOWN)

    def _index(self, sites: NDArray[np.uint64]) -> NDArray[np.int64]:
        return ((sites - np.uint64(self.text_start)) >> np.uint64(2)).astype(np.int64)
