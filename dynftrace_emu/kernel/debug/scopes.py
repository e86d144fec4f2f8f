"""One unit's functions, and what was inlined into them (DWARF 4 and 5, section 3.3.8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from elftools.common.exceptions import DWARFError
from elftools.dwarf.die import DIE
from elftools.dwarf.ranges import BaseAddressEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.dwarfinfo import DWARFInfo
    from numpy.typing import NDArray

__all__ = ["Scope", "ScopeTable", "ranges_of", "read_scopes"]

_SUBPROGRAM, _INLINED = "DW_TAG_subprogram", "DW_TAG_inlined_subroutine"
_MAX_DEPTH = 512
_MAX_ORIGINS = 8
"""A concrete instance refers to its abstract one, and that to its declaration; damage to itself."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A function, or an inlined call of one.

    :param linkage_name: the linker's, that of C++ and Rust mangled; empty if it is ``name``.
    :param name: as in the source.
    :param call: file number and line of the call that was inlined.
    """

    linkage_name: str
    name: str
    is_inlined: bool
    depth: int
    call: tuple[int, int] = (0, 0)


@dataclass
class ScopeTable:
    """Scopes, each with one or more ranges of addresses."""

    scopes: list[Scope] = field(default_factory=list)
    _ranges: list[tuple[int, int, int]] = field(default_factory=list)  # low, high, index of scope
    _table: NDArray[np.uint64] | None = None

    def add(self, scope: Scope, ranges: list[tuple[int, int]]) -> None:
        """One more; not after the first :meth:`find`."""
        self._ranges += [(low, high, len(self.scopes)) for low, high in ranges]
        self.scopes.append(scope)

    def find(self, address: int) -> list[Scope]:
        """The function at ``address`` and the inlined calls in it there, the innermost first."""
        if self._table is None:
            self._table = np.array(self._ranges, dtype=np.uint64).reshape(-1, 3)
        low, high, index = self._table.T
        inside = index[(low <= np.uint64(address)) & (np.uint64(address) < high)]
        scopes = sorted((self.scopes[i] for i in inside.tolist()), key=lambda s: -s.depth)
        function = next((n for n, scope in enumerate(scopes) if not scope.is_inlined), None)
        return [] if function is None else scopes[: function + 1]


def read_scopes(dwarf: DWARFInfo, unit: CompileUnit) -> ScopeTable:
    """Walk a unit's entries in the order they are written, so that damaged links lead nowhere.

    :raises Exception: whatever pyelftools raises where they are malformed.
    """
    table = ScopeTable()
    for die, depth in _walk(dwarf, unit):
        if die.tag in (_SUBPROGRAM, _INLINED) and (ranges := ranges_of(dwarf, unit, die)):
            call = (_number(die, "DW_AT_call_file"), _number(die, "DW_AT_call_line"))
            scope = Scope(*_names(die), die.tag == _INLINED, depth, call)
            table.add(scope, ranges)
    return table


def _walk(dwarf: DWARFInfo, unit: CompileUnit) -> Iterator[tuple[DIE, int]]:
    assert dwarf.debug_info_sec is not None
    stream = dwarf.debug_info_sec.stream
    at, end, depth = unit.cu_die_offset, unit.cu_offset + unit.size, 0
    while at < end:
        die = DIE(unit, stream, at)
        at += die.size
        if die.is_null():
            depth -= 1
            if depth <= 0:
                return  # what follows is padding
            continue
        yield die, depth
        depth += bool(die.has_children)
        if depth > _MAX_DEPTH:
            raise DWARFError(f"entries nested more than {_MAX_DEPTH} deep")


def ranges_of(dwarf: DWARFInfo, unit: CompileUnit, die: DIE) -> list[tuple[int, int]]:
    """The addresses that an entry covers, each from its first to behind its last."""
    if "DW_AT_ranges" in die.attributes:
        return _range_list(dwarf, unit, die)
    if "DW_AT_low_pc" not in die.attributes or "DW_AT_high_pc" not in die.attributes:
        return []
    low, high = die.attributes["DW_AT_low_pc"].value, die.attributes["DW_AT_high_pc"]
    end = high.value if high.form.startswith("DW_FORM_addr") else low + high.value
    return [(low, end)] if low < end < 1 << 64 else []


def _range_list(dwarf: DWARFInfo, unit: CompileUnit, die: DIE) -> list[tuple[int, int]]:
    lists = dwarf.range_lists()
    if lists is None:
        return []
    top = unit.get_top_DIE().attributes
    base = top["DW_AT_low_pc"].value if "DW_AT_low_pc" in top else 0
    found = []
    for entry in lists.get_range_list_at_offset(die.attributes["DW_AT_ranges"].value, unit):
        if isinstance(entry, BaseAddressEntry):
            base = entry.base_address
            continue
        offset = 0 if entry.is_absolute else base
        low, high = entry.begin_offset + offset, entry.end_offset + offset
        if low < high < 1 << 64:
            found.append((low, high))
    return found


def _names(die: DIE) -> tuple[str, str]:
    """The linker's name for a function and that in its source, wherever they are written."""
    linkage = plain = ""
    for _ in range(_MAX_ORIGINS):
        linkage = linkage or _string(die, "DW_AT_linkage_name")
        plain = plain or _string(die, "DW_AT_name")
        links = ("DW_AT_abstract_origin", "DW_AT_specification")
        link = next((name for name in links if name in die.attributes), None)
        if link is None or linkage:
            break
        die = die.get_DIE_from_attribute(link)
    return linkage, plain


def _string(die: DIE, attribute: str) -> str:
    value = die.attributes[attribute].value if attribute in die.attributes else b""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else ""


def _number(die: DIE, attribute: str) -> int:
    value: Any = die.attributes[attribute].value if attribute in die.attributes else 0
    return value if isinstance(value, int) else 0
