"""The emulated SMP computer: vCPUs over one memory, a clock, and stop_machine.

It knows nothing of ftrace, nor of the kernel that runs in it beyond a few words in guest memory
(:class:`~.engine.CpuWords`) and where saved instruction pointers may lie.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dynftrace_emu.errors import AddressSpaceError, MachineBusyError, OptionError, TextBusyError
from dynftrace_emu.machine.console import DebugConsole
from dynftrace_emu.machine.engine import CpuWords, Engine, Kthread, RunEnd
from dynftrace_emu.machine.exits import Exit, ExitReason
from dynftrace_emu.machine.hypercalls import Port
from dynftrace_emu.machine.vcpu import CODE_BUFFER_SIZE, VCpu, require_unicorn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynftrace_emu.machine.memory import GuestMemory

__all__ = ["MAX_VCPUS", "Machine", "SavedIps", "Stop", "TextSpan"]

MAX_VCPUS = 64
STOP_LIMIT_S = 5.0
"""How long stop_machine waits for a vCPU to park, on the engine's clock."""
_ADDRESS_SPACE_PER_VCPU = CODE_BUFFER_SIZE
_MAP_NORESERVE = 0x4000

T = TypeVar("T")
SavedIps = Callable[[], "Iterable[tuple[str, NDArray[np.uint64]]]"]
"""Yields words that may be instruction pointers, each array with a name for people."""


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Where no ip may be: in what is about to change, or in code that is using it.

    ``size`` bytes at each of the sorted ``addresses`` are about to change: an ip at the first is
    outside. ``in_use``: a vCPU whose preempt count is so large is using what changes, wherever its
    ip is; 0: none is. Who has an ip in one of the ``sections``, from the first byte to before the
    second, is using it too.
    """

    addresses: NDArray[np.uint64]
    size: int
    in_use: int = 0
    sections: tuple[tuple[int, int], ...] = ()

    def inside(self, ips: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Those of ``ips`` behind the first byte of one of the spans, or in a section."""
        inside = self._in_spans(ips)
        for begin, end in self.sections:
            inside |= (ips >= np.uint64(begin)) & (ips < np.uint64(end))
        return ips[inside]

    def _in_spans(self, ips: NDArray[np.uint64]) -> NDArray[np.bool_]:
        if not len(self.addresses) or not len(ips):
            return np.zeros(len(ips), dtype=np.bool_)
        index = np.searchsorted(self.addresses, ips, side="left") - 1
        start = self.addresses[np.maximum(index, 0)]
        inside: NDArray[np.bool_] = (index >= 0) & (ips - start < self.size)
        return inside


@dataclass(frozen=True, slots=True)
class Stop:
    """One stop of the machine: when, how long, and where each vCPU stood."""

    time: float  # seconds on the engine's clock
    pause_us: float  # 0 on the virtual clock
    parked: tuple[tuple[int, int], ...]  # (vCPU, ip)
    tries: int


