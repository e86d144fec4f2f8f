"""The tracing subsystem of one kernel: trace arrays, and what there is only once (kernel/trace/).

It turns what the control files want into listeners of :class:`.DynamicFtrace` and words in guest
memory. Locks: ``lock`` is taken first of all, by whoever changes something (Linux's
``trace_types_lock``); then those of ``DynamicFtrace``. A vCPU's thread that comes out of a trigger
takes none of these, only the leaf locks of trace arrays and ring buffers.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dynftrace_emu.ftrace.dynamic import DynamicFtrace
from dynftrace_emu.ftrace.graph import GraphSettings, RetStacks
from dynftrace_emu.ftrace.ops import Listeners, OpsHash, site_array
from dynftrace_emu.ftrace.page_pool import PagePool
from dynftrace_emu.ftrace.probes import FunctionProbe, ProbeTable
from dynftrace_emu.ftrace.profile import FunctionProfile
from dynftrace_emu.ftrace.stack_tracer import StackTracer
from dynftrace_emu.ftrace.trace_array import CLOCKS, PidFilter, TraceArray
from dynftrace_emu.kernel.structs import (
    PAGE_SIZE,
    PID_MAX,
    TRACE_BITS,
    EventId,
    ProbeKind,
    TraceBit,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from dynftrace_emu.ftrace.static import StaticFtrace
    from dynftrace_emu.kernel.guest import GuestKernel
    from dynftrace_emu.kernel.image import KernelImage
    from dynftrace_emu.machine.vcpu import VCpu

__all__ = ["OPTIONS", "Tracing"]

T = TypeVar("T")

OPTIONS: Mapping[str, bool] = MappingProxyType(
    {
        "print-parent": True,
        "sym-offset": False,
        "sym-addr": False,
        "annotate": True,
        "context-info": True,
        "latency-format": False,
        "record-cmd": True,
        "record-tgid": False,
        "overwrite": True,
        "disable_on_free": False,
        "irq-info": True,
        "markers": True,
        "pause-on-trace": False,
        "func_stack_trace": False,
        "funcgraph-overrun": False,
        "funcgraph-cpu": True,
        "funcgraph-overhead": True,
        "funcgraph-proc": False,
        "funcgraph-duration": True,
        "funcgraph-abstime": False,
        "funcgraph-irqs": True,
        "funcgraph-tail": False,
    }
)
"""Trace options, and whether they are on at first."""

_CHANGING = (
    "tracer", "hash", "probes", "options", "functions", "notrace", "max_depth", "skip_irqs",
    "thresh_ns", "enabled",
)  # fmt: skip


class Tracing:
    """Everything below /sys/kernel/tracing, as state.

    :param ftrace: None for a kernel without calls to mcount.
    """

    def __init__(self, kernel: GuestKernel, ftrace: DynamicFtrace | StaticFtrace | None) -> None:
        self.kernel, self.ftrace = kernel, ftrace
        self.memory = kernel.machine.memory
        self.nr_cpus = len(kernel.machine.vcpus)
        self.lock = threading.RLock()
        self.pool = PagePool(self.memory, "ring buffers, and what else tracers keep")
        traceable = ftrace is not None
        self.counter_address = kernel.image.address("trace_counter") if traceable else 0
        self._on_lock = threading.Lock()  # a leaf: guards the guest's word of who is on
        self.graph = GraphSettings(kernel)
        self.ret_stacks = RetStacks(kernel, self.pool)
        self.profile = FunctionProfile(kernel, self.pool)
        self.stack_tracer = StackTracer(kernel)
        self._probe_table = ProbeTable(kernel, self.pool, self._act) if traceable else None
        self._pid_table: NDArray[np.uint32] | None = None
        self.saved_cmdlines_size = 128
        self.places: KernelImage | None = None
        """Where trace text gets the lines of functions and calls from, if it has them."""
        self.instances: dict[str, TraceArray] = {}
        self.global_array = TraceArray(self, "", TraceBit.FUNCTION)
        self.write_plain()
        self.on_dump: Callable[[TraceArray, int | None], None] = lambda _array, _cpu: None
        kernel.enable_bits(
            1 << TraceBit.PROBE | 1 << TraceBit.STACK
        )  # whoever listens there does so whatever tracing_on says

    # --- what is known ---

    @property
    def dynamic(self) -> DynamicFtrace | None:
        """Dynamic ftrace, if this kernel has it: filters need it."""
        return self.ftrace if isinstance(self.ftrace, DynamicFtrace) else None

    def arrays(self) -> list[TraceArray]:
        """The global one, and the instances by name."""
        return [self.global_array, *(self.instances[name] for name in sorted(self.instances))]

    def available_sites(self) -> NDArray[np.uint64]:
        """The call sites that can be chosen, ascending: recorded, and not failed."""
        if self.dynamic is None:
            return np.zeros(0, dtype=np.uint64)
        return self.dynamic.arch.good_sites()

    @property
    def why_nothing(self) -> str:
        """Why there is no ftrace in an image that a person may have meant to trace; else empty."""
        image = self.kernel.image
        if self.ftrace is not None or image.elf is None:
            return ""
        return f": {image.name} has no call site that can be traced"

    def name(self, address: int) -> str:
        """The function an address is in."""
        function = self.kernel.image.function_at(address)
        return function.name if function else f"{address:#x}"

    def comms(self) -> dict[int, str]:
        """The name of each task, by pid."""
        comms = {
            task.pid: task.comm for cpu in range(self.nr_cpus) for task in self.kernel.tasks(cpu)
        }
        return dict(list(comms.items())[-self.saved_cmdlines_size :])

    @property
    def clocks(self) -> tuple[str, ...]:
        """The trace clocks. Only where CPUs take turns can they share a counter."""
        return CLOCKS if self.kernel.machine.engine.name == "deterministic" else ("local",)

    def now(self, array: TraceArray, cpu: int) -> int:
        """The time by an array's clock, on a CPU."""
        if array.clock == "counter":
            return self.memory.read_u64(self.counter_address)
        machine = self.kernel.machine
        return round(machine.engine.vcpu_time(machine.vcpus[cpu]) * 1e9)

    def mark(self, array: TraceArray, event: EventId, body: bytes) -> bool:
        """Write an event of a user's into the buffer of the first CPU that is traced.

        Returns whether it is there: no CPU may be traced, or there may be no room.
        """
        cpu = next((cpu for cpu in range(self.nr_cpus) if array.cpumask >> cpu & 1), None)
        if cpu is None:
            return False

        def write() -> bool:
            if array.clock == "counter":
                count = self.memory.read_u64(self.counter_address) + 1
                self.memory.write_u64(self.counter_address, count)
            return array.buffer.cpus[cpu].write(int(event), body, self.now(array, cpu))

        return self.stop(write)

    def open_calls(self, cpu: int) -> int:
        """On a CPU: calls that function_graph has shown the entry of and that have not returned."""
        return self.ret_stacks.open_calls(cpu)

    def option(self, array: TraceArray, name: str) -> bool:
        """Whether an option is on for a trace array."""
        return array.options.get(name, OPTIONS[name])

    # --- stopping ---

    def stop(self, fn: Callable[[], T]) -> T:
        """Run ``fn`` with the machine stopped and no vCPU in a tracer."""
        if self.ftrace is None:
            return self.kernel.machine.stop_machine(fn)
        return self.ftrace.stop(fn)

    # --- who listens ---

    def listeners(self) -> Listeners:
        """Who wants what, as the state of everything says."""
        top = self.global_array
        hashes: dict[int, OpsHash] = {}
        for array in self.arrays():
            if array.tracer == "function":
                hashes[array.bit] = array.hash
        if top.tracer == "function_graph":
            hashes[TraceBit.GRAPH] = self._of_hookable(top.hash)
        if self.profile.enabled:
            hashes[TraceBit.PROFILE] = self._of_hookable(top.hash)
        if self.stack_tracer.enabled:
            hashes[TraceBit.STACK] = self.stack_tracer.hash
        probes = self._probes()
        if probes:
            sites = site_array(probe.site for probe in probes)
            hashes[TraceBit.PROBE] = OpsHash(filter=sites, only=True)
        marks: dict[int, tuple[int, NDArray[np.uint64]]] = {
            TraceBit.GRAPH_FUNCTION: (int(TraceBit.GRAPH), self.graph.functions),
            TraceBit.GRAPH_NOTRACE: (int(TraceBit.GRAPH), self.graph.notrace),
        }
        return Listeners(hashes, marks)

    def _of_hookable(self, chosen: OpsHash) -> OpsHash:
        """Without functions that return by iret: they have no return address to hook."""
        irets = self.kernel.image.iret_sites
        return replace(chosen, notrace=np.union1d(chosen.notrace, irets)) if len(irets) else chosen

    def _probes(self) -> list[FunctionProbe]:
        return [probe for array in self.arrays() for probe in array.probes]

    @contextmanager
    def changing(self, commit: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Change state in the body; then who listens follows, in one stop, or all is as before.

        The body replaces attributes named in ``_CHANGING``, of trace arrays, ``graph``, ``profile``
        and ``stack_tracer``, and mutates none.

        :param commit: called inside the stop.
        """
        with self.lock:
            owners = [*self.arrays(), self.graph, self.profile, self.stack_tracer]
            before = [
                {name: vars(owner)[name] for name in _CHANGING if name in vars(owner)}
                for owner in owners
            ]
            try:
                yield
                self._listen(commit)
            except BaseException:
                for owner, state in zip(owners, before, strict=True):
                    vars(owner).update(state)
                raise

    def _listen(self, commit: Callable[[], None]) -> None:
        if self.ftrace is None or self._probe_table is None:
            commit()
            return
        probes = self._probe_table.prepare(self._probes())

        def in_stop() -> None:
            probes.install()
            self.graph.write()
            self.write_plain()
            commit()

        try:
            self.ftrace.listen(self.listeners(), in_stop)
        except BaseException:
            probes.discard()
            raise

    # --- tracers ---

    def set_tracer(self, array: TraceArray, tracer: str) -> None:
        """``current_tracer``: setting another one empties the buffer."""
        with self.lock:
            if tracer == array.tracer:
                return
            if tracer == "function_graph":
                self.ret_stacks.alloc()
            before = array.tracer

            def commit() -> None:
                array.discard()
                if "function_graph" in (before, tracer):
                    self.graph.begin_session()

            with self.changing(commit):
                array.tracer = tracer

    def set_profile(self, enabled: bool) -> None:
        """``function_profile_enabled``: enabling begins with empty tables."""
        with self.lock:
            if enabled == self.profile.enabled:
                return
            if enabled:
                self.ret_stacks.alloc()
                self.profile.alloc()
            bit = 1 << TraceBit.PROFILE

            def commit() -> None:
                if enabled:
                    self.profile.clear()
                    self.kernel.enable_bits(bit)
                else:
                    self.kernel.disable_bits(bit)

            with self.changing(commit):
                self.profile.enabled = enabled

    # --- triggers ---

    def triggers_beyond_one(self) -> dict[int, int]:
        """Of sites with triggers: how many kinds more than one; each is an ops in Linux."""
        kinds: dict[int, set[tuple[str, ProbeKind]]] = {}
        for probe in self._probes():
            kinds.setdefault(probe.site, set()).add((probe.array.name, probe.kind))
        return {site: len(found) - 1 for site, found in kinds.items()}

    def probe_count(self, probe: FunctionProbe) -> int:
        """How often a trigger may still act."""
        return probe.count if self._probe_table is None else self._probe_table.count(probe)

    def _act(self, probe: FunctionProbe, vcpu: VCpu) -> None:
        """A trigger came true, in this vCPU's thread."""
        match probe.kind:
            case ProbeKind.TRACEON | ProbeKind.TRACEOFF:
                probe.array.set_on(probe.kind is ProbeKind.TRACEON)
            case ProbeKind.SNAPSHOT:
                probe.array.swap_snapshot()
            case ProbeKind.DUMP | ProbeKind.CPUDUMP:
                probe.array.set_on(False)
                cpu = vcpu.index if probe.kind is ProbeKind.CPUDUMP else None
                self.on_dump(probe.array, cpu)

    def note_on(self, mask: int, on: bool) -> None:
        """Tell guest code, whose triggers look at it, whether an array is on."""
        if self.ftrace is None:
            return
        with self._on_lock:
            bits = self.kernel.read("ftrace_tracing_on")
            self.kernel.write("ftrace_tracing_on", bits | mask if on else bits & ~mask)

    def write_plain(self) -> None:
        """Tell guest code whether the plain cases it has written out are all there is.

        They read the TSC, and rely on what the guest's interrupt entries do.
        """
        arrays = self.arrays()
        plain = (
            self.kernel.machine.engine.name == "threaded"
            and "trace_irqflags" in self.kernel.image.symbols
            and not any(array.pid_filter for array in arrays)
            and not any(array.clock == "counter" for array in arrays)
            and not self.global_array.option("func_stack_trace")
            and not (self.global_array.tracer == "function_graph" and self.graph.chooses)
        )
        bit = 1 << TraceBit.KNOWN
        if plain:
            self.kernel.disable_bits(bit)
        else:
            self.kernel.enable_bits(bit)

    # --- tasks ---

    def set_pid_filter(self, array: TraceArray, pid_filter: PidFilter) -> None:
        """Change which tasks an array ignores.

        :raises ImageError: the guest's RAM is used up; nothing was changed.
        """
        before, array.pid_filter = array.pid_filter, pid_filter
        try:
            self.write_pids()
        except BaseException:
            array.pid_filter = before
            self.write_plain()
            raise

    def write_pids(self) -> None:
        """Tell guest code which tasks who ignores."""
        if self.ftrace is None:
            return
        self.write_plain()
        filtered = [array for array in self.arrays() if array.pid_filter]
        if not filtered:
            self.kernel.write("ftrace_pid_ignored", 0)
            return
        if self._pid_table is None:
            pages = PID_MAX * 4 // PAGE_SIZE
            self._pid_address = self.pool.alloc(pages)
            self._pid_table = self.memory.view(self._pid_address, "<u4", PID_MAX)
        words = np.zeros(PID_MAX, dtype=np.uint32)
        for array in filtered:
            bits = array.bits | (1 << TraceBit.PROFILE if array.is_global else 0)
            ignored = [pid for pid in range(PID_MAX) if array.pid_filter.ignores(pid)]
            words[ignored] |= np.uint32(bits)
        self._pid_table[:] = words
        self.kernel.write("ftrace_pid_ignored", self._pid_address)

    # --- instances ---

    def make_instance(self, name: str) -> TraceArray | None:
        """``mkdir instances/NAME``; None if there is no room for another."""
        with self.lock:
            taken = {array.bit for array in self.arrays()}
            free = [bit for bit in range(TraceBit.INSTANCE, TRACE_BITS) if bit not in taken]
            if not free:
                return None
            array = TraceArray(self, name, free[0])
            self.instances[name] = array
            return array

    def remove_instance(self, name: str) -> None:
        """``rmdir instances/NAME``: its tracer and triggers go with it."""
        with self.lock:
            array = self.instances[name]
            with self.changing():
                array.tracer, array.probes = "nop", []
            del self.instances[name]
            self.write_pids()
            self.kernel.disable_bits(array.bits)
            self.note_on(1 << array.bit, False)
            array.free()
