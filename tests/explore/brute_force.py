"""What a protocol can lead to, found out without an emulator: an oracle for the explorer.

One task on one CPU executes one site once; the patcher is on another CPU. Every interleaving of
both is enumerated, over abstract states. Nothing of the explorer is used but the steps of a
protocol, which are data; what they mean is written down here anew, as are the text models, the
int3 handler and the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from dynftrace_emu.explore import steps
from dynftrace_emu.ftrace import protocols

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LENGTHS = {0xE8: 5, 0xEB: 2, 0x0F: 5, 0x90: 1}
SKIPS = {0xE8: 5, 0xEB: 5, 0x0F: 5, 0x90: 1}
"""Where the task is next, from the instruction's first byte on; a call comes back behind itself."""
BEHIND = 5
CALL = 1
LOST = "lost"


@dataclass(frozen=True)
class Site:
    """The site, and who is told by a call to which target: in ``tellers``."""

    address: int
    old: bytes
    new: bytes
    tellers: dict[int, str]
    before: frozenset[str]
    after: frozenset[str]
    symbols: dict[str, int]


@dataclass(frozen=True)
class World:
    """``seen``: of each byte the number of the store that the CPU has seen it of, 0 for none."""

    stores: tuple[tuple[int, bytes], ...] = ()
    seen: tuple[int, ...] = (0,) * 5
    data: tuple[tuple[int, int], ...] = ()
    next: int = 0
    at: int | str = 0  # an offset in the site, or where in the handler
    call: tuple[frozenset[str], frozenset[str]] | None = None  # must, may
    told: tuple[str, ...] = ()
    registers: tuple[int, ...] = ()
    owes: bool = False
    stopping: bool = False
    parked: bool = False
    syncs_on_resume: bool = False

    def word(self, address: int) -> int:
        return dict(self.data).get(address, 0)

    def with_word(self, address: int, value: int) -> World:
        data = {**dict(self.data), address: value % 2**64}
        return replace(self, data=tuple(sorted(data.items())))


class Wrong(Exception):
    """A finding; its class."""


def classes(site: Site, protocol: Sequence[steps.Step], model: str, chunk: int) -> set[str]:
    """The classes of findings that some interleaving ends in."""
    operations = [o for step in protocol for o in _operations(site, step, chunk)]
    found: set[str] = set()
    met = {World()}
    todo = [World()]
    while todo:
        world = todo.pop()
        ended = world.next == len(operations)
        following: list[World] = []
        for move in _moves(site, world, operations, model):
            try:
                following.append(move())
            except Wrong as wrong:
                found.add(str(wrong))
                following.append(world)  # something was possible
        if not following:
            if not (ended and world.at == BEHIND):
                found.add("deadlock")
            elif _memory(site, world) != site.new:
                found.add("wrong-result")
        for one in following:
            if one not in met:
                met.add(one)
                todo.append(one)
    return found


# --- the patcher ---


def _operations(site: Site, step: steps.Step, chunk: int) -> Iterator[tuple]:
    match step:
        case protocols.CompareExchange(_, _, new):
            yield from _pieces(site, 0, new[0].tobytes(), chunk)
        case steps.Store(addresses, rows, width):
            offset, data = int(addresses[0]) - site.address, rows[0].tobytes()
            while data:
                size = width or max(n for n in (8, 4, 2, 1) if n <= len(data))
                yield from _pieces(site, offset, data[:size], chunk)
                offset, data = offset + size, data[size:]
        case protocols.Sync():
            yield from (("send",), ("acked",))
        case steps.Sync(wait, cpus):
            if cpus is None:
                yield ("send",)
            if wait:
                yield ("acked",)
        case steps.Stop(look):
            yield from (("stop",), ("stopped", look))
        case steps.Resume():
            yield ("resume",)
        case steps.WriteData(address, data):
            for at in range(0, len(data), 8):
                yield "write", address + at, int.from_bytes(data[at : at + 8], "little")
        case steps.AddData(address, value):
            yield "add", address, value
        case steps.WaitUntil(address, value):
            yield "until", address, value
        case _:
            raise AssertionError(step)


def _pieces(site: Site, offset: int, data: bytes, chunk: int) -> Iterator[tuple]:
    for at, byte in enumerate(data):
        if at == 0 or (site.address + offset + at) % chunk == 0:
            piece = [offset + at, b""]
            yield ("store", piece)
        piece[1] += bytes([byte])


def _memory(site: Site, world: World) -> bytes:
    return _bytes(site, world, _newest(world))


def _newest(world: World) -> tuple[int, ...]:
    newest = [0] * 5
    for number, (offset, data) in enumerate(world.stores, 1):
        for at in range(offset, offset + len(data)):
            newest[at] = number
    return tuple(newest)


def _bytes(site: Site, world: World, versions: Sequence[int]) -> bytes:
    def one(at: int, version: int) -> int:
        if version == 0:
            return site.old[at]
        offset, data = world.stores[version - 1]
        return data[at - offset]

    return bytes(one(at, version) for at, version in enumerate(versions))


def _sync(world: World) -> World:
    return replace(world, seen=_newest(world), owes=False, syncs_on_resume=False)


