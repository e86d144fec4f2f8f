"""The threaded engine: a host thread a vCPU, the wall clock, real parallelism.

Nobody stops another thread's vCPU while its state matters: a foreign ``emu_stop`` may run an
instruction twice. Stops, ticks and NMIs are bits in a vCPU's request word, which the guest polls at
its safepoints (``cond_resched``, idle, the end of a workload step), as Linux's stoppers run where
the scheduler does. It traps, and its own thread leaves the engine. Behind the trap the guest polls
again, so a parked vCPU that took an NMI parks once more at the same ip.

A guest that polls nothing gets a gate (:mod:`.native_hook`), which looks at the word in front of
each block, and waits for interrupts to be on where that is needed. If the guest cannot be served
for another reason, it is left alone for twice as many blocks each time.

One lock, ``_cond``, guards everything that more than one thread touches: the phase, the slots'
state and requests, and the outcome. A vCPU's registers belong to its own thread, and to the stopper
while the slot is PARKED and the phase STOPPED.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING

from dynftrace_emu.errors import GuestExit, NativeHookError, StopMachineTimeout
from dynftrace_emu.machine.engine import Engine, Kthread, Park, RunEnd, VCpuState
from dynftrace_emu.machine.exits import Exit, ExitReason
from dynftrace_emu.machine.hostthreads import HostThreads
from dynftrace_emu.machine.hypercalls import Request
from dynftrace_emu.machine.interrupts import in_interrupt_shadow
from dynftrace_emu.machine.machine import STOP_LIMIT_S
from dynftrace_emu.machine.tsc import TscRate

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynftrace_emu.machine.machine import Machine
    from dynftrace_emu.machine.vcpu import VCpu

__all__ = ["ThreadedEngine"]

_NOTHING = Request(0)
_LOST_VCPU_S = 2.0
"""How long to wait for a vCPU that was killed to come back, before its state is read."""
_LONGEST_GRACE = 1 << 12
"""Blocks, about 20 us: as much as it costs to look again."""


class _Phase(Enum):
    """How far a stop is; NMIs are held while it is STOPPED."""

    RUNNING = auto()
    PARKING = auto()
    STOPPED = auto()


@dataclass(slots=True, eq=False)
class _Slot:
    """One vCPU and its thread. All fields are guarded by the engine's lock.

    (But ``vcpu``, and what its own thread alone uses.)
    """

    vcpu: VCpu
    state: VCpuState = VCpuState.WAITING
    requests: Request = _NOTHING
    thread: threading.Thread | None = None
    lost: bool = False
    grace: int = 1  # its own thread's: blocks to run before its gate may stop it
    out_of_shadow: bool = False  # likewise

    @property
    def online(self) -> bool:
        return self.state in (VCpuState.RUNNING, VCpuState.HALTED, VCpuState.PARKED)


class ThreadedEngine(Engine):
    """Runs each vCPU in a thread of its own; the caller's thread only waits."""

    name = "threaded"

    def __init__(self, machine: Machine, *, park: Park = Park.PREEMPTIBLE) -> None:
        super().__init__(machine)
        self.park_rule = park
        self._cond = threading.Condition()
        self._slots = [_Slot(vcpu) for vcpu in machine.vcpus]
        self._phase = _Phase.RUNNING
        self._finishing = False
        self._end: RunEnd | None = None
        self._error: BaseException | None = None
        self._threads = HostThreads(self._fail)
        self._elapsed = 0.0
        self._started: float | None = None
        self._tsc = TscRate()

    # --- time and host threads ---

    def now(self) -> float:
        started = self._started
        return self._elapsed + (time.perf_counter() - started if started is not None else 0.0)

    def kthread(self, name: str, body: Kthread, *, daemon: bool = False) -> None:
        self._threads.kthread(name, body, daemon=daemon)

    def _fail(self, error: BaseException) -> None:
        with self._cond:
            if self._error is None:
                self._error = error
            self._cond.notify_all()

    def interrupt(self) -> None:
        # From a signal handler the lock may be held by the very thread that was interrupted:
        # so no lock here. The waiter looks every so often.
        self._end = self._end or RunEnd.INTERRUPTED

    # --- running ---

    def start_vcpu(self, index: int, starter: VCpu | None) -> None:
        with self._cond:
            slot = self._slots[index]
            if self.machine.words[index].requests is None:
                self._add_gate(slot.vcpu)
            if slot.state is VCpuState.WAITING:
                slot.state = VCpuState.RUNNING
                if self._phase is not _Phase.RUNNING:
                    self._request(slot, Request.STOP)
                if self._started is not None:
                    self._start_thread(slot)

    def _add_gate(self, vcpu: VCpu) -> None:
        words = self.machine.words
        try:
            words[vcpu.index] = replace(words[vcpu.index], requests=vcpu.add_gate())
        except NativeHookError as error:
            raise NativeHookError(
                "the threaded engine stops a guest where it polls a request word, which this one "
                f"does not, or by a native hook: {error}; use the deterministic engine"
            ) from None

    def _start_thread(self, slot: _Slot) -> None:
        name = f"vcpu{slot.vcpu.index}"
        slot.thread = threading.Thread(target=self._vcpu_main, args=(slot,), name=name, daemon=True)
        slot.thread.start()

    def run(self, seconds: float | None) -> RunEnd:
        self._end, self._error, self._finishing = None, None, False
        started = self._set_clocks()
        deadline = None if seconds is None else started + seconds
        self._start()
        try:
            end = self._wait_for_end(deadline)
            self._threads.end()  # no stop is under way afterwards
            self._finish(end)
        finally:
            self._threads.end()
            self._elapsed = self.now()
            self._started = None
        if self._error is not None:
            raise self._error
        return end

    def _set_clocks(self) -> float:
        """The guest's clock and ours go on from the same moment, at the same rate."""
        mul = self._tsc.ns_per_count()
        now = self._tsc.sample()
        self._started = now.seconds
        for slot in self._slots:
            self.set_pvclock(slot.vcpu, 0, mul, now.count, int(self._elapsed * 1e9))
        return now.seconds

    def _start(self) -> None:
        with self._cond:
            for slot in self._slots:
                if slot.online:
                    slot.state = VCpuState.RUNNING
                    self._start_thread(slot)
        self._threads.begin()
        for name, request, rate in (
            ("timer", Request.TIMER, self.machine.hz),
            ("nmi", Request.NMI, self.machine.nmi_rate),
        ):
            if rate:
                self._threads.ticker(name, rate, partial(self._request_all, request))

    def _request_all(self, request: Request) -> None:
        with self._cond:
            for slot in self._slots:
                if slot.online:
                    self._request(slot, request)
            self._cond.notify_all()

    def _wait_for_end(self, deadline: float | None) -> RunEnd:
        with self._cond:
            while self._error is None and self._end is None:
                if not any(slot.online for slot in self._slots):
                    return RunEnd.OFFLINE
                if self._all_asleep_for_ever():
                    return RunEnd.IDLE
                left = 0.1 if deadline is None else min(0.1, deadline - time.perf_counter())
                if left <= 0:
                    return RunEnd.TIME
                self._cond.wait(left)
        return self._end or RunEnd.SHUTDOWN

    def _all_asleep_for_ever(self) -> bool:
        if self._threads.busy:
            return False
        return all(self._sleeps_for_ever(slot) for slot in self._slots if slot.online)

    def _sleeps_for_ever(self, slot: _Slot) -> bool:
        """Whether it has halted and nothing will wake it. Its thread waits for our lock."""
        if slot.state is not VCpuState.HALTED:
            return False
        return not self.has_timer(slot.vcpu) and not self.has_nmi(slot.vcpu)

    def _finish(self, end: RunEnd) -> None:
        """Park every vCPU for the last time and let its thread end."""
        try:
            if self._error is None and end is not RunEnd.SHUTDOWN:
                self.park()
        except StopMachineTimeout as error:
            self._error = error
        with self._cond:
            self._finishing = True
            self._phase = _Phase.RUNNING
            for slot in self._slots:
                self._clear(slot, Request.STOP)
                if slot.online and slot.state is not VCpuState.PARKED:
                    self._request(slot, Request.STOP)
            self._cond.notify_all()
        for slot in self._slots:
            self._join(slot)

    def _join(self, slot: _Slot) -> None:
        if slot.thread is None:
            return
        slot.thread.join(STOP_LIMIT_S if self._error is None else 0.5)
        if slot.thread.is_alive():
            self._kill(slot)
        slot.thread = None

    def _kill(self, slot: _Slot) -> None:
        """End a run that is lost anyway, to learn where it was."""
        with self._cond:
            slot.lost = True
        deadline = time.perf_counter() + _LOST_VCPU_S
        while slot.thread is not None and slot.thread.is_alive():
            slot.vcpu.kill()  # is lost itself if it comes while the vCPU is not inside
            slot.thread.join(0.01)
            if time.perf_counter() > deadline:
                break

    # --- a vCPU's thread ---

    def _vcpu_main(self, slot: _Slot) -> None:
        try:
            while self._may_run(slot):
                exit_ = slot.vcpu.run(grace=slot.grace, at_once=self._at_once(slot.vcpu))
                self._after(slot, exit_)
        except BaseException as error:  # noqa: BLE001 - handed on to run(), whatever it is
            with self._cond:
                slot.state = VCpuState.DONE if slot.lost else slot.state
            if not slot.lost:
                self._fail(error)

    def _at_once(self, vcpu: VCpu) -> Request:
        """What a gate need not wait with until interrupts are on."""
        nmi = _NOTHING if vcpu.nmi.blocked else Request.NMI
        return nmi | (Request.STOP if self.park_rule is Park.ANYWHERE else _NOTHING)

    def _may_park(self, vcpu: VCpu) -> bool:
        """Whether a stop may find it here.

        Under the rule *anywhere* too it is not stopped while it uses what a stop may change: it
        could not be stepped out.
        """
        if self.park_rule is Park.PREEMPTIBLE:
            return self.is_preemptible(vcpu)
        word = self.machine.words[vcpu.index].preempt_count
        return word is None or not word[0]

    def _may_run(self, slot: _Slot) -> bool:
        with self._cond:
            return not slot.lost and slot.state in (VCpuState.RUNNING, VCpuState.HALTED)

    def _after(self, slot: _Slot, exit_: Exit) -> None:
        if slot.lost:
            return
        match exit_.reason:
            case ExitReason.SAFEPOINT:
                self._serve(slot)
            case ExitReason.GATE:
                self._serve_at_gate(slot)
            case ExitReason.HALTED:
                self._halted(slot)
            case ExitReason.EXCEPTION | ExitReason.BUS_ERROR:
                self.deliver_exception(slot.vcpu, exit_)
            case ExitReason.OFFLINE:
                self._set_state(slot, VCpuState.DONE)
            case ExitReason.SHUTDOWN:
                self._set_state(slot, VCpuState.DONE)
                self._shut_down(slot, exit_.value)
            case _:
                pass

    def _set_state(self, slot: _Slot, state: VCpuState) -> None:
        with self._cond:
            slot.state = state
            self._cond.notify_all()

    def _shut_down(self, slot: _Slot, code: int) -> None:
        if code:
            raise GuestExit(slot.vcpu.index, code)
        with self._cond:
            self._end = self._end or RunEnd.SHUTDOWN
            self._cond.notify_all()

    def _serve_at_gate(self, slot: _Slot) -> None:
        """Its gate stopped it, which the guest knows nothing of: maybe behind ``sti``."""
        slot.out_of_shadow = not slot.out_of_shadow and in_interrupt_shadow(slot.vcpu)
        if slot.out_of_shadow:
            slot.grace = 1
            return
        self._serve(slot)
        with self._cond:
            served = not slot.requests
        slot.grace = 1 if served else min(2 * slot.grace, _LONGEST_GRACE)

    def _serve(self, slot: _Slot) -> None:
        """Something is requested of a guest that can be interrupted: park, or enter a handler."""
        vcpu = slot.vcpu
        with self._cond:
            while True:
                if self._finishing:
                    slot.state = VCpuState.PARKED
                    return
                if self._take_nmi(slot):
                    return
                if Request.STOP not in slot.requests or not self._may_park(vcpu):
                    break
                self._park_here(slot)
            slot.state = VCpuState.RUNNING
            if Request.TIMER in slot.requests and self._takes_ticks(vcpu):
                self._take_timer(slot)

    def _takes_ticks(self, vcpu: VCpu) -> bool:
        return vcpu.interrupts_on or not self.has_timer(vcpu)

    def _halted(self, slot: _Slot) -> None:
        """``hlt``: wait for something that wakes this CPU; stops find it parked here."""
        vcpu = slot.vcpu
        if not vcpu.interrupts_on and not self.has_nmi(vcpu):
            if not self.machine.dead_hlt_is_end:
                raise self.dead_cpu(vcpu)
            self._set_state(slot, VCpuState.DONE)
            return
        may_park = vcpu.interrupts_on or self.park_rule is Park.ANYWHERE
        with self._cond:
            while True:
                if self._finishing:
                    slot.state = VCpuState.PARKED
                    return
                if Request.STOP in slot.requests and may_park:
                    if self._may_take_nmi(slot):
                        vcpu.rip -= 1  # back to the hlt: it parks there again
                        self._take_nmi(slot)
                        return
                    self._park_here(slot)
                elif self._take_nmi(slot):
                    return
                elif Request.TIMER in slot.requests and vcpu.interrupts_on:
                    self._take_timer(slot)
                    if slot.state is VCpuState.RUNNING:
                        return
                else:
                    slot.state = VCpuState.HALTED
                    self._cond.wait()

    def _park_here(self, slot: _Slot) -> None:
        slot.state = VCpuState.PARKED
        self._cond.notify_all()
        self._cond.wait()

    def _may_take_nmi(self, slot: _Slot) -> bool:
        if Request.NMI in slot.requests and not self.has_nmi(slot.vcpu):
            self._clear(slot, Request.NMI)
        return Request.NMI in slot.requests and self._phase is not _Phase.STOPPED

    def _take_nmi(self, slot: _Slot) -> bool:
        if not self._may_take_nmi(slot):
            return False
        slot.vcpu.nmi.signal()
        if not slot.vcpu.nmi.take():
            return False
        self._clear(slot, Request.NMI)
        slot.state = VCpuState.RUNNING
        self.deliver_nmi(slot.vcpu)
        return True

    def _take_timer(self, slot: _Slot) -> None:
        """Enter the handler; without one the tick is lost."""
        self._clear(slot, Request.TIMER)
        if self.has_timer(slot.vcpu):
            slot.state = VCpuState.RUNNING
            self.set_clock(slot.vcpu, int(self.now() * 1e9))
            self.deliver_timer(slot.vcpu)

    def _request(self, slot: _Slot, request: Request) -> None:
        self._write_requests(slot, slot.requests | request)

    def _clear(self, slot: _Slot, request: Request) -> None:
        self._write_requests(slot, slot.requests & ~request)

    def _write_requests(self, slot: _Slot, requests: Request) -> None:
        slot.requests = requests
        word = self.machine.words[slot.vcpu.index].requests
        if word is not None:
            word[0] = int(requests)

    # --- stopping ---

    def park(self) -> None:
        deadline = time.perf_counter() + STOP_LIMIT_S
        with self._cond:
            self._phase = _Phase.PARKING
            for slot in self._slots:
                if slot.online:
                    self._request(slot, Request.STOP)
            self._cond.notify_all()
            while waiting := self._not_parked():
                if self._error is not None:
                    break
                left = deadline - time.perf_counter()
                if left <= 0:
                    break
                self._cond.wait(left)
            else:
                self._phase = _Phase.STOPPED
                return
        self.release()
        self._give_up(waiting[0])

    def _not_parked(self) -> list[_Slot]:
        return [
            slot
            for slot in self._slots
            if slot.online and slot.state is not VCpuState.PARKED and slot.thread is not None
        ]

    def _give_up(self, slot: _Slot) -> None:
        vcpu = slot.vcpu
        with self._cond:
            if self._error is not None:
                raise StopMachineTimeout(vcpu.index, vcpu.rip, "the run has failed")
        self._kill(slot)
        why = f"{self.why_not_preemptible(vcpu)} for {STOP_LIMIT_S:g} s"
        raise StopMachineTimeout(vcpu.index, vcpu.rip, why)

    def release(self) -> None:
        with self._cond:
            self._phase = _Phase.RUNNING
            for slot in self._slots:
                self._clear(slot, Request.STOP)
                if slot.state is VCpuState.PARKED and not self._finishing:
                    slot.state = VCpuState.RUNNING
            self._cond.notify_all()

    def step_out(self, vcpu: VCpu, is_busy: Callable[[VCpu], bool]) -> bool:
        # Safepoints are never inside a site; a foreign place can only be left by running on.
        return False

    def run_between_tries(self) -> None:
        with self._cond:
            self._cond.wait(0.001)
