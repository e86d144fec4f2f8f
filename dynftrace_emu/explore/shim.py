"""What guest code that patches by itself can ask for: stores to text, and syncs.

Guest code calls a function of the lab; the machine carries out the operations it stands for, one at
a time, so others get on in between; then the function returns.

==================================  ==============================================================
``text_poke(address, bytes, n)``    store ``n`` bytes to text, in units of 8, 4, 2 and 1
``text_poke_sync()``                every CPU syncs (this one at once); returns when all have
``free_text(address, n)``           nobody may execute or patch these ``n`` bytes any more
==================================  ==============================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.explore.findings import Finding, FindingClass, Found
from dynftrace_emu.explore.lab import Lab, Registers
from dynftrace_emu.explore.program import (
    Free,
    Operation,
    Program,
    Send,
    StoreText,
    WaitForAcks,
)
from dynftrace_emu.machine.vcpu import Reg

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Shim"]

_MAX_POKE = 16


class Shim:
    """The functions of the lab that the machine answers."""

    def __init__(self, lab: Lab, program: Program) -> None:
        self._lab, self._program = lab, program
        self.poked: list[int] = []
        """Bytes of each piece that was stored, for who wants to know; it may be cleared."""
        self.calls: Mapping[int, Callable[[bytes], tuple[Operation, ...]]] = {
            lab.image.address("text_poke"): self._text_poke,
            lab.image.address("text_poke_sync"): self._text_poke_sync,
            lab.image.address("free_text"): self._free_text,
        }
        """By the address of the function: what it asks for, given the caller's registers."""

    def operations(self, rip: int, registers: bytes) -> tuple[Operation, ...]:
        """What a call of the function at ``rip`` asks for.

        :raises Found: it cannot be done.
        """
        return self.calls[rip](registers)

    def _text_poke(self, registers: bytes) -> tuple[Operation, ...]:
        address, source, count = (
            Registers.get(registers, register) for register in (Reg.RDI, Reg.RSI, Reg.RDX)
        )
        data = self._lab.memory.read(source, count) if 0 < count <= _MAX_POKE else None
        if data is None or self._program.find_spot(address, count) is None:
            why = "outside every site" if data is not None else "from where nothing is"
            what = f"text_poke({address:#x}, {source:#x}, {count}) {why}"
            rip = Registers.get(registers, Reg.RIP)
            raise Found(Finding(FindingClass.GUEST_FAULT, what, None, rip))
        stores = tuple(StoreText(p, 0) for p in self._program.stores(address, data, None, 0))
        self.poked.extend(len(store.piece.data) for store in stores)
        return stores

    @staticmethod
    def _text_poke_sync(_registers: bytes) -> tuple[Operation, ...]:
        return Send(None, 0), WaitForAcks(0)

    @staticmethod
    def _free_text(registers: bytes) -> tuple[Operation, ...]:
        address, count = (Registers.get(registers, register) for register in (Reg.RDI, Reg.RSI))
        return (Free(address, address + count, "text", 0),)
