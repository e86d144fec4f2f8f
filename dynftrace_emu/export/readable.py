"""A trace with its functions named as people read them, and with the lines they are from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynftrace_emu.export.trace_source import SymbolTable
from dynftrace_emu.kernel.debug.demangle import demangle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dynftrace_emu.export.text import Places
    from dynftrace_emu.export.trace_source import HostEvent, TraceInfo, TraceSource
    from dynftrace_emu.ftrace.trace_events import Events

__all__ = ["ReadableTrace"]


@dataclass(frozen=True)
class _RenamedSymbols(SymbolTable):
    """What is looked up gets another name; ``functions`` keep theirs."""

    rename: Callable[[str, int], str] = lambda name, _address: name

    def find(self, address: int) -> tuple[str, int, int] | None:
        found = super().find(address)
        if found is None:
            return None
        name, offset, size = found
        return self.rename(name, address - offset), offset, size


class ReadableTrace:
    """The same trace (:class:`~.trace_source.TraceSource`) under other names.

    :param places: if given, each name is followed by where the function begins.
    :param demangled: names of C++ and Rust as people wrote them.
    """

    def __init__(
        self, source: TraceSource, places: Places | None = None, *, demangled: bool = True
    ) -> None:
        self._source, self._places, self._demangled = source, places, demangled
        symbols = _RenamedSymbols(source.info.symbols.functions, self._name)
        self.info: TraceInfo = replace(source.info, symbols=symbols)

    def _name(self, name: str, address: int) -> str:
        name = demangle(name) if self._demangled else name
        place = self._places.where(address) if self._places else ""
        return f"{name} ({place})" if place else name

    @property
    def host_events(self) -> list[HostEvent]:
        """What the host did, in time order."""
        return self._source.host_events

    def batches(self) -> Iterator[tuple[Events, Mapping[int, int]]]:
        """The vCPUs' events, as they are."""
        return self._source.batches()
