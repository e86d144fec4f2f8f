"""An ELF image in the lab: its functions are called in place of the lab's own.

The lab takes the place of the runtime that other commands link in. Every call site becomes a nop,
but those that are explored, whose bytes a setup says. What the image writes is part of each
snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ImageError, OptionError
from dynftrace_emu.kernel.elf.image import ElfImage, load_elf
from dynftrace_emu.kernel.image import KernelImage, Segment, Symbol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Foreign", "function_symbol", "shown", "site_symbol"]

MAX_DATA = 256 << 10
"""Bytes that an image may write: they are copied at every step."""
_NOP5 = bytes.fromhex("0f1f440000")
_PREFIX = "elf:"


def function_symbol(name: str) -> str:
    """What a setup calls a function of the image."""
    return _PREFIX + name


def site_symbol(name: str) -> str:
    """What a setup calls the site of a function of the image."""
    return f"{_PREFIX}site_{name}"


def shown(symbol: str) -> str:
    """What people call it."""
    return symbol.removeprefix(_PREFIX)


@dataclass(frozen=True, slots=True)
class Foreign:
    """The file, as a value that a counterexample can carry."""

    name: str
    data: bytes

    def image(self) -> ElfImage:
        """What is in it, loaded.

        :raises ImageError: it cannot be.
        """
        return _load(self.data, self.name)

    def traced(self) -> list[str]:
        """The functions that have a call site, by address."""
        image = self.image()
        found = map(image.function_at, image.call_sites.tolist())
        return [function.name for function in found if function is not None]

    def site_of(self, function: str) -> int:
        """The call site of a function.

        :raises OptionError: there is no such function, or it has none.
        """
        image = self.image()
        symbol = image.symbols.get(function)
        if symbol is None or not symbol.is_function:
            raise OptionError(f"{self.name} has no function {function}")
        for site in image.call_sites.tolist():
            if symbol.address <= site < symbol.address + symbol.size:
                return int(site)
        raise OptionError(f"{self.name}: {function} has no call site: was it built with -pg?")

    def link(self, assemble: Callable[[int], KernelImage]) -> KernelImage:
        """The image with a lab in it.

        :param assemble: makes the lab at an address.
        :raises ImageError: it writes too much to be copied at every step.
        """
        image = self.image()
        runtime = {segment.address for segment in image.runtime.segments}
        own = [segment for segment in image.segments if segment.address not in runtime]
        written = sum(segment.size for segment in own if segment.writable)
        if written > MAX_DATA:
            raise ImageError(
                f"{self.name} can write {written >> 10} KiB, which would be copied at every step: "
                f"{MAX_DATA >> 10} KiB at most"
            )
        lab = assemble(min(runtime))
        sites = image.call_sites.tolist()
        segments = tuple(_without_calls(segment, sites) for segment in own)
        return replace(
            lab,
            name=self.name,
            segments=(*lab.segments, *segments),
            symbols={**image.symbols, **_named(image), **lab.symbols},
        )


@lru_cache(maxsize=4)
def _load(data: bytes, name: str) -> ElfImage:
    return load_elf(data, name)


def _without_calls(segment: Segment, sites: list[int]) -> Segment:
    data = bytearray(segment.data)
    for site in sites:
        if segment.address <= site < segment.address + len(data):
            place = site - segment.address
            data[place : place + len(_NOP5)] = _NOP5
    return replace(segment, data=bytes(data))


def _named(image: ElfImage) -> dict[str, Symbol]:
    """Its functions and their sites, under names that nothing in the lab has."""
    found = {function_symbol(s.name): replace(s, is_function=False) for s in image.symbols.values()}
    for site in image.call_sites.tolist():
        function = image.function_at(site)
        if function is not None:
            name = site_symbol(function.name)
            found[name] = Symbol(name, site, 5, is_function=False, source="")
    return found
