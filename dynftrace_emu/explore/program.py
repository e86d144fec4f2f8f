"""A protocol's steps, taken apart into what can happen at once.

Generators cannot be copied, so where a patcher stands is told by the words it has read and how many
operations it has done since; another one is run up to there when that is needed.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dynftrace_emu.errors import ProtocolError
from dynftrace_emu.explore import steps
from dynftrace_emu.explore.text import Piece, Spot, pieces
from dynftrace_emu.ftrace import protocols

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from dynftrace_emu.explore.steps import Step

__all__ = [
    "Add",
    "Compare",
    "Drop",
    "Free",
    "Interrupts",
    "Load",
    "Operation",
    "Program",
    "Resume",
    "Send",
    "Stop",
    "Stopped",
    "StoreText",
    "TasksOutside",
    "Until",
    "WaitForAcks",
    "Write",
]

_INT3 = 0xCC
_MAX_OPERATIONS = 4096
_MAX_READS = 256
_MAX_CACHED = 4096
_WRONG = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""What comes of a step whose fields are not what they should be."""


class StoreText(NamedTuple):
    """A piece of a store to text."""

    piece: Piece
    step: int


class Compare(NamedTuple):
    """Go on if a spot holds ``old``; else leave out the next ``skip`` operations."""

    spot: int
    offset: int
    old: bytes
    skip: int
    step: int


class Send(NamedTuple):
    """The sync interrupt goes to other CPUs (None: all); this one syncs."""

    cpus: tuple[int, ...] | None
    step: int


class WaitForAcks(NamedTuple):
    """Until no CPU owes an answer."""

    step: int


class Stop(NamedTuple):
    """Ask every other CPU to park."""

    step: int


class Stopped(NamedTuple):
    """Until all are parked; ``look``: begin anew if an ip is inside a spot."""

    look: bool
    step: int


class Resume(NamedTuple):
    """Let them go."""

    step: int


class Write(NamedTuple):
    """A store to guest data."""

    address: int
    data: bytes
    what: str
    step: int


class Add(NamedTuple):
    """A locked addition to a word of guest data."""

    address: int
    value: int
    what: str
    step: int


class Until(NamedTuple):
    """Until a word of guest data has a value."""

    address: int
    value: int
    what: str
    step: int


class TasksOutside(NamedTuple):
    """Until no task stands in a range, or will return there."""

    begin: int
    end: int
    what: str
    step: int


class Interrupts(NamedTuple):
    """Let interrupts in on this CPU, or not."""

    on: bool
    step: int


class Drop(NamedTuple):
    """Each CPU drops what it translated of one spot."""

    spot: int
    step: int


class Free(NamedTuple):
    """Memory is given back."""

    begin: int
    end: int
    what: str
    step: int


class Load(NamedTuple):
    """Read a word of guest data, or of a site, for the protocol."""

    address: int
    what: str
    step: int


Operation = (
    StoreText | Compare | Send | WaitForAcks | Stop | Stopped | Resume | Write | Add | Until | Free
    | Load | TasksOutside | Interrupts | Drop
)  # fmt: skip


