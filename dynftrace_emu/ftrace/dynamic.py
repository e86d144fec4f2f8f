"""``DynamicFtrace``: the state machine of the seed, which the daemon and the controls act through.

Sites that run for the first time call mcount, which leads to the recorder. A pass, or a change of
who listens, deals with them: those that somebody wants call ``ftrace_caller``, the others become a
jump. Text, the map of who wants what, and whatever else a tracer goes by change together, in
:meth:`DynamicFtrace._run_update_code`, inside stop_machine.

Locks, in the order they are taken: ``_ftraced_lock`` (a pass, or a change of listeners, as a
whole), the machine's stop lock, ``_record_lock`` (a record or a page made; a leaf, taken by vCPU
threads). Nothing waits for a vCPU while it holds ``_record_lock``.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dynftrace_emu.errors import FtraceBusyError, FtraceStateError
from dynftrace_emu.ftrace.arch import FtraceArch
from dynftrace_emu.ftrace.encodings import JMP, MCOUNT_INSN_SIZE, Encoding
from dynftrace_emu.ftrace.events import (
    Observers,
    PageAdded,
    SiteRecorded,
    TextChanged,
    TracingSwitched,
)
from dynftrace_emu.ftrace.ops import Listeners, OpsHash
from dynftrace_emu.ftrace.protocols import Protocol, stop_machine_protocol
from dynftrace_emu.ftrace.records import FtraceHash, hash_long
from dynftrace_emu.ftrace.site_map import SiteMap
from dynftrace_emu.kernel.structs import (
    ENTRIES_PER_PAGE,
    FTRACE_RECORD_PORT,
    TRACER_OFFSET,
    Skip,
    TraceBit,
)
from dynftrace_emu.machine.machine import TextSpan
from dynftrace_emu.machine.vcpu import Reg, VCpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dynftrace_emu.ftrace.patcher import Outcome
    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["DynamicFtrace", "Pass"]

T = TypeVar("T")

_MARKS = 1 << TraceBit.GRAPH_FUNCTION | 1 << TraceBit.GRAPH_NOTRACE


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
    :param known: sites to take at once, as Linux's table gives them since d61f82d06672's
        successors; others are recorded when they run, as in the seed.
    """

    def __init__(
        self,
        kernel: GuestKernel,
        *,
        disabled: Encoding = JMP,
        boot_records: int = ENTRIES_PER_PAGE,
        protocol: Protocol = stop_machine_protocol,
        known: NDArray[np.uint64] | None = None,
    ) -> None:
        self._kernel = kernel
        self._machine = kernel.machine
        self.arch = FtraceArch(kernel, disabled, protocol)
        self.hash = FtraceHash(kernel)
        self.map = SiteMap(kernel)
        self.observers = Observers()
        self.recorded_in_nmi: list[int] = []  # sites that broke the rule of S12
        self._ftraced_lock = threading.Lock()
        self._owner: int | None = None  # thread that holds it
        self._record_lock = threading.Lock()
        # Guarded by _ftraced_lock:
        self._converted = 0  # records that a pass or a change has dealt with
        self._enable_count = 0
        self._listeners = Listeners()
        self._was_tracing = False
        self._ftrace_enabled = True
        # Changed with every vCPU parked: whether mcount leads to the recorder.
        self._recording = True
        # Set by vCPU threads under _record_lock, cleared in a pass, with every vCPU parked.
        self._ftraced_trigger = False
        self.arch.shutdown_arch_init(boot_records)
        kernel.enable_bits(1 << TraceBit.COUNT)
        if known is not None and len(known):
            self._take(known)
        for vcpu in kernel.machine.vcpus:
            vcpu.in_ports[FTRACE_RECORD_PORT] = self._record_ip

    # --- state ---

    @property
    def tracing(self) -> bool:
        """Whether somebody listens, and is let."""
        return bool(self._wanted)

    @property
    def _wanted(self) -> Listeners:
        """Those who listen, and the counting one; nobody while ``ftrace_enabled`` is 0."""
        if not self._ftrace_enabled:
            return Listeners()
        if not self._enable_count:
            return self._listeners
        hashes = {**self._listeners.hashes, TraceBit.COUNT: OpsHash()}
        return Listeners(hashes, self._listeners.marks)

    @property
    def ftrace_enabled(self) -> bool:
        """The switch over it all (S15), as ``/proc/sys/kernel/ftrace_enabled``."""
        return self._ftrace_enabled

    @property
    def recorded(self) -> int:
        """Records used, failed ones included."""
        return self.arch.records.used

    def _take(self, sites: NDArray[np.uint64]) -> None:
        """Record these sites and disable them, before anybody runs the code."""
        self.arch.records.add_many(sites + np.uint64(MCOUNT_INSN_SIZE))
        self.arch.code_disable(0)
        self.map.set(sites, np.zeros(len(sites), dtype=np.uint32))
        self._converted = self.recorded

    # --- recording (S1, S2, S4) ---

    def _record_ip(self, vcpu: VCpu) -> int:
        """The hook behind a miss of the guest's recorder.

        It looks again: another vCPU may have recorded the site meanwhile, or a pass patched it.
        """
        ip = vcpu[Reg.RDI]
        with self._record_lock:
            if not self._recording:
                # This call loaded the pointer before recording ended, and was parked since.
                return Skip.SUSPENDED
            if self.hash.find(ip) is not None:
                return Skip.NONE
            site = ip - MCOUNT_INSN_SIZE
            if self.arch.is_disabled(site) or self.map.is_known(site):
                return Skip.PATCHED
            node = self.arch.alloc_shutdown_node(ip)
            if node is None:
                return Skip.NO_SLOT
            self.hash.add(node, ip)
            self._ftraced_trigger = True
            number = self.recorded - 1
            if vcpu.in_nmi:
                self.recorded_in_nmi.append(site)
        if self.observers.hear(SiteRecorded):
            self._notify_recorded(vcpu, ip, number)
        return Skip.NONE

    def _notify_recorded(self, vcpu: VCpu, ip: int, number: int) -> None:
        bucket = hash_long(ip)
        page, slot = self.arch.records.place(number)
        chain = self.hash.length(bucket)
        time, parent_ip = self._machine.engine.vcpu_time(vcpu), vcpu[Reg.RSI]
        self.observers.notify(
            SiteRecorded(time, vcpu.index, ip, parent_ip, bucket, chain, page, slot)
        )

    # --- the daemon's pass (S5, S6) ---

    def ftraced_pass(self) -> Pass:
        """One awakening of the daemon: patch what was recorded since the last, then replenish.

        The machine is stopped only if the trigger is set.

        :raises StopMachineTimeout: a vCPU did not park; nothing was changed, the next pass tries
            again.
        :raises FtraceBusyError: called from inside a pass.
        """
        outcome = None
        with self._locked():
            if self._ftraced_trigger and self._ftrace_enabled:
                outcome = self._run_update_code("ftraced", self._converted, self.arch.code_disable)
        with self._record_lock:
            pages = self.arch.shutdown_replenish()
        if pages:
            self.observers.notify(PageAdded(self._machine.now(), self.arch.records.capacity))
        if outcome is None:
            return Pass(False, 0, 0, pages)
        return Pass(True, int(outcome.patched.sum()), int(outcome.failed.sum()), pages)

    # --- who listens (S9, S10, S15) ---

    def startup(self) -> None:
        """Have every call counted, in ``pcpu.traced_calls``. Enables nest; the first acts.

        :raises StopMachineTimeout: a vCPU did not park; tracing stays as it was.
        :raises FtraceBusyError: called from inside a pass.
        """
        with self._locked(), self._as_before_on_error():
            self._enable_count += 1
            if self._enable_count == 1:
                self._update()

    def shutdown(self) -> None:
        """The opposite, when as often called as :meth:`startup`.

        :raises FtraceStateError: it was not enabled.
        :raises StopMachineTimeout: a vCPU did not park; tracing stays as it was.
        :raises FtraceBusyError: called from inside a pass.
        """
        with self._locked(), self._as_before_on_error():
            if self._enable_count == 0:
                raise FtraceStateError("tracing is not enabled")
            self._enable_count -= 1
            if self._enable_count == 0:
                self._update()

    def listen(self, listeners: Listeners, commit: Callable[[], None] = lambda: None) -> None:
        """Change who listens to which sites, in one stop: only sites that differ are written.

        :param commit: called inside the stop, for what else changes with it.
        :raises StopMachineTimeout: a vCPU did not park; everything stays as it was.
        :raises FtraceBusyError: called from inside a pass.
        """
        with self._locked(), self._as_before_on_error():
            self._listeners = listeners
            self._update(commit)

    def set_enabled(self, enabled: bool) -> None:
        """Write ``ftrace_enabled``: False leads mcount to the stub and patches the calls away.

        :raises StopMachineTimeout: a vCPU did not park; the switch stays as it was.
        :raises FtraceBusyError: called from inside a pass.
        """
        with self._locked(), self._as_before_on_error():
            if enabled == self._ftrace_enabled:
                return
            self._ftrace_enabled = enabled
            self._update(lambda: self._set_recording(enabled))

    def listening(self) -> list[tuple[int, int]]:
        """Each recorded site, ascending, and how many listen to it."""
        sites = self.arch.good_sites()
        bits = self._wanted.bits(sites) & ~np.uint32(_MARKS)
        counts = np.unpackbits(bits.view(np.uint8).reshape(-1, 4), axis=1).sum(axis=1)
        return list(zip(sites.tolist(), counts.tolist(), strict=True))

    def stop(self, fn: Callable[[], T]) -> T:
        """Run ``fn`` while the machine is stopped and no vCPU stands in a tracer.

        :raises StopMachineTimeout: a vCPU did not park; ``fn`` was not called.
        :raises FtraceBusyError: called from inside a pass.
        """
        with self._locked():
            nothing = np.zeros(0, dtype=np.uint64)
            span = TextSpan(nothing, MCOUNT_INSN_SIZE, TRACER_OFFSET, self._kernel.restarts)
            return self._machine.stop_machine(fn, text=lambda: span)

    def _update(self, commit: Callable[[], None] = lambda: None) -> None:
        before, now = self._was_tracing, self.tracing
        convert = self.arch.startup_code if now else self.arch.shutdown_code
        why = "startup_code" if now else "shutdown_code"
        outcome = self._run_update_code(why, 0, convert, commit)
        self._was_tracing = now
        if before != now:
            patched = int(outcome.patched.sum())
            self.observers.notify(TracingSwitched(self._machine.now(), now, patched))

    # --- the one way to change text ---

    def _run_update_code(
        self,
        why: str,
        start: int,
        convert: Callable[..., Outcome],
        commit: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Suspend recording, stop the machine, convert, clear the trigger, resume.

        Records that no pass has seen yet are dealt with in the same stop, and leave the hash.
        """
        self._kernel.write("ftrace_record_suspended", 1)
        try:
            return self._machine.stop_machine(
                lambda: self._update_stopped(why, start, convert, commit),
                text=lambda: self._span(start),
            )
        finally:
            self._kernel.write("ftrace_record_suspended", 0 if self._recording else 1)

    def _span(self, start: int) -> TextSpan:
        wanted = self._wanted.bits(self.arch.sites(start)) != 0
        changing = self.arch.changing(start, wanted)
        return TextSpan(changing, MCOUNT_INSN_SIZE, TRACER_OFFSET, self._kernel.restarts)

    def _update_stopped(
        self, why: str, start: int, convert: Callable[..., Outcome], commit: Callable[[], None]
    ) -> Outcome:
        sites = self.arch.sites(start)
        told = self.observers.hear(TextChanged)
        before = self._machine.memory.gather(sites, MCOUNT_INSN_SIZE) if told else None
        bits = self._wanted.bits(sites)
        wanted = bits != 0
        outcome = convert(start, wanted) if why == "ftraced" else convert(wanted)
        self.map.set(sites[~outcome.failed], bits[~outcome.failed])
        self._kernel.write("ftrace_unknown_ops", self._wanted.unknown)
        self._forget_converted()
        self._ftraced_trigger = False
        commit()
        if before is not None:
            self._notify_changed(why, sites, before, outcome)
        return outcome

    def _forget_converted(self) -> None:
        """Patched records leave the hash, failed ones stay (S6)."""
        records = self.arch.records
        new = records.ips(self._converted)
        self.hash.drop(new, records.ips()[records.failed()])
        self._converted = records.used

    def _set_recording(self, recording: bool) -> None:
        """Where mcount leads; before the guest's initcall has run, where it will lead."""
        self._recording = recording
        self._kernel.write("ftrace_record_suspended", 0 if recording else 1)
        address = self._kernel.image.address("ftrace_record_ip" if recording else "ftrace_stub")
        self._kernel.write("ftrace_initial_function", address)
        if recording and not self._kernel.read("ftrace_ready"):
            address = self._kernel.image.address("ftrace_stub")
        self._kernel.write("ftrace_trace_function", address)

    def _notify_changed(
        self, why: str, sites: NDArray[np.uint64], before: NDArray[np.uint8], outcome: Outcome
    ) -> None:
        after = self._machine.memory.gather(sites, MCOUNT_INSN_SIZE)
        touched = outcome.failed | (before != after).any(axis=1)
        parked = tuple((vcpu.index, vcpu.rip) for vcpu in self._machine.vcpus)
        self.observers.notify(
            TextChanged(
                self._machine.now(), why, sites[touched], before[touched], after[touched],
                outcome.failed[touched], parked,
            )
        )  # fmt: skip

    # --- helpers ---

    @contextmanager
    def _as_before_on_error(self) -> Iterator[None]:
        """A change that fails changes nothing: text and guest words only change inside the stop."""
        before = self._listeners, self._enable_count, self._ftrace_enabled
        try:
            yield
        except BaseException:
            self._listeners, self._enable_count, self._ftrace_enabled = before
            raise

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
