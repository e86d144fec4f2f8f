"""One unit's line table (DWARF 4 and 5, section 6.2) as arrays that can be searched."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from elftools.common.exceptions import DWARFError

from dynftrace_emu.kernel.debug.header import require_names_take_bytes
from dynftrace_emu.kernel.debug.source import SourceLine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.dwarfinfo import DWARFInfo
    from numpy.typing import NDArray

__all__ = ["LineTable", "read_lines"]

_ADDRESS = (1 << 64) - 1
_MAX_LINE = (1 << 31) - 1
_LONGEST_HEADER = 1 << 24
_LONGEST_PROGRAM = 4 << 20
"""Bytes; pyelftools makes 700 of each, and takes microseconds."""


@dataclass(frozen=True)
class LineTable:
    """Rows by address: from each on, up to the next one, code is of that line.

    Rows with file -1 are the ends of sequences: behind them is nothing.
    """

    addresses: NDArray[np.uint64]
    files: NDArray[np.int32]
    lines: NDArray[np.int32]
    names: Sequence[str]
    directory: str

    def find(self, address: int) -> SourceLine | None:
        """The line that the instruction at ``address`` is of."""
        row = int(np.searchsorted(self.addresses, np.uint64(address), side="right")) - 1
        if row < 0 or self.files[row] < 0:
            return None
        return self.line_of(int(self.files[row]), int(self.lines[row]))

    def line_of(self, file: int, line: int) -> SourceLine | None:
        """A line of the file that the unit knows by this number."""
        if not 0 <= file < len(self.names) or not self.names[file]:
            return None
        return SourceLine(self.names[file], line, self.directory)


def read_lines(dwarf: DWARFInfo, unit: CompileUnit, directory: str) -> LineTable | None:
    """The line table of a unit; None: it has none.

    :raises Exception: whatever pyelftools raises where it is malformed.
    """
    top = unit.get_top_DIE()
    if "DW_AT_stmt_list" not in top.attributes or dwarf.debug_line_sec is None:
        return None
    stream = dwarf.debug_line_sec.stream
    stream.seek(top.attributes["DW_AT_stmt_list"].value)
    require_names_take_bytes(stream.read(_LONGEST_HEADER))
    program = dwarf.line_program_for_CU(unit)
    assert program is not None
    size = program.program_end_offset - program.program_start_offset
    if size > _LONGEST_PROGRAM:
        raise DWARFError(f"a line table of {size} bytes; {_LONGEST_PROGRAM} are the most")
    rows = [
        (s.address & _ADDRESS, -1 if s.end_sequence else s.file, min(max(s.line, 0), _MAX_LINE))
        for entry in program.get_entries()
        if (s := entry.state) is not None
    ]
    names = _file_names(program.header)
    return LineTable(*_sorted(rows, len(names)), names, directory)


def _sorted(
    rows: list[tuple[int, int, int]], files: int
) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int32]]:
    """By address. Of several rows at one address the last counts; an end gives way to a begin."""
    addresses = np.array([row[0] for row in rows], dtype=np.uint64)
    numbers = np.array([min(row[1], files) for row in rows], dtype=np.int32)
    lines = np.array([row[2] for row in rows], dtype=np.int32)
    order = np.lexsort((np.arange(len(rows)), numbers >= 0, addresses))
    addresses, numbers, lines = addresses[order], numbers[order], lines[order]
    last = np.append(addresses[1:] != addresses[:-1], [True])[: len(rows)]
    return addresses[last], numbers[last], lines[last]


def _file_names(header: Any) -> list[str]:
    """By the numbers that rows use: from 1 before DWARF 5, where 0 is nothing."""
    directories = [_text(name) for name in header["include_directory"]]
    names = [] if header["version"] >= 5 else [""]
    first = 0 if header["version"] >= 5 else 1
    for entry in header["file_entry"]:
        index = (entry.dir_index or 0) - first
        # Directory 0 is the unit's own.
        folder = directories[index] if (0 if first else 1) <= index < len(directories) else ""
        names.append(posixpath.join(folder, _text(entry.name)).removeprefix("./"))
    return names


def _text(name: object) -> str:
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else ""