@dataclass(slots=True)
class Program:
    """The operations of one protocol.

    :param make: gives a new generator of the protocol's steps.
    :param data: first and last address of guest data.
    :param nr_cpus: how many CPUs can be synced; None: not checked.
    :raises ProtocolError: (from :meth:`operations`) the generator raises, never ends, does not do
        the same each time, or yields something that is no step or reaches outside spots and data.
    """

    name: str
    make: Callable[[], Iterator[Step]]
    spots: Sequence[Spot]
    chunk: int
    data: tuple[int, int]
    nr_cpus: int | None = None
    _cache: dict[tuple[int, ...], list[Operation]] | None = None

    def operations(self, read: tuple[int, ...]) -> list[Operation]:
        """All operations behind the last of the words ``read``, up to the next :class:`Load`."""
        if self._cache is None:
            self._cache = {}
        found = self._cache.get(read)
        if found is None:
            found = self._run(read)
            if found != self._run(read):
                raise ProtocolError(
                    f"protocol {self.name}: its steps differ from one run to the next"
                )
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[read] = found
        return found

    @property
    def stores_int3(self) -> bool:
        """Whether it shows an int3 to who fetches a site's first byte."""
        return any(
            isinstance(o, StoreText) and o.piece.offset == 0 and o.piece.data[0] == _INT3
            for o in self.operations(())
        )

    def step_names(self) -> list[str]:
        """Each step in words, for a protocol that reads nothing."""
        return [describe(step) for step in self.make()]

    def _run(self, read: tuple[int, ...]) -> list[Operation]:
        found: list[Operation] = []
        answers = iter(read)
        count = 0
        for number, step in enumerate(self._steps(answers)):
            if isinstance(step, steps.Read):
                count += 1
                if count <= len(read):
                    found.clear()
                    continue
                if count > _MAX_READS:
                    raise self._error(number, f"more than {_MAX_READS} words read: no end")
                if not self._is_site(step.address):
                    self._in_data(step.address, 8, number)
                found.append(Load(step.address, step.what, number))
                break
            found += self._checked(step, number)
            if len(found) > _MAX_OPERATIONS:
                raise self._error(number, f"more than {_MAX_OPERATIONS} operations: no end")
        return found

    def _steps(self, answers: Iterator[int]) -> Iterator[Step]:
        """Drive the generator, sending it the words it has read."""
        answer: int | None = None
        number = 0
        try:
            generator = self.make()
            while True:
                # send() is a generator's; a protocol that reads nothing may be any iterator.
                step = next(generator) if answer is None else generator.send(answer)  # type: ignore[attr-defined]
                yield step
                number += 1
                answer = next(answers, None) if isinstance(step, steps.Read) else None
        except StopIteration:
            return
        except ProtocolError:
            raise
        except Exception as error:  # the protocol is somebody else's code
            raise self._error(number, f"{type(error).__name__}: {error}") from error

    def _checked(self, step: Step, number: int) -> list[Operation]:
        try:
            return list(self._operations_of(step, number))
        except _WRONG as error:
            raise self._error(number, f"{type(step).__name__}: {error}") from None

    def _operations_of(self, step: object, number: int) -> Iterator[Operation]:
        match step:
            case steps.CompareExchange(addresses, old, new):
                yield from self._exchange(addresses, old, new, number)
            case steps.Store(addresses, rows, width):
                yield from self._stores(addresses, rows, width, number)
            case protocols.Sync():
                yield Send(None, number)
                yield WaitForAcks(number)
            case steps.Sync(wait, cpus):
                self._check_cpus(cpus, number)
                yield Send(cpus, number)
                if wait:
                    yield WaitForAcks(number)
            case steps.Stop(look):
                yield Stop(number)
                yield Stopped(look, number)
            case steps.Resume():
                yield Resume(number)
            case steps.WriteData(address, data, what):
                if not isinstance(data, bytes):
                    raise self._error(number, f"WriteData of {type(data).__name__}, not of bytes")
                self._in_data(address, len(data), number)
                for at in range(0, len(data), 8):
                    yield Write(address + at, data[at : at + 8], what, number)
            case steps.AddData(address, value, what):
                self._in_data(address, 8, number)
                yield Add(address, operator.index(value), what, number)
            case steps.WaitUntil(address, value, what):
                self._in_data(address, 8, number)
                yield Until(address, operator.index(value), what, number)
            case steps.WaitForTasks(address, size, what):
                yield TasksOutside(address, address + size, what, number)
            case steps.Interrupts(on):
                yield Interrupts(on, number)
            case steps.Drop(address, size):
                for index, spot in enumerate(self.spots):
                    if address <= spot.address < address + size:
                        yield Drop(index, number)
            case steps.Free(address, size, what):
                begin = operator.index(address)
                yield Free(begin, begin + operator.index(size), what, number)
            case _:
                raise self._error(number, f"{step!r} is not a step")

    def _exchange(
        self, addresses: NDArray[np.uint64], old: NDArray[np.uint8], new: NDArray[np.uint8], n: int
    ) -> Iterator[Operation]:
        was_rows = self._rows(addresses, old, n)
        for (address, row), (_, was) in zip(self._rows(addresses, new, n), was_rows, strict=True):
            spot = self._spot(address, len(row), n)
            offset = address - self.spots[spot].address
            parts = self._pieces(spot, offset, row.tobytes())
            yield Compare(spot, offset, was.tobytes(), len(parts), n)
            for part in parts:
                yield StoreText(part, n)

    def _stores(
        self, addresses: NDArray[np.uint64], rows: NDArray[np.uint8], width: int | None, n: int
    ) -> Iterator[Operation]:
        if width not in (None, 1, 2, 4, 8):
            raise self._error(n, f"stores of {width} bytes: 1, 2, 4 or 8 are possible")
        for address, row in self._rows(addresses, rows, n):
            for piece in self.stores(address, row.tobytes(), width, n):
                yield StoreText(piece, n)

    def _rows(
        self, addresses: NDArray[np.uint64], rows: NDArray[np.uint8], number: int
    ) -> list[tuple[int, NDArray[np.uint8]]]:
        """Each address, and its bytes."""
        addresses = np.asarray(addresses, dtype=np.uint64)
        rows = np.asarray(rows, dtype=np.uint8)
        if addresses.ndim != 1 or rows.ndim != 2 or len(addresses) != len(rows):
            what = f"addresses of shape {addresses.shape} with bytes of shape {rows.shape}"
            raise self._error(number, f"{what}: (n,) and (n, size) are needed")
        return list(zip(addresses.tolist(), rows, strict=True))

    def _check_cpus(self, cpus: tuple[int, ...] | None, number: int) -> None:
        for cpu in cpus or ():
            if self.nr_cpus is not None and not 0 <= cpu < self.nr_cpus:
                raise self._error(number, f"CPU {cpu} is none of 0 to {self.nr_cpus - 1}")

    def stores(self, address: int, data: bytes, width: int | None, number: int) -> Iterator[Piece]:
        """The pieces of stores of ``data``, each ``width`` bytes wide.

        :raises ProtocolError: they reach outside every spot.
        """
        spot = self._spot(address, len(data), number)
        offset = address - self.spots[spot].address
        while data:
            size = width or 1 << min(3, len(data).bit_length() - 1)
            yield from self._pieces(spot, offset, data[:size])
            offset, data = offset + size, data[size:]

    def _pieces(self, spot: int, offset: int, data: bytes) -> list[Piece]:
        return pieces(spot, self.spots[spot].address, offset, data, self.chunk)

    def _spot(self, address: int, size: int, number: int) -> int:
        spot = self.find_spot(address, size)
        if spot is None:
            what = f"a store of {size} bytes at {address:#x} is outside every site"
            raise self._error(number, what)
        return spot

    def find_spot(self, address: int, size: int) -> int | None:
        """The spot that holds all of ``size`` bytes at ``address``."""
        for index, spot in enumerate(self.spots):
            if spot.address <= address and address + size <= spot.address + spot.size:
                return index
        return None

    def _is_site(self, address: int) -> bool:
        return any(spot.address == address for spot in self.spots)

    def _in_data(self, address: int, size: int, number: int) -> None:
        begin, end = self.data
        if not begin <= address <= end - size:
            raise self._error(number, f"{address:#x} is outside the guest's data")

    def _error(self, number: int, what: str) -> ProtocolError:
        return ProtocolError(f"protocol {self.name}, step {number + 1}: {what}")


