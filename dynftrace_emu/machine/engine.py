"""What the two engines share: how vCPUs are started, and what follows an exit.

An engine decides which vCPU runs when, and when interrupts, NMIs and stops come. The threaded one
(:mod:`.threaded`) has a host thread a vCPU and the wall clock, the deterministic one
(:mod:`.deterministic`) a seeded schedule and a virtual clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from dynftrace_emu.errors import GuestFault
from dynftrace_emu.machine import faults
from dynftrace_emu.machine.exits import Exit, ExitReason
from dynftrace_emu.machine.interrupts import DeliveryError, deliver, has_handler
from dynftrace_emu.machine.vcpu import Reg, VCpu, error_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dynftrace_emu.machine.machine import Machine

__all__ = ["CpuWords", "Engine", "Kthread", "Park", "RunEnd", "VCpuState"]

Kthread = Generator[float, None, None]
"""Host code that runs beside the guest: it yields how many seconds to sleep."""

NMI_VECTOR = 2
MAX_NMI_INSTRUCTIONS = 1_000_000
_INT_N = 0xCD
_FROM_IDT = 2  # in an error code: the selector is an index into the IDT


class Park(Enum):
    """Where stop_machine may park a vCPU."""

    PREEMPTIBLE = "preemptible"
    """Interrupts on, preempt count 0, outside any handler: what Linux's stop_machine guarantees."""
    ANYWHERE = "anywhere"
    """Between any two instructions: harsher than any real machine, to test with."""


class VCpuState(Enum):
    """What a vCPU is doing, as the engine sees it."""

    WAITING = auto()  # not started yet
    RUNNING = auto()
    HALTED = auto()
    PARKED = auto()
    DONE = auto()  # it went offline


class RunEnd(Enum):
    """Why :meth:`Engine.run` came back without an error."""

    TIME = "time"
    OFFLINE = "offline"  # every vCPU has finished
    SHUTDOWN = "shutdown"  # exit port, code 0
    INTERRUPTED = "interrupted"
    IDLE = "idle"  # every vCPU halted and nothing will ever wake one


@dataclass(frozen=True, slots=True)
class CpuWords:
    """A vCPU's words in guest memory, views of one item each; None: it has no such word."""

    requests: NDArray[np.uint64] | None = None
    clock_ns: NDArray[np.uint64] | None = None
    pvclock: NDArray[Any] | None = None  # a record of PVCLOCK_FIELDS
    preempt_count: NDArray[np.uint64] | None = None