class Machine:
    """vCPUs, memory, a clock.

    :param memory: loaded with what is to run.
    :param nr_vcpus: 1 to 64.
    :param engine: makes the engine for this machine.
    :param timer_vector: where timer interrupts go; ``hz`` of them a second, 0 for none.
    :param nmi_rate: NMIs a second and vCPU, at most.
    :raises AddressSpaceError: the host gives no address space for so many vCPUs.
    """

    def __init__(
        self,
        memory: GuestMemory,
        nr_vcpus: int,
        engine: Callable[[Machine], Engine],
        *,
        timer_vector: int = 0xEF,
        hz: int = 0,
        nmi_rate: float = 0.0,
    ) -> None:
        require_unicorn()
        if not 1 <= nr_vcpus <= MAX_VCPUS:
            raise OptionError(f"{nr_vcpus} vCPUs: 1 to {MAX_VCPUS} are possible")
        _require_address_space(nr_vcpus, memory.size)
        self.memory = memory
        self.vcpus = [VCpu(index, memory) for index in range(nr_vcpus)]
        self.words = [CpuWords()] * nr_vcpus
        self.timer_vector, self.hz, self.nmi_rate = timer_vector, hz, nmi_rate
        self.nmis = [0] * nr_vcpus
        self.console = DebugConsole()
        self.dead_hlt_is_end = False
        """Whether ``hlt`` that nothing will end is how a CPU says it has finished."""
        self.stops: list[Stop] = []
        self.saved_ips: list[SavedIps] = []
        # Held for a whole stop, by the thread that asked for it; never taken by a vCPU's thread.
        # Order: DynamicFtrace's lock, this one, the engine's.
        self._stop_lock = threading.Lock()
        self._stopper: int | None = None  # the thread that holds it
        self._running = False  # written by the thread that calls run()
        self.engine = engine(self)
        for vcpu in self.vcpus:
            self._connect_ports(vcpu)

    def _connect_ports(self, vcpu: VCpu) -> None:
        vcpu.out_ports = {
            Port.DEBUG_CONSOLE: self._out_console,
            Port.EXIT: lambda _, code: Exit(ExitReason.SHUTDOWN, code & 0xFF),
            Port.SAFEPOINT: lambda *_: Exit(ExitReason.SAFEPOINT),
            Port.CPU_OFFLINE: lambda *_: Exit(ExitReason.OFFLINE),
            Port.CPU_START: self._out_start,
        }

    def _out_console(self, vcpu: VCpu, value: int) -> None:
        self.console.put(vcpu.index, value)

    def _out_start(self, vcpu: VCpu, index: int) -> None:
        if 0 < index < len(self.vcpus):
            self.engine.start_vcpu(index, vcpu)

    # --- time ---

    def now(self) -> float:
        """Seconds since the start, on the engine's clock."""
        return self.engine.now()

    def kthread(self, name: str, body: Kthread, *, daemon: bool = False) -> None:
        """Run ``body`` beside the guest: it works, and yields how many seconds to sleep.

        :param daemon: it does not keep a machine going in which every vCPU has halted for good.
        """
        self.engine.kthread(name, body, daemon=daemon)

    def run(self, seconds: float | None = None) -> RunEnd:
        """Run for ``seconds`` (None: until the guest ends); afterwards every vCPU is parked.

        :raises GuestFault: a vCPU cannot go on.
        :raises GuestExit: the guest gave up.
        :raises StopMachineTimeout: a vCPU does not park.
        """
        self._running = True
        try:
            return self.engine.run(seconds)
        finally:
            self._running = False
            self.console.flush()

    def interrupt(self) -> None:
        """Make :meth:`run` come back soon."""
        self.engine.interrupt()

    # --- text ---

    def poke_text(self, addresses: NDArray[np.uint64], rows: NDArray[np.uint8]) -> None:
        """Store one row of bytes at each address; rows of 1, 2, 4 or 8 bytes are single stores.

        Nothing a vCPU has translated changes until :meth:`sync_text`.
        """
        self.memory.scatter(addresses, rows)
        for vcpu in self.vcpus:
            vcpu.mark_stale(addresses, rows.shape[1])

    def sync_text(self) -> None:
        """Make every vCPU, parked or not started, see the text as it is (``text_poke_sync``).

        Those that drop all they have translated, which takes a while, do so side by side.
        """
        flushing = [vcpu for vcpu in self.vcpus if vcpu.flushes]
        if len(flushing) > 1:
            with ThreadPoolExecutor(len(flushing), "sync") as threads:
                list(threads.map(VCpu.sync, flushing))
        for vcpu in self.vcpus:
            vcpu.sync()

    # --- stopping ---

    def stop_machine(self, fn: Callable[[], T], text: Callable[[], TextSpan] | None = None) -> T:
        """Run ``fn`` while every vCPU is parked, sync them all, let them go.

        :param text: asked once they are parked: what ``fn`` will change. No place that may hold an
            ip points inside it when ``fn`` runs: a vCPU is stepped out, or the stop tried again.
        :raises StopMachineTimeout: a vCPU did not park; ``fn`` was not called.
        :raises MachineBusyError: called from inside ``fn``.
        :raises TextBusyError: some saved ip stays inside; ``fn`` was not called.
        """
        if self._stopper == threading.get_ident():
            raise MachineBusyError("stop_machine was called by the thread that has stopped it")
        with self._stop_lock, self._stopping():
            if not self._running and not any(vcpu.has_run for vcpu in self.vcpus):
                return self._run_stopped(fn)  # before the first instruction: nobody is to be parked
            deadline = self.now() + STOP_LIMIT_S
            tries = 1
            while True:
                started, when = time.perf_counter(), self.now()
                self.engine.park()
                try:
                    busy = self._busy(text() if text is not None else None)
                    if not busy:
                        return self._run_stopped(fn)
                finally:
                    parked = self._parked_ips()
                    self.engine.release()
                    self._note_stop(when, started, parked, tries)
                if self.now() >= deadline:
                    raise TextBusyError(f"stop_machine: {busy}")
                self.stops.pop()  # a try that changed nothing is no stop
                tries += 1
                self.engine.run_between_tries()

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        self._stopper = threading.get_ident()
        try:
            yield
        finally:
            self._stopper = None

    def _run_stopped(self, fn: Callable[[], T]) -> T:
        try:
            return fn()
        finally:
            self.sync_text()

    def _parked_ips(self) -> tuple[tuple[int, int], ...]:
        return tuple((vcpu.index, vcpu.rip) for vcpu in self.vcpus)

    def _note_stop(
        self, when: float, started: float, parked: tuple[tuple[int, int], ...], tries: int
    ) -> None:
        pause = (time.perf_counter() - started) * 1e6 if self.engine.name == "threaded" else 0.0
        self.stops.append(Stop(when, pause, parked, tries))

    def _busy(self, span: TextSpan | None) -> str:
        """Who points inside the span, after stepping vCPUs out; empty if nobody does."""
        if span is None:
            return ""
        for vcpu in self.vcpus:
            if self._is_busy(span, vcpu) and not self.engine.step_out(
                vcpu, partial(self._is_busy, span)
            ):
                return f"vCPU {vcpu.index} is at work with what is to change, at {vcpu.rip:#x}"
        for source in self.saved_ips:
            for name, ips in source():
                if len(inside := span.inside(ips)):
                    return f"{name} holds {int(inside[0]):#x}, inside a site"
        return ""

    def _is_busy(self, span: TextSpan, vcpu: VCpu) -> bool:
        word = self.words[vcpu.index].preempt_count
        if span.in_use and word is not None and word[0] >= span.in_use:
            return True
        return bool(len(span.inside(np.array([vcpu.rip], dtype=np.uint64))))


def _require_address_space(nr_vcpus: int, ram: int) -> None:
    needed = nr_vcpus * _ADDRESS_SPACE_PER_VCPU + ram
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    try:
        mmap.mmap(-1, needed, flags=flags, prot=mmap.PROT_READ).close()
    except (OSError, ValueError, OverflowError):
        raise AddressSpaceError(
            f"{nr_vcpus} vCPUs need {needed >> 30} GiB of address space, which this host does not "
            "allow: use fewer vCPUs, or raise the limit (ulimit -v)"
        ) from None
