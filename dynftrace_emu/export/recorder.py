"""Records a run into a trace.dat while it runs, as ``trace-cmd record`` does."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dynftrace_emu.errors import OptionError, RecordError
from dynftrace_emu.export.trace_dat import TraceDatWriter
from dynftrace_emu.export.trace_source import HostEvent, ImageNote, SymbolTable, TraceInfo
from dynftrace_emu.ftrace.events import (
    FtraceEvent,
    PageAdded,
    TextChanged,
    TracingSwitched,
)
from dynftrace_emu.kernel.mini_kernel import BUILTIN_IMAGES

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.run import Run
    from dynftrace_emu.kernel.image import KernelImage
    from dynftrace_emu.machine.engine import Kthread

__all__ = ["RecordedCpu", "Recorder"]

_DRAIN_S = {"deterministic": 0.05, "threaded": 0.005}
"""How often the buffers are drained, on the engine's clock."""


@dataclass(frozen=True, slots=True)
class RecordedCpu:
    """What came of one vCPU: ``events`` are in the file, ``overruns`` are lost.

    ``open_calls`` are those of function_graph that had not returned in the end.
    """

    vcpu: int
    events: int
    overruns: int
    calls: int
    open_calls: int


def _image_note(image: KernelImage) -> ImageNote:
    argument = image.name if image.name in BUILTIN_IMAGES else str(Path(image.name).absolute())
    return ImageNote(argument, image.variant, image.sha256)


class Recorder:
    """Drains the global trace array's buffers into a file, from a thread beside the guest.

    :param run: not yet executed; its tracer is set by whoever wants one.
    :raises OptionError: the file cannot be made.
    """

    def __init__(self, run: Run, path: Path) -> None:
        self._run, self._tracing, self.path = run, run.tracing, path
        self._array = run.tracing.global_array
        # What happened to call sites, with its time: appended to by whoever changes text, with the
        # machine stopped; drained here.
        self._heard: deque[tuple[int, FtraceEvent]] = deque()
        self._ticks = self._stops = 0  # those that have been written
        self._last_host = 0
        self._events = [0] * run.tracing.nr_cpus
        self._overruns = [0] * run.tracing.nr_cpus
        self._tracer = self._array.tracer  # the last one that made events
        try:
            self._writer = TraceDatWriter(path, self._info())
        except OSError as error:
            raise OptionError(f"{path}: {error.strerror}") from None
        self._array.before_discard = self._before_discard
        run.observe(self._on_event, PageAdded, TracingSwitched, TextChanged)
        run.machine.kthread("recorder", self._body(), daemon=True)

    def _info(self) -> TraceInfo:
        image = self._run.image
        functions = tuple((f.address, f.size, f.name) for f in image.named_code)
        return TraceInfo(
            self._tracer,
            self._tracing.nr_cpus,
            self._array.clock,
            SymbolTable(functions),
            self._tracing.comms(),
            _image_note(image),
        )

    def _body(self) -> Kthread:
        period = _DRAIN_S[self._run.machine.engine.name]
        while True:
            yield period
            self._drain(last=False)

    def finish(self) -> list[RecordedCpu]:
        """Write what is left, and make the file whole; the run is over, however it ended.

        :raises RecordError: something could not be written; the file holds what could.
        """
        try:
            self._drain(last=True)
        finally:
            self._close()
        return [self._recorded(cpu) for cpu in range(self._tracing.nr_cpus)]

    def _close(self) -> None:
        self._writer.info = self._info()
        for cpu, buffer in enumerate(self._array.buffer.cpus):
            self._writer.set_stats(cpu, buffer.stats())
        try:
            self._writer.close()
        except OSError as error:
            raise self._error(error) from None

    def _recorded(self, cpu: int) -> RecordedCpu:
        kernel = self._run.kernel
        dropped = self._array.buffer.cpus[cpu].stats().dropped
        graph = self._tracer == "function_graph"
        return RecordedCpu(
            cpu,
            self._events[cpu],
            self._overruns[cpu] + dropped,
            kernel.percpu("traced_calls")[cpu],
            self._tracing.open_calls(cpu) if graph else 0,
        )

    # --- draining ---

    def _drain(self, *, last: bool) -> None:
        with self._tracing.lock:  # nobody exchanges the buffers meanwhile
            if self._array.tracer != "nop":
                self._tracer = self._array.tracer
            try:
                for cpu in range(self._tracing.nr_cpus):
                    self._drain_cpu(cpu, last=last)
                self._drain_host()
            except OSError as error:
                raise self._error(error) from None

    def _before_discard(self) -> None:
        """Somebody is about to empty the buffers, or to take others."""
        self._drain(last=True)
        for cpu, buffer in enumerate(self._array.buffer.cpus):
            self._overruns[cpu] += buffer.stats().dropped

    def _drain_cpu(self, cpu: int, *, last: bool) -> None:
        part = self._array.buffer.cpus[cpu].read_pages(last=last)
        self._events[cpu] += part.events
        self._overruns[cpu] += part.lost
        lost = part.lost
        if part.rest is not None:
            self._writer.add_events(cpu, part.rest.table, part.rest.payloads, lost)
            lost = 0
        self._writer.add_pages(cpu, part.pages.raw, part.pages.commit, lost)

    def _drain_host(self) -> None:
        pending = []
        while self._heard:
            pending += _host_events(*self._heard.popleft())
        machine, daemon = self._run.machine, self._run.daemon
        for tick in daemon.ticks[self._ticks :]:
            pending.append(HostEvent(self._time(tick.t), "tick"))
            self._ticks += 1
        for stop in machine.stops[self._stops :]:
            fields = {"duration_ns": round(stop.pause_us * 1000)}
            pending.append(HostEvent(self._time(stop.time), "stop", fields))
            self._stops += 1
        pending.sort(key=lambda event: event.ts)
        last = self._last_host  # what was written lies before it
        self._writer.add_host_events(
            [event if event.ts >= last else replace(event, ts=last) for event in pending]
        )
        self._last_host = max(last, pending[-1].ts) if pending else last

    def _time(self, seconds: float) -> int:
        if self._array.clock == "counter":
            return self._tracing.now(self._array, 0)
        return round(seconds * 1e9)

    def _on_event(self, event: FtraceEvent) -> None:
        self._heard.append((self._time(event.time), event))

    def _error(self, error: OSError) -> RecordError:
        return RecordError(f"{self.path}: {error.strerror}; what was recorded until then is kept")


def _host_events(ts: int, event: FtraceEvent) -> list[HostEvent]:
    """As they are in the file: one for each site that changed."""
    match event:
        case PageAdded():
            return [HostEvent(ts, "page", {"capacity": event.capacity})]
        case TracingSwitched():
            return [HostEvent(ts, "tracing", {"enabled": int(event.enabled)})]
        case TextChanged():
            return [
                HostEvent(ts, "failed" if failed else "patched", {"ip": site})
                for site, failed in zip(event.sites.tolist(), event.failed.tolist(), strict=True)
            ]
    return []
