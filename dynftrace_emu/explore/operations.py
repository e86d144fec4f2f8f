"""Carries out what a patcher does: stores, syncs, stops. Whoever it is, it is on some CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.explore import program as op
from dynftrace_emu.explore.findings import Finding, FindingClass, Found
from dynftrace_emu.explore.lab import NMI, Registers
from dynftrace_emu.explore.model import Text
from dynftrace_emu.explore.poke import word
from dynftrace_emu.explore.text import Piece, apply
from dynftrace_emu.machine.vcpu import Reg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dynftrace_emu.explore.program import Operation
    from dynftrace_emu.explore.world import World

__all__ = ["perform", "possible"]


def possible(world: World, operation: Operation) -> bool:
    """Whether it can be done now, or waits for somebody."""
    match operation:
        case op.WaitForAcks():
            return not any(cpu.owes_ack for cpu in world.cpus)
        case op.Stopped():
            return all(cpu.parked or cpu.offline for cpu in world.cpus[: world.patcher_cpu])
        case op.Until(address, value):
            return world.lab.read_word(address) == value % (1 << 64)
        case op.TasksOutside(begin, end):
            return not _somebody_inside(world, range(begin, end))
    return True


def perform(world: World, operation: Operation, cpu: int) -> None:
    """Do it, on ``cpu``.

    :raises Found: it must not be done.
    """
    match operation:
        case op.StoreText(piece):
            _check_freed(world, piece.spot, cpu)
            _store_text(world, piece)
        case op.Write(address, data):
            world.write_data(address, data)
        case op.Add(address, value):
            world.write_data(address, word(world.lab.read_word(address) + value))
        case op.Send(cpus):
            _send(world, range(len(world.cpus)) if cpus is None else cpus, cpu)
        case op.Stop():
            world.stopping = True
            world.let_interrupts_in(on=False)
        case op.Stopped(look):
            world.stopping = False
            if look and _somebody_inside(world, *_behind_first_bytes(world)):
                _resume(world)
                world.done -= 2  # stop again
        case op.Resume():
            _resume(world)
        case op.Free(begin, end):
            world.freed = (*world.freed, (begin, end))
        case op.Interrupts(on):
            world.let_interrupts_in(on=on)
        case op.Drop(spot):
            _drop(world, spot)
        case op.Compare(spot, offset, old, skip):
            _check_freed(world, spot, cpu)  # a locked exchange that fails is a write cycle, too
            if world.text[spot][offset : offset + len(old)] != old:
                world.done += skip
        case op.Load(address):
            world.read = (*world.read, _load(world, address))
            world.done = 0


def _load(world: World, address: int) -> int:
    for spot, text in zip(world.spots, world.text, strict=True):
        if spot.address == address:
            return int.from_bytes(text, "little")
    return world.lab.read_word(address)


def _check_freed(world: World, spot: int, cpu: int) -> None:
    address = world.spots[spot].address
    if world.is_freed(address):
        what = f"the patcher writes to {world.lab.image.symbolize(address)}, which has been freed"
        raise Found(Finding(FindingClass.USE_AFTER_FREE, what, cpu, address))


def _store_text(world: World, piece: Piece) -> None:
    spot = piece.spot
    world.text[spot] = apply(world.text[spot], piece)
    world.lab.write_text(world.spots[spot].physical, world.text[spot])
    for number, cpu in enumerate(world.cpus):
        if world.model.text is Text.COHERENT:
            world.cpus[number] = cpu._replace(seen=tuple(world.text))
        elif world.model.text is Text.RELAXED:
            world.cpus[number] = cpu._replace(pending=(*cpu.pending, piece))


def _send(world: World, numbers: Sequence[int], sender: int) -> None:
    world.sync(sender)
    for number in numbers:
        cpu = world.cpus[number]
        if number == sender or cpu.offline:
            continue
        if cpu.parked:
            world.cpus[number] = cpu._replace(syncs_on_resume=True)
        else:
            world.cpus[number] = cpu._replace(owes_ack=True)


def _drop(world: World, spot: int) -> None:
    for number, cpu in enumerate(world.cpus):
        seen = (*cpu.seen[:spot], world.text[spot], *cpu.seen[spot + 1 :])
        pending = tuple(piece for piece in cpu.pending if piece.spot != spot)
        world.cpus[number] = cpu._replace(seen=seen, pending=pending)


def _resume(world: World) -> None:
    for number, cpu in enumerate(world.cpus):
        if cpu.syncs_on_resume:
            world.sync(number)
        world.cpus[number] = world.cpus[number]._replace(parked=False)
    world.let_interrupts_in(on=True)


def _behind_first_bytes(world: World) -> Iterator[range]:
    for spot in world.spots:
        yield range(spot.address + 1, spot.address + spot.size)


def _somebody_inside(world: World, *ranges: range) -> bool:
    """Whether an ip, a saved ip or a return address is in one of the ranges."""
    for number, task in enumerate(world.tasks):
        words = [Registers.get(task.registers, Reg.RIP), *world.lab.stack_words(number)]
        if NMI in task.frames:
            words += world.lab.nmi_stack_words(world.cpu_of[number])
        if any(word in range_ for word in words for range_ in ranges):
            return True
    return False
