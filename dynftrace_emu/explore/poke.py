"""Where the guest's int3 handler looks up what a site stands for (``struct text_poke_loc``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.explore.steps import AddData, WaitUntil, WriteData

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.steps import Step
    from dynftrace_emu.ftrace.protocols import TextChange
    from dynftrace_emu.kernel.image import KernelImage

__all__ = ["Poke"]

_ENTRY = 0x18  # site, what it stands for, target
_CALL, _NOP = 1, 2
_CALL_OPCODE = 0xE8


def word(value: int) -> bytes:
    """8 bytes, as the guest reads them."""
    return (value & (1 << 64) - 1).to_bytes(8, "little")


@dataclass(frozen=True, slots=True)
class Poke:
    """The guest's vector of sites being changed; its methods give the steps that store to it."""

    image: KernelImage

    def address(self, symbol: str) -> int:
        """The address of a guest symbol.

        :raises ImageError: there is none.
        """
        return self.image.address(symbol)

    def size(self, symbol: str) -> int:
        """The bytes of a guest function.

        :raises ImageError: there is none of that name.
        """
        self.image.address(symbol)
        return self.image.symbols[symbol].size

    def set_word(self, symbol: str, value: int | str) -> WriteData:
        """The step that stores 8 bytes to a guest variable: a number, or a symbol's address."""
        number = self.address(value) if isinstance(value, str) else value
        return self.set_at(self.address(symbol), number, f"{symbol} = {value}")

    @staticmethod
    def set_at(address: int, value: int, what: str) -> WriteData:
        """The step that stores 8 bytes at an address of guest data."""
        return WriteData(address, word(value), what)

    def publish(self, change: TextChange, emulate: str = "new") -> Iterator[Step]:
        """Fill the vector, then its count.

        :param emulate: whether an int3 stands for the ``new`` or the ``old`` instruction.
        """
        rows = change.new if emulate == "new" else change.old
        for index, (site, row) in enumerate(zip(change.sites.tolist(), rows, strict=True)):
            kind, target = self.meaning(site, row.tobytes())
            entry = word(site) + word(kind) + word(target)
            at = self.address("poke_vector") + _ENTRY * index
            yield WriteData(at, entry, f"poke_vector[{index}] = {self.image.symbolize(site)}")
        yield self.set_word("poke_count", len(change.sites))

    @staticmethod
    def meaning(site: int, code: bytes) -> tuple[int, int]:
        """What the five bytes of a site stand for: a kind, and the target of a call."""
        if code[0] != _CALL_OPCODE:
            return _NOP, 0
        return _CALL, site + 5 + int.from_bytes(code[1:5], "little", signed=True)

    def get(self) -> Step:
        """Take the patcher's reference: from here on the handler finds the vector."""
        return AddData(self.address("poke_refs"), 1, "poke_refs += 1")

    def put(self) -> Step:
        """Give it back."""
        return AddData(self.address("poke_refs"), -1, "poke_refs -= 1")

    def wait_for_handlers(self) -> Step:
        """Go on when nobody holds a reference."""
        return WaitUntil(self.address("poke_refs"), 0, "poke_refs == 0")

    def clear(self) -> Step:
        """Reuse the vector."""
        return self.set_word("poke_count", 0)
