"""Executes guest code on the lab's vCPUs: registers go in, registers come out.

A vCPU keeps what it has translated. So a patched spot is translated anew whenever what the CPU sees
of it changes, from the bytes it sees; memory holds those bytes only meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.machine.interrupts import deliver

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from dynftrace_emu.explore.lab import Lab
    from dynftrace_emu.explore.text import Spot
    from dynftrace_emu.machine.exits import Exit

__all__ = ["Cores"]

_FLUSH_AFTER = 20_000
"""Blocks dropped one by one before all are: only that gives their memory back (0.4 KiB each)."""


class Cores:
    """The vCPUs of a lab.

    :param visible: addresses in front of which a run ends, whatever is there.
    """

    def __init__(self, lab: Lab, spots: Sequence[Spot], visible: Collection[int]) -> None:
        self.lab = lab
        self._spots, self._visible = spots, visible
        self._lengths: dict[int, int] = {}
        self._loaded: list[bytes] = [b""] * len(lab.vcpus)
        self._translated: list[list[bytes | None]] = [[None] * len(spots) for _ in lab.vcpus]
        self._dropped = 0

    def step(self, cpu: int, registers: bytes, count: int) -> tuple[Exit | None, bytes]:
        """Run ``count`` instructions; what ended it early, if anything did, and the registers."""
        vcpu = self.lab.vcpus[cpu]
        if self._loaded[cpu] != registers:
            vcpu.registers = registers
        exit_ = vcpu.advance(count)
        self._loaded[cpu] = after = vcpu.registers
        return exit_, after

    def step_seen(
        self, cpu: int, registers: bytes, spot: int, seen: bytes, text: bytes
    ) -> tuple[Exit | None, bytes]:
        """Run one instruction of a spot; the CPU sees ``seen``, memory has ``text``."""
        where = self._spots[spot]
        if self._translated[cpu][spot] != seen:
            self.lab.vcpus[cpu].drop_text(where.address, where.address + where.size)
            self._translated[cpu][spot] = seen
            self._flush_now_and_then()
        if seen == text:
            return self.step(cpu, registers, 1)
        self.lab.write_text(where.physical, seen)
        try:
            return self.step(cpu, registers, 1)
        finally:
            self.lab.write_text(where.physical, text)

    def interrupt(self, cpu: int, registers: bytes, vector: int) -> bytes:
        """The registers at the first instruction of the handler of ``vector``.

        :raises DeliveryError: there is no handler, or no stack for its frame.
        """
        vcpu = self.lab.vcpus[cpu]
        if self._loaded[cpu] != registers:
            vcpu.registers = registers
        deliver(vcpu, vector)
        self._loaded[cpu] = after = vcpu.registers
        return after

    def length(self, rip: int) -> int:
        """How many instructions run in one go from ``rip`` on: it, and the quiet ones in a row."""
        found = self._lengths.get(rip)
        if found is None:
            found = self._lengths[rip] = self._measure(rip)
        return found

    def _measure(self, rip: int) -> int:
        insn = self.lab.decode(rip)
        count = 1
        while not insn.branches and insn.text != "pause":
            rip += insn.size
            if rip in self._visible:
                break
            insn = self.lab.decode(rip)
            if not insn.quiet:
                break
            count += 1
        return count

    def _flush_now_and_then(self) -> None:
        self._dropped += 1
        if self._dropped >= _FLUSH_AFTER:
            self._dropped = 0
            for vcpu in self.lab.vcpus:
                vcpu.flush_text()
