"""A trace as exporters see it, whether it comes out of a run or out of a file."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dynftrace_emu.ftrace.trace_events import Events

__all__ = ["HostEvent", "ImageNote", "SymbolTable", "TraceInfo", "TraceSource"]


@dataclass(frozen=True)
class SymbolTable:
    """Functions by address: ``functions`` are (address, size, name), ascending; size 0: unknown."""

    functions: tuple[tuple[int, int, str], ...] = ()

    @cached_property
    def _starts(self) -> list[int]:
        return [address for address, _, _ in self.functions]

    def find(self, address: int) -> tuple[str, int, int] | None:
        """Name, offset and size of the function that holds ``address``."""
        index = bisect.bisect(self._starts, address) - 1
        if index < 0:
            return None
        start, size, name = self.functions[index]
        if size and address >= start + size:
            return None
        return name, address - start, size

    def name(self, address: int) -> str:
        """The function's name, or the bare address."""
        found = self.find(address)
        return found[0] if found else f"{address:#x}"


@dataclass(frozen=True, slots=True)
class ImageNote:
    """Which image a trace is of: what ``load_image`` takes, and a digest of what that gave."""

    argument: str
    variant: str
    sha256: str


@dataclass(frozen=True)
class TraceInfo:
    """What a trace is of.

    ``clock`` is a name of ``trace_clock``: times are ns with ``local``, and count with ``counter``.
    """

    tracer: str  # "function", "function_graph" or "nop"
    nr_cpus: int
    clock: str = "local"
    symbols: SymbolTable = field(default_factory=SymbolTable)
    comms: Mapping[int, str] = field(default_factory=dict)  # by pid
    image: ImageNote | None = None  # if it is known
    has_addresses: bool = True  # False: the file had names alone, addresses are made up

    def comm(self, pid: int) -> str:
        """A task's name, as trace text shows it."""
        return self.comms.get(pid, "<idle>" if pid == 0 else "<...>")


@dataclass(frozen=True, slots=True)
class HostEvent:
    """Something that the host did to the machine: it has a track of its own, beside the vCPUs.

    ``name`` is one of ``tick`` (the daemon woke up), ``stop`` (the machine stood; ``duration_ns``),
    ``patched`` and ``failed`` (a call site; ``ip``), ``page`` (records were added), ``tracing``.
    """

    ts: int  # by the trace's clock
    name: str
    fields: Mapping[str, int] = field(default_factory=dict)


class TraceSource(Protocol):
    """A trace that is read from front to back, in parts, so that it need not fit in memory."""

    @property
    def info(self) -> TraceInfo:
        """What it is of."""

    @property
    def host_events(self) -> list[HostEvent]:
        """What the host did, in time order."""

    def batches(self) -> Iterator[tuple[Events, Mapping[int, int]]]:
        """The vCPUs' events, merged in time order, some at a time.

        With each part: how many events of a CPU were lost just before its first event in the part.
        Each call begins anew.
        """
