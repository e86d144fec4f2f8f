"""Words of a trace line: symbols, tasks, flags, times (kernel/trace/trace_output.c, Linux 6.1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol, cast

from dynftrace_emu.ftrace.trace_events import TraceFlag
from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DEFAULT_OPTIONS",
    "LatencyFlags",
    "Names",
    "Places",
    "PlainSymbols",
    "Symbols",
    "TextStyle",
    "find_mark",
    "latency_flags",
    "message",
    "ns2usecs",
]

DEFAULT_OPTIONS = frozenset(
    {
        # TRACE_DEFAULT_FLAGS (kernel/trace/trace.c)
        "annotate",
        "context-info",
        "irq-info",
        "markers",
        "overwrite",
        "print-parent",
        "record-cmd",
        # tracer_flags of kernel/trace/trace_functions_graph.c
        "funcgraph-cpu",
        "funcgraph-duration",
        "funcgraph-irqs",
        "funcgraph-overhead",
        "graph-time",
        "sleep-time",
    }
)
"""Options that are on unless somebody turns them off."""

ULONG_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class TextStyle:
    """What the options of a trace array say about its text.

    With ``counter`` the clock counts (as ``trace_clock`` = ``counter`` does): times are integers.
    """

    tracer: str = "nop"
    options: frozenset[str] = DEFAULT_OPTIONS
    counter: bool = False

    def on(self, option: str) -> bool:
        """Whether ``option`` is turned on."""
        return option in self.options


class Names(Protocol):
    """What stands for numbers in the text."""

    def function(self, address: int) -> tuple[str, int] | tuple[str, int, int] | None:
        """The function at ``address``: its name, the offset into it and, if known, its size."""

    def comm(self, pid: int) -> str:
        """The name of a task; ``<idle>`` for pid 0, ``<...>`` for one not known."""

    def tgid(self, pid: int) -> int | None:
        """The thread group of a task, if recorded."""


class Places(Protocol):
    """What addresses were compiled from, as ``file:line``; empty if that is not known."""

    def where(self, address: int) -> str:
        """The place of an instruction."""

    def where_return(self, address: int) -> str:
        """The place of the call that returns to an address."""


class Symbols(dict[int, str]):
    """The text of an address (``seq_print_ip_sym``), looked up once; with ``where``, its place."""

    def __init__(
        self, names: Names, style: TextStyle, where: Callable[[int], str] | None = None
    ) -> None:
        super().__init__()
        self._where = where
        self._names = names
        self._offset = style.on("sym-offset")
        self._address = style.on("sym-addr")

    def __missing__(self, address: int) -> str:
        text = "0"
        if address:
            text = self._symbol(address) + (f" <{address:016x}>" if self._address else "")
            if self._where is not None and (place := self._where(address)):
                text += f" ({place})"
        self[address] = text
        return text

    def _symbol(self, address: int) -> str:
        found = self._names.function(address)
        if found is None:
            # sprint_symbol() writes "0x%lx" itself, trace_seq_print_sym() pads.
            return f"{address:#x}" if self._offset else f"0x{address:08x}"
        if not self._offset:
            return found[0]
        size = f"/{found[2]:#x}" if len(found) == 3 else ""
        return f"{found[0]}+{found[1]:#x}{size}"


class PlainSymbols(dict[int, str]):
    """The name of a function as ``%ps`` writes it, whatever the options."""

    def __init__(self, names: Names) -> None:
        super().__init__()
        self._names = names

    def __missing__(self, address: int) -> str:
        found = self._names.function(address)
        text = self[address] = f"{address:#x}" if found is None else found[0]
        return text


class _MoreFlags(IntFlag):
    """The bits of ``enum trace_flag_type`` that our kernel does not set."""

    IRQS_NOSUPPORT = 2
    PREEMPT_RESCHED = 32
    BH_OFF = 128


def latency_flags(flags: int, preempt: int) -> str:
    """Five characters: interrupts, rescheduling, context and counts (``trace_print_lat_fmt``)."""
    low, high = preempt & 0xF, preempt >> 4
    return (
        f"{_irqs_off(flags)}{_need_resched(flags)}{_context(flags)}"
        f"{f'{low:x}' if low else '.'}{f'{high:x}' if high else '.'}"
    )


def _irqs_off(flags: int) -> str:
    off, bh_off = flags & TraceFlag.IRQS_OFF, flags & _MoreFlags.BH_OFF
    if off or bh_off:
        return "D" if off and bh_off else "d" if off else "b"
    return "X" if flags & _MoreFlags.IRQS_NOSUPPORT else "."


def _need_resched(flags: int) -> str:
    need, preempt = flags & TraceFlag.NEED_RESCHED, flags & _MoreFlags.PREEMPT_RESCHED
    if need:
        return "N" if preempt else "n"
    return "p" if preempt else "."


def _context(flags: int) -> str:
    hardirq, softirq = flags & TraceFlag.HARDIRQ, flags & TraceFlag.SOFTIRQ
    if flags & TraceFlag.NMI:
        return "Z" if hardirq else "z"
    if hardirq:
        return "H" if softirq else "h"
    return "s" if softirq else "."


class LatencyFlags(dict[int, str]):
    """:func:`latency_flags` of ``preempt << 8 | flags``."""

    def __missing__(self, key: int) -> str:
        text = self[key] = latency_flags(key & 0xFF, key >> 8)
        return text


_MARKS = (
    (1_000_000_000, "$"),
    (100_000_000, "@"),
    (10_000_000, "*"),
    (1_000_000, "#"),
    (100_000, "!"),
    (10_000, "+"),
)


def find_mark(duration: int) -> str:
    """How alarming so many nanoseconds are (``trace_find_mark``)."""
    if duration <= _MARKS[-1][0]:
        return " "
    return next(mark for limit, mark in _MARKS if duration > limit)


def ns2usecs(ns: int) -> int:
    """Nanoseconds as microseconds, rounded as kernel/trace/trace.c does."""
    return (ns + 500) // 1000


def message(kind: int, payload: object, symbols: Symbols, *, bare: bool = False) -> list[str]:
    """Lines that an event other than a function's says; ``bare``: without who says it."""
    if kind == EventId.KERNEL_STACK:
        callers = cast("tuple[int, ...]", payload or ())
        known = takewhile(lambda address: address != ULONG_MAX, callers)
        return ["<stack trace>", *(f" => {symbols[address]}" for address in known)]
    if kind == EventId.PRINT:
        text = cast("str", payload or "").removesuffix("\n")
        return (text if bare else f"tracing_mark_write: {text}").split("\n")
    if kind == EventId.RAW_DATA:
        data = cast("bytes", payload or b"")
        number = int.from_bytes(data[:4], "little")
        return [f"# {number:x} buf:" + "".join(f" {byte:02x}" for byte in data[4:])]
    return [f"Unknown type {kind}"]
