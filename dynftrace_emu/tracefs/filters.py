"""Choosing functions (kernel/trace/ftrace.c)."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ControlFileError
from dynftrace_emu.ftrace.filters import choose, parse_filter
from dynftrace_emu.ftrace.probes import UNLIMITED, FunctionProbe
from dynftrace_emu.kernel.structs import ProbeKind
from dynftrace_emu.tracefs.control_file import ControlFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dynftrace_emu.ftrace.dynamic import DynamicFtrace
    from dynftrace_emu.ftrace.trace_array import TraceArray

__all__ = [
    "AvailableFilterFunctions", "DynFtraceTotalInfo", "EnabledFunctions", "SetFtraceFilter",
    "SetFtraceNotrace", "SetGraphFunction", "SetGraphNotrace", "StackTraceFilter",
    "TouchedFunctions",
]  # fmt: skip

_ALL = "#### all functions enabled ####\n"
_NONE = "#### no functions disabled ####\n"


def _dynamic(file: ControlFile) -> DynamicFtrace:
    dynamic = file.tracing.dynamic
    if dynamic is None:
        raise ControlFileError(errno.ENOENT, "this kernel has no dynamic ftrace")
    return dynamic


class AvailableFilterFunctions(ControlFile):
    """``available_filter_functions``: what can be chosen, by address."""

    name = "available_filter_functions"
    writable = False

    def read(self) -> str:
        return _names(self, self.tracing.available_sites())


def _names(file: ControlFile, sites: NDArray[np.uint64]) -> str:
    return "".join(f"{file.tracing.name(site)}\n" for site in sites.tolist())


class EnabledFunctions(ControlFile):
    """``enabled_functions``: what some tracer wants, and how many want it."""

    name = "enabled_functions"
    writable = False

    def read(self) -> str:
        counts = _dynamic(self).listening()
        more = self.tracing.triggers_beyond_one()
        return "".join(
            f"{self.tracing.name(site)} ({count + more.get(site, 0)})\n"
            for site, count in counts
            if count
        )


class TouchedFunctions(ControlFile):
    """``touched_functions``: what any tracer has ever wanted (Linux 6.4)."""

    name = "touched_functions"
    writable = False

    def read(self) -> str:
        dynamic = _dynamic(self)
        touched = set(dynamic.arch.touched().tolist())
        counts = dynamic.listening()
        return "".join(
            f"{self.tracing.name(site)} ({count})\n" for site, count in counts if site in touched
        )


class DynFtraceTotalInfo(ControlFile):
    """``dyn_ftrace_total_info``: records, and the pages they lie in."""

    name = "dyn_ftrace_total_info"
    writable = False

    def read(self) -> str:
        records = _dynamic(self).arch.records
        return f"{records.used} pages:{len(records.pages)} groups: {len(records.pages)}\n"


class SetFtraceFilter(ControlFile):
    """``set_ftrace_filter``: only these; and the triggers."""

    name = "set_ftrace_filter"

    def read(self) -> str:
        sites = self.array.hash.filter
        probes = "".join(self._probe(probe) for probe in self.array.probes)
        return (_names(self, sites) if len(sites) else _ALL) + probes

    def _probe(self, probe: FunctionProbe) -> str:
        count = self.tracing.probe_count(probe)
        number = "unlimited" if count == UNLIMITED else f"count={count}"
        return f"{self.tracing.name(probe.site)}:{probe.kind.name.lower()}:{number}\n"

    def write(self, text: str, *, append: bool) -> None:
        parsed = parse_filter(self.array, text, append=append)
        if any(probe.kind is ProbeKind.SNAPSHOT for probe in parsed.probes):
            self.array.alloc_snapshot()
        with self.tracing.changing():
            self.array.hash = replace(self.array.hash, filter=parsed.sites)
            self.array.probes = parsed.probes


class SetFtraceNotrace(ControlFile):
    """``set_ftrace_notrace``: not these, whatever the filter says."""

    name = "set_ftrace_notrace"

    def read(self) -> str:
        sites = self.array.hash.notrace
        return _names(self, sites) if len(sites) else _NONE

    def write(self, text: str, *, append: bool) -> None:
        sites = choose(self.tracing, text, self.array.hash.notrace, append=append)
        with self.tracing.changing():
            self.array.hash = replace(self.array.hash, notrace=sites)


class SetGraphFunction(ControlFile):
    """``set_graph_function``: function_graph shows these and what they call."""

    name = "set_graph_function"

    def read(self) -> str:
        sites = self.tracing.graph.functions
        return _names(self, sites) if len(sites) else _ALL

    def write(self, text: str, *, append: bool) -> None:
        sites = choose(self.tracing, text, self.tracing.graph.functions, append=append)
        with self.tracing.changing():
            self.tracing.graph.functions = sites


class SetGraphNotrace(ControlFile):
    """``set_graph_notrace``: ... but not these and what they call."""

    name = "set_graph_notrace"

    def read(self) -> str:
        sites = self.tracing.graph.notrace
        return _names(self, sites) if len(sites) else _NONE

    def write(self, text: str, *, append: bool) -> None:
        sites = choose(self.tracing, text, self.tracing.graph.notrace, append=append)
        with self.tracing.changing():
            self.tracing.graph.notrace = sites


class StackTraceFilter(ControlFile):
    """``stack_trace_filter``: the functions at which the stack tracer looks."""

    name = "stack_trace_filter"

    def __init__(self, array: TraceArray) -> None:
        super().__init__(array)
        self._tracer = array.tracing.stack_tracer

    def read(self) -> str:
        sites = self._tracer.hash.filter
        return _names(self, sites) if len(sites) else _ALL

    def write(self, text: str, *, append: bool) -> None:
        sites = choose(self.tracing, text, self._tracer.hash.filter, append=append)
        with self.tracing.changing():
            self._tracer.hash = replace(self._tracer.hash, filter=sites)
