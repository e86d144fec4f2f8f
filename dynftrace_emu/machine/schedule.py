"""One vCPU's place in the deterministic engine's schedule. Times are counted in instructions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.machine.engine import VCpuState

if TYPE_CHECKING:
    from dynftrace_emu.machine.vcpu import VCpu

__all__ = ["Slot"]


@dataclass(slots=True)
class Slot:
    """Where a vCPU's clock is, and what comes to it next."""

    vcpu: VCpu
    state: VCpuState = VCpuState.WAITING
    clock: int = 0
    ticks: int = 0  # timer interrupts that became due
    next_tick: int | None = None
    next_nmi: int | None = None
    timer_pending: bool = False

    @property
    def online(self) -> bool:
        """Whether it takes part."""
        return self.state in (VCpuState.RUNNING, VCpuState.HALTED)

    def due(self) -> int | None:
        """When its next own event comes."""
        times = [time for time in (self.next_tick, self.next_nmi) if time is not None]
        return min(times, default=None)

    def wake_time(self) -> int | None:
        """When something may wake it from hlt; None: nothing ever will."""
        if self.vcpu.nmi.pending and not self.vcpu.nmi.blocked:
            return self.clock
        if not self.vcpu.interrupts_on:
            return self.next_nmi
        return self.clock if self.timer_pending else self.due()
