"""A static walk of the call graph: whether an NMI can reach a call to mcount (S12)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.disassembly import disassemble
from dynftrace_emu.kernel.image import Symbol

if TYPE_CHECKING:
    from dynftrace_emu.kernel.image import KernelImage, Segment

__all__ = ["DEFAULT_NMI_ENTRY", "Edge", "NmiCheck", "nmi_check"]

DEFAULT_NMI_ENTRY = "nmi"
_LAST = ("ret", "jmp", "iret", "ud2", "int3")
"""Behind these nothing runs on."""


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

    :raises ImageError: the image has no code at ``entry``.
    """
    start = _entry(image, entry)
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
                callee = _code_at(image, edge.target)
                if callee.name not in came_from:
                    came_from[callee.name] = function.name
                    queue.append(callee)
    return NmiCheck(entry, tuple(came_from), (), None, tuple(indirect))


def _entry(image: KernelImage, name: str) -> Symbol:
    """A function, or a label in text that nothing declares one."""
    found = image.symbols.get(name)
    if found is not None and found.is_function:
        return found
    if found is None or _segment(image, found.address) is None:
        raise ImageError(
            f"{image.name} has no function {name} to start the NMI check from; --nmi-entry SYMBOL "
            "names another"
        )
    return Symbol(name, found.address, _end(image, found.address) - found.address, False, "")


def _path(came_from: dict[str, str | None], last: str) -> tuple[str, ...]:
    path: list[str] = []
    name: str | None = last
    while name is not None:
        path.append(name)
        name = came_from[name]
    return tuple(reversed(path))


def edges(image: KernelImage, function: Symbol) -> list[Edge]:
    """Calls and jumps that leave ``function``, its running on behind its end, and indirect ones."""
    found: list[Edge] = []
    end = function.address + function.size
    last = ""
    for site, _, text in disassemble(_code(image, function), function.address):
        last, _, operand = text.partition(" ")
        if last != "call" and not last.startswith(("j", "loop")):
            continue
        try:
            target = int(operand, 16)
        except ValueError:
            found.append(Edge(site, None))
            continue
        if not function.address <= target < end:
            found.append(Edge(site, target))
    if last and not last.startswith(_LAST) and _segment(image, end) is not None:
        found.append(Edge(end, end))
    return found


def _code_at(image: KernelImage, address: int) -> Symbol:
    """The function at ``address``, or code that no symbol declares one, up to the next function."""
    function = image.function_at(address)
    if function is not None:
        return function
    names = [name for name, symbol in image.symbols.items() if symbol.address == address]
    size = _end(image, address) - address
    return Symbol(names[0] if names else f"{address:#x}", address, size, False, "")


def _end(image: KernelImage, address: int) -> int:
    """Where the next function begins, or the text ends."""
    segment = _segment(image, address)
    limit = segment.address + len(segment.data) if segment else address
    return min([limit, *(f.address for f in image.functions if f.address > address)])


def _segment(image: KernelImage, address: int) -> Segment | None:
    for segment in image.segments:
        if segment.executable and 0 <= address - segment.address < len(segment.data):
            return segment
    return None


def _code(image: KernelImage, function: Symbol) -> bytes:
    segment = _segment(image, function.address)
    if segment is None:
        return b""
    offset = function.address - segment.address
    return segment.data[offset : offset + function.size]
