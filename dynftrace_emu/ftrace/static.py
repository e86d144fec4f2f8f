"""Tracing of a kernel whose calls are never patched (DYNAMIC_FTRACE off): the pointer alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dynftrace_emu.errors import FtraceStateError
from dynftrace_emu.ftrace.events import Observers, TracingSwitched
from dynftrace_emu.ftrace.ops import Listeners
from dynftrace_emu.ftrace.site_map import SiteMap
from dynftrace_emu.kernel.structs import TRACER_OFFSET, TraceBit
from dynftrace_emu.machine.machine import TextSpan

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["StaticFtrace"]

T = TypeVar("T")


class StaticFtrace:
    """Leads ``ftrace_trace_function`` to the stub or to the tracers; no text changes.

    Sites stay unknown, so whoever listens gets them all.
    """

    def __init__(self, kernel: GuestKernel) -> None:
        self._kernel = kernel
        self.observers = Observers()
        self.map = SiteMap(kernel)
        self._enable_count = 0  # changed by one thread at a time: whoever drives the run
        self._listeners = Listeners()
        self._was_tracing = False
        nothing = np.zeros(0, dtype=np.uint64)
        self._nowhere_in_a_tracer = TextSpan(nothing, 0, TRACER_OFFSET, kernel.restarts)
        kernel.enable_bits(1 << TraceBit.COUNT)

    @property
    def tracing(self) -> bool:
        """Whether somebody listens."""
        return bool(self._enable_count or self._listeners)

    def startup(self) -> None:
        """Have every call counted, in ``pcpu.traced_calls``; enables nest."""
        self._enable_count += 1
        self._update()

    def shutdown(self) -> None:
        """Stop counting, when as often called.

        :raises FtraceStateError: it was not enabled.
        """
        if self._enable_count == 0:
            raise FtraceStateError("tracing is not enabled")
        self._enable_count -= 1
        self._update()

    def listen(self, listeners: Listeners, commit: Callable[[], None] = lambda: None) -> None:
        """Change who listens; without dynamic ftrace there are no filters.

        :param commit: called with the machine stopped, for what changes with it.
        """
        before, self._listeners = self._listeners, listeners
        try:
            self.stop(lambda: self._update(commit))
        except BaseException:
            self._listeners = before
            raise

    def stop(self, fn: Callable[[], T]) -> T:
        """Run ``fn`` while the machine is stopped and no vCPU stands in a tracer."""
        return self._kernel.machine.stop_machine(fn, text=lambda: self._nowhere_in_a_tracer)

    def _update(self, commit: Callable[[], None] = lambda: None) -> None:
        count = 1 << TraceBit.COUNT if self._enable_count else 0
        commit()
        self._kernel.write("ftrace_unknown_ops", self._listeners.unknown | count)
        function = "ftrace_static_call" if self.tracing else "ftrace_stub"
        address = self._kernel.image.address(function)
        self._kernel.write("ftrace_initial_function", address)
        self._kernel.write("ftrace_trace_function", address)
        if self._was_tracing != self.tracing:
            self._was_tracing = self.tracing
            event = TracingSwitched(self._kernel.machine.now(), self.tracing, 0)
            self.observers.notify(event)
