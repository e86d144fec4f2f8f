"""An image's memory while it is put together: blocks of bytes, and in the end pages of them."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.elf.file import (
    MAX_IMAGE_SIZE,
    PF_W,
    PF_X,
    SHF_EXECINSTR,
    SHF_WRITE,
)
from dynftrace_emu.kernel.image import Segment
from dynftrace_emu.kernel.structs import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dynftrace_emu.kernel.elf.file import ElfFile, ElfSection, ElfSegment

__all__ = ["Block", "ImageMemory", "loaded_segments"]

MAX_BLOCKS = 512
_LOW_END, _HIGH_START, _TOP = 1 << 47, (1 << 64) - (1 << 47), 1 << 64


@dataclass(slots=True)
class Block:
    """``data`` at ``address``, and zeros behind it up to ``size`` bytes in all."""

    name: str
    address: int
    data: bytearray
    size: int
    writable: bool
    executable: bool

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.address + self.size


class ImageMemory:
    """Blocks by address, none of which overlap.

    :param name: of the image, for messages.
    :raises ImageError: they overlap, are too many or too large, or lie where no memory can.
    """

    def __init__(self, name: str, blocks: Iterable[Block]) -> None:
        self._name = name
        self.blocks = sorted((b for b in blocks if b.size), key=lambda block: block.address)
        self._starts = [block.address for block in self.blocks]
        self._check()

    def _check(self) -> None:
        if len(self.blocks) > MAX_BLOCKS:
            raise self._error(f"{len(self.blocks)} segments; {MAX_BLOCKS} are the most")
        total = sum(block.size for block in self.blocks)
        if total > MAX_IMAGE_SIZE:
            raise self._error(f"it takes {total:#x} bytes; {MAX_IMAGE_SIZE >> 20} MiB at most")
        for block in self.blocks:
            is_low, is_high = block.end <= _LOW_END, block.address >= _HIGH_START
            if not is_low and not (is_high and block.end <= _TOP):
                raise self._error(
                    f"{block.name} at {block.address:#x}, {block.size:#x} bytes, is outside the "
                    "48-bit address space"
                )
        for one, other in itertools.pairwise(self.blocks):
            if one.end > other.address:
                raise self._error(f"{one.name} and {other.name} overlap at {other.address:#x}")

    def _error(self, what: str) -> ImageError:
        return ImageError(f"{self._name}: {what}")

    @property
    def start(self) -> int:
        """The lowest address."""
        return self.blocks[0].address

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.blocks[-1].end

    def find(self, address: int) -> Block | None:
        """The block that holds ``address``."""
        index = bisect.bisect(self._starts, address) - 1
        if index >= 0 and address < self.blocks[index].end:
            return self.blocks[index]
        return None

    def read(self, address: int, size: int) -> bytes | None:
        """``size`` bytes within one block, or None."""
        block = self.find(address)
        if block is None or address + size > block.end:
            return None
        offset = address - block.address
        return bytes(block.data[offset : offset + size]).ljust(size, b"\0")

    def write(self, address: int, data: bytes) -> bool:
        """Store ``data`` where the file has bytes; False elsewhere."""
        block = self.find(address)
        if block is None or address - block.address + len(data) > len(block.data):
            return False
        offset = address - block.address
        block.data[offset : offset + len(data)] = data
        return True

    def segments(self) -> tuple[Segment, ...]:
        """The same in whole pages. A page that blocks share has what any of them needs."""
        bounds = sorted({edge for b in self.blocks for edge in (_floor(b.address), _ceil(b.end))})
        found: list[Segment] = []
        first = 0
        for begin, end in itertools.pairwise(bounds):
            while first < len(self.blocks) and self.blocks[first].end <= begin:
                first += 1
            inside = list(self._from(first, end))
            if inside:
                found.append(_pages(inside, begin, end, len(found)))
        return tuple(found)

    def _from(self, first: int, end: int) -> Iterator[Block]:
        for block in self.blocks[first:]:
            if block.address >= end:
                return
            yield block


def _floor(address: int) -> int:
    return address & -PAGE_SIZE


def _ceil(address: int) -> int:
    return -(-address // PAGE_SIZE) * PAGE_SIZE


def _pages(blocks: list[Block], begin: int, end: int, number: int) -> Segment:
    last = max((min(b.address + len(b.data), end) for b in blocks), default=begin)
    data = bytearray(max(0, last - begin))
    for block in blocks:
        skip = max(0, begin - block.address)
        part = block.data[skip : max(skip, end - block.address)]
        at = max(block.address, begin) - begin
        data[at : at + len(part)] = part
    writable = any(block.writable for block in blocks)
    executable = any(block.executable for block in blocks)
    kind = "text" if executable else "data" if writable else "rodata"
    return Segment(
        f"image {kind} {number}",
        begin,
        bytes(data),
        writable,
        executable,
        zeros=end - begin - len(data),
    )


# --- executables ---


def loaded_segments(file: ElfFile, bias: int) -> ImageMemory:
    """The ``PT_LOAD`` segments of an executable, moved by ``bias``.

    A segment that may be written and executed is split by its sections, so that text is text.

    :raises ImageError: as :class:`ImageMemory`.
    """
    blocks: list[Block] = []
    for segment in file.segments:
        whole = _block(file, segment, bias)
        if whole.writable and whole.executable:
            blocks += _split(whole, file, segment, bias)
        else:
            blocks.append(whole)
    return ImageMemory(file.name, blocks)


def _block(file: ElfFile, segment: ElfSegment, bias: int) -> Block:
    data = file.data[segment.offset : segment.offset + segment.file_size]
    return Block(
        f"segment {segment.index}",
        segment.address + bias,
        bytearray(data),
        segment.memory_size,
        bool(segment.flags & PF_W),
        bool(segment.flags & PF_X),
    )


def _split(whole: Block, file: ElfFile, segment: ElfSegment, bias: int) -> list[Block]:
    """By section; what lies between two goes with the one in front. As it was, if they overlap."""
    inside = sorted(
        (s for s in file.sections if s.is_loaded and _contains(segment, s)), key=lambda s: s.address
    )
    if not inside or len(inside) > MAX_BLOCKS:
        return [whole]
    if any(a.address + a.size > b.address for a, b in itertools.pairwise(inside)):
        return [whole]
    starts = [whole.address, *(section.address + bias for section in inside[1:]), whole.end]
    return [
        Block(
            f"section {section.name}",
            begin,
            whole.data[begin - whole.address : end - whole.address],
            end - begin,
            bool(section.flags & SHF_WRITE),
            bool(section.flags & SHF_EXECINSTR),
        )
        for section, begin, end in zip(inside, starts, starts[1:], strict=False)
    ]


def _contains(segment: ElfSegment, section: ElfSection) -> bool:
    return (
        segment.address <= section.address
        and section.address + section.size <= segment.address + segment.memory_size
    )
