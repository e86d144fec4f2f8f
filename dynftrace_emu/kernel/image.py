"""A kernel, ready to be loaded: segments, symbols, entry points, call sites."""

from __future__ import annotations

import bisect
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.assembler import TEXT_SECTIONS, Assembled, assemble
from dynftrace_emu.kernel.debug.demangle import demangle, spellings
from dynftrace_emu.kernel.debug.source import SourceFrame, SourceLine, where_text
from dynftrace_emu.kernel.disassembly import TextScan, scan_text
from dynftrace_emu.kernel.structs import PCPU, asm_offsets
from dynftrace_emu.machine.hypercalls import Port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from dynftrace_emu.kernel.elf.file import ElfFile

__all__ = ["FIRMWARE", "LINK_ADDRESS", "KernelImage", "Segment", "Symbol"]

LINK_ADDRESS = 0xFFFF_FFFF_8100_0000
FIRMWARE = Path(__file__).parents[2] / "firmware"
_INSTALLED_FIRMWARE = Path(__file__).parents[1] / "firmware"
_ENTRY, _SECONDARY_ENTRY = "startup_64", "secondary_startup_64"


def firmware_path() -> Path:
    """Where the mini-kernel's sources are: in the tree, or installed beside this package."""
    return FIRMWARE if (FIRMWARE / "include").is_dir() else _INSTALLED_FIRMWARE


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes to be loaded at a virtual address, and what may be done there.

    ``scan``: what disassembly would find, where whoever made the code knows it.
    ``zeros`` bytes of nothing follow ``data``, as ``.bss`` does.
    """

    name: str
    address: int
    data: bytes
    writable: bool
    executable: bool
    scan: TextScan | None = None
    zeros: int = 0

    @property
    def size(self) -> int:
        """Bytes of memory it takes."""
        return len(self.data) + self.zeros


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name for an address; ``size`` in bytes, 0 if unknown; ``source`` is ``file:line``."""

    name: str
    address: int
    size: int
    is_function: bool
    source: str


