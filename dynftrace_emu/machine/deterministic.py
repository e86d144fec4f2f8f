"""The deterministic engine: one thread, a seeded schedule of slices, a virtual clock.

Time is counted in instructions: ``virtual_hz`` of them are a second of every vCPU. The vCPU whose
clock is furthest behind runs next, for a slice of random length that ends at the latest where
something is due: a tick, an NMI, host code. So those come between any two instructions, and the
same seed gives the same run. A slice that ends early is charged with what it has run.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynftrace_emu.errors import GuestExit, GuestFault, OptionError, StopMachineTimeout
from dynftrace_emu.machine.engine import (
    MAX_NMI_INSTRUCTIONS,
    Engine,
    Kthread,
    Park,
    RunEnd,
    VCpuState,
)
from dynftrace_emu.machine.exits import Exit, ExitReason
from dynftrace_emu.machine.interrupts import in_interrupt_shadow
from dynftrace_emu.machine.machine import STOP_LIMIT_S
from dynftrace_emu.machine.schedule import Slot
from dynftrace_emu.machine.vcpu import Reg, VCpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynftrace_emu.machine.machine import Machine

__all__ = ["DEFAULT_VIRTUAL_HZ", "DeterministicEngine"]

DEFAULT_VIRTUAL_HZ = 2_000_000
_SLICES = (4, 60, 800, 6000, 12000, 12000)
"""Bounds that a slice's random length is drawn under: mostly long, now and then very short."""
_NS = 1_000_000_000
_PARK_SLICE = 48
_WINDOW_SLICE = 16  # instructions between two looks whether IF is on
_BETWEEN_TRIES = 2000
_STEPS_OUT = (*[1] * 16, *[64] * 256)
"""A site is left after an instruction. What takes longer may read the clock, for which it needs
some instructions at a time."""
_SETTLE_INSTRUCTIONS = 50_000


@dataclass(order=True, slots=True)
class _Sleeper:
    """Host code, to be resumed at ``time``; ties go in the order they were made."""

    time: int
    order: int
    body: Kthread = field(compare=False)
    daemon: bool = field(compare=False)


