"""Links a relocatable object (ET_REL) by itself: addresses, COMMON symbols, a GOT, relocations."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.elf.file import (
    MAX_IMAGE_SIZE,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_TLS,
    SHF_WRITE,
    SHN_ABS,
    SHN_COMMON,
    SHN_LORESERVE,
    SHN_UNDEF,
    STB_WEAK,
    ElfFile,
    ElfSection,
)
from dynftrace_emu.kernel.elf.memory import Block, ImageMemory
from dynftrace_emu.kernel.elf.relocs import Got, Relocation, apply, needs_got
from dynftrace_emu.kernel.structs import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["link"]

_GOT_SYMBOL = "_GLOBAL_OFFSET_TABLE_"
_GROUPS = (("text", SHF_EXECINSTR), ("rodata", 0), ("data", SHF_WRITE))
_SHOWN = 5  # undefined symbols that a message names


def link(file: ElfFile, base: int, provided: Mapping[str, int]) -> tuple[ElfFile, ImageMemory]:
    """Give every section an address from ``base`` on, and resolve what refers to what.

    :param provided: undefined symbols that somebody else defines.
    :returns: the file with addresses in place of offsets, and the memory.
    :raises ImageError: undefined symbols, or relocations that cannot be carried out.
    """
    _refuse_tls(file)
    addresses, blocks, end = _lay_out(file, base)
    common, end = _commons(file, end)
    if common is not None:
        blocks.append(common[0])
    values = _values(file, addresses, common[1] if common else {})
    got = Got(_align(end, PAGE_SIZE))
    undefined = {**_provide(file, blocks, addresses, end), **provided, _GOT_SYMBOL: got.address}
    _resolve_undefined(file, values, undefined)
    slots = sum(_count_got(file, section) for section in _relocated(file))
    if slots:
        blocks.append(Block("got", got.address, bytearray(8 * slots), 8 * slots, False, False))
    memory = ImageMemory(file.name, blocks)
    _relocate(file, memory, addresses, values, got)
    memory.write(got.address, got.data)
    return _with_addresses(file, addresses, values), memory


def _align(address: int, alignment: int) -> int:
    return -(-address // alignment) * alignment


def _refuse_tls(file: ElfFile) -> None:
    for section in file.sections:
        if section.is_loaded and section.flags & SHF_TLS:
            raise ImageError(
                f"{file.name}: {section.name} is thread-local, which nothing here sets up"
            )


def _lay_out(file: ElfFile, base: int) -> tuple[dict[int, int], list[Block], int]:
    """Address of each section, blocks by what may be done to them, and where they end."""
    addresses: dict[int, int] = {}
    blocks = []
    at = base
    for name, flags in _GROUPS:
        start = at = _align(at, PAGE_SIZE)
        members = [
            section
            for section in file.sections
            if section.flags & SHF_ALLOC and section.flags & (SHF_EXECINSTR | SHF_WRITE) == flags
        ]
        members.sort(key=_order)
        for section in members:
            at = _align(at, section.align)
            addresses[section.index] = at
            at += section.size
            if at - base > MAX_IMAGE_SIZE:
                raise ImageError(f"{file.name}: its sections take more than a GiB")
        if at > start:
            blocks.append(_block(file, name, start, at, members, addresses, flags))
    unusual = [
        section.name
        for section in file.sections
        if section.flags & SHF_ALLOC and section.index not in addresses
    ]
    if unusual:
        raise ImageError(f"{file.name}: {unusual[0]} is both writable and executable")
    return addresses, blocks, at


def _order(section: ElfSection) -> tuple[bool, str, int]:
    """What takes no bytes in the file comes last; constructors by priority, as ld sorts them."""
    is_constructor = section.kind == "SHT_INIT_ARRAY"
    key = section.name if is_constructor else ""
    if key == ".init_array":
        key = ".init_array~"  # without a priority: last
    return section.kind == "SHT_NOBITS", key, section.index


def _block(
    file: ElfFile,
    name: str,
    start: int,
    end: int,
    members: Iterable[ElfSection],
    addresses: Mapping[int, int],
    flags: int,
) -> Block:
    data = bytearray()
    for section in members:
        if section.kind != "SHT_NOBITS" and section.size:
            offset = addresses[section.index] - start
            data.extend(bytes(offset - len(data)))
            data += file.contents(section)
    writable, executable = bool(flags & SHF_WRITE), bool(flags & SHF_EXECINSTR)
    return Block(f"section .{name}", start, data, end - start, writable, executable)


def _commons(file: ElfFile, end: int) -> tuple[tuple[Block, dict[int, int]] | None, int]:
    """COMMON symbols: size bytes each, with the alignment that their value asks for."""
    places: dict[int, int] = {}
    start = at = _align(end, PAGE_SIZE)
    for index, symbol in enumerate(file.symbols):
        if symbol.section == SHN_COMMON:
            alignment = symbol.value or 1
            if alignment & alignment - 1 or max(alignment, symbol.size) > MAX_IMAGE_SIZE:
                raise ImageError(
                    f"{file.name}: the COMMON symbol {symbol.name} wants {symbol.size:#x} bytes "
                    f"aligned to {alignment:#x}"
                )
            places[index] = at = _align(at, alignment)
            at += symbol.size
    if not places:
        return None, end
    return (Block("COMMON", start, bytearray(), at - start, True, False), places), at


def _values(
    file: ElfFile, addresses: Mapping[int, int], common: Mapping[int, int]
) -> dict[int, int]:
    """The address of each symbol that is defined here, by its number."""
    values = dict(common)
    for index, symbol in enumerate(file.symbols):
        if symbol.section == SHN_ABS:
            values[index] = symbol.value
        elif symbol.section < SHN_LORESERVE and symbol.section in addresses:
            values[index] = addresses[symbol.section] + symbol.value
    return values


def _provide(
    file: ElfFile, blocks: Iterable[Block], addresses: Mapping[int, int], end: int
) -> dict[str, int]:
    """What ld's own script defines: ends of the parts, and the bounds of sections with C names."""
    parts = {block.name: block for block in blocks}
    text, data = parts.get("section .text"), parts.get("section .data")
    found = {"_end": end, "end": end, "__dso_handle": 0}
    found |= dict.fromkeys(("_etext", "etext"), text.end if text else end)
    data_end = data.address + len(data.data) if data else end
    found |= dict.fromkeys(("_edata", "edata", "__bss_start"), data_end)
    arrays = [s for s in file.sections if s.kind == "SHT_INIT_ARRAY" and s.index in addresses]
    found["__init_array_start"] = min((addresses[s.index] for s in arrays), default=0)
    found["__init_array_end"] = max((addresses[s.index] + s.size for s in arrays), default=0)
    for section in file.sections:
        if section.index in addresses and section.name.isidentifier():
            start = addresses[section.index]
            found.setdefault(f"__start_{section.name}", start)
            found[f"__stop_{section.name}"] = start + section.size
    return found


