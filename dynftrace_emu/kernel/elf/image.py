"""An ELF file as an image that runs: loaded or linked, traceable, with the runtime beside it."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.debug.demangle import demangle
from dynftrace_emu.kernel.debug.info import DebugInfo
from dynftrace_emu.kernel.debug.source import SourceFrame
from dynftrace_emu.kernel.disassembly import CALL_SIZE, TextScan, scan_text
from dynftrace_emu.kernel.elf.calls import ENDBR64, prologue_start
from dynftrace_emu.kernel.elf.file import (
    SHN_ABS,
    SHN_COMMON,
    SHN_LORESERVE,
    SHN_UNDEF,
    STB_LOCAL,
    STB_WEAK,
    STT_FUNC,
    STT_IFUNC,
    STT_NOTYPE,
    STT_OBJECT,
    ElfFile,
    ElfSymbol,
    read_elf,
)
from dynftrace_emu.kernel.elf.link import link
from dynftrace_emu.kernel.elf.memory import ImageMemory, loaded_segments
from dynftrace_emu.kernel.elf.pie import relocate_pie
from dynftrace_emu.kernel.elf.runtime import (
    UNDEFINED,
    assemble_runtime,
    place_runtime,
)
from dynftrace_emu.kernel.elf.sites import CallSites, find_call_sites
from dynftrace_emu.kernel.elf.text import ElfText
from dynftrace_emu.kernel.image import KernelImage, Symbol
from dynftrace_emu.kernel.structs import PAGE_SIZE, PCPU
from dynftrace_emu.machine.hypercalls import Port

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["IMAGE_BASE", "ElfImage", "load_elf"]

IMAGE_BASE = 0x40_0000
"""Where what has no address of its own is put: static-pie, and objects."""

_MCOUNT = {"mcount": False, "_mcount": False, "__fentry__": True}
_MAX_SITE_SPAN = 256 << 20
_OBJECT_ENTRIES = ("_start", "main")
_INIT_START = "__init_array_start"


@dataclass(frozen=True)
class ElfImage(KernelImage):
    """An image that came from an ELF file.

    ``entry`` and ``secondary_entry`` are the runtime's; it goes on to :attr:`file_entry`.

    :param elf: the file, and where it was loaded.
    :param runtime: the runtime's own symbols, which the host goes by.
    :param sites: its call sites, as the compiler made them; in the segments they all call the
        runtime's mcount.
    :param file_entry: where the file says it starts, or None.
    :param init_array: address and size in bytes.
    """

    elf: ElfFile = field(kw_only=True)
    runtime: KernelImage = field(kw_only=True)
    sites: CallSites = field(kw_only=True)
    text: tuple[tuple[int, bytes], ...] = field(kw_only=True, repr=False)
    own_functions: tuple[Symbol, ...] = field(kw_only=True, repr=False)
    file_entry: int | None = field(kw_only=True)
    init_array: tuple[int, int] = field(kw_only=True)

    def address(self, name: str) -> int:
        """Where the runtime's symbol ``name`` is, or the image's.

        :raises ImageError: there is no such symbol.
        """
        symbol = self.runtime.symbols.get(name)
        return symbol.address if symbol else super().address(name)

    @cached_property
    def functions(self) -> list[Symbol]:
        """The file's functions, by address."""
        return list(self.own_functions)

    @cached_property
    def named_code(self) -> list[Symbol]:
        """Those and the runtime's."""
        return sorted([*self.own_functions, *self.runtime.functions], key=lambda s: s.address)

    @property
    def mcount(self) -> int | None:
        """The runtime's mcount, or None if nothing calls it."""
        return self.runtime.mcount if self.sites.calls else None

    @cached_property
    def call_sites(self) -> NDArray[np.uint64]:
        """The address of each call site, ascending."""
        return self.sites.addresses

    @cached_property
    def table_sites(self) -> NDArray[np.uint64]:
        """Those that a table in the file lists, ascending."""
        listed = self.sites.table.sites if self.sites.table else ()
        return np.array(listed, dtype=np.uint64)

    @cached_property
    def text_range(self) -> tuple[int, int]:
        """From the page of the first call site to behind the last; all text if there is none."""
        sites = self.call_sites
        if len(sites):
            return int(sites[0]) & -PAGE_SIZE, int(sites[-1]) + CALL_SIZE
        address, data = self.text[0]
        return address, address + max(CALL_SIZE, len(data))

    @cached_property
    def scan(self) -> TextScan:
        """What linear disassembly of the file's text and the runtime's finds."""
        whole = TextScan()
        starts = [function.address for function in self.own_functions]
        for address, data in self.text:
            low = bisect.bisect_left(starts, address)
            high = bisect.bisect_left(starts, address + len(data))
            whole.extend(scan_text(address, data, starts[low:high], Port.SAFEPOINT))
        whole.gs_uses = [at for at in whole.gs_uses if self.function_at(at) is not None]
        whole.extend(replace(self.runtime.scan, gs_uses=[], gs_loads=[], locked=[]))
        return whole

    @cached_property
    def _debug_info(self) -> DebugInfo:
        return DebugInfo(self.elf.data, bias=self.elf.bias)

    def source_frames(self, address: int) -> tuple[SourceFrame, ...]:
        """What the file's debug information says, or that the runtime's function is there."""
        if frames := self._debug_info.frames(address):
            return frames
        function, line = self.function_at(address), self._debug_info.line(address)
        if function is None or line is None:
            return super().source_frames(address)
        return (SourceFrame(demangle(function.name), line),)

    def source_line(self, address: int) -> str:
        """``file:line`` of the instruction at an address; empty if that is not known."""
        line = self._debug_info.line(address)
        return super().source_line(address) if line is None else str(line)

    @property
    def debug_complaint(self) -> str:
        """What was the matter with debug information that has been read; empty if nothing."""
        return self._debug_info.complaint

    @property
    def has_own_init(self) -> bool:
        """Whether its own start-up code sees to its constructors: it names their table."""
        return _INIT_START in self.symbols


