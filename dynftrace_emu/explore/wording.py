"""A replay's events in words: symbols for addresses, bytes for text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dynftrace_emu.explore import program as op
from dynftrace_emu.explore.foreign import shown
from dynftrace_emu.explore.schedule import to_text
from dynftrace_emu.explore.state import Kind

if TYPE_CHECKING:
    from dynftrace_emu.explore.replay import Event, Executed, Replay
    from dynftrace_emu.explore.text import Piece

__all__ = ["Names", "describe", "describe_instruction"]

_ADDRESS = re.compile(r"0x[0-9a-f]{5,16}")
_SIZE = re.compile(r"(\+0x[0-9a-f]+)/0x[0-9a-f]+")  # of a function, behind an offset in it
_OPERAND_SIZE = re.compile(r"\b[dq]?word ptr ")
_RIP_RELATIVE = re.compile(r"\[rip ([+-]) (0x[0-9a-f]+|\d+)\]")


class Names:
    """Addresses in words, for one replay's guest."""

    def __init__(self, replay: Replay) -> None:
        world, setup = replay.world, replay.counterexample.job.setup
        self._image = world.lab.image
        self.sites = [shown(site.symbol) for site in setup.sites]
        self._spots = list(zip(world.spots, self.sites, strict=True))
        data = [segment for segment in self._image.segments if not segment.executable]
        self._data = {
            symbol.address: symbol.name
            for symbol in self._image.symbols.values()
            if any(0 <= symbol.address - segment.address < segment.size for segment in data)
        }

    def place(self, address: int) -> str:
        """``site_work``, ``work+0xb``, ``ftrace_func``, or the bare address."""
        for spot, name in self._spots:
            if spot.address <= address < spot.address + spot.size:
                offset = address - spot.address
                return f"{name}+{offset}" if offset else name
        if address in self._data:
            return self._data[address]
        return self._image.symbolize(address).partition("/")[0].removesuffix("+0x0")

    def instruction(self, text: str, behind: int) -> str:
        """An instruction's text with symbols for addresses; ``behind`` is where the next one is."""

        def relative(match: re.Match[str]) -> str:
            offset = int(match[2], 0) * (1 if match[1] == "+" else -1)
            return f"[{self.place(behind + offset)}]"

        text = _SIZE.sub(r"\1", text)
        text = _RIP_RELATIVE.sub(relative, text)
        text = _ADDRESS.sub(lambda match: self.place(int(match[0], 16)), text)
        return _OPERAND_SIZE.sub("", text)


def describe(event: Event, names: Names) -> str:
    """An action in a few words."""
    at = names.place(event.at)
    match event.action.kind:
        case Kind.RUN if event.operation is None:
            return _run(event, names)
        case Kind.ACK:
            return "sync interrupt: acked"
        case Kind.PARK:
            return f"parked at {at}"
        case Kind.NMI:
            return f"NMI at {at}"
        case Kind.ONLINE:
            return "comes online"
        case Kind.TIMER:
            return f"timer interrupt at {at}"
    return _operation(event, names)


def describe_instruction(executed: Executed, names: Names) -> str:
    """Where it is, what it is, and the bytes if memory has others."""
    place = names.place(executed.ip)
    text = f"{place}: {names.instruction(executed.text, executed.ip + len(executed.code))}"
    return f"{text} [sees {executed.code.hex(' ')}]" if executed.stale else text


def _run(event: Event, names: Names) -> str:
    """The first instruction, and where the task stands afterwards."""
    if not event.executed:
        return names.place(event.at)
    text, end = describe_instruction(event.executed[0], names), names.place(event.now)
    return text if end in text else f"{text} -> {end}"


def _operation(event: Event, names: Names) -> str:
    match event.operation:
        case op.StoreText(piece):
            return f"{names.sites[piece.spot]}: {_stored(event, piece)}"
        case op.Compare(spot):
            return f"compare {names.sites[spot]}"
        case op.Send(cpus):
            whom = "all CPUs" if cpus is None else f"CPU {', '.join(map(str, cpus))}"
            return f"sync {whom if cpus != () else 'this CPU'}"
        case op.WaitForAcks():
            return "all have synced"
        case op.Stop():
            return "stop_machine"
        case op.Stopped():
            return "all are parked"
        case op.Resume():
            return "let all go"
        case op.Load(what=what):
            return f"read {what}"
        case op.Free(what=what):
            return f"free {what}"
        case op.Write(what=what) | op.Add(what=what) | op.Until(what=what):
            return names.instruction(what, 0)
    return to_text(event.action)


def _stored(event: Event, piece: Piece) -> str:
    """The site's bytes, those just stored in brackets."""
    text = event.text[piece.spot]
    end = piece.offset + len(piece.data)
    parts = [
        text[: piece.offset].hex(" "), f"[{text[piece.offset : end].hex(' ')}]", text[end:].hex(" ")
    ]  # fmt: skip
    return " ".join(filter(None, parts))
