"""Calls drawn as C code (kernel/trace/trace_functions_graph.c, Linux 6.1).

Left out: the arrows around interrupts and what ``funcgraph-irqs`` hides when off. Both need the
bounds of Linux's ``.irqentry.text``, a section our kernels do not have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynftrace_emu.export.text_fields import find_mark, latency_flags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynftrace_emu.export.text_batch import Row
    from dynftrace_emu.export.text_fields import TextStyle

__all__ = ["GraphText", "graph_duration"]

_RULE = " ------------------------------------------"
_INDENT = "  "
_NO_DURATION = "              |  "
_PROC_WIDTH = 14  # TRACE_GRAPH_PROCINFO_LENGTH
_COMM_WIDTH = 7
_RET_DEPTH = 50  # FTRACE_RETFUNC_DEPTH
_U64 = 2**64 - 1


@dataclass(slots=True)
class _Cpu:
    """Where the drawing of a CPU's calls has come to (``struct fgraph_cpu_data``)."""

    last_pid: int = -1
    depth: int = 0
    entered: dict[int, int] = field(default_factory=dict)  # depth -> function


class GraphText:
    """Draws entries and exits, and other events as comments between them.

    Only the function_graph tracer remembers what it has drawn. Its events under another tracer
    are drawn one by one, with ``remember`` off.
    """

    def __init__(
        self,
        style: TextStyle,
        functions: Mapping[int, str],
        comms: Mapping[int, str],
        *,
        cpus: int,
        remember: bool,
    ) -> None:
        self._functions = functions
        self._comms = comms
        self._cpu_width = len(str(cpus - 1))
        self._cpus: dict[int, _Cpu] = {}
        self._remember = remember
        context = style.on("context-info")
        self._abstime = context and style.on("funcgraph-abstime")
        self._cpu = context and style.on("funcgraph-cpu")
        self._proc = context and style.on("funcgraph-proc")
        self._latency = context and style.on("latency-format")
        self._duration = context and style.on("funcgraph-duration")
        self._overhead = style.on("funcgraph-overhead")
        self._only_cpu = self._cpu and not (self._abstime or self._proc or self._latency)
        self._cpu_columns: dict[int, str] = {}
        self._tail = style.on("funcgraph-tail")
        self._overrun = style.on("funcgraph-overrun")

    def entry(self, row: Row, duration: int | None) -> list[str]:
        """A call; with ``duration``, of a function that calls none itself."""
        lines = self._switch(row)
        state = self._state(row.cpu)
        leaf = duration is not None
        # Comments are drawn one level deeper than this.
        state.depth = row.depth - 1 if leaf else row.depth
        if 0 <= row.depth < _RET_DEPTH:
            state.entered[row.depth] = 0 if leaf else row.ip
        brace = "();" if leaf else "() {"
        lines.append(
            f"{self._prologue(row)}{self._time(duration)}"
            f"{_INDENT * row.depth}{self._functions[row.ip]}{brace}"
        )
        return lines

    def exit(self, row: Row) -> list[str]:
        """The end of a call, named if nobody can tell which."""
        lines = self._switch(row)
        state = self._state(row.cpu)
        state.depth = row.depth - 1
        known = not self._remember
        if 0 <= row.depth < _RET_DEPTH:
            known |= state.entered.pop(row.depth, 0) == row.ip
        else:
            known = True
        name = "" if known and not self._tail else f" /* {self._functions[row.ip]} */"
        duration = (row.rettime - row.calltime) & _U64
        lines.append(f"{self._prologue(row)}{self._time(duration)}{_INDENT * row.depth}}}{name}")
        if self._overrun:
            # EVENT keeps no count of them.
            lines.append(" (Overruns: 0)")
        return lines

    def comment(self, row: Row, text: list[str]) -> list[str]:
        """What another event says."""
        lines = self._switch(row)
        depth = self._state(row.cpu).depth
        indent = _INDENT * (depth + 1) if depth > 0 else ""
        first, *rest = text
        lines += [f"{self._prologue(row)}{self._time(None)}{indent}/* {first}", *rest]
        lines[-1] += " */"
        return lines

    def _state(self, cpu: int) -> _Cpu:
        if not self._remember:
            return _Cpu()
        state = self._cpus.get(cpu)
        if state is None:
            state = self._cpus[cpu] = _Cpu()
        return state

    def _switch(self, row: Row) -> list[str]:
        """Announces that a CPU runs another task (``verif_pid``)."""
        state = self._state(row.cpu)
        before, state.last_pid = state.last_pid, row.pid
        if before in (-1, row.pid):
            return []
        tasks = f"{self._task(before)} => {self._task(row.pid)}"
        return [_RULE, f" {row.cpu:{self._cpu_width}d}) {tasks}", _RULE, ""]

    def _task(self, pid: int) -> str:
        """A task's name and pid, centered (``print_graph_proc``)."""
        task = f"{self._comms[pid][:_COMM_WIDTH]}-{pid}"
        spaces = max(_PROC_WIDTH - len(task), 0)
        return " " * (spaces // 2) + task + " " * (spaces - spaces // 2)

    def _prologue(self, row: Row) -> str:
        """The columns before the duration (``print_graph_prologue``)."""
        if self._only_cpu:
            columns = self._cpu_columns.get(row.cpu)
            if columns is None:
                columns = self._cpu_columns[row.cpu] = f" {row.cpu:{self._cpu_width}d}) "
            return columns
        columns = ""
        if self._abstime:
            seconds, ns = divmod(row.ts, 10**9)
            columns = f"{seconds:5d}.{ns // 1000:06d} |  "
        if self._cpu:
            columns += f" {row.cpu:{self._cpu_width}d}) "
        if self._proc:
            columns += f"{self._task(row.pid)} | "
        if self._latency:
            columns += f" {latency_flags(row.flags, row.preempt)} | "
        return columns

    def _time(self, duration: int | None) -> str:
        """The duration's column (``print_graph_duration``)."""
        if not self._duration:
            return ""
        if duration is None:
            return _NO_DURATION
        mark = find_mark(duration) if self._overhead else " "
        return f"{mark} {graph_duration(duration)}|  "


def graph_duration(duration: int) -> str:
    """Seven digits at most, if there is a point among them (``trace_print_graph_duration``)."""
    usecs, ns = divmod(duration, 1000)
    number = f"{usecs}"
    if len(number) < 7:
        number += f".{ns:03d}"[: 8 - len(number)]
    return f"{number} us " + " " * (8 - len(number))
