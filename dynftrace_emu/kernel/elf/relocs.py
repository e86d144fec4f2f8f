"""What the x86-64 relocations mean (the psABI's table 4.9)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ImageError

if TYPE_CHECKING:
    from dynftrace_emu.kernel.elf.memory import ImageMemory

__all__ = ["Got", "Relocation", "apply", "needs_got"]


class Rel(IntEnum):
    """``R_X86_64_*``."""

    NONE = 0
    R64 = 1
    PC32 = 2
    GOT32 = 3
    PLT32 = 4
    GLOB_DAT = 6
    JUMP_SLOT = 7
    RELATIVE = 8
    GOTPCREL = 9
    R32 = 10
    R32S = 11
    R16 = 12
    PC16 = 13
    R8 = 14
    PC8 = 15
    PC64 = 24
    GOTOFF64 = 25
    GOTPC32 = 26
    GOTPCREL64 = 28
    GOTPC64 = 29
    SIZE32 = 32
    SIZE64 = 33
    IRELATIVE = 37
    GOTPCRELX = 41
    REX_GOTPCRELX = 42


_ABSOLUTE = {Rel.R64: 8, Rel.R32: 4, Rel.R32S: 4, Rel.R16: 2, Rel.R8: 1}
_RELATIVE = {Rel.PC64: 8, Rel.PC32: 4, Rel.PLT32: 4, Rel.PC16: 2, Rel.PC8: 1}
_BY_GOT = {Rel.GOTPCREL: 4, Rel.GOTPCRELX: 4, Rel.REX_GOTPCRELX: 4, Rel.GOTPCREL64: 8}
_SIZE = {Rel.SIZE32: 4, Rel.SIZE64: 8}
_GOT_BASE = {Rel.GOTPC32: 4, Rel.GOTPC64: 8}
_DYNAMIC = (Rel.GLOB_DAT, Rel.JUMP_SLOT)


@dataclass(frozen=True, slots=True)
class Relocation:
    """One relocation with its symbol looked up: S, its size, A and P of the psABI."""

    kind: int
    place: int
    symbol: int
    symbol_size: int
    addend: int
    name: str


class Got:
    """A global offset table at ``address``: a word for each symbol that is asked for."""

    def __init__(self, address: int) -> None:
        self.address = address
        self._slots: dict[int, int] = {}

    def slot(self, symbol: int) -> int:
        """Where the address ``symbol`` is to be found."""
        return self.address + 8 * self._slots.setdefault(symbol, len(self._slots))

    @property
    def data(self) -> bytes:
        """Its contents."""
        words = ((symbol % (1 << 64)).to_bytes(8, "little") for symbol in self._slots)
        return b"".join(words)


def needs_got(kind: int) -> bool:
    """Whether a relocation asks for a word in the table."""
    return kind in _BY_GOT


def apply(memory: ImageMemory, relocation: Relocation, bias: int, got: Got, image: str) -> None:
    """Carry one relocation out.

    :raises ImageError: its kind is not known here, its value does not fit, or its place is outside
        the image.
    """
    if relocation.kind == Rel.NONE:
        return
    value, width = _value(relocation, bias, got, image)
    _require_fit(relocation, value, width, image)
    stored = (value % (1 << 8 * width)).to_bytes(width, "little")
    if not memory.write(relocation.place, stored):
        raise ImageError(f"{image}: a relocation at {relocation.place:#x}, outside what is loaded")


def _value(relocation: Relocation, bias: int, got: Got, image: str) -> tuple[int, int]:
    """What is to be stored, and in how many bytes."""
    kind, place, addend = relocation.kind, relocation.place, relocation.addend
    target = relocation.symbol + addend
    if kind in _ABSOLUTE:
        return target, _ABSOLUTE[Rel(kind)]
    if kind in _RELATIVE:
        return target - place, _RELATIVE[Rel(kind)]
    if kind in _BY_GOT:
        return got.slot(relocation.symbol) + addend - place, _BY_GOT[Rel(kind)]
    if kind in _SIZE:
        return relocation.symbol_size + addend, _SIZE[Rel(kind)]
    if kind in _GOT_BASE:
        return got.address + addend - place, _GOT_BASE[Rel(kind)]
    if kind == Rel.GOTOFF64:
        return target - got.address, 8
    if kind == Rel.RELATIVE:
        return bias + addend, 8
    if kind in _DYNAMIC:
        return relocation.symbol, 8
    known = Rel(kind).name if kind in Rel._value2member_map_ else kind
    raise ImageError(
        f"{image}: relocation R_X86_64_{known} at {place:#x} ({relocation.name or 'no symbol'}) "
        "is not one that is known here"
    )


def _require_fit(relocation: Relocation, value: int, width: int, image: str) -> None:
    """Addresses wrap around, so what counts is the value modulo 2^64."""
    unsigned = value % (1 << 64)
    signed = unsigned - (1 << 64) if unsigned >> 63 else unsigned
    as_signed = -(1 << 8 * width - 1) <= signed < 1 << 8 * width - 1
    as_unsigned = unsigned < 1 << 8 * width
    if relocation.kind == Rel.R32:
        fits = as_unsigned
    elif relocation.kind in (Rel.R16, Rel.R8):
        fits = as_signed or as_unsigned
    else:
        fits = as_signed
    if not fits:
        raise ImageError(
            f"{image}: relocation at {relocation.place:#x} truncated to fit: "
            f"{relocation.name or 'its symbol'} is out of reach"
        )
