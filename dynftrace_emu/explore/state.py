"""The state of what is explored, as values that can be kept, compared and gone back to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dynftrace_emu.explore.program import Operation
    from dynftrace_emu.explore.text import Piece
    from dynftrace_emu.explore.watch import Call

__all__ = ["Action", "Cpu", "Kind", "State", "Task"]


class Kind:
    """What an action is."""

    RUN, PATCH, ACK, PARK, NMI, TIMER = "run", "patch", "ack", "park", "nmi", "timer"
    ONLINE = "online"


class Action(NamedTuple):
    """Something that can happen.

    ``who``: a task (run), 0 (patch), or a CPU (all others). ``view``: which of the possible
    fetches of a patched spot a relaxed CPU makes; 0 sees every store.
    """

    kind: str
    who: int
    view: int = 0


class Task(NamedTuple):
    """A task: its registers, and the vectors of the interrupt frames it is in, outermost first.

    ``queue``: of each call into the shim (:mod:`.shim`) that it is in, the number of frames there
    were and the operations left.
    """

    registers: bytes
    frames: tuple[int, ...] = ()
    done: bool = False
    pauses: int = 0  # since others last changed anything
    calls: tuple[Call, ...] = ()
    told: int = 0
    queue: tuple[tuple[int, tuple[Operation, ...]], ...] = ()


class Cpu(NamedTuple):
    """A CPU: which task is on it, and what it knows of the text."""

    task: int
    seen: tuple[bytes, ...]
    pending: tuple[Piece, ...] = ()
    owes_ack: bool = False
    parked: bool = False
    syncs_on_resume: bool = False
    nmi_blocked: bool = False
    offline: bool = False


class State(NamedTuple):
    """All of it; comparing two compares everything that matters."""

    data: bytes
    tasks: tuple[Task, ...]
    cpus: tuple[Cpu, ...]
    text: tuple[bytes, ...]
    read: tuple[int, ...]  # by the protocol
    done: int  # operations since
    stopping: bool
    freed: tuple[tuple[int, int], ...]
    nmis: int  # that may still come
    timers: int
