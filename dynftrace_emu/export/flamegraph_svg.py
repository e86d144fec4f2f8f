"""A flame graph as one SVG file: no script, no font, no other file.

Every box is a function on one path of calls, as wide as the time spent in it and what it called (of
a function trace: as the number of calls); its caller is below it. Resting the pointer on a box
shows its numbers. Boxes too narrow to be seen are left out.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from dynftrace_emu.export.call_tree import CallNode, CallTree
from dynftrace_emu.export.destination import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.export.destination import Destination
    from dynftrace_emu.export.trace_source import TraceSource

__all__ = ["flamegraph", "write_flamegraph_svg"]

_WIDTH, _MARGIN, _TOP, _BOTTOM, _ROW = 1200, 10, 48, 28, 18
_LETTER, _PADDING = 7.0, 4  # of 11 px monospace text, a little on the safe side
_NARROWEST = 0.2
_SHORTEST_TEXT = 3  # letters

_STYLE = (
    "text{font:11px monospace;fill:#1b1b1b}"
    ".t{font:bold 16px sans-serif}.s{font:12px sans-serif;fill:#555}"
    "rect{stroke:#fff;stroke-width:.5}g:hover>rect{stroke:#000;stroke-width:1}"
    "g>text{pointer-events:none}"
)


@dataclass(frozen=True, slots=True)
class _Box:
    node: CallNode
    level: int
    left: float
    width: float
    weight: int


def write_flamegraph_svg(source: TraceSource, destination: Destination, title: str = "") -> None:
    """Draw the calls of a trace."""
    tree = CallTree(source)
    with opened(destination) as out:
        out.writelines(f"{line}\n".encode() for line in flamegraph(tree, title))


def flamegraph(tree: CallTree, title: str = "") -> Iterator[str]:
    """The lines of the SVG."""
    weights = _weights(tree)
    whole = weights[id(tree.root)]
    boxes = list(_layout(tree, weights))
    levels = 1 + max(box.level for box in boxes)
    height = _TOP + levels * _ROW + _BOTTOM
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}"><style>{_STYLE}</style>'
    )
    yield f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
    yield f'<text class="t" x="{_MARGIN}" y="24">{_text(title or "Flame graph")}</text>'
    unit = "time in functions and what they call" if tree.timed else "calls, below their callers"
    yield f'<text class="s" x="{_MARGIN}" y="40">{unit}; {_amount(tree, whole)} in all</text>'
    for box in boxes:
        yield _draw(tree, box, height - _BOTTOM - (box.level + 1) * _ROW, whole)
    yield "</svg>"


def _weights(tree: CallTree) -> dict[int, int]:
    """Of each node, by id: what it and those above it contribute. Never less than these have."""
    nodes = [tree.root, *(node for _, node in tree.walk())]
    weights: dict[int, int] = {}
    for node in reversed(nodes):
        own = 0 if node is tree.root else tree.weight(node)
        weights[id(node)] = own + sum(weights[id(child)] for child in node.children.values())
    return weights


def _layout(tree: CallTree, weights: dict[int, int]) -> Iterator[_Box]:
    whole = weights[id(tree.root)]
    scale = (_WIDTH - 2 * _MARGIN) / max(whole, 1)
    waiting = [_Box(tree.root, 0, _MARGIN, _WIDTH - 2 * _MARGIN, whole)]
    while waiting:
        box = waiting.pop()
        yield box
        left = box.left
        for child in sorted(box.node.children.values(), key=lambda node: node.name):
            weight = weights[id(child)]
            width = weight * scale
            if width >= _NARROWEST:
                waiting.append(_Box(child, box.level + 1, left, width, weight))
            left += width


def _draw(tree: CallTree, box: _Box, y: int, whole: int) -> str:
    name = box.node.name if box.level else "all"
    title = f"{name}: {_amount(tree, box.weight)}, {100 * box.weight / max(whole, 1):.2f}%"
    if tree.timed and box.level:
        node = box.node
        title += f"; {node.calls} calls, {_amount(tree, node.self_ns)} in itself"
    drawn = (
        f'<g><title>{_text(title)}</title><rect x="{box.left:.2f}" y="{y}" '
        f'width="{box.width:.2f}" height="{_ROW}" fill="{_colour(name)}"/>'
    )
    if shown := _shortened(name, box.width):
        drawn += f'<text x="{box.left + _PADDING:.2f}" y="{y + 13}">{_text(shown)}</text>'
    return f"{drawn}</g>"


def _shortened(name: str, width: float) -> str:
    """As much of a name as fits."""
    room = int((width - 2 * _PADDING) / _LETTER)
    if len(name) <= room:
        return name
    return f"{name[: room - 1]}…" if room >= _SHORTEST_TEXT else ""


def _text(text: str) -> str:
    """Text of XML, which allows few control characters."""
    return escape("".join(letter if letter.isprintable() else " " for letter in text))


def _amount(tree: CallTree, weight: int) -> str:
    if not tree.timed:
        return f"{weight:,} calls"
    for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if weight >= size:
            return f"{weight / size:.3f} {unit}"
    return f"{weight} ns"


def _colour(name: str) -> str:
    """A warm colour, light enough for dark text, that is always the same for a name."""
    number = zlib.crc32(name.encode())
    return f"hsl({10 + number % 42},{70 + number // 64 % 25}%,{66 + number // 2048 % 12}%)"