class DeterministicEngine(Engine):
    """Runs all vCPUs in the caller's thread, in an order that ``seed`` determines."""

    name = "deterministic"

    def __init__(
        self,
        machine: Machine,
        *,
        seed: int = 0,
        virtual_hz: int = DEFAULT_VIRTUAL_HZ,
        park: Park = Park.PREEMPTIBLE,
    ) -> None:
        super().__init__(machine)
        if virtual_hz < 1000:
            raise OptionError(f"--virtual-hz {virtual_hz}: at least 1000 instructions a second")
        self.park_rule = park
        self.virtual_hz = virtual_hz
        self._random = random.Random(seed)
        self._slots = [Slot(vcpu) for vcpu in machine.vcpus]
        self._sleepers: list[_Sleeper] = []
        self._order = itertools.count()
        self._global_clock = 0
        self._parked = False
        self._interrupted = False
        self._end: RunEnd | None = None
        self._counter = machine.memory.map_counter()
        self._mul = (_NS << 32) // virtual_hz

    # --- time ---

    def now(self) -> float:
        return self._global_clock / self.virtual_hz

    def vcpu_time(self, vcpu: VCpu) -> float:
        """When the slice began that ``vcpu`` is in, or its clock between two slices."""
        return self._slots[vcpu.index].clock / self.virtual_hz

    def kthread(self, name: str, body: Kthread, *, daemon: bool = False) -> None:
        # It begins with the next run(), as a thread would.
        first = _Sleeper(self._global_clock, next(self._order), body, daemon)
        heapq.heappush(self._sleepers, first)

    def _sleep(self, body: Kthread, since: int, daemon: bool) -> None:
        """Run host code up to its next sleep, which counts from when it has done its work."""
        for delay in body:
            due = max(since, self._global_clock) + max(1, round(delay * self.virtual_hz))
            heapq.heappush(self._sleepers, _Sleeper(due, next(self._order), body, daemon))
            return

    def interrupt(self) -> None:
        self._interrupted = True

    # --- the schedule ---

    def start_vcpu(self, index: int, starter: VCpu | None) -> None:
        slot = self._slots[index]
        if slot.state is not VCpuState.WAITING:
            return
        slot.state = VCpuState.RUNNING
        slot.clock = self._slots[starter.index].clock if starter else self._global_clock
        if self.machine.hz:
            slot.ticks = slot.clock * self.machine.hz // self.virtual_hz
            self._next_tick(slot)
        if self.machine.nmi_rate:
            self._next_nmi(slot)

    def _next_tick(self, slot: Slot) -> None:
        slot.ticks += 1
        slot.next_tick = slot.ticks * self.virtual_hz // self.machine.hz

    def _next_nmi(self, slot: Slot) -> None:
        period = max(1, int(self.virtual_hz / self.machine.nmi_rate))
        slot.next_nmi = slot.clock + period + self._below(period)

    def _below(self, bound: int) -> int:
        # random() is the one method whose sequence Python promises to keep.
        return int(self._random.random() * bound)

    def run(self, seconds: float | None) -> RunEnd:
        end = None if seconds is None else self._global_clock + round(seconds * self.virtual_hz)
        self._interrupted, self._end = False, None
        reason = self._run_until(end)
        if reason is not RunEnd.TIME:
            self._now_is_where_they_are()
        if reason is not RunEnd.SHUTDOWN:
            self._settle()
        return reason

    def _settle(self) -> None:
        """Leave every vCPU where no update is half done, if it gets there at all.

        Under the rule *anywhere* a guest need never turn interrupts on; then it stays where it is.
        """
        if self.park_rule is Park.PREEMPTIBLE:
            self._park_all(Park.PREEMPTIBLE, round(STOP_LIMIT_S * self.virtual_hz))
        else:
            with contextlib.suppress(StopMachineTimeout):
                self._park_all(Park.PREEMPTIBLE, _SETTLE_INSTRUCTIONS)

    def _now_is_where_they_are(self) -> None:
        """The run ended between two events: time has come to the vCPU that got furthest."""
        clocks = [slot.clock for slot in self._slots if slot.state is not VCpuState.WAITING]
        self._global_clock = max([self._global_clock, *clocks])

    def _run_until(self, end: int | None) -> RunEnd:
        while True:
            horizon = self._horizon(end)
            slot = self._next_slot(horizon)
            if slot is not None:
                self._slice(slot, self._slice_length(), horizon)
                if slot.state is VCpuState.HALTED and self._all_asleep_for_ever():
                    return RunEnd.IDLE
            elif not any(slot.online for slot in self._slots):
                return RunEnd.OFFLINE
            elif horizon is None or self._all_asleep_for_ever():
                return RunEnd.IDLE
            else:
                self._advance(horizon)
                if end is not None and self._global_clock >= end:
                    return RunEnd.TIME
            if self._end is not None:
                return self._end
            if self._interrupted:
                return RunEnd.INTERRUPTED

    def _all_asleep_for_ever(self) -> bool:
        if any(not sleeper.daemon for sleeper in self._sleepers):
            return False
        return all(self._sleeps_for_ever(slot) for slot in self._slots if slot.online)

    def _sleeps_for_ever(self, slot: Slot) -> bool:
        if slot.state is not VCpuState.HALTED or self.has_nmi(slot.vcpu):
            return False
        return not (slot.vcpu.interrupts_on and self.has_timer(slot.vcpu))

    def _horizon(self, end: int | None) -> int | None:
        times = [self._sleepers[0].time] if self._sleepers else []
        return min([*times, *([] if end is None else [end])], default=None)

    def _next_slot(self, horizon: int | None) -> Slot | None:
        """The vCPU that is furthest behind and has something to do before ``horizon``."""
        best = None
        for slot in self._slots:
            if slot.state is VCpuState.HALTED and not self._wakes(slot, horizon):
                continue
            if not slot.online or (horizon is not None and slot.clock >= horizon):
                continue
            if best is None or slot.clock < best.clock:
                best = slot
        return best

    @staticmethod
    def _wakes(slot: Slot, horizon: int | None) -> bool:
        """A halted vCPU's clock goes on to what may wake it, or to the horizon."""
        wake = slot.wake_time()
        times = [time for time in (wake, horizon) if time is not None]
        slot.clock = max(slot.clock, min(times, default=0))
        return wake is not None

    def _advance(self, time: int) -> None:
        """Every vCPU has reached ``time``: run the host code that is due."""
        self._global_clock = max(self._global_clock, time)
        while self._sleepers and self._sleepers[0].time <= time:
            sleeper = heapq.heappop(self._sleepers)
            self._sleep(sleeper.body, sleeper.time, sleeper.daemon)

    def _slice_length(self) -> int:
        return 1 + self._below(_SLICES[self._below(len(_SLICES))])

    def _slice(self, slot: Slot, length: int, horizon: int | None) -> None:
        """Deliver what is due, then run ``length`` instructions at most."""
        self._note_due(slot)
        length = min(length, self._deliver(slot))
        if slot.state is not VCpuState.RUNNING:
            return  # nothing woke it, or it is gone
        for bound in (slot.due(), horizon):
            if bound is not None and bound > slot.clock:
                length = min(length, bound - slot.clock)
        self._execute(slot, length)

    def _execute(self, slot: Slot, budget: int) -> None:
        """Run a vCPU for ``budget`` instructions at most, on its own clock, and act on its exit."""
        self._after(slot, self._run_vcpu(slot, budget))

    def _run_vcpu(self, slot: Slot, budget: int, *, stop_at_iret: bool = False) -> Exit:
        vcpu = slot.vcpu
        ns = slot.clock * _NS // self.virtual_hz
        self.set_clock(vcpu, ns)
        self.set_pvclock(vcpu, self._counter, self._mul, 0, ns)
        exit_ = vcpu.run(budget, stop_at_iret=stop_at_iret)
        slot.clock += max(1, vcpu.executed)  # who delivers exceptions without end gets on, too
        return exit_

    def _note_due(self, slot: Slot) -> None:
        if slot.next_tick is not None and slot.clock >= slot.next_tick:
            slot.timer_pending = self.has_timer(slot.vcpu)
            self._next_tick(slot)
        if slot.next_nmi is not None and slot.clock >= slot.next_nmi:
            if self.has_nmi(slot.vcpu):
                slot.vcpu.nmi.signal()
            self._next_nmi(slot)

    def _deliver(self, slot: Slot) -> int:
        """Deliver an NMI or the tick if the CPU takes it now; returns how far to run at most."""
        if slot.vcpu.nmi.take():
            self.deliver_nmi(slot.vcpu)
            slot.state = VCpuState.RUNNING
        elif slot.timer_pending:
            return self._deliver_tick(slot)
        return max(_SLICES)

    def _deliver_tick(self, slot: Slot) -> int:
        if slot.vcpu.interrupts_on and in_interrupt_shadow(slot.vcpu):
            self._execute(slot, 1)
        if not slot.online or not slot.vcpu.interrupts_on:
            return _WINDOW_SLICE
        slot.timer_pending = False
        self.set_clock(slot.vcpu, slot.clock * _NS // self.virtual_hz)
        self.deliver_timer(slot.vcpu)
        slot.state = VCpuState.RUNNING  # it may have stood at a hlt
        return max(_SLICES)

    def _after(self, slot: Slot, exit_: Exit) -> None:
        """Act on why a slice ended."""
        match exit_.reason:
            case ExitReason.EXCEPTION | ExitReason.BUS_ERROR:
                self.deliver_exception(slot.vcpu, exit_)
            case ExitReason.HALTED:
                if slot.vcpu.interrupts_on or self.has_nmi(slot.vcpu):
                    slot.state = VCpuState.HALTED
                elif self.machine.dead_hlt_is_end:
                    slot.state = VCpuState.DONE
                else:
                    raise self.dead_cpu(slot.vcpu)
            case ExitReason.IRET:
                self._execute(slot, 1)
            case ExitReason.OFFLINE:
                slot.state = VCpuState.DONE
            case ExitReason.SHUTDOWN:
                slot.state = VCpuState.DONE
                if exit_.value:
                    raise GuestExit(slot.vcpu.index, exit_.value)
                self._end = RunEnd.SHUTDOWN
            case _:
                pass

    # --- stopping ---

    def park(self) -> None:
        assert not self._parked
        self._park_all(self.park_rule, round(STOP_LIMIT_S * self.virtual_hz))
        self._parked = True
        self._nmis_while_parked()  # before the first store

    def _park_all(self, rule: Park, patience: int) -> None:
        """Run those that may not be parked yet, in turns: one may wait for another.

        :param patience: instructions that each of them gets at most.
        """
        now = max(slot.clock for slot in self._slots)  # one that starts meanwhile starts there
        limit = now + patience
        bound = float(_PARK_SLICE)
        while waiting := [slot for slot in self._slots if not self._may_park(slot, rule)]:
            slot = waiting[self._below(len(waiting))]
            if slot.clock >= limit:
                why = f"{self.why_not_preemptible(slot.vcpu)} for {STOP_LIMIT_S:g} s"
                raise StopMachineTimeout(slot.vcpu.index, slot.vcpu.rip, why)
            if slot.state is VCpuState.HALTED:
                self._wakes(slot, limit)
            self._slice(slot, 1 + self._below(int(bound)), None)
            bound = min(bound * 1.01, max(_SLICES))  # who does not park soon will hardly park

    def _may_park(self, slot: Slot, rule: Park) -> bool:
        if not slot.online or rule is Park.ANYWHERE:
            return True
        return self.is_preemptible(slot.vcpu)

    def release(self) -> None:
        self._nmis_while_parked()  # after the last one, and the sync
        self._parked = False

    def _nmis_while_parked(self) -> None:
        """A stop takes no virtual time; so of the NMIs to come, some are drawn into it."""
        for slot in self._slots:
            if not slot.online or slot.vcpu.nmi.blocked or not self.has_nmi(slot.vcpu):
                continue
            if self._below(4) == 0:
                self._next_nmi(slot)
                slot.vcpu.nmi.signal()
                self._run_nmi(slot)
                slot.state = VCpuState.RUNNING  # it wakes from hlt

    def _run_nmi(self, slot: Slot) -> None:
        """Run the NMI handler to its iretq; the vCPU then stands where it stood.

        (Unless the handler itself has changed its frame; then where that says.)
        """
        vcpu = slot.vcpu
        if not vcpu.nmi.take():
            return
        self.deliver_nmi(vcpu)
        frame = vcpu[Reg.RSP]
        for _ in range(MAX_NMI_INSTRUCTIONS // 1000):
            exit_ = self._run_vcpu(slot, 1000, stop_at_iret=True)
            if exit_.reason is ExitReason.IRET:
                last = vcpu[Reg.RSP] == frame
                self._run_vcpu(slot, 1)
                if last:
                    return
            elif exit_.reason in (ExitReason.EXCEPTION, ExitReason.BUS_ERROR):
                self.deliver_exception(vcpu, exit_)
        raise GuestFault(vcpu.index, "an NMI handler does not return", vcpu.rip)

    def step_out(self, vcpu: VCpu, is_busy: Callable[[VCpu], bool]) -> bool:
        slot = self._slots[vcpu.index]
        for steps in _STEPS_OUT:
            if not is_busy(vcpu):
                return self._may_park(slot, self.park_rule)
            self._execute(slot, steps)
        return False

    def run_between_tries(self) -> None:
        horizon = max(slot.clock for slot in self._slots if slot.online) + _BETWEEN_TRIES
        while (slot := self._next_slot(horizon)) is not None:
            self._slice(slot, self._slice_length(), horizon)
        self._global_clock = max(self._global_clock, horizon)
