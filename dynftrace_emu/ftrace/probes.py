"""Triggers on functions: ``fn:traceoff``, ``fn:stacktrace:3`` (kernel/trace/trace_functions.c).

Guest code looks a function's triggers up in ``ftrace_probes`` and acts itself where it can; only
what changes something of the host's comes here, through a port, in the vCPU's own thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.kernel.structs import (
    FTRACE_PROBE_PORT,
    GOLDEN_RATIO_PRIME_64,
    PAGE_SIZE,
    PROBE,
    PROBE_HASHBITS,
    PROBE_HASHSIZE,
    ProbeKind,
)
from dynftrace_emu.machine.vcpu import Reg, VCpu

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynftrace_emu.ftrace.page_pool import PagePool
    from dynftrace_emu.ftrace.trace_array import TraceArray
    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["UNLIMITED", "FunctionProbe", "PreparedProbes", "ProbeTable"]

UNLIMITED = (1 << 64) - 1


@dataclass(slots=True, eq=False)
class FunctionProbe:
    """One trigger on one call site; ``count`` is how often it was to act when it was set."""

    array: TraceArray
    site: int
    kind: ProbeKind
    count: int = UNLIMITED
    address: int = 0  # of its struct probe


class ProbeTable:
    """The triggers of all trace arrays, as guest code sees them.

    :param act: called with a trigger that has come true and has to change something.
    """

    def __init__(
        self,
        kernel: GuestKernel,
        pool: PagePool,
        act: Callable[[FunctionProbe, VCpu], None],
    ) -> None:
        self._memory, self._pool, self._act = kernel.machine.memory, pool, act
        self._heads = self._memory.view(
            kernel.image.address("ftrace_probes"), "<u8", PROBE_HASHSIZE
        )
        self._count_lock = threading.Lock()  # a leaf: guards counts, which vCPU threads lower
        self._at: dict[int, FunctionProbe] = {}
        self._block: tuple[int, int] | None = None
        for vcpu in kernel.machine.vcpus:
            vcpu.in_ports[FTRACE_PROBE_PORT] = self._on_probe

    def count(self, probe: FunctionProbe) -> int:
        """How often it may still act."""
        if not probe.address:
            return probe.count
        return self._memory.read_u64(probe.address + PROBE.offset("count"))

    def prepare(self, probes: Sequence[FunctionProbe]) -> PreparedProbes:
        """Make room for these to become the triggers; nothing changes yet.

        :raises ImageError: the guest's RAM is used up.
        """
        pages = -(-len(probes) * PROBE.size // PAGE_SIZE)
        return PreparedProbes(self, probes, pages, self._pool.alloc(pages) if pages else 0)

    def install(self, prepared: PreparedProbes) -> None:
        """Make them the triggers; with the machine stopped, and no vCPU in a tracer."""
        for probe in self._at.values():
            probe.count = self.count(probe)
        old, self._block = self._block, None
        self._heads[:] = 0
        self._at = {}
        if prepared.pages:
            self._fill(prepared)
        if old is not None:
            self._pool.free(*old)

    def _fill(self, prepared: PreparedProbes) -> None:
        self._block = prepared.address, prepared.pages
        table = self._memory.view(prepared.address, PROBE.dtype, len(prepared.probes))
        for index in reversed(range(len(prepared.probes))):  # they act in the order they were set
            probe = prepared.probes[index]
            probe.address = prepared.address + index * PROBE.size
            bucket = (probe.site * GOLDEN_RATIO_PRIME_64 & UNLIMITED) >> (64 - PROBE_HASHBITS)
            table[index] = (
                int(self._heads[bucket]), probe.site, int(probe.kind), probe.count,
                probe.array.bit, 1 << probe.array.bit,
            )  # fmt: skip
            self._heads[bucket] = np.uint64(probe.address)
            self._at[probe.address] = probe

    def give_back(self, prepared: PreparedProbes) -> None:
        """They will not become the triggers."""
        if prepared.pages:
            self._pool.free(prepared.address, prepared.pages)

    def _on_probe(self, vcpu: VCpu) -> int:
        """In a vCPU's thread; returns whether the trigger may act."""
        probe = self._at.get(vcpu[Reg.RCX])
        if probe is None or not self._count_down(probe):
            return 0
        self._act(probe, vcpu)
        return 1

    def _count_down(self, probe: FunctionProbe) -> bool:
        place = probe.address + PROBE.offset("count")
        with self._count_lock:
            count = self._memory.read_u64(place)
            if count not in (0, UNLIMITED):
                self._memory.write_u64(place, count - 1)
        return count > 0


@dataclass(frozen=True, slots=True)
class PreparedProbes:
    """Triggers that have a place in guest memory and are not in use yet."""

    table: ProbeTable
    probes: Sequence[FunctionProbe]
    pages: int
    address: int

    def install(self) -> None:
        """Make them the triggers; with the machine stopped, and no vCPU in a tracer."""
        self.table.install(self)

    def discard(self) -> None:
        """Give the place back."""
        self.table.give_back(self)
