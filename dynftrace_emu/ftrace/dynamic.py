"""``DynamicFtrace``: the state machine of the seed, which the daemon and the controls act through.

States: recording (mcount leads to the recorder), tracing (to the tracer), off (to the stub). Text
changes only in :meth:`_run_update_code`, inside stop_machine.

Locks, in the order they are taken: ``_ftraced_lock`` (a pass, or a switch of tracing, as a whole),
the machine's stop lock, ``_record_lock`` (a record or a page made; a leaf, taken by vCPU threads).
Nothing waits for a vCPU while it holds ``_record_lock``.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.errors import FtraceBusyError, FtraceStateError
from dynftrace_emu.ftrace.arch import FtraceArch
from dynftrace_emu.ftrace.encodings import JMP, MCOUNT_INSN_SIZE, Encoding
from dynftrace_emu.ftrace.events import (
    FtraceEvent,
    Observer,
    PageAdded,
    SiteRecorded,
    TextChanged,
    TracingSwitched,
)
from dynftrace_emu.ftrace.protocols import Protocol, stop_machine_protocol
from dynftrace_emu.ftrace.records import FtraceHash, hash_long
from dynftrace_emu.kernel.structs import ENTRIES_PER_PAGE, FTRACE_RECORD_PORT, Skip
from dynftrace_emu.machine.machine import TextSpan
from dynftrace_emu.machine.vcpu import Reg, VCpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dynftrace_emu.ftrace.patcher import Outcome
    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["DynamicFtrace", "Pass"]


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass of the daemon did."""

    stopped: bool
    patched: int
    failed: int
    pages_added: int


