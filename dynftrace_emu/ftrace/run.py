"""A run: one image in one machine with ftrace and its daemon, from options to a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.errors import OptionError
from dynftrace_emu.ftrace.dynamic import DynamicFtrace
from dynftrace_emu.ftrace.encodings import DISABLED
from dynftrace_emu.ftrace.events import FtraceEvent, Observer, TracingSwitched
from dynftrace_emu.ftrace.ftraced import Ftraced, Tick
from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.patcher import ftrace_bug
from dynftrace_emu.ftrace.resolve import find_start, find_workload, resolve
from dynftrace_emu.ftrace.static import StaticFtrace
from dynftrace_emu.ftrace.tracing import Tracing
from dynftrace_emu.kernel.boot import DEFAULT_HZ, boot
from dynftrace_emu.kernel.mini_kernel import load_image
from dynftrace_emu.machine.deterministic import DEFAULT_VIRTUAL_HZ, DeterministicEngine
from dynftrace_emu.machine.engine import Park, RunEnd
from dynftrace_emu.machine.threaded import ThreadedEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dynftrace_emu.kernel.image import KernelImage
    from dynftrace_emu.machine.engine import Engine, Kthread
    from dynftrace_emu.machine.machine import Machine

__all__ = ["Run"]


class Run:
    """Everything one ``dynftrace-emu run`` needs, made and connected; :meth:`execute` runs it.

    :param options: already checked in themselves; checked here against the image.
    :param on_tick: called after each period of the daemon, from its thread.
    :param image: used instead of the one that ``options.image`` names.
    :raises DynftraceError: the image cannot be had, or does not go with the options.
    """

    def __init__(
        self,
        options: RunOptions,
        *,
        on_tick: Callable[[Tick], None] | None = None,
        image: KernelImage | None = None,
    ) -> None:
        self.image = image or load_image(options.image, options.variant)
        self.options, self.note = resolve(options, self.image)
        self.kernel = boot(
            self.image,
            self.options.vcpus,
            self._make_engine,
            hz=DEFAULT_HZ if self.image.elf is None else 0,  # it has no timer of ours
            nmi_rate=self.options.nmi_rate,
            workload=find_workload(self.options, self.image),
            iterations=self.options.iterations or 0,
            start=find_start(self.options, self.image),
        )
        self.machine = self.kernel.machine
        self.ftrace: DynamicFtrace | StaticFtrace | None = self._make_ftrace()
        self.tracing = Tracing(self.kernel, self.ftrace)
        self.has_controls = False
        self.switches: list[TracingSwitched] = []
        self.observe(self._keep_switch, TracingSwitched)
        self.daemon = Ftraced(self.kernel, self.dynamic, self.options.period, on_tick)
        self.machine.kthread("ftraced", self.daemon.body(), daemon=True)
        if self.options.tracing is not None:
            self.machine.kthread("tracing", self._tracing(*self.options.tracing), daemon=True)
        self.ended: RunEnd | None = None

    @property
    def dynamic(self) -> DynamicFtrace | None:
        """Dynamic ftrace, if this image has it."""
        return self.ftrace if isinstance(self.ftrace, DynamicFtrace) else None

    def observe(self, observer: Observer, *kinds: type[FtraceEvent]) -> None:
        """Hear of what happens to call sites, from the thread where it happens.

        :param kinds: the events to hear of; none given: all. A kind that nobody hears of costs
            nothing.
        """
        if self.ftrace is not None:
            self.ftrace.observers.append(observer, *kinds)

    def execute(self) -> RunEnd:
        """Run to the end.

        :raises DynftraceError: the guest, or a stop, failed; what was reached can still be read.
        """
        if (self.options.set or self.options.at or self.options.show) and not self.has_controls:
            raise OptionError("set, at and show need tracefs: make Controls(run) first")
        self.ended = self.machine.run(self.options.seconds)
        return self.ended

    def violations(self) -> list[str]:
        """What broke the rules while the guest went on: a report each, empty if all is well."""
        if self.dynamic is None:
            return self._unreturned()
        symbolize = self.image.symbolize
        reports = [
            ftrace_bug(mismatch, symbolize(mismatch.ip))
            for mismatch in self.dynamic.arch.patcher.mismatches
        ]
        reports += [
            f"mcount was called in NMI context at {symbolize(site)}: what an NMI may reach must be "
            "notrace_nmi (find the path with: dynftrace-emu inspect --nmi-check)"
            for site in self.dynamic.recorded_in_nmi
        ]
        return reports + self._unreturned()

    def _unreturned(self) -> list[str]:
        """A call that was asked for and did not come to its end."""
        if self.options.call is None or self.ended is not RunEnd.TIME:
            return []
        if self.kernel.returned is not None:
            return []
        return [
            f"{self.options.call} has not returned after {self.options.seconds:g} s (--seconds)"
        ]

    def _make_engine(self, machine: Machine) -> Engine:
        if self.options.engine is EngineName.THREADED:
            # An ELF image need never turn interrupts on.
            park = Park.PREEMPTIBLE if self.image.elf is None else Park.ANYWHERE
            return ThreadedEngine(machine, park=park)
        return DeterministicEngine(
            machine,
            seed=self.options.seed,
            virtual_hz=self.options.virtual_hz or DEFAULT_VIRTUAL_HZ,
            park=self.options.park or Park.PREEMPTIBLE,
        )

    def _make_ftrace(self) -> DynamicFtrace | StaticFtrace | None:
        if self.image.mcount is None or self.options.variant == "none":
            return None
        if self.options.variant != "dynamic":
            return StaticFtrace(self.kernel)
        return DynamicFtrace(
            self.kernel,
            disabled=DISABLED[self.options.site],
            boot_records=self.options.boot_records or 0,
            known=self._known_sites(),
        )

    def _known_sites(self) -> NDArray[np.uint64]:
        """The sites that are known before anything runs."""
        if self.options.discover == "scan":
            return self.image.call_sites
        if self.options.discover == "table":
            return self.image.table_sites
        return np.zeros(0, dtype=np.uint64)

    def _tracing(self, begin: float, end: float | None) -> Kthread:
        if begin > 0:
            yield begin
        self.tracing.set_tracer(self.tracing.global_array, "function")
        if end is not None:
            yield end - begin
            self.tracing.set_tracer(self.tracing.global_array, "nop")

    def _keep_switch(self, event: FtraceEvent) -> None:
        if isinstance(event, TracingSwitched):
            self.switches.append(event)