class Engine(ABC):
    """Runs the vCPUs of one machine."""

    name: str

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    # --- for whoever uses the machine ---

    @abstractmethod
    def now(self) -> float:
        """Seconds since the machine started, on this engine's clock."""

    def vcpu_time(self, vcpu: VCpu) -> float:
        """Seconds on a vCPU's own clock, where that differs."""
        return self.now()

    @abstractmethod
    def kthread(self, name: str, body: Kthread, *, daemon: bool = False) -> None:
        """Run ``body`` beside the guest; the sleeps it yields are on this engine's clock.

        A machine in which nothing will ever happen ends; a ``daemon`` is no reason to wait.
        """

    @abstractmethod
    def run(self, seconds: float | None) -> RunEnd:
        """Run the machine for ``seconds`` more, then park every vCPU.

        :raises GuestFault: a vCPU cannot go on.
        :raises GuestExit: the exit port, with a code other than 0.
        :raises StopMachineTimeout: a vCPU did not park.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Make :meth:`run` come back soon; from any thread or a signal handler."""

    # --- for Machine.stop_machine ---

    @abstractmethod
    def park(self) -> None:
        """Park every vCPU that is online.

        :raises StopMachineTimeout: one does not park; the others run on.
        """

    @abstractmethod
    def release(self) -> None:
        """Let the parked vCPUs go on."""

    @abstractmethod
    def step_out(self, vcpu: VCpu, is_busy: Callable[[VCpu], bool]) -> bool:
        """Move a parked vCPU until it is not ``is_busy``; False if this engine cannot."""

    @abstractmethod
    def run_between_tries(self) -> None:
        """After a release: let the guest get on before the stop is tried again."""

    @abstractmethod
    def start_vcpu(self, index: int, starter: VCpu | None) -> None:
        """Bring a vCPU up: now, or as soon as :meth:`run` is called."""

    # --- shared ---

    def set_clock(self, vcpu: VCpu, ns: int) -> None:
        """Write the guest's clock word."""
        word = self.machine.words[vcpu.index].clock_ns
        if word is not None:
            word[0] = ns

    def set_pvclock(self, vcpu: VCpu, counter: int, mul: int, count: int, ns: int) -> None:
        """Tell the guest how to make time of what it counts, which is ``count`` at ``ns``.

        (:data:`.hypercalls.PVCLOCK_FIELDS`.)
        """
        record = self.machine.words[vcpu.index].pvclock
        if record is not None:
            record[0] = (counter, mul, (ns - (count * mul >> 32)) % (1 << 64))

    def is_preemptible(self, vcpu: VCpu) -> bool:
        """Whether Linux's stop_machine could have stopped this vCPU here."""
        word = self.machine.words[vcpu.index].preempt_count
        if word is not None and word[0]:
            return False
        return vcpu.interrupts_on and not vcpu.nmi.blocked

    def why_not_preemptible(self, vcpu: VCpu) -> str:
        """The same, in words."""
        if not vcpu.interrupts_on:
            return "interrupts are off"
        word = self.machine.words[vcpu.index].preempt_count
        if word is not None and word[0]:
            return f"preempt count is {word[0]}"
        return "it is in an NMI handler" if vcpu.nmi.blocked else "it reached no safepoint"

    def deliver_exception(self, vcpu: VCpu, exit_: Exit) -> None:
        """Hand an exception to the guest's handler.

        :raises GuestFault: it has none.
        """
        if exit_.reason is ExitReason.BUS_ERROR:
            raise GuestFault(vcpu.index, f"bus error: {error_text(exit_.value)}", vcpu.rip)
        vector = exit_.value
        if vcpu.read(vcpu.rip - 2, 2) == bytes([_INT_N, vector]):
            return self._deliver_software_interrupt(vcpu, vector)
        return self._deliver_fault(vcpu, vector, faults.error_code(vcpu, vector))

    def _deliver_software_interrupt(self, vcpu: VCpu, vector: int) -> None:
        """``int n``: never an error code; without a gate a protection fault at the instruction."""
        if has_handler(vcpu, vector):
            deliver(vcpu, vector)
        else:
            vcpu.rip -= 2
            self._deliver_fault(vcpu, faults.GENERAL_PROTECTION, vector << 3 | _FROM_IDT)

    def _deliver_fault(self, vcpu: VCpu, vector: int, code: int | None) -> None:
        try:
            deliver(vcpu, vector, code)
        except DeliveryError as error:
            if vector != faults.DOUBLE_FAULT and self._double_fault(vcpu):
                return
            raise self._fault(vcpu, vector, code, str(error)) from None

    @staticmethod
    def _double_fault(vcpu: VCpu) -> bool:
        try:
            deliver(vcpu, faults.DOUBLE_FAULT, 0)
        except DeliveryError:
            return False
        return True

    @staticmethod
    def _fault(vcpu: VCpu, vector: int, code: int | None, why: str) -> GuestFault:
        name = faults.NAMES.get(vector, f"vector {vector}")
        what = f"{name}, not handled: {why}"
        cr2 = vcpu[Reg.CR2] if vector == faults.PAGE_FAULT else None
        return GuestFault(vcpu.index, what, vcpu.rip, vector=vector, error_code=code, cr2=cr2)

    def deliver_nmi(self, vcpu: VCpu) -> None:
        """Enter the NMI handler.

        :raises GuestFault: the guest has none.
        """
        try:
            deliver(vcpu, NMI_VECTOR)
        except DeliveryError as error:
            raise self._fault(vcpu, NMI_VECTOR, None, str(error)) from None
        self.machine.nmis[vcpu.index] += 1

    def has_nmi(self, vcpu: VCpu) -> bool:
        """Whether NMIs come to this vCPU: until it has a gate, their source is off."""
        return self.machine.nmi_rate > 0 and has_handler(vcpu, NMI_VECTOR)

    def has_timer(self, vcpu: VCpu) -> bool:
        """Whether the guest takes timer interrupts: until it has a gate, its timer is off."""
        return self.machine.hz > 0 and has_handler(vcpu, self.machine.timer_vector)

    def deliver_timer(self, vcpu: VCpu) -> None:
        """Enter the timer interrupt's handler, which must be there.

        :raises GuestFault: its stack is not.
        """
        vector = self.machine.timer_vector
        try:
            deliver(vcpu, vector)
        except DeliveryError as error:
            raise self._fault(vcpu, vector, None, str(error)) from None

    def dead_cpu(self, vcpu: VCpu) -> GuestFault:
        """What to raise when ``hlt`` was executed with interrupts off and no NMI will come."""
        what = "dead CPU: hlt with interrupts off, and no NMI source to wake it"
        return GuestFault(vcpu.index, what, vcpu.rip - 1)
