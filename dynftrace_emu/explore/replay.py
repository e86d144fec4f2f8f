"""A schedule run once more, strictly, with all that is seen of it noted.

Strictly: each action must be possible when its turn comes. What is shown of it is
:mod:`.diagram`'s affair.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from dynftrace_emu.errors import ImageError
from dynftrace_emu.explore.findings import FindingClass, Found
from dynftrace_emu.explore.job import machine_of
from dynftrace_emu.explore.lab import Registers, decode
from dynftrace_emu.explore.mutations import split_name
from dynftrace_emu.explore.protocol_file import read_protocol_file
from dynftrace_emu.explore.schedule import Endless, end_of, to_text
from dynftrace_emu.explore.state import Action, Kind
from dynftrace_emu.machine.vcpu import Reg

if TYPE_CHECKING:
    from dynftrace_emu.explore.counterexample import Counterexample
    from dynftrace_emu.explore.findings import Finding
    from dynftrace_emu.explore.program import Operation
    from dynftrace_emu.explore.world import World

__all__ = ["End", "Event", "Executed", "Replay", "run", "with_protocol"]


class End(Enum):
    """How a replay ends."""

    FAILS = "fails"  # with the class it was found with
    DIFFERS = "differs"  # it fails with another class
    PASSES = "passes"  # all was done, and nothing is wrong
    IMPOSSIBLE = "impossible"  # an action was not possible when its turn came


class Executed(NamedTuple):
    """An instruction of guest code, as its CPU saw it.

    ``stale``: memory had other bytes; then ``code`` is all that was seen of the site.
    """

    ip: int
    code: bytes
    text: str
    stale: bool


@dataclass(frozen=True, slots=True)
class Event:
    """An action, and what it did.

    :param number: of the action, from 1.
    :param cpu: where; the patcher's is the last one.
    :param task: that is on it.
    :param at: the ip that an interrupt, or the patcher's operation, came at.
    :param now: the task's ip afterwards.
    :param operation: what the patcher did.
    :param text: what memory has at each site afterwards.
    """

    number: int
    action: Action
    cpu: int
    task: int
    at: int
    now: int
    executed: tuple[Executed, ...]
    operation: Operation | None
    text: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay came to.

    :param at_end: the finding is what the schedule leads to, not what its last action did.
    :param image_changed: the guest is not the one that the counterexample was found with.
    """

    counterexample: Counterexample
    world: World
    events: tuple[Event, ...]
    finding: Finding | None
    at_end: bool
    end: End
    image_changed: bool


def run(counterexample: Counterexample) -> Replay:
    """Run the counterexample's schedule in its machine.

    :raises ImageError: it does not fit, and the guest has changed since: that says nothing.
    :raises DynftraceError: the machine cannot be made: no such protocol, or one that does not run.
    """
    world, first = machine_of(counterexample.job)
    world.load(first)
    changed = counterexample.image not in (None, world.lab.image.sha256)
    recorder = _Recorder(world)
    finding, impossible = recorder.run(counterexample.schedule)
    at_end = False
    if finding is None and impossible is None:
        is_deadlock = counterexample.finding.kind is FindingClass.DEADLOCK
        finding = end_of(world, Endless() if is_deadlock else None)
        at_end = finding is not None
    if impossible is None:
        end = _end(finding, counterexample)
    elif changed:
        raise ImageError(
            f"the guest has changed since, and {to_text(impossible)} (step "
            f"{len(recorder.events) + 1}) is not possible in it: find it anew with explore"
        )
    else:
        end = End.IMPOSSIBLE
    return Replay(counterexample, world, tuple(recorder.events), finding, at_end, end, changed)


def with_protocol(counterexample: Counterexample, name: str) -> Counterexample:
    """The same with another protocol: one that ships, or ``FILE.py:FUNCTION`` as it is now.

    :raises OptionError: the file cannot be read.
    """
    is_file = ":" in split_name(name)[0]
    job = counterexample.job
    job = dataclasses.replace(
        job,
        setup=dataclasses.replace(job.setup, protocol=name),
        source=read_protocol_file(name) if is_file else None,
    )
    return dataclasses.replace(counterexample, job=job)


def _end(finding: Finding | None, counterexample: Counterexample) -> End:
    if finding is None:
        return End.PASSES
    return End.FAILS if finding.kind is counterexample.finding.kind else End.DIFFERS


class _Recorder:
    """Does actions, and notes what each does."""

    def __init__(self, world: World) -> None:
        self.events: list[Event] = []
        self._world = world
        self._executed: list[Executed] = []

    def run(self, schedule: tuple[Action, ...]) -> tuple[Finding | None, Action | None]:
        """What it ends in, and the action that was not possible, if one was."""
        self._world.on_instruction = self._note
        try:
            for number, action in enumerate(schedule, 1):
                if action not in self._world.actions():
                    return None, action
                finding = self._act(number, action)
                if finding is not None:
                    return finding, None
        finally:
            self._world.on_instruction = None
        return None, None

    def _act(self, number: int, action: Action) -> Finding | None:
        world = self._world
        cpu = self._cpu_of(action)
        operation = self._operation(action)
        task = action.who if action.kind == Kind.RUN else world.cpus[cpu].task
        at = self._ip_of(task)
        self._executed.clear()
        try:
            world.act(action)
            finding = None
        except Found as found:
            finding = found.finding
        self.events.append(
            Event(
                number, action, cpu, task, at, self._ip_of(task),
                tuple(self._executed), operation, tuple(world.text),
            )
        )  # fmt: skip
        return finding

    def _operation(self, action: Action) -> Operation | None:
        """What the patcher is about to do, be it a protocol or guest code in the shim."""
        world = self._world
        if action.kind == Kind.PATCH:
            return world.program.operations(world.read)[world.done]
        if action.kind == Kind.RUN:
            task = world.tasks[action.who]
            if task.queue and task.queue[-1][0] == len(task.frames):
                return task.queue[-1][1][0]
        return None

    def _ip_of(self, task: int) -> int:
        return Registers.get(self._world.tasks[task].registers, Reg.RIP)

    def _cpu_of(self, action: Action) -> int:
        if action.kind == Kind.PATCH:
            return self._world.patcher_cpu
        return self._world.cpu_of[action.who] if action.kind == Kind.RUN else action.who

    def _note(self, _task: int, ip: int, seen: bytes | None) -> None:
        """Called in front of each instruction; ``seen`` is what is fetched of a patched site."""
        memory = self._world.lab.memory.read(ip, 15) or b""
        code = memory if seen is None else seen
        insn = decode(code, ip)
        stale = memory[: len(code)] != code
        self._executed.append(Executed(ip, code if stale else code[: insn.size], insn.text, stale))
