"""The text of an ELF image with what is known of it: where functions begin, what tables list."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.disassembly import disassemble
from dynftrace_emu.kernel.elf.calls import called_addresses

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from dynftrace_emu.kernel.elf.file import ElfFile
    from dynftrace_emu.kernel.elf.memory import ImageMemory
    from dynftrace_emu.kernel.image import Symbol

__all__ = ["ElfText", "TextPart"]

_FARTHEST = 4096  # bytes of a function that are disassembled to check one place in it


@dataclass(frozen=True, slots=True)
class TextPart:
    """A run of instructions: an executable section, or a segment of a file without sections."""

    address: int
    data: bytes

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.address + len(self.data)


class ElfText:
    """Text as it was loaded, before anything is changed.

    :param functions: by address.
    :param entries: addresses that are entered from outside.
    """

    def __init__(
        self,
        file: ElfFile,
        memory: ImageMemory,
        functions: Iterable[Symbol],
        entries: Iterable[int] = (),
    ) -> None:
        self.name = file.name
        self.entries = frozenset(entries)
        self._file, self._memory = file, memory
        self._functions = list(functions)
        self.starts = [function.address for function in self._functions]
        self.parts = sorted(_parts(file, memory), key=lambda part: part.address)
        self._part_starts = [part.address for part in self.parts]

    @property
    def has_symbols(self) -> bool:
        """Whether any function has a name."""
        return bool(self._functions)

    def read(self, address: int, size: int) -> bytes | None:
        """``size`` bytes, or None where nothing is loaded."""
        return self._memory.read(address, size)

    def part_at(self, address: int) -> TextPart | None:
        """The part that holds ``address``."""
        index = bisect.bisect(self._part_starts, address) - 1
        if index >= 0 and address < self.parts[index].end:
            return self.parts[index]
        return None

    def table(self, name: str) -> NDArray[np.uint64] | None:
        """The addresses that sections of this name list, ascending; zeros are padding.

        :raises ImageError: it is not a table of 8-byte words in memory.
        """
        sections = [s for s in self._file.sections if s.name == name and s.size]
        if not sections:
            return None
        if sum(section.file_size for section in sections) > len(self._file.data):
            raise ImageError(f"{self.name}: the sections {name} overlap")
        words = []
        for section in sections:
            raw = None
            if section.size == section.file_size and section.size % 8 == 0:
                raw = self._memory.read(section.address + self._file.bias, section.size)
            if raw is None:
                raise ImageError(
                    f"{self.name}: {name} is no table of addresses: {section.size} bytes at "
                    f"{section.address:#x}"
                )
            words.append(np.frombuffer(raw, "<u8"))
        entries: NDArray[np.uint64] = np.unique(np.concatenate(words))
        used: NDArray[np.uint64] = entries[entries != 0]
        return used

    def where(self, address: int) -> str:
        """``name+0x1b``, or the bare address."""
        function = self._function_at(address)
        if function is None:
            return f"{address:#x}"
        offset = address - function.address
        return f"{function.name}+{offset:#x}" if offset else function.name

    def _function_at(self, address: int) -> Symbol | None:
        index = bisect.bisect(self.starts, address) - 1
        if index < 0 or address >= self._functions[index].address + self._functions[index].size:
            return None
        return self._functions[index]

    def entry_within(self, address: int, size: int) -> int | None:
        """The first function that begins at ``address`` or up to ``size`` bytes behind.

        Without symbols a function is what something calls.
        """
        starts = self.likely_starts
        index = bisect.bisect_left(starts, address)
        if index < len(starts) and starts[index] <= address + size:
            return starts[index]
        return None

    @cached_property
    def likely_starts(self) -> list[int]:
        """Where functions begin: by the symbols, or by who is called."""
        return self.starts or sorted(called_addresses(self) | self.entries)

    def instruction_around(self, address: int) -> tuple[int, str] | None:
        """The instruction that ``address`` is in the middle of: its address and text.

        None also where no function is known, so that nothing can be said.
        """
        function = self._function_at(address)
        if function is None or not 0 < address - function.address <= _FARTHEST:
            return None
        size = min(function.size, address - function.address + 16)
        code = self.read(function.address, size)
        for at, raw, line in disassemble(code or b"", function.address):
            if at >= address:
                return None
            if address < at + len(raw):
                return at, line
        return None

    def begins_instruction(self, address: int) -> bool:
        """Whether an instruction begins here, as far as is known."""
        return self.instruction_around(address) is None


def _parts(file: ElfFile, memory: ImageMemory) -> list[TextPart]:
    sections = [s for s in file.sections if s.is_text and s.file_size]
    if not sections:
        return [TextPart(b.address, bytes(b.data)) for b in memory.blocks if b.executable]
    sections.sort(key=lambda section: section.address)
    for one, other in itertools.pairwise(sections):
        if one.address + one.size > other.address:
            raise ImageError(f"{file.name}: {one.name} and {other.name} overlap")
    parts = []
    for section in sections:
        data = memory.read(section.address + file.bias, section.size)
        if data is None:
            raise ImageError(
                f"{file.name}: {section.name} at {section.address:#x}, {section.size:#x} bytes, is "
                "text and not loaded"
            )
        parts.append(TextPart(section.address + file.bias, data))
    return parts
