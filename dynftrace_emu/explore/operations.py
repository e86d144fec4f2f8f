"""Carries out what a patcher does: stores, syncs, stops. Whoever it is, it is on some CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.explore import program as op
from dynftrace_emu.explore.lab import Registers
from dynftrace_emu.explore.model import Text
from dynftrace_emu.explore.poke import word
from dynftrace_emu.explore.text import Piece, apply
from dynftrace_emu.machine.vcpu import Reg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dynftrace_emu.explore.program import Operation
    from dynftrace_emu.explore.state import Task
    from dynftrace_emu.explore.world import World

__all__ = ["perform", "possible"]


def possible(world: World, operation: Operation) -> bool:
    """Whether it can be done now, or waits for somebody."""
    match operation:
        case op.WaitForAcks():
            return not any(cpu.owes_ack for cpu in world.cpus)
        case op.Stopped():
            return all(cpu.parked for cpu in world.cpus[: world.patcher_cpu])
        case op.Until(address, value):
            return world.lab.read_word(address) == value % (1 << 64)
    return True


def perform(world: World, operation: Operation, cpu: int) -> None:
    """Do it, on ``cpu``."""
    match operation:
        case op.StoreText(piece):
            _store_text(world, piece)
        case op.Write(address, data):
            world.write_data(address, data)
        case op.Add(address, value):
            world.write_data(address, word(world.lab.read_word(address) + value))
        case op.Send(cpus):
            _send(world, range(len(world.cpus)) if cpus is None else cpus, cpu)
        case op.Stop():
            world.stopping = True
        case op.Stopped(look):
            world.stopping = False
            if look and _somebody_inside(world):
                _resume(world)
                world.done -= 2  # stop again
        case op.Resume():
            _resume(world)
        case op.Free(begin, end):
            world.freed = (*world.freed, (begin, end))
        case op.Compare(spot, offset, old, skip):
            if world.text[spot][offset : offset + len(old)] != old:
                world.done += skip
        case op.Load(address):
            world.read = (*world.read, world.lab.read_word(address))
            world.done = 0


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
    for number in numbers:
        cpu = world.cpus[number]
        if number == sender:
            world.sync(number)
        elif cpu.parked:
            world.cpus[number] = cpu._replace(syncs_on_resume=True)
        else:
            world.cpus[number] = cpu._replace(owes_ack=True)


def _resume(world: World) -> None:
    for number, cpu in enumerate(world.cpus):
        if cpu.syncs_on_resume:
            world.sync(number)
        world.cpus[number] = world.cpus[number]._replace(parked=False)


def _somebody_inside(world: World) -> bool:
    """Whether an ip, a saved ip or a return address is behind the first byte of a spot."""
    inside = {
        address
        for spot in world.spots
        for address in range(spot.address + 1, spot.address + spot.size)
    }
    for number, task in enumerate(world.tasks):
        if Registers.get(task.registers, Reg.RIP) in inside:
            return True
        if any(value in inside for value in _stack_words(world, number, task)):
            return True
    return False


def _stack_words(world: World, number: int, task: Task) -> Iterator[int]:
    rsp = Registers.get(task.registers, Reg.RSP)
    for address in range(rsp, world.lab.stack_top(number), 8):
        if world.lab.start <= address < world.lab.end:
            yield world.lab.read_word(address)
