"""The stack tracer: the deepest stack seen (kernel/trace/trace_stack.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.ftrace.ops import EMPTY_HASH, OpsHash

if TYPE_CHECKING:
    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["StackTracer"]

_FIELDS = ("stack_max", "stack_nr", "stack_ips", "stack_sizes")


class StackTracer:
    """Each CPU keeps the deepest it has seen; the deepest of those is shown."""

    def __init__(self, kernel: GuestKernel) -> None:
        self._kernel = kernel
        self.enabled = False
        self.hash: OpsHash = EMPTY_HASH

    @property
    def max_size(self) -> int:
        """Bytes of the deepest stack."""
        return max(self._kernel.percpu("stack_max"))

    def set_max_size(self, size: int) -> None:
        """Only what is deeper than this counts from now on; what was seen is forgotten."""
        for cpu in range(len(self._kernel.machine.vcpus)):
            area = self._kernel.pcpu(cpu)
            area["stack_max"], area["stack_nr"] = size, 0

    def trace(self) -> list[tuple[int, int]]:
        """Of the deepest stack: address, and bytes from its frame to the top; innermost first."""
        best: tuple[int, list[tuple[int, int]]] = (0, [])
        for cpu in range(len(self._kernel.machine.vcpus)):
            size, entries = self._read(cpu)
            if entries and size > best[0]:
                best = size, entries
        return best[1]

    def _read(self, cpu: int) -> tuple[int, list[tuple[int, int]]]:
        """A CPU's own trace, between two looks at its sequence number."""
        area = self._kernel.pcpu(cpu)
        for _ in range(1000):
            sequence = int(area["stack_seq"][0])
            size, count = int(area["stack_max"][0]), int(area["stack_nr"][0])
            ips, sizes = area["stack_ips"][0].tolist(), area["stack_sizes"][0].tolist()
            if sequence % 2 == 0 and sequence == int(area["stack_seq"][0]):
                return size, list(zip(ips, sizes, strict=True))[:count]
        return 0, []
