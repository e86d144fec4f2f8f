"""Reading shadow stacks: where a function returns to whose return a tracer has hooked.

(``ftrace_graph_ret_addr``, kernel/trace/fgraph.c.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.structs import (
    RET_ENTRY,
    RET_NODE,
    RET_NODES,
    RET_STACK,
    RET_STACK_AREA,
    RET_STACK_BYTES,
    RET_STACK_ENTRIES,
)

if TYPE_CHECKING:
    from dynftrace_emu.machine.memory import GuestMemory

__all__ = ["saved_return"]


def saved_return(memory: GuestMemory, nodes: int, frame: int) -> int | None:
    """What the word at ``frame`` was before it was hooked; None if nobody has hooked it.

    :param nodes: where the nodes of an image with stacks of its own are; 0: it has none.
    """
    if nodes:
        return _in_nodes(memory, nodes, frame)
    region = memory.find(RET_STACK_AREA)
    if region is None:
        return None
    for address in range(region.address, region.end, RET_STACK_BYTES):
        depth = min(int(memory.view(address, RET_STACK.dtype)[0]["depth"]), RET_STACK_ENTRIES)
        entries = memory.view(address + RET_STACK.size, RET_ENTRY.dtype, RET_STACK_ENTRIES)
        found = np.flatnonzero(entries["frame"][:depth] == frame)
        if len(found):
            return int(entries[found[0]]["ret"])  # of tail calls the first: it returns for all
    return None


def _in_nodes(memory: GuestMemory, nodes: int, frame: int) -> int | None:
    """Through what a node hides: of tail calls, that of the first returns for all."""
    table = memory.view(nodes, RET_NODE.dtype, RET_NODES)
    found = np.flatnonzero(table["frame"] == frame)
    if not len(found):
        return None
    node = table[found[0]]
    for _ in range(RET_NODES):
        if not node["hides"]:
            break
        try:
            node = memory.view(int(node["hides"]), RET_NODE.dtype)[0]
        except ImageError:
            break  # overwritten
    return int(node["entry"]["ret"])
