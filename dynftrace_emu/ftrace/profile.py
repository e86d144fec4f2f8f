"""The function profiler: hits and times of each function on each CPU (kernel/trace/ftrace.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.kernel.structs import PAGE_SIZE, PROFILE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynftrace_emu.ftrace.page_pool import PagePool
    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["FunctionProfile", "ProfileRow"]


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One function on one CPU; times in ns."""

    site: int
    hits: int
    time: int
    time_squared: int

    @property
    def average(self) -> float:
        """Time a call."""
        return self.time / self.hits if self.hits else 0.0

    @property
    def variance(self) -> float:
        """The sample variance of the times, as Linux's ``s^2``."""
        if self.hits < 2:
            return 0.0
        spread = self.hits * self.time_squared - self.time**2
        return spread / (self.hits * (self.hits - 1))


class FunctionProfile:
    """The tables. A site's row lies where its word in the site map lies, eight times as far on."""

    def __init__(self, kernel: GuestKernel, pool: PagePool) -> None:
        self._kernel, self._pool = kernel, pool
        self.enabled = False
        self._tables: list[NDArray[Any]] = []

    def alloc(self) -> None:
        """Make the tables, if there are none.

        :raises ImageError: the guest's RAM is used up.
        """
        if self._tables:
            return
        start, end = self._kernel.image.text_range
        rows = (end - start) // 4
        pages = -(-rows * PROFILE.size // PAGE_SIZE)
        memory = self._kernel.machine.memory
        addresses = self._pool.alloc_all([pages] * len(self._kernel.machine.vcpus))
        bias = start * (PROFILE.size // 4)
        for cpu, address in enumerate(addresses):
            self._kernel.pcpu(cpu)["profile"] = (address - bias) % (1 << 64)
        self._tables = [memory.view(address, PROFILE.dtype, rows) for address in addresses]

    def clear(self) -> None:
        """Forget what was counted; with the machine stopped."""
        for table in self._tables:
            used = np.flatnonzero(table["hits"])
            table[used] = np.zeros(len(used), dtype=PROFILE.dtype)

    def rows(self, cpu: int) -> list[ProfileRow]:
        """What a CPU has counted, the functions with the most time first."""
        if not self._tables:
            return []
        table = self._tables[cpu]
        used = table[np.flatnonzero(table["hits"])].tolist()
        rows = [ProfileRow(ip, hits, time, squared) for hits, time, squared, ip in used]
        return sorted(rows, key=lambda row: (-row.time, -row.hits, row.site))