def load_elf(data: bytes, name: str) -> ElfImage:
    """Load an executable, or link an object, put the runtime beside it and find its call sites.

    :raises ImageError: the file cannot be used; one line says why.
    """
    file, memory = _load(read_elf(data, name))
    symbols, functions = _symbols(file, memory)
    entry = _entry(file, memory, symbols)
    text = ElfText(file, memory, functions, () if entry is None else (entry,))
    sites = find_call_sites(text, _targets(file, memory, symbols))
    _require_near(name, sites)
    if not functions:
        functions = _nameless(text, sites)
        symbols = {function.name: function for function in functions}
    runtime = assemble_runtime(place_runtime(name, memory), sites.before_frame)
    _call_runtime(memory, sites, runtime.address("mcount"))
    parts = tuple((p.address, memory.read(p.address, len(p.data)) or b"") for p in text.parts)
    return ElfImage(
        name,
        "dynamic",
        (*memory.segments(), *runtime.segments),
        symbols,
        runtime.entry,
        runtime.secondary_entry,
        runtime.percpu_size or PCPU.size,
        runtime.percpu,
        elf=file,
        runtime=runtime,
        sites=sites,
        text=parts,
        own_functions=tuple(functions),
        file_entry=entry,
        init_array=_init_array(file, memory, text),
    )


# --- loading ---


def _load(file: ElfFile) -> tuple[ElfFile, ImageMemory]:
    if file.kind == "ET_REL":
        provided = {name: UNDEFINED[before] for name, before in _MCOUNT.items()}
        return link(file, IMAGE_BASE, provided)
    bias = IMAGE_BASE if file.kind == "ET_DYN" else 0
    memory = loaded_segments(file, bias)
    if bias:
        relocate_pie(file, memory, bias)
    return file.at(bias), memory


def _entry(file: ElfFile, memory: ImageMemory, symbols: Mapping[str, Symbol]) -> int | None:
    """Where the file says it starts.

    :raises ImageError: that is nowhere.
    """
    if file.kind == "ET_REL":
        return next((symbols[n].address for n in _OBJECT_ENTRIES if n in symbols), None)
    if file.entry == 0:
        return None
    block = memory.find(file.entry + file.bias)
    if block is None or not block.executable:
        raise ImageError(f"{file.name}: its entry {file.entry:#x} is not in executable memory")
    return file.entry + file.bias


def _init_array(file: ElfFile, memory: ImageMemory, text: ElfText) -> tuple[int, int]:
    """Address and size of the table of constructors.

    :raises ImageError: it is none, or lists what is no code.
    """
    arrays = [s for s in file.sections if s.kind == "SHT_INIT_ARRAY" and s.is_loaded]
    if not arrays:
        return 0, 0
    start = min(section.address for section in arrays) + file.bias
    end = max(section.address + section.size for section in arrays) + file.bias
    table = memory.read(start, end - start)
    whole = end - start == sum(section.size for section in arrays)
    if table is None or len(table) % 8 or not whole:
        raise ImageError(f"{file.name}: .init_array at {start:#x} is not one table in memory")
    for number, address in enumerate(np.frombuffer(table, "<u8").tolist()):
        if text.part_at(address) is None:
            raise ImageError(
                f"{file.name}: entry {number} of .init_array points to {address:#x}, "
                "outside the text"
            )
    return start, end - start