def _patch(world: World, operation: tuple) -> World | None:
    """The world behind an operation; None: it waits."""
    done = replace(world, next=world.next + 1)
    match operation:
        case ("store", piece):
            return replace(done, stores=(*world.stores, (piece[0], piece[1])))
        case ("send",):
            return replace(done, syncs_on_resume=True) if world.parked else replace(done, owes=True)
        case ("acked",):
            return None if world.owes else done
        case ("stop",):
            return replace(done, stopping=True)
        case ("stopped", look):
            if not world.parked:
                return None
            done = replace(done, stopping=False)
            if look and world.at in (1, 2, 3, 4):
                return replace(_resume(done), next=world.next - 1)
            return done
        case ("resume",):
            return _resume(done)
        case ("write", address, value):
            return done.with_word(address, value)
        case ("add", address, value):
            return done.with_word(address, world.word(address) + value)
        case ("until", address, value):
            return done if world.word(address) == value % 2**64 else None
    raise AssertionError(operation)


def _resume(world: World) -> World:
    return replace(_sync(world) if world.syncs_on_resume else world, parked=False)


# --- what can happen ---


def _moves(site: Site, world: World, operations: Sequence[tuple], model: str):
    if world.next < len(operations):
        after = _patch(world, operations[world.next])
        if after is not None:
            yield lambda: after
    interruptible = isinstance(world.at, int)
    if interruptible and not world.parked:
        if world.owes:
            yield lambda: _sync(world)
        if world.stopping:
            yield lambda: replace(world, parked=True)
    if world.at == BEHIND or world.parked:
        return
    ended = world.next == len(operations)
    if not interruptible:
        yield lambda: _handler(site, world)
        return
    for versions in _fetches(world, model):
        yield lambda versions=versions: _execute(site, replace(world, seen=versions), ended)


def _fetches(world: World, model: str) -> set[tuple[int, ...]]:
    if model == "coherent":
        return {_newest(world)}
    if model == "stale":
        return {world.seen}
    found = set()
    for visible in product((False, True), repeat=len(world.stores)):
        versions = list(world.seen)
        for number, (offset, data) in enumerate(world.stores, 1):
            if visible[number - 1]:
                for at in range(offset, offset + len(data)):
                    versions[at] = max(versions[at], number)
        found.add(tuple(versions))
    return found


# --- the task ---


def _execute(site: Site, world: World, ended: bool) -> World:
    seen, at = _bytes(site, world, world.seen), world.at
    if at == 0:
        must, may = site.before & site.after, site.before | site.after
        world = replace(world, call=(site.after, site.after) if ended else (must, may), told=())
        if seen[0] == 0xCC:
            return replace(world, at="get", registers=())
    if not _is_of(site.new, seen, at):
        if not _is_of(site.old, seen, at):
            raise Wrong("mid-instruction-resume" if at else "torn-fetch")
        if ended:
            raise Wrong("stale-text")
    if seen[at] == 0xE8:
        target = site.address + 5 + int.from_bytes(seen[1:5], "little", signed=True)
        world = _tell(site, world, target)
    return _arrive(world, at + SKIPS[seen[at]])


def _is_of(encoding: bytes, seen: bytes, at: int) -> bool:
    """Whether the instruction seen at an offset is one that ``encoding`` has there."""
    start = 0
    while start < at:
        start += SKIPS[encoding[start]]
    if start != at or start >= 5:
        return False
    size = LENGTHS[encoding[at]]
    return seen[at : at + size] == encoding[at : at + size]


def _tell(site: Site, world: World, target: int) -> World:
    name = site.tellers.get(target, LOST)
    if name == LOST:
        raise Wrong("guest-fault")
    if name not in world.call[1]:
        raise Wrong("wrong-callback")
    return replace(world, told=(*world.told, name))


def _arrive(world: World, at: int) -> World:
    if at == BEHIND and world.call[0] - set(world.told):
        raise Wrong("missed-callback")
    return replace(world, at=at)


def _handler(site: Site, world: World) -> World:
    """The next thing the int3 handler does that others can notice."""
    refs, count, vector = (site.symbols[n] for n in ("poke_refs", "poke_count", "poke_vector"))
    match world.at:
        case "get":
            if world.word(refs) == 0:
                raise Wrong("unclaimed-int3")
            return replace(world, at="cmpxchg", registers=(world.word(refs),))
        case "cmpxchg":
            if world.word(refs) != world.registers[0]:
                return replace(world, at="get")
            return replace(world.with_word(refs, world.word(refs) + 1), at="count")
        case "count":
            return replace(world, at="find", registers=(world.word(count), 0))
        case "find":
            left, index = world.registers
            if left == 0:
                raise Wrong("unclaimed-int3")
            if world.word(vector + 0x18 * index) == site.address:
                return replace(world, at="kind", registers=(index,))
            return replace(world, registers=(left - 1, index + 1))
        case "kind":
            at = vector + 0x18 * world.registers[0]
            target = world.word(at + 0x10) if world.word(at + 8) == CALL else 0
            return replace(world, at="put", registers=(world.word(at + 8), target))
        case "put":
            kind, target = world.registers
            world = replace(world.with_word(refs, world.word(refs) - 1), registers=())
            if kind == CALL:
                world = _tell(site, world, target)
            return _arrive(world, BEHIND)
    raise AssertionError(world.at)
