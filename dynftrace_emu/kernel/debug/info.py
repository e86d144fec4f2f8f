"""What DWARF says of an image: for an address, the file, the line, and the calls inlined there.

Nothing is read before it is asked for, and then of the unit alone that the address is in. Debug
information is a convenience: what is malformed in it is told in one line (:attr:`~DebugInfo.
complaint`) and then not used.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from elftools.common.exceptions import DWARFError, ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from dynftrace_emu.kernel.debug.demangle import demangle
from dynftrace_emu.kernel.debug.lines import LineTable, read_lines
from dynftrace_emu.kernel.debug.scopes import Scope, ScopeTable, ranges_of, read_scopes
from dynftrace_emu.kernel.debug.source import SourceFrame, SourceLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.dwarfinfo import DWARFInfo
    from elftools.elf.sections import Section
    from numpy.typing import NDArray

__all__ = ["DebugInfo"]

_MAX_SECTION = 256 << 20
_ZDEBUG_HEADER = 12
_MOST_COMPRESSED = 32  # debug information is compressed to a fifth
# What pyelftools raises where debug information makes no sense, directly or by what it calls.
_MALFORMED = (
    DWARFError, ELFError, ConstructError, struct.error, ValueError, LookupError, TypeError,
    AttributeError, AssertionError, ArithmeticError, NotImplementedError, RecursionError,
    MemoryError, OSError, zlib.error,
)  # fmt: skip

T = TypeVar("T")


@dataclass
class _Unit:
    """A compilation unit; its tables are read when they are first needed."""

    unit: CompileUnit
    directory: str
    ranges: list[tuple[int, int]]
    lines: LineTable | None = None
    scopes: ScopeTable | None = None
    has_lines: bool = False
    has_scopes: bool = False


class DebugInfo:
    """The debug information of one ELF file.

    :param data: the file; of a relocatable object, with the addresses of its sections filled in.
    :param bias: what was added to its addresses when it was loaded.
    """

    def __init__(self, data: bytes, *, bias: int = 0) -> None:
        self._data, self._bias = data, bias
        self.complaint = ""
        """What was the matter with what has been read so far; empty if nothing."""
        self.frames = lru_cache(maxsize=1 << 16)(self._frames)
        self.line = lru_cache(maxsize=1 << 16)(self._line)

    def _line(self, address: int) -> SourceLine | None:
        """The line that the instruction at ``address`` is of: the innermost inlined one."""
        at = address - self._bias
        for unit in self._units_at(at):
            lines = self._lines(unit)
            if lines is not None and (found := lines.find(at)) is not None:
                return found
        return None

    def _frames(self, address: int) -> tuple[SourceFrame, ...]:
        """The function at ``address`` and all that is inlined there, the innermost first.

        Empty if nothing is known; it is the same to ask for :meth:`line` before or after.
        """
        at = address - self._bias
        for unit in self._units_at(at):
            scopes, lines = self._scopes(unit), self._lines(unit)
            found = scopes.find(at) if scopes is not None else []
            if not found:
                continue
            where = lines.find(at) if lines is not None else None
            frames = []
            for scope in found:
                frames.append(SourceFrame(_function(scope), where, scope.is_inlined))
                where = lines.line_of(*scope.call) if lines is not None else None
            return tuple(frames)
        return ()

    # --- reading ---

    def _try(self, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except _MALFORMED as error:
            what = f"{type(error).__name__}: {error}".split("\n")[0]
            self.complaint = self.complaint or f"debug information is malformed ({what})"
            return otherwise

    def _lines(self, unit: _Unit) -> LineTable | None:
        if not unit.has_lines:
            unit.has_lines = True
            assert self._dwarf is not None
            dwarf = self._dwarf
            unit.lines = self._try(lambda: read_lines(dwarf, unit.unit, unit.directory), None)
        return unit.lines

    def _scopes(self, unit: _Unit) -> ScopeTable | None:
        if not unit.has_scopes:
            unit.has_scopes = True
            assert self._dwarf is not None
            dwarf = self._dwarf
            unit.scopes = self._try(lambda: read_scopes(dwarf, unit.unit), None)
        return unit.scopes

    @cached_property
    def _dwarf(self) -> DWARFInfo | None:
        return self._try(self._open, None)

    def _open(self) -> DWARFInfo | None:
        elf = ELFFile(io.BytesIO(self._data))
        if not elf.has_dwarf_info(strict=True):
            return None
        for section in elf.iter_sections():
            _require_sane_size(section, len(self._data))
        return elf.get_dwarf_info(relocate_dwarf_sections=True, follow_links=False)

    @cached_property
    def _units(self) -> list[_Unit]:
        units: list[_Unit] = []
        self._try(lambda: units.extend(self._read_units()), None)
        return units

    def _read_units(self) -> Iterator[_Unit]:
        """One after the other: if one is malformed, others can still be used."""
        if (dwarf := self._dwarf) is None:
            return
        for unit in dwarf.iter_CUs():
            if (made := self._try(partial(_made_unit, dwarf, unit), None)) is not None:
                yield made

    @cached_property
    def _ranges(self) -> NDArray[np.uint64]:
        """Rows of low, high, index of the unit."""
        rows = [(low, high, n) for n, unit in enumerate(self._units) for low, high in unit.ranges]
        return np.array(rows, dtype=np.uint64).reshape(-1, 3)

    @cached_property
    def _unbounded(self) -> list[int]:
        """Units that do not say which addresses are theirs."""
        return [n for n, unit in enumerate(self._units) if not unit.ranges]

    def _units_at(self, address: int) -> list[_Unit]:
        if not 0 <= address < 1 << 64:
            return []
        low, high, index = self._ranges.T
        at = np.uint64(address)
        found = index[(low <= at) & (at < high)].tolist()
        return [self._units[n] for n in [*found, *self._unbounded]]


def _require_sane_size(section: Section, file_size: int) -> None:
    if not section.name.startswith((".debug", ".zdebug")):
        return
    most, size = min(_MAX_SECTION, _MOST_COMPRESSED * file_size), section.data_size
    if section.name.startswith(".zdebug") and size <= most:
        # It has a size that nobody goes by.
        size = len(zlib.decompressobj().decompress(section.data()[_ZDEBUG_HEADER:], most + 1))
    if size > most:
        raise ELFError(f"{section.name} is said to be {size} bytes")


def _made_unit(dwarf: DWARFInfo, unit: CompileUnit) -> _Unit:
    top = unit.get_top_DIE()
    attribute = top.attributes.get("DW_AT_comp_dir")
    directory = attribute.value.decode("utf-8", "backslashreplace") if attribute else ""
    return _Unit(unit, directory, ranges_of(dwarf, unit, top))


def _function(scope: Scope) -> str:
    name = demangle(scope.linkage_name)
    return scope.name if scope.name and name == scope.linkage_name else name or "??"
