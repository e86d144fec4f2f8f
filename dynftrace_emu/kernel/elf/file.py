"""An ELF file as it is on disk: headers, sections, segments, symbols; checked, nothing loaded.

pyelftools reads the headers. Every offset, size and count in them is somebody else's claim: what
lies outside the file, overlaps or is absurdly large is refused here, before anybody relies on it.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from dynftrace_emu.errors import ImageError

__all__ = [
    "ELF_MAGIC",
    "MAX_IMAGE_SIZE",
    "ElfFile",
    "ElfSection",
    "ElfSegment",
    "ElfSymbol",
    "read_elf",
]

ELF_MAGIC = b"\x7fELF"
MAX_IMAGE_SIZE = 1 << 30
"""Bytes of guest memory an image may take."""
MAX_SYMBOLS = 1 << 20

SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_TLS = 1, 2, 4, 0x400
PF_X, PF_W = 1, 2
SHN_UNDEF, SHN_ABS, SHN_COMMON, SHN_LORESERVE = 0, 0xFFF1, 0xFFF2, 0xFF00
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE, STT_TLS, STT_IFUNC = 0, 1, 2, 3, 4, 6, 10
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2

_SECTION_HEADER, _PROGRAM_HEADER, _ELF_HEADER = 64, 56, 64
SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"),
     ("size", "<u8")]
)  # fmt: skip
RELA = np.dtype([("offset", "<u8"), ("kind", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])

# What pyelftools raises where headers make no sense; nothing of ours is called from inside it.
_MALFORMED = (
    ELFError, struct.error, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, RecursionError, OSError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ElfSection:
    """A section header; ``kind`` as ``SHT_PROGBITS``, ``offset`` and sizes in bytes."""

    index: int
    name: str
    kind: str
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int

    @property
    def is_loaded(self) -> bool:
        """Whether it takes memory when the program runs."""
        return bool(self.flags & SHF_ALLOC) and self.size > 0

    @property
    def is_text(self) -> bool:
        """Whether it holds instructions."""
        return self.is_loaded and bool(self.flags & SHF_EXECINSTR)

    @property
    def file_size(self) -> int:
        """Bytes in the file: none for ``.bss``."""
        return 0 if self.kind == "SHT_NOBITS" else self.size


@dataclass(frozen=True, slots=True)
class ElfSegment:
    """A ``PT_LOAD`` program header."""

    index: int
    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class ElfSymbol:
    """A symbol; ``section`` is an index, or ``SHN_UNDEF``, ``SHN_ABS``, ``SHN_COMMON``."""

    name: str
    value: int
    size: int
    kind: int
    binding: int
    section: int


@dataclass(frozen=True)
class ElfFile:
    """A file that has been read, and, once loaded, where.

    :param data: the file's bytes. Of a relocatable object that was linked, with the addresses of
        its sections and symbols filled in.
    :param bias: what was added to the addresses in ``data`` when it was loaded.
    """

    name: str
    data: bytes = field(repr=False)
    kind: str  # ET_EXEC, ET_DYN, ET_REL
    entry: int
    sections: tuple[ElfSection, ...]
    segments: tuple[ElfSegment, ...]
    dynamic: tuple[int, int] = (0, 0)  # offset and size of PT_DYNAMIC
    bias: int = 0

    def at(self, bias: int, data: bytes | None = None) -> ElfFile:
        """The same, loaded."""
        return replace(self, bias=bias, data=self.data if data is None else data)

    def section(self, name: str) -> ElfSection | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    def contents(self, section: ElfSection) -> bytes:
        """What the file holds of a section."""
        return self.data[section.offset : section.offset + section.file_size]

    def array(self, section: ElfSection, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """A section that is a table; a torn last row is left out."""
        contents = self.contents(section)
        return np.frombuffer(contents, dtype, len(contents) // dtype.itemsize)

    @cached_property
    def symbols(self) -> list[ElfSymbol]:
        """The symbol table in its order; the dynamic one where that is all there is.

        :raises ImageError: it is malformed.
        """
        tables = {section.kind: section for section in self.sections}
        table = tables.get("SHT_SYMTAB") or tables.get("SHT_DYNSYM")
        return [] if table is None else self._symbols(table)

    def _symbols(self, table: ElfSection) -> list[ElfSymbol]:
        rows = self.array(table, SYMBOL)
        if len(rows) > MAX_SYMBOLS:
            raise ImageError(f"{self.name}: {len(rows)} symbols; {MAX_SYMBOLS} are the most")
        linked = self.sections[table.link : table.link + 1]
        if not linked or linked[0].kind != "SHT_STRTAB":
            raise ImageError(f"{self.name}: {table.name} names no string table")
        strings = self.contents(linked[0])
        found = []
        for name, info, _, section, value, size in rows.tolist():
            text = _string(strings, name)
            if text is None:
                raise ImageError(f"{self.name}: the name of a symbol is outside its string table")
            found.append(ElfSymbol(text, value, size, info & 0xF, info >> 4, section))
        return found

    def relocations(self, section: ElfSection) -> np.ndarray[Any, Any]:
        """Rows of ``offset``, ``kind``, ``symbol``, ``addend`` of a ``SHT_RELA`` section."""
        return self.array(section, RELA)


def _string(strings: bytes, offset: int) -> str | None:
    if offset == 0:
        return ""
    end = strings.find(b"\0", offset)
    if offset >= len(strings) or end < 0:
        return None
    return strings[offset:end].decode("utf-8", "backslashreplace")


def read_elf(data: bytes, name: str) -> ElfFile:
    """Read and check the headers.

    :raises ImageError: it is no ELF file for this machine, or malformed; one line says how.
    """
    _require_machine(data, name)
    try:
        elf = ELFFile(io.BytesIO(data))
        header = elf.header
        file = ElfFile(
            name,
            data,
            str(header["e_type"]),
            int(header["e_entry"]),
            _sections(elf, len(data)),
            _segments(elf, len(data)),
            _dynamic(elf, len(data)),
        )
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except _MALFORMED as error:
        raise ImageError(f"{name}: malformed ELF headers ({_what(error)})") from None
    _require_loadable(file)
    return file


def _what(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:120] or type(error).__name__


def _require_machine(data: bytes, name: str) -> None:
    if len(data) < _ELF_HEADER:
        raise ImageError(f"{name}: truncated: {len(data)} bytes are less than an ELF header")
    word_size, byte_order = data[4], data[5]
    machine = int.from_bytes(data[18:20], "little" if byte_order == 1 else "big")
    if word_size != 2:
        raise ImageError(f"{name}: a 32-bit ELF; this is an x86-64 machine (compile with -m64)")
    if byte_order != 1:
        raise ImageError(f"{name}: a big-endian ELF; this is an x86-64 machine")
    if machine != 62:
        raise ImageError(f"{name}: an ELF for machine {machine}; only x86-64 (62) runs here")


def _sections(elf: ELFFile, file_size: int) -> tuple[ElfSection, ...]:
    offset, entry_size = int(elf["e_shoff"]), int(elf["e_shentsize"])
    if offset == 0:
        return ()
    if entry_size != _SECTION_HEADER:
        raise ImageError(f"section headers of {entry_size} bytes, which should be 64")
    if offset + _SECTION_HEADER > file_size:
        raise ImageError("truncated: the section headers are beyond the end of the file")
    count = elf.num_sections()
    if offset + count * _SECTION_HEADER > file_size:
        raise ImageError(f"truncated: {count} section headers do not fit in the file")
    return tuple(_section(elf, index, file_size) for index in range(count))


def _section(elf: ELFFile, index: int, file_size: int) -> ElfSection:
    # Not through get_section(): that follows links between sections, which may be cyclic.
    header: Any = elf._get_section_header(index)
    name = elf._get_section_name(header) if int(elf["e_shstrndx"]) else ""
    section = ElfSection(
        index,
        str(name),
        str(header["sh_type"]),
        int(header["sh_flags"]),
        int(header["sh_addr"]),
        int(header["sh_offset"]),
        int(header["sh_size"]),
        int(header["sh_link"]),
        int(header["sh_info"]),
        max(1, int(header["sh_addralign"])),
    )
    label = f"section {index} ({section.name})"
    if section.kind == "SHT_NULL":
        return section
    if section.file_size and section.offset + section.file_size > file_size:
        raise ImageError(
            f"truncated: {label} ends at byte {section.offset + section.file_size:#x} of a file of "
            f"{file_size:#x}"
        )
    if section.is_loaded and section.size > MAX_IMAGE_SIZE:
        raise ImageError(f"{label} is {section.size:#x} bytes; {MAX_IMAGE_SIZE >> 20} MiB at most")
    if section.align & section.align - 1 or section.align > MAX_IMAGE_SIZE:
        raise ImageError(f"{label} wants an alignment of {section.align:#x}")
    return section


def _segments(elf: ELFFile, file_size: int) -> tuple[ElfSegment, ...]:
    count = int(elf["e_phnum"])
    if not count:
        return ()
    if int(elf["e_phentsize"]) != _PROGRAM_HEADER:
        raise ImageError(f"program headers of {elf['e_phentsize']} bytes, which should be 56")
    if int(elf["e_phoff"]) + count * _PROGRAM_HEADER > file_size:
        raise ImageError(f"truncated: {count} program headers do not fit in the file")
    found = []
    for index in range(count):
        header: Any = elf._get_segment_header(index)
        if header["p_type"] == "PT_INTERP":
            raise ImageError(
                "it is dynamically linked: it asks for an interpreter; link with -static "
                "(or -static-pie) and without a C library"
            )
        if header["p_type"] == "PT_TLS" and header["p_memsz"]:
            raise ImageError("it has thread-local storage, which nothing here sets up")
        if header["p_type"] == "PT_LOAD" and header["p_memsz"]:
            found.append(_segment(header, index, file_size))
    return tuple(found)


def _dynamic(elf: ELFFile, file_size: int) -> tuple[int, int]:
    for index in range(int(elf["e_phnum"])):
        header: Any = elf._get_segment_header(index)
        if header["p_type"] == "PT_DYNAMIC":
            offset, size = int(header["p_offset"]), int(header["p_filesz"])
            if offset + size > file_size:
                raise ImageError("truncated: its dynamic section is beyond the end of the file")
            return offset, size
    return 0, 0


def _segment(header: Any, index: int, file_size: int) -> ElfSegment:
    segment = ElfSegment(
        index,
        int(header["p_flags"]),
        int(header["p_offset"]),
        int(header["p_vaddr"]),
        int(header["p_filesz"]),
        int(header["p_memsz"]),
    )
    if segment.file_size > segment.memory_size:
        raise ImageError(
            f"segment {index} has {segment.file_size:#x} bytes in the file and "
            f"{segment.memory_size:#x} in memory"
        )
    if segment.offset + segment.file_size > file_size:
        raise ImageError(
            f"truncated: segment {index} ends at byte {segment.offset + segment.file_size:#x} of a "
            f"file of {file_size:#x}"
        )
    if segment.memory_size > MAX_IMAGE_SIZE:
        raise ImageError(
            f"segment {index} takes {segment.memory_size:#x} bytes of memory; "
            f"{MAX_IMAGE_SIZE >> 20} MiB at most"
        )
    return segment


def _require_loadable(file: ElfFile) -> None:
    if file.kind not in ("ET_EXEC", "ET_DYN", "ET_REL"):
        raise ImageError(
            f"{file.name}: an ELF of type {file.kind}; executables and relocatable objects run here"
        )
    if file.kind == "ET_REL" and not any(section.is_text for section in file.sections):
        raise ImageError(f"{file.name}: an object without a text section")
    if file.kind != "ET_REL" and not file.segments:
        raise ImageError(f"{file.name}: nothing to load: it has no PT_LOAD segment")
