"""``ftrace_map``: for each call site a word that says who wants it, in guest memory.

The map is a shadow of the text, ``FTRACE_MAP_OFFSET`` behind it: so far from a site's first four
bytes lies its word. A call is five bytes, so no two share a word. Guest code reads it;
the host writes it, together with the text and in the same stop. As long as a site is not known its
word says who must not have it: whoever hooks returns, where a function returns by iret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.kernel.structs import FTRACE_MAP_OFFSET, TraceBit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["SiteMap"]

_KNOWN = np.uint32(1 << TraceBit.KNOWN)
_HOOKS_RETURN = np.uint32(1 << TraceBit.GRAPH | 1 << TraceBit.PROFILE)


class SiteMap:
    """The map of one kernel, in the memory that the loader has kept for it."""

    def __init__(self, kernel: GuestKernel) -> None:
        self.text_start, self.text_end = kernel.image.text_range
        words = (self.text_end - self.text_start + 3) // 4
        start = self.text_start // 4 * 4 + FTRACE_MAP_OFFSET
        self._words = kernel.machine.memory.view(start, "<u4", words)
        self._words[self._index(kernel.image.iret_sites)] = _HOOKS_RETURN

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
