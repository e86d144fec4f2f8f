"""The function graph tracer's settings, and the shadow stacks it hooks returns with.

(kernel/trace/trace_functions_graph.c, fgraph.c; firmware/trace/functions_graph.S.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.kernel.structs import (
    PAGE_SIZE,
    RET_NODE,
    RET_NODES,
    RET_STACK,
    RET_STACK_AREA,
    RET_STACK_BYTES,
    STACK_SLOT,
    STACKS_PER_CPU,
    RetFlag,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynftrace_emu.ftrace.page_pool import PagePool
    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["GraphSettings", "RetStacks"]

_UNLIMITED = (1 << 64) - 1


class GraphSettings:
    """What ``set_graph_function`` and its like say; :meth:`write` tells guest code."""

    def __init__(self, kernel: GuestKernel) -> None:
        self._kernel = kernel
        self.functions: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self.notrace: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self.max_depth = 0  # 0: no limit
        self.skip_irqs = False
        self.thresh_ns = 0

    @property
    def chooses(self) -> bool:
        """Whether there is more to ask of a call than whether it is in a set_graph_notrace one."""
        return bool(len(self.functions) or self.max_depth or self.skip_irqs or self.thresh_ns)

    def write(self) -> None:
        """Store it all; in a stop, or where nobody traces."""
        self._kernel.write("ftrace_graph_filter", int(len(self.functions) > 0))
        self._kernel.write("ftrace_graph_max_depth", self.max_depth or _UNLIMITED)
        self._kernel.write("ftrace_graph_skip_irqs", int(self.skip_irqs))
        self._kernel.write("ftrace_graph_thresh", self.thresh_ns)

    def begin_session(self) -> None:
        """What was hooked in an earlier run of the tracer tells nothing from now on."""
        session = self._kernel.read("ftrace_graph_session")
        self._kernel.write("ftrace_graph_session", session + 1)


class RetStacks:
    """A shadow stack for every stack of every CPU, which the loader has made.

    For an ELF image, whose stacks are unknown, one for every call that is hooked; once made they
    stay (returns may be hooked).
    """

    def __init__(self, kernel: GuestKernel, pool: PagePool) -> None:
        self._kernel, self._pool = kernel, pool
        self._nodes: int | None = None
        self._is_known = kernel.image.elf is None and kernel.image.mcount is not None
        if self._is_known:
            stacks = STACKS_PER_CPU * len(kernel.machine.vcpus)
            kernel.write("ftrace_ret_stack_area_size", stacks * STACK_SLOT)

    def open_calls(self, cpu: int) -> int:
        """On a CPU: calls of the present run of the tracer that are hooked and shown."""
        memory = self._kernel.machine.memory
        if self._is_known:
            session = self._kernel.read("ftrace_graph_session")
            size = STACKS_PER_CPU * RET_STACK_BYTES
            stacks = memory.view(RET_STACK_AREA + cpu * size, "u1", size)
            heads = stacks.reshape(STACKS_PER_CPU, RET_STACK_BYTES)[:, : RET_STACK.size]
            heads = np.ascontiguousarray(heads).view(RET_STACK.dtype)[:, 0]
            return int(heads["graph_depth"][heads["session"] == session].sum())
        if self._nodes is None:
            return 0
        session = self._kernel.read("ftrace_graph_session")
        nodes = memory.view(self._nodes, RET_NODE.dtype, RET_NODES)
        mine = (nodes["frame"] != 0) & (nodes["cpu"] == cpu)
        shown = nodes["entry"]["flags"] & np.uint32(RetFlag.DEPTH)
        return int((mine & (nodes["entry"]["session"] == session) & (shown != 0)).sum())

    def alloc(self) -> None:
        """See to it that there are some.

        :raises ImageError: the guest's RAM is used up.
        """
        if not self._is_known and self._nodes is None:
            self._nodes = self._pool.alloc(-(-RET_NODES * RET_NODE.size // PAGE_SIZE))
            self._kernel.write("ftrace_ret_stacks", self._nodes)
