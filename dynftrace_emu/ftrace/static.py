"""Tracing of a kernel whose calls are never patched (DYNAMIC_FTRACE off): the pointer alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.errors import FtraceStateError
from dynftrace_emu.ftrace.events import Observer, TracingSwitched

if TYPE_CHECKING:
    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["StaticFtrace"]


class StaticFtrace:
    """Switches ``ftrace_trace_function`` between the stub and the tracer; no text changes."""

    def __init__(self, kernel: GuestKernel) -> None:
        self._kernel = kernel
        self.observers: list[Observer] = []
        self._enable_count = 0  # changed by one thread at a time: whoever drives the run

    def startup(self) -> None:
        """Enable tracing; enables nest."""
        self._enable_count += 1
        if self._enable_count == 1:
            self._set("ftrace_count_call", enabled=True)

    def shutdown(self) -> None:
        """Disable it, when as often called.

        :raises FtraceStateError: it was not enabled.
        """
        if self._enable_count == 0:
            raise FtraceStateError("tracing is not enabled")
        self._enable_count -= 1
        if self._enable_count == 0:
            self._set("ftrace_stub", enabled=False)

    def _set(self, function: str, *, enabled: bool) -> None:
        address = self._kernel.image.address(function)
        self._kernel.write("ftrace_initial_function", address)
        self._kernel.write("ftrace_trace_function", address)
        event = TracingSwitched(self._kernel.machine.now(), enabled, 0)
        for observer in self.observers:
            observer(event)
