"""One trace array: a tracer, its filter, its options, its buffers (``struct trace_array``).

There is a global one, and one for each instance. What its files say and accept is in ``tracefs/``;
here is what they act on. Everything but :meth:`set_on` and :meth:`swap_snapshot` is called with
``Tracing.lock`` held; those two also come from a vCPU's thread, through a trigger, and take
``_leaf_lock`` alone.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynftrace_emu.ftrace.ops import EMPTY_HASH, OpsHash
from dynftrace_emu.ftrace.ring_buffer import BUFFER_PAGE_SPACE, RingBuffer
from dynftrace_emu.kernel.structs import TraceBit

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynftrace_emu.ftrace.probes import FunctionProbe
    from dynftrace_emu.ftrace.tracing import Tracing

__all__ = ["CLOCKS", "DEFAULT_SIZE_KB", "TraceArray", "pages_of"]

DEFAULT_SIZE_KB = 1408  # TRACE_BUF_SIZE_DEFAULT
CLOCKS = ("local", "counter")
_GLOBAL_BITS = (
    1 << TraceBit.FUNCTION
    | 1 << TraceBit.GRAPH
    | 1 << TraceBit.GRAPH_FUNCTION
    | 1 << TraceBit.GRAPH_NOTRACE
)


def pages_of(size_kb: int) -> int:
    """Pages that hold ``size_kb`` KiB of events."""
    return -(-(size_kb << 10) // BUFFER_PAGE_SPACE)


@dataclass(slots=True)
class PidFilter:
    """``set_ftrace_pid`` and ``set_ftrace_notrace_pid``; None: every task."""

    pids: frozenset[int] | None = None
    notrace: frozenset[int] = field(default_factory=frozenset)

    def ignores(self, pid: int) -> bool:
        """Whether this task is not to be traced."""
        return pid in self.notrace or (self.pids is not None and pid not in self.pids)

    def __bool__(self) -> bool:
        return self.pids is not None or bool(self.notrace)


class TraceArray:
    """A trace array.

    :param bit: its function tracer's (:class:`~.structs.TraceBit`).
    """

    def __init__(self, tracing: Tracing, name: str, bit: int) -> None:
        self.tracing, self.name, self.bit = tracing, name, bit
        self.tracer = "nop"
        self.hash: OpsHash = EMPTY_HASH
        self.pid_filter = PidFilter()
        self.probes: list[FunctionProbe] = []
        self.clock = "local"
        self.cpumask = (1 << tracing.nr_cpus) - 1
        self.sizes_kb = [DEFAULT_SIZE_KB] * tracing.nr_cpus
        self.buffer_percent = 50
        self.options: dict[str, bool] = {}
        self.max_buffer: RingBuffer | None = None
        self.before_discard: Callable[[], None] = lambda: None
        """Called before what is in the buffer is given up, mostly with the machine stopped."""
        # A leaf: guards on, buffer and max_buffer's exchange, and the trace masks.
        self._leaf_lock = threading.Lock()
        self.on = True
        self.buffer = self._make_buffer(self.sizes_kb)
        self._install()

    @property
    def is_global(self) -> bool:
        """Whether it is the one at the top."""
        return not self.name

    @property
    def bits(self) -> int:
        """The bits of ``trace_mask`` that are this array's."""
        return _GLOBAL_BITS if self.is_global else 1 << self.bit

    # --- on and off ---

    def set_on(self, on: bool) -> None:
        """``tracing_on``: no text changes, and no vCPU is stopped."""
        with self._leaf_lock:
            self.on = on
            self._write_masks()

    def set_cpumask(self, mask: int) -> None:
        """``tracing_cpumask``: CPUs outside it write no events."""
        with self._leaf_lock:
            self.cpumask = mask
            self._write_masks()

    def _write_masks(self) -> None:
        kernel = self.tracing.kernel
        for cpu in range(self.tracing.nr_cpus):
            if self.on and self.cpumask >> cpu & 1:
                kernel.enable_bits(self.bits, cpu)
            else:
                kernel.disable_bits(self.bits, cpu)
        self.tracing.note_on(1 << self.bit, self.on)

    # --- buffers ---

    def _make_buffer(self, sizes_kb: list[int]) -> RingBuffer:
        tracing = self.tracing
        return RingBuffer(tracing.memory, tracing.pool, [pages_of(size) for size in sizes_kb])

    def _install(self) -> None:
        """Lead every CPU to the buffer, by one store each."""
        with self._leaf_lock:
            self._configure(self.buffer)
            self._lead_to(self.buffer)
            self._write_masks()

    def _lead_to(self, buffer: RingBuffer) -> None:
        bits = (TraceBit.FUNCTION, TraceBit.GRAPH) if self.is_global else (self.bit,)
        for cpu, part in enumerate(buffer.cpus):
            pointers = self.tracing.kernel.pcpu(cpu)["trace_buffers"][0]
            for bit in bits:
                pointers[bit] = part.address

    def _configure(self, buffer: RingBuffer) -> None:
        counter = self.tracing.counter_address if self.clock == "counter" else 0
        buffer.set("counter", counter)
        buffer.set("overwrite", int(self.option("overwrite")))
        buffer.set("stack", int(self.option("func_stack_trace")))

    def reconfigure(self) -> None:
        """Tell the buffers what the options say now."""
        self.tracing.write_plain()
        self._configure(self.buffer)
        if self.max_buffer is not None:
            self._configure(self.max_buffer)

    def resize(self, sizes_kb: list[int]) -> None:
        """Give each CPU a buffer of so many KiB, empty where that changes anything.

        What was in the old one is counted as overrun, as Linux counts what shrinking takes away.

        :raises ImageError: the guest's RAM is used up; nothing was changed.
        :raises StopMachineTimeout: likewise.
        """
        if sizes_kb == self.sizes_kb:
            return
        made = self._make_buffer(sizes_kb)
        try:
            snapshot = self._make_buffer(sizes_kb) if self.max_buffer is not None else None
        except BaseException:
            made.free()
            raise

        def exchange() -> tuple[RingBuffer, RingBuffer | None]:
            self.before_discard()
            old = self.buffer, self.max_buffer
            made.take_over(self.buffer)
            self.buffer, self.max_buffer, self.sizes_kb = made, snapshot, list(sizes_kb)
            self._install()
            self.reconfigure()
            return old

        for buffer in self._stop_for(exchange, made, snapshot):
            if buffer is not None:
                buffer.free()

    def _stop_for(
        self,
        exchange: Callable[[], tuple[RingBuffer | None, ...]],
        *made: RingBuffer | None,
    ) -> tuple[RingBuffer | None, ...]:
        try:
            return self.tracing.stop(exchange)
        except BaseException:
            for buffer in made:
                if buffer is not None:
                    buffer.free()
            raise

    def set_clock(self, clock: str) -> None:
        """``trace_clock``; the buffers are emptied, since their times cannot be compared."""

        def change() -> None:
            self.discard()
            self.clock = clock
            if self.max_buffer is not None:
                self.max_buffer.reset()
            for buffer in (self.buffer, self.max_buffer):
                if buffer is not None:
                    self._configure(buffer)
                    self._restart_page(buffer)
            self.tracing.write_plain()

        self.tracing.stop(change)

    @staticmethod
    def _restart_page(buffer: RingBuffer) -> None:
        """Times begin anew: no page may hold two clocks."""
        for part in buffer.cpus:
            part.new_page()

    def discard(self) -> None:
        """Forget what is in the buffer."""
        self.before_discard()
        self.buffer.reset()

    # --- the snapshot ---

    def alloc_snapshot(self) -> None:
        """Make the spare buffer, if there is none.

        :raises ImageError: the guest's RAM is used up.
        """
        if self.max_buffer is None:
            made = self._make_buffer(self.sizes_kb)
            self._configure(made)
            self.max_buffer = made

    def free_snapshot(self) -> None:
        """Give the spare buffer back. A CPU may still be writing to it: so in a stop."""

        def take() -> RingBuffer | None:
            with self._leaf_lock:
                spare, self.max_buffer = self.max_buffer, None
                return spare

        if self.max_buffer is not None and (spare := self.tracing.stop(take)) is not None:
            spare.free()

    def swap_snapshot(self) -> None:
        """Take a snapshot: the buffers change places, and what is written from now on is new.

        A CPU that is in the middle of an event finishes it where it began.
        """
        with self._leaf_lock:
            if self.max_buffer is None:
                return
            self.max_buffer.reset()
            self.buffer, self.max_buffer = self.max_buffer, self.buffer
            self._lead_to(self.buffer)

    # --- options ---

    def option(self, name: str) -> bool:
        """Whether an option is on."""
        return self.tracing.option(self, name)

    def free(self) -> None:
        """Give all memory back, when nobody writes any more."""
        self.buffer.free()
        if self.max_buffer is not None:
            self.max_buffer.free()
