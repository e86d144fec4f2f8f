"""A static walk of the call graph: whether an NMI can reach a call to mcount (S12)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.disassembly import disassemble

if TYPE_CHECKING:
    from dynftrace_emu.kernel.image import KernelImage, Symbol

__all__ = ["DEFAULT_NMI_ENTRY", "Edge", "NmiCheck", "nmi_check"]

DEFAULT_NMI_ENTRY = "nmi"


@dataclass(frozen=True, slots=True)
class Edge:
    """A call or jump at ``site`` from one function to ``target``; None if it is indirect."""

    site: int
    target: int | None


@dataclass(frozen=True, slots=True)
class NmiCheck:
    """What the walk found.

    ``path``: functions from the NMI entry to the one that calls mcount, empty if none does, and
    ``site`` that call. ``indirect``: calls through pointers, which cannot be followed.
    """

    entry: str
    reached: tuple[str, ...]
    path: tuple[str, ...]
    site: int | None
    indirect: tuple[int, ...]

    @property
    def clean(self) -> bool:
        """Whether no call to mcount is reached."""
        return self.site is None


def nmi_check(image: KernelImage, entry: str = DEFAULT_NMI_ENTRY) -> NmiCheck:
    """Walk the call graph from the NMI entry, breadth first, so the path is a shortest one.

    :raises ImageError: the image has no function ``entry``.
    """
    start = image.symbols.get(entry)
    if start is None or not start.is_function:
        raise ImageError(f"{image.name} has no function {entry} to start the NMI check from")
    came_from: dict[str, str | None] = {start.name: None}
    indirect: list[int] = []
    queue = deque([start])
    while queue:
        function = queue.popleft()
        for edge in edges(image, function):
            if edge.target is None:
                indirect.append(edge.site)
            elif edge.target == image.mcount:
                path = _path(came_from, function.name)
                return NmiCheck(entry, tuple(came_from), path, edge.site, tuple(indirect))
            else:
                callee = image.function_at(edge.target)
                if callee is not None and callee.name not in came_from:
                    came_from[callee.name] = function.name
                    queue.append(callee)
    return NmiCheck(entry, tuple(came_from), (), None, tuple(indirect))


def _path(came_from: dict[str, str | None], last: str) -> tuple[str, ...]:
    path: list[str] = []
    name: str | None = last
    while name is not None:
        path.append(name)
        name = came_from[name]
    return tuple(reversed(path))


def edges(image: KernelImage, function: Symbol) -> list[Edge]:
    """Calls and jumps that leave ``function``, and indirect ones."""
    found: list[Edge] = []
    for site, _, text in disassemble(_code(image, function), function.address):
        mnemonic, _, operand = text.partition(" ")
        if mnemonic != "call" and not mnemonic.startswith("j"):
            continue
        try:
            target = int(operand, 16)
        except ValueError:
            found.append(Edge(site, None))
            continue
        if not function.address <= target < function.address + function.size:
            found.append(Edge(site, target))
    return found


def _code(image: KernelImage, function: Symbol) -> bytes:
    for segment in image.segments:
        offset = function.address - segment.address
        if 0 <= offset < len(segment.data):
            return segment.data[offset : offset + function.size]
    return b""
