"""A run: one image in one machine with ftrace and its daemon, from options to a result."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dynftrace_emu.errors import OptionError
from dynftrace_emu.ftrace.dynamic import DynamicFtrace
from dynftrace_emu.ftrace.encodings import DISABLED
from dynftrace_emu.ftrace.events import FtraceEvent, Observer, TracingSwitched
from dynftrace_emu.ftrace.ftraced import Ftraced, Tick
from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.patcher import ftrace_bug
from dynftrace_emu.ftrace.static import StaticFtrace
from dynftrace_emu.ftrace.tracing import Tracing
from dynftrace_emu.kernel.boot import boot
from dynftrace_emu.kernel.mini_kernel import load_image, workloads
from dynftrace_emu.kernel.structs import ENTRIES_PER_PAGE
from dynftrace_emu.kernel.synthetic import SYNTHETIC
from dynftrace_emu.machine.deterministic import DEFAULT_VIRTUAL_HZ, DeterministicEngine
from dynftrace_emu.machine.engine import Park, RunEnd
from dynftrace_emu.machine.native_hook import why_no_native_hooks
from dynftrace_emu.machine.threaded import ThreadedEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynftrace_emu.kernel.image import KernelImage
    from dynftrace_emu.machine.engine import Engine, Kthread
    from dynftrace_emu.machine.machine import Machine

__all__ = ["Run"]

DEFAULT_WORKLOAD = "default"


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
        self.options, self.note = _resolve(options, self.image)
        self.kernel = boot(
            self.image,
            self.options.vcpus,
            self._make_engine,
            nmi_rate=self.options.nmi_rate,
            workload=_workload(self.options, self.image),
            iterations=self.options.iterations or 0,
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
            return []
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
        return reports

    def _make_engine(self, machine: Machine) -> Engine:
        if self.options.engine is EngineName.THREADED:
            return ThreadedEngine(machine)
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
            scan=self.options.discover == "scan",
        )

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


def _resolve(options: RunOptions, image: KernelImage) -> tuple[RunOptions, str]:
    """Fill in what depends on the image; the note says what was chosen and why.

    :raises OptionError: the options do not go with the image.
    """
    if options.tracing is not None and image.mcount is None:
        raise OptionError(f"--tracing: {image.name} has no mcount")
    if options.boot_records is None:
        options = replace(options, boot_records=_default_boot_records(image))
    options, note = _resolve_discover(options)
    options, engine_note = _resolve_engine(options, image)
    return options, "; ".join(filter(None, (note, engine_note)))


def _default_boot_records(image: KernelImage) -> int:
    """One page; for an image that is there for its many sites, room for all of them."""
    if image.name.startswith(SYNTHETIC):
        return len(image.call_sites)
    return ENTRIES_PER_PAGE


def _resolve_discover(options: RunOptions) -> tuple[RunOptions, str]:
    if options.variant != "dynamic":
        if options.discover is not None:
            raise OptionError("--discover: only the variant dynamic has call sites to find")
        return options, ""
    if options.discover is not None:
        return options, ""
    if options.chooses_functions:
        note = "--set names functions before any has run: using --discover scan"
        return replace(options, discover="scan"), note
    return replace(options, discover="runtime"), ""


def _resolve_engine(options: RunOptions, image: KernelImage) -> tuple[RunOptions, str]:
    if options.engine is EngineName.DETERMINISTIC:
        return options, ""
    why_not = _why_not_threaded(options, image)
    if options.engine is EngineName.THREADED:
        if why_not:
            raise OptionError(f"--engine threaded: {why_not}; use --engine deterministic")
        return options, ""
    if why_not:
        note = f"{why_not}: using the deterministic engine"
        return replace(options, engine=EngineName.DETERMINISTIC), note
    if options.park is not None or options.virtual_hz is not None or options.workload == "shared":
        raise OptionError("--park, --virtual-hz and --workload shared need --engine deterministic")
    return replace(options, engine=EngineName.THREADED), ""


def _why_not_threaded(options: RunOptions, image: KernelImage) -> str:
    """What keeps an image from running on a thread a vCPU; empty if nothing does."""
    if not image.scan.safepoints:
        why = f"{image.name} polls no request word at safepoints"
        if options.engine is None:
            return why
        if absent := why_no_native_hooks():
            return f"{why}, so only a native hook can stop it exactly, and {absent}"
    if image.scan.locked and not options.is_builtin and options.vcpus > 1:
        where = image.symbolize(image.scan.locked[0])
        return f"{image.name} has LOCK-prefixed instructions, which need one vCPU; first at {where}"
    return ""


def _workload(options: RunOptions, image: KernelImage) -> int:
    known = workloads(image)
    if options.iterations is not None and not known:
        raise OptionError(f"--iterations: {image.name} has no workload whose iterations count")
    if options.workload is None:
        return known.get(DEFAULT_WORKLOAD, 0)
    if options.workload not in known:
        choice = f"choose from {', '.join(sorted(known))}" if known else "this image has none"
        raise OptionError(f"--workload {options.workload}: {choice}")
    return known[options.workload]
