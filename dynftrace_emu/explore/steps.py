"""What a protocol may ask for between two steps of the guest, beyond what ftrace itself uses.

A protocol is a generator of steps (:mod:`dynftrace_emu.ftrace.protocols`); here it also gets the
:class:`Poke` of the guest, where an int3 handler looks up what a site stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.ftrace import protocols
from dynftrace_emu.ftrace.protocols import CompareExchange, TextChange

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dynftrace_emu.explore.poke import Poke

__all__ = [
    "AddData",
    "CompareExchange",
    "Drop",
    "Free",
    "Interrupts",
    "Protocol",
    "Read",
    "Resume",
    "Step",
    "Stop",
    "Store",
    "Sync",
    "TextChange",
    "WaitForTasks",
    "WaitUntil",
    "WriteData",
]


@dataclass(frozen=True, slots=True)
class Store:
    """A row of bytes at each address, shape (n, size).

    :param width: bytes of each store; None: as few stores as 8, 4, 2 and 1 bytes make of a row.
    """

    addresses: NDArray[np.uint64]
    rows: NDArray[np.uint8]
    width: int | None = None


@dataclass(frozen=True, slots=True)
class Sync:
    """Every CPU that is online drops what it took from the old text, and says so.

    :param wait: go on only when all have.
    :param cpus: only these, and the patcher's own.
    """

    wait: bool = True
    cpus: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """stop_machine begins: every other CPU is parked.

    :param look: go on only if no ip, saved ip or return address is inside a site; else let all go
        and try again.
    """

    look: bool = True


@dataclass(frozen=True, slots=True)
class Resume:
    """stop_machine ends; each CPU leaves it, synced with what a :class:`Sync` covered."""


@dataclass(frozen=True, slots=True)
class WriteData:
    """One store of 1, 2, 4 or 8 bytes to guest data."""

    address: int
    data: bytes
    what: str = ""


@dataclass(frozen=True, slots=True)
class AddData:
    """One locked addition to 8 bytes of guest data."""

    address: int
    value: int
    what: str = ""


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Go on when the 8 bytes at ``address`` are ``value``."""

    address: int
    value: int
    what: str = ""


@dataclass(frozen=True, slots=True)
class WaitForTasks:
    """Go on when no task's ip, saved ip or return address is in the ``size`` bytes at ``address``.

    What Linux has ``synchronize_rcu_tasks()`` for.
    """

    address: int
    size: int
    what: str = ""


@dataclass(frozen=True, slots=True)
class Interrupts:
    """The patcher's CPU lets interrupts in, or not; a :class:`Stop` shuts them out, too."""

    on: bool


@dataclass(frozen=True, slots=True)
class Drop:
    """An emulator drops, on each CPU, what it translated from the ``size`` bytes at ``address``.

    Of instructions that begin there; nobody is asked, as a :class:`Sync` does.
    """

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Free:
    """Memory that nobody may execute or patch any more."""

    address: int
    size: int
    what: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    """The 8 bytes of guest data at ``address``, or the 5 of a site: the protocol is sent them."""

    address: int
    what: str = ""


Step = (
    CompareExchange
    | protocols.Sync
    | Store
    | Sync
    | Stop
    | Resume
    | WriteData
    | AddData
    | WaitUntil
    | WaitForTasks
    | Interrupts
    | Drop
    | Free
    | Read
)
Protocol = Callable[[TextChange, "Poke"], Iterator[Step] | Generator[Step, int, None]]
