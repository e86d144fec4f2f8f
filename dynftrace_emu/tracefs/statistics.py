"""The function profiler and the stack tracer (kernel/trace/ftrace.c, trace_stack.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.export.text_graph import graph_duration
from dynftrace_emu.kernel.debug.demangle import demangle
from dynftrace_emu.tracefs.buffers import CpuFile
from dynftrace_emu.tracefs.control_file import ControlFile, parse_bool, parse_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.ftrace.profile import ProfileRow

__all__ = [
    "FunctionProfileEnabled", "FunctionStat", "StackMaxSize", "StackTrace", "StackTracerEnabled",
]  # fmt: skip

_DISABLED = """\
#
#  Stack tracer disabled
#
# Please enable the stack tracer: write 1 to stack_tracer_enabled
#
"""


class FunctionProfileEnabled(ControlFile):
    """``function_profile_enabled``: 1 begins with empty tables."""

    name = "function_profile_enabled"

    def read(self) -> str:
        return f"{int(self.tracing.profile.enabled)}\n"

    def write(self, text: str, *, append: bool) -> None:
        self.tracing.set_profile(parse_number(text) != 0)


class FunctionStat(CpuFile):
    """``trace_stat/functionN``: what CPU N called, most time first."""

    writable = False

    def read(self) -> str:
        lines = [
            "  Function                               Hit    Time            Avg             s^2",
            "  --------                               ---    ----            ---             ---",
            *map(self._line, self.tracing.profile.rows(self.cpu)),
        ]
        return "".join(f"{line}\n" for line in lines)

    def _line(self, row: ProfileRow) -> str:
        columns = (row.time, int(row.average), int(row.variance) // 1000)
        name = demangle(self.tracing.name(row.site))
        return f"  {name:<30.30}  {row.hits:>10}    " + "    ".join(map(graph_duration, columns))


class StackTrace(ControlFile):
    """``stack_trace``: the deepest stack seen, the last call first."""

    name = "stack_trace"
    writable = False

    def read(self) -> str:
        tracer = self.tracing.stack_tracer
        entries = tracer.trace()
        text = "".join(f"{line}\n" for line in self._lines(entries))
        return text if tracer.enabled or tracer.max_size else text + _DISABLED

    def _lines(self, entries: list[tuple[int, int]]) -> Iterator[str]:
        yield f"        Depth    Size   Location    ({len(entries)} entries)"
        yield "        -----    ----   --------"
        depths = [size for _, size in entries]
        image = self.tracing.kernel.image
        for index, (address, depth) in enumerate(entries):
            size = depth - depths[index + 1] if index + 1 < len(entries) else depth
            where = image.symbolize(address) if index == 0 else image.symbolize_return(address)
            yield f"{index:3d}) {depth:8d}   {size:5d}   {where}"


class StackMaxSize(ControlFile):
    """``stack_max_size``: bytes of the deepest stack; a write forgets what was seen."""

    name = "stack_max_size"

    def read(self) -> str:
        return f"{self.tracing.stack_tracer.max_size}\n"

    def write(self, text: str, *, append: bool) -> None:
        size = parse_number(text)
        self.tracing.stop(lambda: self.tracing.stack_tracer.set_max_size(size))


class StackTracerEnabled(ControlFile):
    """``stack_tracer_enabled``: the sysctl kernel.stack_tracer_enabled, here among the files."""

    name = "stack_tracer_enabled"

    def read(self) -> str:
        return f"{int(self.tracing.stack_tracer.enabled)}\n"

    def write(self, text: str, *, append: bool) -> None:
        enabled = parse_bool(text)
        with self.tracing.changing():
            self.tracing.stack_tracer.enabled = enabled
