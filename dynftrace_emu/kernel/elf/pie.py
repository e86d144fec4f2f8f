"""Relocates a static-pie, as its dynamic section asks (and its own code may, again)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.elf.file import RELA, SHN_UNDEF, SYMBOL
from dynftrace_emu.kernel.elf.relocs import Got, Relocation, apply

if TYPE_CHECKING:
    from typing import Any

    from dynftrace_emu.kernel.elf.file import ElfFile
    from dynftrace_emu.kernel.elf.memory import ImageMemory

__all__ = ["relocate_pie"]

_NEEDED, _PLTRELSZ, _SYMTAB, _RELA, _RELASZ, _JMPREL, _RELRSZ, _RELR = 1, 2, 6, 7, 8, 23, 35, 36
_ENTRY = np.dtype([("tag", "<i8"), ("value", "<u8")])


def relocate_pie(file: ElfFile, memory: ImageMemory, bias: int) -> None:
    """Carry out its relocations.

    :raises ImageError: it needs shared libraries, or a relocation cannot be carried out.
    """
    offset, size = file.dynamic
    rows = np.frombuffer(file.data, _ENTRY, size // _ENTRY.itemsize, offset).tolist()
    tags: dict[int, int] = {}
    for tag, value in rows:
        if tag == 0:
            break
        tags.setdefault(tag, value)
    if _NEEDED in tags:
        raise ImageError(f"{file.name}: it is dynamically linked: link with -static-pie")
    for table, table_size in ((_RELA, _RELASZ), (_JMPREL, _PLTRELSZ)):
        if table in tags and tags.get(table_size):
            _apply_rela(file, memory, bias, tags, (tags[table], tags[table_size]))
    if _RELR in tags and tags.get(_RELRSZ):
        _apply_relr(file, memory, bias, (tags[_RELR], tags[_RELRSZ]))


def _table(
    file: ElfFile, memory: ImageMemory, address: int, size: int, dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    raw = memory.read(address, size) if size <= len(file.data) else None
    if raw is None:
        raise ImageError(f"{file.name}: its relocations, at {address:#x}, are not loaded")
    return np.frombuffer(raw, dtype, size // dtype.itemsize)


def _apply_rela(
    file: ElfFile, memory: ImageMemory, bias: int, tags: dict[int, int], table: tuple[int, int]
) -> None:
    symbols = tags.get(_SYMTAB, 0) + bias
    rows = _table(file, memory, table[0] + bias, table[1], RELA)
    for offset, kind, number, addend in rows.tolist():
        value = 0
        if number:
            row = _table(file, memory, symbols + SYMBOL.itemsize * number, SYMBOL.itemsize, SYMBOL)
            value = 0 if row[0]["section"] == SHN_UNDEF else int(row[0]["value"]) + bias
        relocation = Relocation(kind, offset + bias, value, 0, addend, "")
        apply(memory, relocation, bias, Got(0), file.name)


def _apply_relr(file: ElfFile, memory: ImageMemory, bias: int, table: tuple[int, int]) -> None:
    """Packed relative relocations: an address, then bitmaps of the 63 words that follow it."""
    place = 0
    for word in _table(file, memory, table[0] + bias, table[1], np.dtype("<u8")).tolist():
        if word & 1:
            for bit in range(63):
                if word >> bit + 1 & 1:
                    _move(file, memory, place + 8 * bit, bias)
            place += 8 * 63
        else:
            _move(file, memory, word + bias, bias)
            place = word + bias + 8


def _move(file: ElfFile, memory: ImageMemory, place: int, bias: int) -> None:
    word = memory.read(place, 8)
    moved = (int.from_bytes(word or b"", "little") + bias) % (1 << 64)
    if word is None or not memory.write(place, moved.to_bytes(8, "little")):
        raise ImageError(f"{file.name}: a relocation at {place:#x}, outside what is loaded")