@dataclass(frozen=True)
class KernelImage:
    """An image of a kernel.

    A *function* is a text symbol declared as one. A *call site* is an ``e8 rel32`` to mcount that
    linear disassembly finds; it is never taken from the records, so the two can be compared.

    ``elf`` is the file that an image came from (:class:`~.elf.image.ElfImage`), None for ours.
    """

    name: str
    variant: str
    segments: tuple[Segment, ...]
    symbols: Mapping[str, Symbol]
    entry: int
    secondary_entry: int | None
    percpu_size: int
    percpu: Mapping[str, int] = field(default_factory=dict)
    elf: ElfFile | None = None

    @classmethod
    def from_assembly(
        cls,
        sources: str | Iterable[tuple[str, str]],
        *,
        name: str = "assembly",
        variant: str = "dynamic",
        defines: Iterable[str] = ("CONFIG_FTRACE", "CONFIG_DYNAMIC_FTRACE"),
        link_address: int = LINK_ADDRESS,
    ) -> KernelImage:
        """Assemble a kernel from text, or from (file name, text) pairs.

        ``.include`` finds ``firmware/include`` and the firmware's own sources, so
        ``.include "arch/mcount.S"`` makes a text traceable.

        :raises AssemblyError: ``file:line: what``.
        :raises ImageError: it has no ``startup_64``.
        """
        pairs = [("<text>", sources)] if isinstance(sources, str) else list(sources)
        unit = assemble(
            pairs,
            link_address,
            constants=asm_offsets(),
            defines=defines,
            read=_reader(firmware_path()),
            percpu_base=PCPU.size,
        )
        return cls._from_unit(unit, name, variant)

    @classmethod
    def _from_unit(cls, unit: Assembled, name: str, variant: str) -> KernelImage:
        segments = tuple(
            Segment(s.name, s.address, s.data, s.name in (".data", ".bss"), s.name in TEXT_SECTIONS)
            for s in unit.sections
            if s.data
        )
        symbols = {
            s.name: Symbol(s.name, s.address, s.size, s.is_function, f"{s.file}:{s.line}")
            for s in unit.symbols.values()
        }
        if _ENTRY not in symbols:
            raise ImageError(f"{name}: no symbol {_ENTRY}, so nowhere to start")
        secondary = symbols.get(_SECONDARY_ENTRY)
        return cls(
            name,
            variant,
            segments,
            symbols,
            symbols[_ENTRY].address,
            secondary.address if secondary else None,
            unit.percpu_size,
            unit.percpu,
        )

    # --- symbols ---

    def address(self, name: str) -> int:
        """The address of a symbol.

        :raises ImageError: there is no such symbol.
        """
        try:
            return self.symbols[name].address
        except KeyError:
            raise ImageError(f"{self.name} has no symbol {name}") from None

    @cached_property
    def functions(self) -> list[Symbol]:
        """All functions, by address."""
        found = [s for s in self.symbols.values() if s.is_function]
        return sorted(found, key=lambda s: s.address)

    def named(self, name: str) -> list[Symbol]:
        """All that ``name`` may mean, by address: a symbol, or a function's name demangled."""
        found = {function.address: function for function in self._by_spelling.get(name, ())}
        if (symbol := self.symbols.get(name)) is not None:
            found.setdefault(symbol.address, symbol)
        return [found[address] for address in sorted(found)]

    @cached_property
    def _by_spelling(self) -> dict[str, list[Symbol]]:
        found: dict[str, list[Symbol]] = {}
        for function in self.functions:
            for name in spellings(function.name):
                found.setdefault(name, []).append(function)
        return found

    @property
    def named_code(self) -> list[Symbol]:
        """Everything that has a name when it shows up in a trace or a report, by address."""
        return self.functions

    @cached_property
    def _named_starts(self) -> list[int]:
        return [function.address for function in self.named_code]

    @cached_property
    def _function_bounds(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Where each function begins, and where it ends."""
        starts = np.array([function.address for function in self.functions], dtype=np.uint64)
        sizes = np.array([function.size for function in self.functions], dtype=np.uint64)
        return starts, starts + sizes

    def functions_at(self, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Of each address the place in :attr:`functions` of the one that holds it, or -1."""
        starts, ends = self._function_bounds
        if not len(starts):
            return np.full(len(addresses), -1)
        index = np.searchsorted(starts, addresses, side="right") - 1
        return np.where((index >= 0) & (addresses < ends[index]), index, -1)

    def function_at(self, address: int) -> Symbol | None:
        """The function whose bytes hold ``address``."""
        index = bisect.bisect(self._named_starts, address) - 1
        if index >= 0:
            function = self.named_code[index]
            if address < function.address + function.size:
                return function
        return None

    def symbolize(self, address: int) -> str:
        """``name+0x1b/0x40`` as Linux writes it, or the bare address."""
        function = self.function_at(address)
        if function is None:
            return f"{address:#x}"
        return _offset_text(function, address)

    def symbolize_return(self, address: int) -> str:
        """Likewise for a return address: by the call in front of it, as Linux's ``%pB`` does.

        A call may be the last instruction of its function.
        """
        function = self.function_at(address - 1)
        return f"{address:#x}" if function is None else _offset_text(function, address)

    # --- source ---

    def source_frames(self, address: int) -> tuple[SourceFrame, ...]:
        """The function at an address and the calls inlined there, the innermost first.

        Empty if nothing is known. Of a function in assembly the line is that of its name.
        """
        function = self.function_at(address)
        if function is None or not function.source:
            return ()
        file, _, line = function.source.rpartition(":")
        return (SourceFrame(function.name, SourceLine(file, int(line))),)

    def source_line(self, address: int) -> str:
        """``file:line`` of the instruction at an address; empty if that is not known."""
        frames = self.source_frames(address)
        return str(frames[0].where or "") if frames else ""

    def where(self, address: int) -> str:
        """The source of an address, with what is inlined there, as text; empty if not known."""
        return where_text(self.source_frames(address))

    def where_return(self, address: int) -> str:
        """Likewise for a return address: of the call in front of it."""
        return self.where(address - 1) if address else ""

    @property
    def debug_complaint(self) -> str:
        """What was the matter with debug information that has been read; empty if nothing."""
        return ""

    # --- text ---

    @cached_property
    def text_range(self) -> tuple[int, int]:
        """From the first byte of executable code to behind the last."""
        text = [segment for segment in self.segments if segment.executable]
        return min(s.address for s in text), max(s.address + len(s.data) for s in text)

    @cached_property
    def scan(self) -> TextScan:
        """What linear disassembly of all text finds, or its maker knows."""
        whole = TextScan()
        for segment in self.segments:
            if not segment.executable:
                continue
            part = segment.scan or scan_text(
                segment.address,
                segment.data,
                [a for a in self._named_starts if 0 <= a - segment.address < len(segment.data)],
                Port.SAFEPOINT,
            )
            whole.extend(part)
        return whole

    @property
    def mcount(self) -> int | None:
        """Where mcount is, or None if the image has none."""
        symbol = self.symbols.get("mcount")
        return symbol.address if symbol else None

    @cached_property
    def call_sites(self) -> NDArray[np.uint64]:
        """The address of each call to mcount, ascending."""
        mcount = self.mcount
        sites = [at for at, target in self.scan.calls if target == mcount]
        return np.array(sorted(sites), dtype=np.uint64)

    @cached_property
    def iret_sites(self) -> NDArray[np.uint64]:
        """Call sites of functions that return by iret, ascending.

        What lies where others have their return address is a word of an interrupt's frame.
        """
        handlers = self.functions_at(np.array(self.scan.irets, dtype=np.uint64))
        index = self.functions_at(self.call_sites)
        sites: NDArray[np.uint64] = self.call_sites[(index >= 0) & np.isin(index, handlers)]
        return sites

    @property
    def table_sites(self) -> NDArray[np.uint64]:
        """Those that the image itself lists in a table, ascending; ours have none."""
        return np.zeros(0, dtype=np.uint64)

    @cached_property
    def notrace(self) -> list[Symbol]:
        """Functions without a call site."""
        starts, _ = self._function_bounds
        index = self.functions_at(self.call_sites)
        traced = np.isin(starts, starts[index[index >= 0]])
        return [self.functions[number] for number in np.flatnonzero(~traced).tolist()]

    @cached_property
    def sha256(self) -> str:
        """A digest of everything that is loaded."""
        digest = hashlib.sha256()
        for segment in self.segments:
            digest.update(f"{segment.name} {segment.address:#x} {len(segment.data)}\n".encode())
            digest.update(segment.data)
        return digest.hexdigest()


def _offset_text(function: Symbol, address: int) -> str:
    name = demangle(function.name)
    return f"{name}+{address - function.address:#x}/{function.size:#x}"


def _reader(firmware: Path) -> Callable[[str], str]:
    def read(name: str) -> str:
        for folder in (firmware / "include", firmware):
            if (folder / name).is_file():
                return (folder / name).read_text()
        return Path(name).read_text()

    return read
