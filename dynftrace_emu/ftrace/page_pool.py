"""Pages of guest memory that are given back: what ring buffers are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.kernel.structs import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynftrace_emu.machine.memory import GuestMemory

__all__ = ["PagePool"]


class PagePool:
    """Hands out runs of zeroed pages, and takes them back."""

    def __init__(self, memory: GuestMemory, purpose: str) -> None:
        self._memory, self._purpose = memory, purpose
        self._free: list[tuple[int, int]] = []  # (pages, address)

    def alloc(self, pages: int) -> int:
        """The address of ``pages`` contiguous zeroed pages.

        :raises ImageError: the guest's RAM is used up.
        """
        fitting = min((run for run in self._free if run[0] >= pages), default=None)
        if fitting is None:
            return self._memory.alloc_pages(pages, "trace buffers", self._purpose).address
        self._free.remove(fitting)
        count, address = fitting
        if count > pages:
            self._free.append((count - pages, address + pages * PAGE_SIZE))
        self._memory.view(address, "u1", pages * PAGE_SIZE)[:] = 0
        return address

    def alloc_all(self, sizes: Sequence[int]) -> list[int]:
        """A run of each of these sizes, or none of them.

        :raises ImageError: the guest's RAM is used up.
        """
        made: list[int] = []
        try:
            made.extend(self.alloc(pages) for pages in sizes)
        except BaseException:
            for address, pages in zip(made, sizes, strict=False):
                self.free(address, pages)
            raise
        return made

    def free(self, address: int, pages: int) -> None:
        """Take a run back, and join it to those beside it."""
        runs = sorted([*((at, count) for count, at in self._free), (address, pages)])
        joined: list[tuple[int, int]] = []
        for at, count in runs:
            if joined and self._continues(*joined[-1], at):
                joined[-1] = joined[-1][0], joined[-1][1] + count
            else:
                joined.append((at, count))
        self._free = [(count, at) for at, count in joined]

    def _continues(self, address: int, pages: int, following: int) -> bool:
        """Whether a run goes on at ``following``, in the same region of guest memory."""
        if address + pages * PAGE_SIZE != following:
            return False
        return self._memory.find(address) is self._memory.find(following)
