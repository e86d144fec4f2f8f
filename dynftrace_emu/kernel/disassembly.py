"""Linear disassembly with Capstone: call sites, and the instructions the machine must know of."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import capstone

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CALL_SIZE", "TextScan", "disassemble", "scan_text"]

CALL_SIZE = 5
_CALL = 0xE8
_NOTABLE = ("iretq", "hlt", "out", "call")

_disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


@dataclass(slots=True)
class TextScan:
    """What a linear sweep found: addresses, in ascending order."""

    calls: list[tuple[int, int]] = field(default_factory=list)  # (address, target) of e8 rel32
    halts: list[int] = field(default_factory=list)
    irets: list[int] = field(default_factory=list)
    locked: list[int] = field(default_factory=list)
    safepoints: list[int] = field(default_factory=list)
    gs_loads: list[int] = field(default_factory=list)  # behind what loads GS
    gs_uses: list[int] = field(default_factory=list)

    def extend(self, other: TextScan) -> None:
        """Add what was found elsewhere."""
        for name in TextScan.__slots__:
            getattr(self, name).extend(getattr(other, name))


def scan_text(address: int, data: bytes, starts: Iterable[int], safepoint_port: int) -> TextScan:
    """Sweep one text section, beginning anew at each of ``starts`` (function starts)."""
    scan = TextScan()
    bounds = [*sorted({address, *starts}), address + len(data)]
    for begin, end in itertools.pairwise(bounds):
        _scan_range(scan, begin, data[begin - address : end - address], safepoint_port)
    return scan


def _scan_range(scan: TextScan, begin: int, code: bytes, safepoint_port: int) -> None:
    offset = 0
    while offset < len(code):
        for at, size, mnemonic, operands in _disassembler.disasm_lite(
            code[offset:], begin + offset
        ):
            offset = at - begin + size
            if mnemonic == "call" and code[at - begin] == _CALL:
                scan.calls.append((at, int(operands, 16)))
            elif mnemonic == "hlt":
                scan.halts.append(at)
            elif mnemonic.startswith("iret"):
                scan.irets.append(at)
            elif mnemonic.startswith("lock") or (mnemonic == "xchg" and "[" in operands):
                scan.locked.append(at)  # xchg with memory is locked without saying so
            elif "gs" in operands or mnemonic in ("swapgs", "lgs"):
                _note_gs(scan, at, size, mnemonic, operands)
            elif mnemonic == "out" and operands.split(",")[0] == hex(safepoint_port):
                scan.safepoints.append(at)
        offset += 1  # a byte that is no instruction


def _note_gs(scan: TextScan, at: int, size: int, mnemonic: str, operands: str) -> None:
    if "gs:" in operands:
        scan.gs_uses.append(at)
    elif mnemonic in ("swapgs", "lgs", "wrgsbase", "pop") or operands.startswith("gs,"):
        scan.gs_loads.append(at + size)


def disassemble(code: bytes, address: int, count: int = 0) -> list[tuple[int, bytes, str]]:
    """(address, bytes, text) of each instruction; ``.byte`` for what is none."""
    lines: list[tuple[int, bytes, str]] = []
    offset = 0
    while offset < len(code) and not (count and len(lines) >= count):
        found = next(_disassembler.disasm_lite(code[offset:], address + offset, 1), None)
        if found is None:
            lines.append(
                (address + offset, code[offset : offset + 1], f".byte {code[offset]:#04x}")
            )
            offset += 1
            continue
        at, size, mnemonic, operands = found
        lines.append((at, code[offset : offset + size], f"{mnemonic} {operands}".strip()))
        offset += size
    return lines