def _resolve_undefined(file: ElfFile, values: dict[int, int], provided: Mapping[str, int]) -> None:
    missing: list[str] = []
    used = {
        int(number)
        for section in _relocated(file)
        for number in file.relocations(section)["symbol"].tolist()
    }
    for index, symbol in enumerate(file.symbols):
        if symbol.section != SHN_UNDEF or index == 0:
            continue
        if symbol.name in provided:
            values[index] = provided[symbol.name]
        elif symbol.binding == STB_WEAK:
            values[index] = 0
        elif index in used:
            missing.append(symbol.name)
    if missing:
        shown = ", ".join(missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        plural = "s" if len(missing) > 1 else ""
        raise ImageError(
            f"{file.name}: undefined symbol{plural} {shown}{more}: link what defines "
            f"{'them' if plural else 'it'} in (ld -r), only mcount and __fentry__ come from here"
        )


def _relocated(file: ElfFile) -> list[ElfSection]:
    """Relocation sections that are about something loaded."""
    return [
        section
        for section in file.sections
        if section.kind == "SHT_RELA"
        and 0 < section.info < len(file.sections)
        and file.sections[section.info].is_loaded
    ]


def _count_got(file: ElfFile, section: ElfSection) -> int:
    """No more words than this are needed."""
    return sum(1 for kind in file.relocations(section)["kind"].tolist() if needs_got(kind))


def _relocate(
    file: ElfFile,
    memory: ImageMemory,
    addresses: Mapping[int, int],
    values: Mapping[int, int],
    got: Got,
) -> None:
    symbols = file.symbols
    for section in _relocated(file):
        base = addresses[section.info]
        for offset, kind, number, addend in file.relocations(section).tolist():
            if number >= len(symbols):
                raise ImageError(f"{file.name}: {section.name} names symbol {number}: no such")
            symbol = symbols[number]
            if number and number not in values:
                raise ImageError(
                    f"{file.name}: {symbol.name or f'symbol {number}'} is needed, and is in a "
                    "section that is not loaded"
                )
            value = values.get(number, 0)
            relocation = Relocation(kind, base + offset, value, symbol.size, addend, symbol.name)
            apply(memory, relocation, 0, got, file.name)


def _with_addresses(
    file: ElfFile, addresses: Mapping[int, int], values: Mapping[int, int]
) -> ElfFile:
    """The file as ld would have left it: sections and symbols at their addresses."""
    data = bytearray(file.data)
    headers = int.from_bytes(data[0x28:0x30], "little")
    for index, address in addresses.items():
        struct.pack_into("<Q", data, headers + 64 * index + 0x10, address)
    table = next((s for s in file.sections if s.kind == "SHT_SYMTAB"), None)
    if table is not None:
        for number, value in values.items():
            struct.pack_into("<Q", data, table.offset + 24 * number + 8, value % (1 << 64))
    sections = tuple(
        replace(section, address=addresses.get(section.index, section.address))
        for section in file.sections
    )
    return replace(file, data=bytes(data), sections=sections)