def describe(step: Step) -> str:
    """A step in a few words."""
    match step:
        case steps.CompareExchange(_, old, _):
            return f"exchange {old.shape[1]} bytes"
        case steps.Store(_, rows, width):
            count = rows.shape[1]
            text = f"store {rows[0].tobytes().hex(' ')}" if len(rows) == 1 else f"store {count} B"
            return text if width in (None, count) else f"{text} by {width}"
        case steps.Sync(wait, cpus):
            text = "sync" if cpus is None else f"sync CPUs {','.join(map(str, cpus))}"
            text = "sync this CPU" if cpus == () else text
            return text if wait else f"{text}, not waiting"
        case protocols.Sync():
            return "sync"
        case steps.Stop(look):
            return "stop" if look else "stop, not looking"
        case steps.Resume():
            return "resume"
        case steps.WriteData(what=what) | steps.AddData(what=what):
            return what
        case steps.WaitUntil(what=what):
            return f"wait until {what}"
        case steps.WaitForTasks(what=what):
            return f"wait until no task is in {what}"
        case steps.Interrupts(on):
            return "interrupts on" if on else "interrupts off"
        case steps.Drop(address, size):
            return f"drop translations of {size} bytes at {address:#x}"
        case steps.Free(what=what):
            return f"free {what}"
        case steps.Read(what=what):
            return f"read {what}"