# --- symbols ---


def _symbols(file: ElfFile, memory: ImageMemory) -> tuple[dict[str, Symbol], list[Symbol]]:
    """By name (a global one before a local one), and the functions by address."""
    named: dict[str, Symbol] = {}
    functions: dict[int, Symbol] = {}
    for symbol in sorted(file.symbols, key=_rank):
        if not _is_defined(symbol):
            continue
        absolute = symbol.section == SHN_ABS
        address = (symbol.value + (0 if absolute else file.bias)) % (1 << 64)
        is_function = not absolute and _is_function(symbol, memory, address)
        made = Symbol(symbol.name, address, symbol.size, is_function, "")
        named.setdefault(symbol.name, made)
        if is_function:
            functions.setdefault(address, made)
    ordered = _sized([functions[address] for address in sorted(functions)], memory)
    by_address = {function.address: function for function in ordered}
    for name, made in named.items():
        if made.is_function and not made.size:
            named[name] = replace(made, size=by_address[made.address].size)
    return named, ordered


def _rank(symbol: ElfSymbol) -> tuple[bool, int, bool]:
    order = {STB_LOCAL: 2, STB_WEAK: 1}.get(symbol.binding, 0)
    return symbol.kind not in (STT_FUNC, STT_IFUNC), order, symbol.size == 0


def _is_defined(symbol: ElfSymbol) -> bool:
    known = symbol.kind in (STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_IFUNC)
    placed = symbol.section in (SHN_ABS, SHN_COMMON) or symbol.section < SHN_LORESERVE
    return bool(symbol.name) and known and placed and symbol.section != SHN_UNDEF


def _is_function(symbol: ElfSymbol, memory: ImageMemory, address: int) -> bool:
    """What is declared one, and global labels in text, as assembly has them."""
    block = memory.find(address)
    if block is None or not block.executable:
        return False
    if symbol.kind == STT_NOTYPE:
        return symbol.binding != STB_LOCAL
    return symbol.kind in (STT_FUNC, STT_IFUNC)


def _sized(functions: list[Symbol], memory: ImageMemory) -> list[Symbol]:
    """One that does not say its size goes on to the next."""
    sized = []
    for index, function in enumerate(functions):
        if not function.size:
            block = memory.find(function.address)
            assert block is not None
            following = [f.address for f in functions[index + 1 : index + 2]]
            end = min([*following, block.address + len(block.data)])
            function = replace(function, size=max(0, end - function.address))
        sized.append(function)
    return sized


def _nameless(text: ElfText, sites: CallSites) -> list[Symbol]:
    """A stripped image: its functions are where its call sites are, called by their addresses."""
    starts = []
    for call in sites.calls:
        start = None if sites.before_frame else prologue_start(text, call.site)
        if start is None:
            before = text.read(call.site - len(ENDBR64), len(ENDBR64))
            start = call.site - len(ENDBR64) if before == ENDBR64 else call.site
        starts.append(start)
    functions = []
    for index, start in enumerate(starts):
        part = text.part_at(start)
        end = min([part.end if part else start, *starts[index + 1 : index + 2]])
        functions.append(Symbol(f"{start:#x}", start, end - start, True, ""))
    return functions


# --- call sites ---


def _targets(
    file: ElfFile, memory: ImageMemory, symbols: Mapping[str, Symbol]
) -> dict[int, bool | None]:
    """Where the image's own mcount and ``__fentry__`` are, or what stands for those it lacks.

    None: one function is both.
    """
    found: dict[int, bool | None] = {}
    if file.kind == "ET_REL":
        found = {UNDEFINED[before]: before for before in (False, True)}
    for name, before in _MCOUNT.items():
        if name in symbols:
            address = symbols[name].address
            found[address] = before if found.get(address, before) == before else None
    if not found and memory.find(0) is None:
        found[0] = None  # ld was told to let it be undefined
    return found


def _require_near(name: str, sites: CallSites) -> None:
    if sites.calls and sites.calls[-1].site - sites.calls[0].site > _MAX_SITE_SPAN:
        raise ImageError(
            f"{name}: its call sites lie {sites.calls[-1].site - sites.calls[0].site >> 20} MiB "
            f"apart; {_MAX_SITE_SPAN >> 20} MiB at most"
        )


def _call_runtime(memory: ImageMemory, sites: CallSites, mcount: int) -> None:
    """Make each site a call to the runtime's mcount; what is left of its bytes, nops."""
    for call in sites.calls:
        displacement = (mcount - call.site - CALL_SIZE) % (1 << 32)
        code = b"\xe8" + displacement.to_bytes(4, "little")
        memory.write(call.site, code + b"\x90" * (call.size - CALL_SIZE))
