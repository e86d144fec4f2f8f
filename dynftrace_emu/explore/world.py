"""One state of what is explored, and what can happen next in it.

Tasks run guest code on vCPUs; the patcher carries out a protocol's operations on a CPU of its own;
interrupts come. :meth:`World.actions` says what is possible, :meth:`World.act` does one of it. Who
chooses is elsewhere (:mod:`.search`).

A task runs up to the next instruction that others can notice: one that reads or writes more than
registers and its own stack, changes the interrupt flag, or lies in text that is patched. What lies
between commutes with all that others do, so no interleaving is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.explore import operations
from dynftrace_emu.explore.cores import Cores
from dynftrace_emu.explore.findings import Finding, FindingClass, Found
from dynftrace_emu.explore.lab import BREAKPOINT, NMI, TIMER, Lab, Registers
from dynftrace_emu.explore.model import Model, Text
from dynftrace_emu.explore.shim import Shim
from dynftrace_emu.explore.state import Action, Cpu, Kind, State, Task
from dynftrace_emu.explore.text import Spot, views
from dynftrace_emu.machine.engine import Park
from dynftrace_emu.machine.exits import Exit, ExitReason
from dynftrace_emu.machine.interrupts import DeliveryError
from dynftrace_emu.machine.vcpu import Reg

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from dynftrace_emu.explore.program import Operation, Program
    from dynftrace_emu.explore.watch import Watch

__all__ = ["Action", "Kind", "State", "World"]

_UNKNOWN = b""
"""What is known of guest data while it changes; a finding may leave it so."""
_MAX_QUIET_RUNS = 64
_PAUSES = 2
"""Who has paused so often while others changed nothing has seen all there is: it waits."""


@dataclass(frozen=True, slots=True)
class Points:
    """Addresses in guest code that mean something."""

    task_done: int
    unclaimed: int


class World:
    """A lab under a protocol.

    :param placed: the CPU each task is bound to.
    :param poker: a guest function is the patcher: it runs on the last CPU, beside the protocol.
    :param offline: CPUs that come online some time later.
    """

    def __init__(
        self,
        lab: Lab,
        program: Program,
        watch: Watch,
        model: Model,
        *,
        placed: Sequence[int],
        nmis: int = 0,
        timers: int = 0,
        poker: bool = False,
        offline: Collection[int] = (),
    ) -> None:
        self.lab, self.program, self.watch, self.model = lab, program, watch, model
        self.spots: Sequence[Spot] = program.spots
        self.patcher_cpu = len(lab.vcpus) - 1
        self.idle = len(lab.tasks)  # what the patcher's CPU runs: the poker, or NMIs alone
        self.cpu_of = [*placed, self.patcher_cpu]
        self.results: list[int] | None = None
        """RBX of each task at its end, when never patched; None while that is found out."""
        self.on_instruction: Callable[[int, int, bytes | None], None] | None = None
        """Told of every instruction: task, ip, and the bytes seen if they are being patched."""
        self.quiet = True
        """Whether instructions that nobody else can notice run in one go."""
        self.shim = Shim(lab, program)
        self._has_poker = poker
        self._points = Points(lab.image.address("lab_task_done"), lab.image.address("die_int3"))
        self._spot_at = {
            spot.address + offset: (index, offset)
            for index, spot in enumerate(self.spots)
            for offset in range(spot.size)
        }
        self._behind = {spot.address + spot.size: index for index, spot in enumerate(self.spots)}
        self._visible = {
            *self._spot_at, *self._behind, *watch.callbacks, *self.shim.calls,
            self._points.task_done, self._points.unclaimed,
        }  # fmt: skip
        self._cores = Cores(lab, self.spots, self._visible)
        self._data = lab.data
        self._set(self._first_state(nmis, timers, offline))

    def _first_state(self, nmis: int, timers: int, offline: Collection[int]) -> State:
        text = tuple(site.old for site in self.watch.sites)
        first: dict[int, int] = {}
        for task, cpu in enumerate(self.cpu_of):
            first.setdefault(cpu, task)
        idle = Task(self.lab.idle, done=not self._has_poker)
        tasks = (*(Task(registers) for registers in self.lab.tasks), idle)
        cpus = tuple(
            Cpu(first.get(n, self.idle), text, offline=n in offline)
            for n in range(len(self.lab.vcpus))
        )
        for spot, bytes_ in zip(self.spots, text, strict=True):
            self.lab.write_text(spot.physical, bytes_)
        return State(self.lab.data, tasks, cpus, text, (), 0, False, (), nmis, timers)

    # --- copying ---

    def save(self) -> State:
        """The state, to be gone back to."""
        return State(
            self._data, tuple(self.tasks), tuple(self.cpus), tuple(self.text), self.read,
            self.done, self.stopping, self.freed, self.nmis, self.timers,
        )  # fmt: skip

    def load(self, state: State) -> None:
        """Go back to it."""
        if state.data is not self._data:
            self.lab.data = state.data
        for index, bytes_ in enumerate(state.text):
            if bytes_ != self.text[index]:
                self.lab.write_text(self.spots[index].physical, bytes_)
        self._set(state)

    def _set(self, state: State) -> None:
        self._data = state.data
        self.tasks, self.cpus, self.text = list(state.tasks), list(state.cpus), list(state.text)
        self.read, self.done, self.stopping = state.read, state.done, state.stopping
        self.freed, self.nmis, self.timers = state.freed, state.nmis, state.timers

    # --- what can happen ---

    @property
    def begun(self) -> bool:
        """Whether the protocol has done anything."""
        if self._has_poker:
            return self.tasks[self.idle].registers != self.lab.idle
        return bool(self.done or self.read)

    @property
    def ended(self) -> bool:
        """Whether it has done everything."""
        return self._operation() is None and self.tasks[self.idle].done

    def _operation(self) -> Operation | None:
        operations = self.program.operations(self.read)
        return operations[self.done] if self.done < len(operations) else None

    @property
    def finished(self) -> bool:
        """Whether all tasks and the protocol have ended."""
        return self.ended and all(task.done and not task.frames for task in self.tasks)

    def actions(self) -> list[Action]:
        """Everything that can happen now, in a fixed order."""
        found: list[Action] = []
        for number, task in enumerate(self.tasks):
            if self._may_run(number, task):
                found.extend(Action(Kind.RUN, number, n) for n in range(self._nr_views(number)))
        operation = self._operation()
        if operation is not None and self._may_patch(operation):
            found.append(Action(Kind.PATCH, 0))
        for number, cpu in enumerate(self.cpus):
            if cpu.offline:
                if not self.stopping and not any(other.parked for other in self.cpus):
                    found.append(Action(Kind.ONLINE, number))  # stop_machine holds it off
                continue
            task = self.tasks[cpu.task]
            if cpu.owes_ack and _takes_interrupts(task) and not cpu.parked:
                found.append(Action(Kind.ACK, number))
            if self.stopping and not cpu.parked and self._may_park(number, task):
                found.append(Action(Kind.PARK, number))
            if self.nmis and not cpu.nmi_blocked:
                found.append(Action(Kind.NMI, number))
            if self.timers and not cpu.parked and self._takes_timer(number, task):
                found.append(Action(Kind.TIMER, number))
        return found

    def _may_run(self, number: int, task: Task) -> bool:
        if (task.done and not task.frames) or task.pauses >= _PAUSES:
            return False
        if (asked := _asked(task)) and not operations.possible(self, asked[0]):
            return False
        cpu = self.cpus[self.cpu_of[number]]
        if cpu.offline:
            return False
        if cpu.task == number:
            return not cpu.parked or NMI in task.frames
        other = self.tasks[cpu.task]
        return not cpu.parked and (not other.frames) and (other.done or self._preemptible(other))

    def _preemptible(self, task: Task) -> bool:
        """Linux's rule: interrupts on, preempt count 0."""
        return _takes_interrupts(task) and not task.frames

    def _takes_timer(self, cpu: int, task: Task) -> bool:
        """Nothing follows of one that comes to who has ended."""
        has_ended = self.ended if cpu == self.patcher_cpu else task.done
        return _takes_interrupts(task) and not has_ended

    def _may_park(self, number: int, task: Task) -> bool:
        if number == self.patcher_cpu:
            return False
        if self.model.park is Park.ANYWHERE:
            return NMI not in task.frames
        return task.done or self._preemptible(task)

    def _nr_views(self, number: int) -> int:
        if self.model.text is not Text.RELAXED:
            return 1
        cpu = self.cpus[self.cpu_of[number]]
        where = self._spot_at.get(_rip(self.tasks[number].registers))
        if where is None or not cpu.pending:
            return 1
        return len(views(cpu.seen[where[0]], cpu.pending, where[0]))

    def _may_patch(self, operation: Operation) -> bool:
        return not self.tasks[self.idle].frames and operations.possible(self, operation)

    # --- doing it ---

    def act(self, action: Action) -> None:
        """Do one of the possible actions.

        :raises Found: something happened that must not.
        """
        kind, who, view = action
        match kind:
            case Kind.RUN:
                before = self._data
                self._run(who, view)
                if self._data != before:
                    self._wake(who)
            case Kind.PATCH:
                self._patch()
                self._wake(None)
            case Kind.ACK:
                self.sync(who)
            case Kind.PARK:
                self.cpus[who] = self.cpus[who]._replace(parked=True)
            case Kind.NMI:
                self.nmis -= 1
                self.cpus[who] = self.cpus[who]._replace(nmi_blocked=True)
                self._interrupt(who, NMI)
            case Kind.TIMER:
                self.timers -= 1
                self._interrupt(who, TIMER)
            case Kind.ONLINE:
                self.sync(who)
                self.cpus[who] = self.cpus[who]._replace(offline=False)

    def _wake(self, mover: int | None) -> None:
        """Something has changed that who waits may be waiting for."""
        for number, task in enumerate(self.tasks):
            if task.pauses and number != mover:
                self.tasks[number] = task._replace(pauses=0)

    def sync(self, number: int) -> None:
        """A CPU drops what it took from the old text, and owes no answer any more."""
        self.cpus[number] = self.cpus[number]._replace(
            seen=tuple(self.text), pending=(), owes_ack=False, syncs_on_resume=False
        )

    def let_interrupts_in(self, *, on: bool) -> None:
        """Set or clear IF of the patcher's CPU, while no guest code runs there."""
        idle = self.tasks[self.idle]
        file = bytearray(idle.registers)
        file[Registers.RFLAGS_HIGH] &= ~Registers.IF
        file[Registers.RFLAGS_HIGH] |= Registers.IF * on
        self.tasks[self.idle] = idle._replace(registers=bytes(file))

    # --- guest code ---

    def _run(self, number: int, view: int) -> None:
        """Run a task up to the next instruction that others can notice."""
        self._data = _UNKNOWN
        cpu = self.cpu_of[number]
        if self.cpus[cpu].task != number:
            self.cpus[cpu] = self.cpus[cpu]._replace(task=number)
        if asked := _asked(self.tasks[number]):
            self._go_on_in_shim(number, cpu, asked)
            return
        rip = _rip(self.tasks[number].registers)
        where = self._spot_at.get(rip)
        if where is not None:
            exit_ = self._fetch(number, cpu, *where, view)
        else:
            self._arrive(number, cpu, rip)
            exit_ = self._advance(number, cpu, rip)
        began = self.tasks[number].registers
        for _ in range(_MAX_QUIET_RUNS if self.quiet else 0):
            task = self.tasks[number]
            rip = _rip(task.registers)
            if exit_ is not None or rip in self._visible or not self.lab.decode(rip).quiet:
                break
            if _asked(task) or self._shares_nmi_stack(task, cpu):
                break
            self._check_freed(cpu, rip)
            exit_ = self._advance(number, cpu, rip)
            if exit_ is None and self.tasks[number].registers == began:
                what = f"task {number} loops for ever at {self.lab.image.symbolize(rip)}"
                raise Found(Finding(FindingClass.DEADLOCK, what, cpu, rip))
        if exit_ is not None:
            self._after(number, cpu, exit_)
        self._note(number, cpu)
        self._data = self.lab.data

    def _go_on_in_shim(self, number: int, cpu: int, asked: tuple[Operation, ...]) -> None:
        """The next operation of a call into the shim."""
        task = self.tasks[number]
        left = ((len(task.frames), asked[1:]),) if asked[1:] else ()
        self.tasks[number] = task._replace(queue=task.queue[:-1] + left)
        operations.perform(self, asked[0], cpu)
        self._data = self.lab.data

    def run_alone(self, number: int) -> None:
        """Run a task on, while nothing else happens."""
        self._run(number, 0)

    def _check_freed(self, cpu: int, rip: int) -> None:
        if self.is_freed(rip):
            what = f"executes {self.lab.image.symbolize(rip)}, which has been freed"
            raise Found(Finding(FindingClass.USE_AFTER_FREE, what, cpu, rip))

    def is_freed(self, address: int) -> bool:
        """Whether the memory at ``address`` has been given back."""
        return any(begin <= address < end for begin, end in self.freed)

    def _arrive(self, number: int, cpu: int, rip: int) -> None:
        """A task is about to execute ``rip``, outside patched text."""
        self._check_freed(cpu, rip)
        if rip not in self._visible:
            return
        task = self.tasks[number]
        if rip in self.watch.callbacks:
            site = Registers.get(task.registers, Reg.RDI)
            argument = Registers.get(task.registers, Reg.RSI)
            calls = self.watch.tell(cpu, task.calls, rip, site, argument, NMI in task.frames)
            self.tasks[number] = task._replace(calls=calls, told=task.told + 1)
        elif rip in self.shim.calls:
            asked = self.shim.operations(rip, task.registers)
            self.tasks[number] = task._replace(queue=(*task.queue, (len(task.frames), asked)))
        elif rip in self._behind and _is_in(task, self._behind[rip]):
            self.watch.end(cpu, task.calls[-1])
            self.tasks[number] = task._replace(calls=task.calls[:-1])

    def _fetch(self, number: int, cpu: int, spot: int, offset: int, view: int) -> Exit | None:
        """Execute one instruction of patched text, as this CPU sees it."""
        task, state = self.tasks[number], self.cpus[cpu]
        if state.pending:
            seen, pending = views(state.seen[spot], state.pending, spot)[view]
            everything = (*state.seen[:spot], seen, *state.seen[spot + 1 :])
            self.cpus[cpu] = state._replace(seen=everything, pending=pending)
        else:
            seen = state.seen[spot]
        ended = self.ended
        if self.on_instruction is not None:
            self.on_instruction(number, self.spots[spot].address + offset, seen[offset:])
        self.watch.check_fetch(cpu, spot, offset, seen, ended)
        if offset == 0 and self.watch.sites[spot].traced:
            calls = task.calls
            if _is_in(task, spot) and not calls[-1].told:
                calls = calls[:-1]  # it comes again, as after an int3 that changes nothing
            begun = self.watch.begin(spot, len(task.frames), ended)
            self.tasks[number] = task._replace(calls=(*calls, begun))
        exit_, registers = self._cores.step_seen(cpu, task.registers, spot, seen, self.text[spot])
        self.tasks[number] = self.tasks[number]._replace(registers=registers)
        return exit_

    def _advance(self, number: int, cpu: int, rip: int) -> Exit | None:
        """Execute the instruction at ``rip`` and the quiet ones that follow it in a row."""
        insn = self.lab.decode(rip)
        registers, exit_ = self.tasks[number].registers, None
        for count in self._strides(number, cpu, rip):
            if exit_ is None:
                if self.on_instruction is not None:
                    self.on_instruction(number, _rip(registers), None)
                exit_, registers = self._cores.step(cpu, registers, count)
        self.tasks[number] = self.tasks[number]._replace(registers=registers)
        if insn.text.startswith("iret"):
            self._after_iret(number, cpu)
        elif insn.text == "pause":
            task = self.tasks[number]
            self.tasks[number] = task._replace(pauses=task.pauses + 1)
        elif not insn.quiet and _serializes(insn.text, self.model.serializing):
            self._sync_own(cpu)
        return exit_

    def _shares_nmi_stack(self, task: Task, cpu: int) -> bool:
        """Whether an NMI may come in an NMI: its frame goes where the first one's stack is."""
        return bool(self.nmis) and NMI in task.frames and not self.cpus[cpu].nmi_blocked

    def _strides(self, number: int, cpu: int, rip: int) -> Sequence[int]:
        """How many instructions to execute at a time: one, if somebody wants to see each."""
        in_a_row = self.quiet and not self._shares_nmi_stack(self.tasks[number], cpu)
        length = self._cores.length(rip) if in_a_row else 1
        return (length,) if self.on_instruction is None else (1,) * length

    def _after(self, number: int, cpu: int, exit_: Exit) -> None:
        """Act on what ended a run: an int3 goes to its handler, all else is a fault."""
        rip = _rip(self.tasks[number].registers)
        if exit_.reason is ExitReason.EXCEPTION and exit_.value == BREAKPOINT:
            self._interrupt(cpu, BREAKPOINT)
            return
        what = f"{exit_.reason.name.lower()} {exit_.value} at {self.lab.image.symbolize(rip)}"
        raise Found(Finding(FindingClass.GUEST_FAULT, what, cpu, rip))

    def _interrupt(self, cpu: int, vector: int) -> None:
        """Enter the handler of ``vector`` on the task that is on ``cpu``."""
        self._data = _UNKNOWN
        number = self.cpus[cpu].task
        task = self.tasks[number]
        try:
            registers = self._cores.interrupt(cpu, task.registers, vector)
        except DeliveryError as error:
            rip = _rip(task.registers)
            raise Found(Finding(FindingClass.GUEST_FAULT, str(error), cpu, rip)) from None
        self.tasks[number] = task._replace(
            registers=registers, frames=(*task.frames, vector), pauses=0
        )
        self._data = self.lab.data

    def _after_iret(self, number: int, cpu: int) -> None:
        """Any iret lets NMIs in again (SDM vol. 3A, 6.7.1)."""
        task = self.tasks[number]
        frames = task.frames[:-1]
        in_nmi = self.lab.on_nmi_stack(cpu, Registers.get(task.registers, Reg.RSP))
        if in_nmi and NMI not in frames:
            frames = task.frames  # it has led back into the NMI
        self.tasks[number] = task._replace(frames=frames)
        self.cpus[cpu] = self.cpus[cpu]._replace(nmi_blocked=False)
        if "iret" in self.model.serializing:
            self._sync_own(cpu)
        if not in_nmi:
            self.lab.erase_nmi_stack(cpu)

    def _sync_own(self, cpu: int) -> None:
        self.cpus[cpu] = self.cpus[cpu]._replace(seen=tuple(self.text), pending=())

    def _note(self, number: int, cpu: int) -> None:
        """Where the task stands now may mean something."""
        task = self.tasks[number]
        rip = _rip(task.registers)
        if rip == self._points.task_done and not task.done:
            self._finish(number, cpu, task)
        elif rip == self._points.unclaimed:
            what = "the int3 handler does not know the site"
            raise Found(Finding(FindingClass.UNCLAIMED_INT3, what, cpu, rip))
        if NMI not in task.frames:
            self._tidy_stack(number, cpu, rip)

    def _tidy_stack(self, number: int, cpu: int, rip: int) -> None:
        rsp = Registers.get(self.tasks[number].registers, Reg.RSP)
        if not self.lab.is_on_stack(number, rsp):
            what = f"task {number} has left its stack: RSP is {rsp:#x}"
            raise Found(Finding(FindingClass.GUEST_FAULT, what, cpu, rip))
        self.lab.erase_dead_stack(number, rsp)

    def _finish(self, number: int, cpu: int, task: Task) -> None:
        self.tasks[number] = task._replace(done=True)
        if self.results is None:
            return
        if number == self.idle:
            return
        result = Registers.get(task.registers, Reg.RBX)
        if result != self.results[number]:
            what = f"task {number} ends with {result:#x}, not {self.results[number]:#x}"
            rip = _rip(task.registers)
            raise Found(Finding(FindingClass.WRONG_RESULT, what, cpu, rip))

    # --- the patcher ---

    # --- the patcher ---

    def _patch(self) -> None:
        """Do the protocol's next operation."""
        operation = self._operation()
        assert operation is not None
        self.done += 1
        operations.perform(self, operation, self.patcher_cpu)

    def write_data(self, address: int, data: bytes) -> None:
        """A store to guest data that no guest code makes."""
        self.lab.write_data(address, data)
        self._data = self.lab.data

    # --- the end ---

    def check_end(self) -> None:
        """Everybody has ended, or nobody can go on.

        :raises Found: not as it should be.
        """
        if not self.finished:
            raise Found(Finding(FindingClass.DEADLOCK, self._who_waits()))
        for site, bytes_ in zip(self.watch.sites, self.text, strict=True):
            if bytes_ != site.new and not self.is_freed(site.address):
                where = self.lab.image.symbolize(site.address)
                what = f"{where} reads {bytes_.hex(' ')} at the end, not {site.new.hex(' ')}"
                raise Found(Finding(FindingClass.WRONG_RESULT, what, None, site.address))
        self.watch.check_records(self.lab.read_word)
        told = sum(task.told for task in self.tasks)
        events = sum(self.lab.area_word(n, 8) for n in range(len(self.cpus)))
        if told != events:
            what = f"{told} calls were told, {events} events are in the buffers"
            raise Found(Finding(FindingClass.LOST_EVENT, what))

    def _who_waits(self) -> str:
        waiting = []
        for number, task in enumerate(self.tasks):
            if not task.done or task.frames:
                where = self.lab.image.symbolize(_rip(task.registers))
                waiting.append(f"task {number} at {where}")
        operation = self._operation()
        if operation is not None:
            waiting.append(f"the patcher at {type(operation).__name__} (step {operation.step + 1})")
        return "nobody can go on: " + "; ".join(waiting)


def _asked(task: Task) -> tuple[Operation, ...]:
    """What is left of the call into the shim that the task is in, if no interrupt is above it."""
    if task.queue and task.queue[-1][0] == len(task.frames):
        return task.queue[-1][1]
    return ()


def _rip(registers: bytes) -> int:
    return int.from_bytes(registers[Registers.RIP], "little")


def _is_in(task: Task, spot: int) -> bool:
    """Whether the innermost call that the task is in is of that site, not of one it interrupts."""
    if not task.calls:
        return False
    return task.calls[-1].site == spot and task.calls[-1].depth == len(task.frames)


def _takes_interrupts(task: Task) -> bool:
    return bool(task.registers[Registers.RFLAGS_HIGH] & Registers.IF) and NMI not in task.frames


def _serializes(text: str, chosen: frozenset[str]) -> bool:
    if not chosen:
        return False
    return ("cpuid" in chosen and text == "cpuid") or (
        "mov-cr" in chosen and text.startswith("mov cr")
    )
