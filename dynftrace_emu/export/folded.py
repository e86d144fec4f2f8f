"""Collapsed stacks, as flame graph tools read them: ``main;a;b 4``, the root first.

The number is the time in ns that is spent in the last function itself, or of a function trace how
often it was called. The stacks of all tasks are one tree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.export.call_tree import CallTree
from dynftrace_emu.export.destination import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.export.destination import Destination
    from dynftrace_emu.export.trace_source import TraceSource

__all__ = ["folded", "write_folded"]

_SEPARATORS = str.maketrans({";": ":", "\n": " ", "\r": " "})


def write_folded(source: TraceSource, destination: Destination) -> None:
    """Write the calls of a trace."""
    tree = CallTree(source)
    with opened(destination) as out:
        out.writelines(f"{line}\n".encode() for line in folded(tree))


def folded(tree: CallTree) -> Iterator[str]:
    """The lines. A path on which no time is spent has one if no other line shows it."""
    for path, node in tree.walk():
        weight = tree.weight(node)
        if weight or not node.children:
            yield f"{';'.join(name.translate(_SEPARATORS) for name in path)} {weight}"
