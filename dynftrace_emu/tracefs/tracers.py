"""Which tracer, and whether it is on (kernel/trace/trace.c)."""

from __future__ import annotations

import errno

from dynftrace_emu.errors import ControlFileError
from dynftrace_emu.tracefs.control_file import ControlFile, parse_bool, parse_number

__all__ = [
    "AvailableTracers", "CurrentTracer", "FtraceEnabled", "MaxGraphDepth", "TracingCpumask",
    "TracingOn", "TracingThresh",
]  # fmt: skip

_TRACERS = ("function_graph", "function", "nop")
_OF_INSTANCES = ("function", "nop")


class AvailableTracers(ControlFile):
    """``available_tracers``: what ``current_tracer`` takes."""

    name = "available_tracers"
    writable = False

    def read(self) -> str:
        return " ".join(_available(self)) + "\n"


class CurrentTracer(ControlFile):
    """``current_tracer``: setting another one empties the buffer."""

    name = "current_tracer"

    def read(self) -> str:
        return f"{self.array.tracer}\n"

    def write(self, text: str, *, append: bool) -> None:
        tracer = text.strip()
        available = _available(self)
        if tracer not in available:
            where = "" if self.array.is_global else " in an instance"
            known = ", ".join(available)
            why = self.tracing.why_nothing if tracer in _TRACERS else ""
            raise ControlFileError(
                errno.EINVAL, f"no tracer {tracer!r}{where}; known: {known}{why}"
            )
        self.tracing.set_tracer(self.array, tracer)


def _available(file: ControlFile) -> tuple[str, ...]:
    if file.tracing.ftrace is None:
        return ("nop",)
    return _TRACERS if file.array.is_global else _OF_INSTANCES


class TracingOn(ControlFile):
    """``tracing_on``: 0 makes every CPU's buffer deaf. No text changes, nobody is stopped."""

    name = "tracing_on"

    def read(self) -> str:
        return f"{int(self.array.on)}\n"

    def write(self, text: str, *, append: bool) -> None:
        self.array.set_on(parse_number(text) != 0)


class TracingCpumask(ControlFile):
    """``tracing_cpumask``: the CPUs whose events are kept, in hexadecimal."""

    name = "tracing_cpumask"

    def read(self) -> str:
        mask, groups = self.array.cpumask, []
        bits = self.tracing.nr_cpus
        while bits > 0:
            digits = -(-min(bits, 32) // 4) if bits <= 32 else 8
            groups.append(f"{mask & 0xFFFF_FFFF:0{digits}x}")
            mask, bits = mask >> 32, bits - 32
        return ",".join(reversed(groups)) + "\n"

    def write(self, text: str, *, append: bool) -> None:
        mask = 0
        for group in text.strip().split(","):
            if (part := parse_number(group, base=16)) >> 32 and "," in text:
                raise ControlFileError(errno.EINVAL, f"{text.strip()}: a group has 32 bits")
            mask = mask << 32 | part
        if mask >> self.tracing.nr_cpus:
            raise ControlFileError(
                errno.EOVERFLOW, f"{text.strip()}: there are {self.tracing.nr_cpus} CPUs"
            )
        self.array.set_cpumask(mask)


class TracingThresh(ControlFile):
    """``tracing_thresh``: function_graph tells only calls that took so many microseconds."""

    name = "tracing_thresh"

    def read(self) -> str:
        return f"{self.tracing.graph.thresh_ns // 1000}\n"

    def write(self, text: str, *, append: bool) -> None:
        thresh = parse_number(text) * 1000
        if thresh >= 1 << 63:
            raise ControlFileError(errno.ERANGE, f"{text.strip()}: too large")
        with self.tracing.changing():
            self.tracing.graph.thresh_ns = thresh


class MaxGraphDepth(ControlFile):
    """``max_graph_depth``: how deep function_graph follows calls; 0: to the end."""

    name = "max_graph_depth"

    def read(self) -> str:
        return f"{self.tracing.graph.max_depth}\n"

    def write(self, text: str, *, append: bool) -> None:
        depth = parse_number(text)
        if depth >= 1 << 63:
            raise ControlFileError(errno.ERANGE, f"{text.strip()}: too large")
        with self.tracing.changing():
            self.tracing.graph.max_depth = depth


class FtraceEnabled(ControlFile):
    """``ftrace_enabled``: the sysctl over it all (S15), here among the files."""

    name = "ftrace_enabled"

    def read(self) -> str:
        dynamic = self.tracing.dynamic
        return f"{int(dynamic is None or dynamic.ftrace_enabled)}\n"

    def write(self, text: str, *, append: bool) -> None:
        enabled = parse_bool(text)
        if self.tracing.dynamic is None:
            raise ControlFileError(errno.EINVAL, "this kernel has no dynamic ftrace")
        self.tracing.dynamic.set_enabled(enabled)