class DynamicFtrace:
    """Dynamic ftrace of one running kernel.

    :param kernel: booted, not yet run.
    :param disabled: how a disabled site reads: the seed's jump, or the later nop.
    :param boot_records: the batch at boot, in records; given out in whole pages.
    :param protocol: how text is changed while the machine is stopped.
    """

    def __init__(
        self,
        kernel: GuestKernel,
        *,
        disabled: Encoding = JMP,
        boot_records: int = ENTRIES_PER_PAGE,
        protocol: Protocol = stop_machine_protocol,
    ) -> None:
        self._kernel = kernel
        self._machine = kernel.machine
        self.arch = FtraceArch(kernel, disabled, protocol)
        self.hash = FtraceHash(kernel)
        self.observers: list[Observer] = []
        self.recorded_in_nmi: list[int] = []  # sites that broke the rule of S12
        self._ftraced_lock = threading.Lock()
        self._owner: int | None = None  # thread that holds it
        self._record_lock = threading.Lock()
        # Guarded by _ftraced_lock:
        self._converted = 0  # records that a pass or a switch has dealt with
        self._enable_count = 0
        self._ftrace_enabled = True
        # Changed with every vCPU parked: whether mcount leads to the recorder.
        self._recording = True
        # Set by vCPU threads under _record_lock, cleared in a pass, with every vCPU parked.
        self._ftraced_trigger = False
        self.arch.shutdown_arch_init(boot_records)
        for vcpu in kernel.machine.vcpus:
            vcpu.in_ports[FTRACE_RECORD_PORT] = self._record_ip

    # --- state ---

    @property
    def tracing(self) -> bool:
        """Whether mcount leads to the tracer."""
        return self._enable_count > 0 and self._ftrace_enabled

    @property
    def ftrace_enabled(self) -> bool:
        """The switch over it all (S15), as ``/proc/sys/kernel/ftrace_enabled``."""
        return self._ftrace_enabled

    @property
    def recorded(self) -> int:
        """Records used, failed ones included."""
        return self.arch.records.used

    # --- recording (S1, S2, S4) ---

    def _record_ip(self, vcpu: VCpu) -> int:
        """The hook behind a miss of the guest's recorder.

        It looks again: another vCPU may have recorded the site meanwhile, or a pass patched it.
        """
        ip, parent_ip = vcpu[Reg.RDI], vcpu[Reg.RSI]
        with self._record_lock:
            if not self._recording:
                # This call loaded the pointer before tracing came on, and was parked since.
                return Skip.SUSPENDED
            if self.hash.find(ip) is not None:
                return Skip.NONE
            if self._is_disabled(ip - MCOUNT_INSN_SIZE):
                return Skip.PATCHED
            node = self.arch.alloc_shutdown_node()
            if node is None:
                return Skip.NO_SLOT
            self.hash.add(node, ip)
            self._ftraced_trigger = True
            number = self.recorded - 1
            if vcpu.in_nmi:
                self.recorded_in_nmi.append(ip - MCOUNT_INSN_SIZE)
        if self.observers:
            self._notify_recorded(vcpu, ip, parent_ip, number)
        return Skip.NONE

    def _is_disabled(self, site: int) -> bool:
        found = self._machine.memory.read(site, MCOUNT_INSN_SIZE)
        row = self.arch.disabled.rows(np.array([site], dtype=np.uint64), 0)[0]
        return found is not None and found[:2] == row[:2].tobytes()

    def _notify_recorded(self, vcpu: VCpu, ip: int, parent_ip: int, number: int) -> None:
        bucket = hash_long(ip)
        page, slot = self.arch.records.place(number)
        chain = sum(1 for _ in self.hash.chain(bucket))
        time = self._machine.engine.vcpu_time(vcpu)
        self._notify(SiteRecorded(time, vcpu.index, ip, parent_ip, bucket, chain, page, slot))

    # --- the daemon's pass (S5, S6) ---

    def ftraced_pass(self) -> Pass:
        """One awakening of the daemon: patch what was recorded since the last, then replenish.

        The machine is stopped only if the trigger is set and tracing is not on.

        :raises StopMachineTimeout: a vCPU did not park; nothing was changed, the next pass tries
            again.
        :raises FtraceBusyError: called from inside a pass.
        """
        outcome = None
        with self._locked():
            if self._ftraced_trigger and not self.tracing and self._ftrace_enabled:
                outcome = self._update_code()
        with self._record_lock:
            pages = self.arch.shutdown_replenish()
        if pages:
            self._notify(PageAdded(self._machine.now(), self.arch.records.capacity))
        if outcome is None:
            return Pass(False, 0, 0, pages)
        return Pass(True, int(outcome.patched.sum()), int(outcome.failed.sum()), pages)

    def _update_code(self) -> Outcome:
        start = self._converted
        return self._run_update_code(
            "ftraced", start, lambda: self.arch.code_disable(start), pointer=None
        )

    # --- switching (S9, S10, S15) ---

    def startup(self) -> None:
        """Enable tracing. Enables nest; the first acts.

        :raises StopMachineTimeout: a vCPU did not park; tracing stays as it was.
        :raises FtraceBusyError: called from inside a pass.
        """
        with self._locked():
            if self._enable_count == 0 and self._ftrace_enabled:
                self._start_tracing()
            self._enable_count += 1

    def shutdown(self) -> None:
        """Disable tracing, when as often called as :meth:`startup`.

        :raises FtraceStateError: it was not enabled.
        :raises StopMachineTimeout: a vCPU did not park; tracing stays as it was.
        :raises FtraceBusyError: called from inside a pass.
        """
        with self._locked():
            if self._enable_count == 0:
                raise FtraceStateError("tracing is not enabled")
            if self._enable_count == 1 and self._ftrace_enabled:
                self._stop_tracing("ftrace_record_ip")
            self._enable_count -= 1

    def set_enabled(self, enabled: bool) -> None:
        """Write ``ftrace_enabled``: False leads mcount to the stub and patches the calls away.

        :raises StopMachineTimeout: a vCPU did not park; the switch stays as it was.
        :raises FtraceBusyError: called from inside a pass.
        """
        with self._locked():
            if enabled == self._ftrace_enabled:
                return
            if not enabled:
                self._stop_tracing("ftrace_stub")
            elif self._enable_count:
                self._start_tracing()
            else:
                self._machine.stop_machine(lambda: self._set_pointer("ftrace_record_ip"))
            self._ftrace_enabled = enabled

    def _start_tracing(self) -> None:
        outcome = self._run_update_code(
            "startup_code", 0, self.arch.startup_code, pointer="ftrace_count_call"
        )
        self._switched(True, outcome)

    def _stop_tracing(self, pointer: str) -> None:
        outcome = self._run_update_code(
            "shutdown_code", 0, self.arch.shutdown_code, pointer=pointer
        )
        if self.tracing:
            self._switched(False, outcome)

    def _switched(self, enabled: bool, outcome: Outcome) -> None:
        self._notify(TracingSwitched(self._machine.now(), enabled, int(outcome.patched.sum())))

    # --- the one way to change text ---

    def _run_update_code(
        self, why: str, start: int, convert: Callable[[], Outcome], pointer: str | None
    ) -> Outcome:
        """Suspend recording, stop the machine, convert, clear the trigger, resume.

        Records that no pass has seen yet are dealt with in the same stop, and leave the hash.
        """
        self._kernel.write("ftrace_record_suspended", 1)
        try:
            return self._machine.stop_machine(
                lambda: self._update_stopped(why, start, convert, pointer),
                text=lambda: TextSpan(np.sort(self.arch.sites(start)), MCOUNT_INSN_SIZE),
            )
        finally:
            self._kernel.write("ftrace_record_suspended", 0 if self._recording else 1)

    def _update_stopped(
        self, why: str, start: int, convert: Callable[[], Outcome], pointer: str | None
    ) -> Outcome:
        sites = self.arch.sites(start)
        before = self._machine.memory.gather(sites, MCOUNT_INSN_SIZE)
        outcome = convert()
        self._forget_converted()
        self._ftraced_trigger = False
        if pointer is not None:
            self._set_pointer(pointer)
        if self.observers:
            self._notify_changed(why, sites, before, outcome)
        return outcome

    def _forget_converted(self) -> None:
        """Patched records leave the hash, failed ones stay (S6)."""
        records = self.arch.records
        new = records.ips(self._converted)
        failed = records.ips()[records.failed()]
        self.hash.drop(new, set(failed.tolist()))
        self._converted = records.used

    def _set_pointer(self, function: str) -> None:
        """Where mcount leads; before the guest's initcall has run, where it will lead."""
        self._recording = function == "ftrace_record_ip"
        self._kernel.write("ftrace_record_suspended", 0 if self._recording else 1)
        address = self._kernel.image.address(function)
        self._kernel.write("ftrace_initial_function", address)
        if function == "ftrace_record_ip" and not self._kernel.read("ftrace_ready"):
            address = self._kernel.image.address("ftrace_stub")
        self._kernel.write("ftrace_trace_function", address)

    def _notify_changed(
        self, why: str, sites: NDArray[np.uint64], before: NDArray[np.uint8], outcome: Outcome
    ) -> None:
        after = self._machine.memory.gather(sites, MCOUNT_INSN_SIZE)
        parked = tuple((vcpu.index, vcpu.rip) for vcpu in self._machine.vcpus)
        time = self._machine.now()
        self._notify(TextChanged(time, why, sites, before, after, outcome.failed, parked))

    # --- helpers ---

    @contextmanager
    def _locked(self) -> Iterator[None]:
        me = threading.get_ident()
        if self._owner == me:
            raise FtraceBusyError("tracing cannot be switched from inside a pass")
        with self._ftraced_lock:
            self._owner = me
            try:
                yield
            finally:
                self._owner = None

    def _notify(self, event: FtraceEvent) -> None:
        for observer in self.observers:
            observer(event)
