"""What is searched, as a value that any process can make a machine of."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.explore.protocol_file import protocol_of
from dynftrace_emu.explore.setup import Setup, build

if TYPE_CHECKING:
    from dynftrace_emu.explore.state import State
    from dynftrace_emu.explore.world import World

__all__ = ["Job", "machine_of"]

_KEPT = 4


@dataclass(frozen=True)
class Job:
    """A setup, and how it is searched.

    :param source: the text of the file a user's protocol is from; None: the protocol is built in.
    :param quiet: run through instructions that nobody else can notice in one go.
    """

    setup: Setup
    source: str | None = None
    quiet: bool = True


class _Machines(threading.local):
    """The machines made last, by each thread for itself."""

    def __init__(self) -> None:
        self.made: OrderedDict[Job, tuple[World, State]] = OrderedDict()


_machines = _Machines()


def machine_of(job: Job) -> tuple[World, State]:
    """The calling thread's machine for a job, and the state it begins in.

    :raises DynftraceError: it cannot be made.
    """
    made = _machines.made
    if job in made:
        made.move_to_end(job)
    else:
        world = build(
            job.setup, protocol_of(job.setup.protocol, job.source, scenario=job.setup.name)
        )
        world.quiet = job.quiet
        made[job] = world, world.save()
        while len(made) > _KEPT:
            made.popitem(last=False)
    return made[job]
