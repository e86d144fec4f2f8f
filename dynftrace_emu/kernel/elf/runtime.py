"""The runtime that is linked in beside an ELF image: ``firmware/runtime`` and the tracers."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.image import KernelImage, firmware_path

if TYPE_CHECKING:
    from dynftrace_emu.kernel.elf.memory import ImageMemory

__all__ = ["UNDEFINED", "assemble_runtime", "place_runtime"]

RUNTIME_SIZE = 1 << 20
"""Bytes that are kept free for it."""

# Its own addresses are 32 bits, sign-extended, so it is in the highest 2 GiB. rel32 reaches it from
# there, and from the lowest 2 GiB: addresses wrap around.
_PLACES = (0xFFFF_FFFF_FF00_0000, 0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_E000_0000)
_REACH = (1 << 31) - RUNTIME_SIZE
UNDEFINED = {False: _PLACES[0], True: _PLACES[0] + 8}
"""Where an object's undefined mcount (False) and ``__fentry__`` (True) are linked to (head.S)."""


def place_runtime(name: str, memory: ImageMemory) -> int:
    """An address for the runtime, near enough to all text of an image and free.

    :raises ImageError: there is none.
    """
    text = [block for block in memory.blocks if block.executable]
    if not text:
        raise ImageError(f"{name}: nothing in it can be executed")
    start, end = min(b.address for b in text), max(b.end for b in text)
    for place in _PLACES:
        near = all(abs(_signed(place) - _signed(edge)) < _REACH for edge in (start, end))
        if near and not _is_taken(memory, place):
            return place
    raise ImageError(
        f"{name}: its text, {start:#x} to {end:#x}, is not within the lowest or the highest 2 GiB, "
        "where our mcount can be called from"
    )


def _signed(address: int) -> int:
    return address - (1 << 64) if address >> 63 else address


def _is_taken(memory: ImageMemory, place: int) -> bool:
    return any(b.address < place + RUNTIME_SIZE and place < b.end for b in memory.blocks)


@cache
def assemble_runtime(address: int, before_frame: bool) -> KernelImage:
    """Assemble it.

    :param before_frame: the image's calls come before a function has its frame (``-mfentry``).
    """
    root = firmware_path()
    names = ("runtime/head.S", "arch/mcount.S", "runtime/ret_nodes.S")
    fentry = ("CONFIG_FENTRY",) if before_frame else ()
    defines = ("CONFIG_DYNAMIC_FTRACE", "CONFIG_ANY_STACK", *fentry)
    sources = [(name, (root / name).read_text()) for name in names]
    return KernelImage.from_assembly(
        sources, name="the runtime", defines=defines, link_address=address
    )
