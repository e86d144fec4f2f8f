"""The names that trace text needs: of functions and of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.kernel.debug.demangle import demangle

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.trace_array import TraceArray

__all__ = ["SymbolNames"]


class SymbolNames:
    """Names as the kernel of a trace array has them now (:class:`~.export.text.Names`)."""

    def __init__(self, array: TraceArray) -> None:
        self._image = array.tracing.kernel.image
        self._record_cmd = array.option("record-cmd")
        self._tracing = array.tracing
        self._comms: dict[int, str] = {}

    def function(self, address: int) -> tuple[str, int, int] | None:
        """Name, offset and size of the function an address is in."""
        function = self._image.function_at(address)
        if function is None:
            return None
        return demangle(function.name), address - function.address, function.size

    def comm(self, pid: int) -> str:
        """A task's name."""
        if pid == 0:
            return "<idle>"
        if not self._record_cmd:
            return "<...>"
        if pid not in self._comms:
            self._comms = self._tracing.comms()
        return self._comms.get(pid, "<...>")

    def tgid(self, pid: int) -> int | None:
        """A task's thread group: every guest task is one of its own."""
        return pid
