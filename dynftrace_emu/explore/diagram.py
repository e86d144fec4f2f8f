"""A replay as text that fits into a mail: 25 lines of 72 ASCII columns, a column a CPU.

Each action is a row. Rows that say least are put together until all fits (:func:`_condense`).
"""

from __future__ import annotations

import itertools
import re
import shlex
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.explore import program as op
from dynftrace_emu.explore.lab import decode
from dynftrace_emu.explore.replay import End
from dynftrace_emu.explore.schedule import to_text
from dynftrace_emu.explore.state import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.replay import Event, Executed, Replay
    from dynftrace_emu.explore.setup import Setup
    from dynftrace_emu.explore.text import Piece
    from dynftrace_emu.explore.watch import Site

__all__ = ["COLUMNS", "LINES", "Names", "command_for", "describe", "draw"]

LINES, COLUMNS = 25, 72
_GUTTER = 7  # a mark, four digits, a space
_ADDRESS = re.compile(r"0x[0-9a-f]{5,16}")
_SIZE = re.compile(r"(\+0x[0-9a-f]+)/0x[0-9a-f]+")  # of a function, behind an offset in it
_OPERAND_SIZE = re.compile(r"\b[dq]?word ptr ")
_RIP_RELATIVE = re.compile(r"\[rip ([+-]) (0x[0-9a-f]+|\d+)\]")


@dataclass(slots=True)
class _Row:
    """One line of the diagram.

    :param lanes: the columns of those who act in it.
    :param steps: how many actions it stands for; ``first`` is the first one's number.
    :param begin: where it begins, when other rows are added to it; ``end``: where it ends.
    :param weight: how much a reader would miss it.
    """

    lanes: frozenset[int]
    first: int
    steps: int
    text: str
    begin: str
    end: str
    weight: int
    marked: bool = False


# How much a reader would miss a row.
_PLAIN, _WAIT, _EVENT, _FETCH, _STORE, _STALE, _LAST = 1, 3, 5, 8, 10, 12, 1000
_FREE = 0  # the cost of putting two rows together that always are
_OTHER_LANE = 6


class Names:
    """Addresses in words, for one replay's guest."""

    def __init__(self, replay: Replay) -> None:
        world, setup = replay.world, replay.counterexample.job.setup
        self._image = world.lab.image
        self.sites = [site.symbol for site in setup.sites]
        self._spots = list(zip(world.spots, self.sites, strict=True))
        text_begin, text_end = self._image.text_range
        self._data = {
            symbol.address: symbol.name
            for symbol in self._image.symbols.values()
            if not text_begin <= symbol.address < text_end
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


def draw(replay: Replay, command: str, *, every_instruction: bool = False) -> Iterator[str]:
    """The lines; at most :data:`LINES` of them, unless every instruction is wanted.

    :param command: what repeats it.
    """
    head = list(_head(replay))
    foot = ["", *_fit_command(command)]
    names = Names(replay)
    rows = [r for event in replay.events for r in _rows(replay, event, names, every_instruction)]
    _mark_end(replay, rows)
    if not every_instruction:
        rows = _condense(rows, LINES - len(head) - len(foot))
    lanes = len(replay.world.cpus)
    yield from head
    yield from (_line(row, lanes) for row in rows)
    yield from foot


# --- above and below ---


def _head(replay: Replay) -> Iterator[str]:
    names = Names(replay)
    yield from _wrap(names.instruction(_verdict(replay), 0), 3)
    yield from _wrap(_what(replay.counterexample.job.setup), 2)
    shown = list(zip(names.sites, replay.world.watch.sites, strict=True))
    for name, site in shown[:2]:
        yield _change(name, site, names)
    if len(shown) > 2:
        yield f"... and {len(shown) - 2} more sites"
    yield ""
    lanes = len(replay.world.cpus)
    titles = [f"CPU {n}" for n in range(lanes - 1)] + [f"patcher (CPU {lanes - 1})"]
    width = _lane_width(lanes)
    yield (" " * _GUTTER + "".join(title.ljust(width) for title in titles)).rstrip()


def _change(name: str, site: Site, names: Names) -> str:
    """What a site reads before and after, in bytes and, where there is room, in words."""
    codes = [code.hex(" ") for code in (site.old, site.new)]
    insns = [decode(code, site.address) for code in (site.old, site.new)]
    words = [names.instruction(insn.text, site.address + insn.size) for insn in insns]
    long = f"{name}: {codes[0]} {words[0]} -> {codes[1]} {words[1]}"
    return _ascii(long if len(long) <= COLUMNS else f"{name}: {' -> '.join(codes)}")[:COLUMNS]


def _verdict(replay: Replay) -> str:
    found = replay.finding
    expected = replay.counterexample.finding
    where = "" if found is None or found.cpu is None else f"CPU {found.cpu}: "
    match replay.end:
        case End.FAILS if found is not None:
            return f"{found.kind.value}: {where}{found.what}"
        case End.DIFFERS if found is not None:
            return f"{found.kind.value}, not {expected.kind.value}: {where}{found.what}"
        case End.IMPOSSIBLE:
            action = replay.counterexample.schedule[len(replay.events)]
            return f"no {expected.kind.value} any more: {to_text(action)} is not possible now"
    return f"no {expected.kind.value} any more: all was done, and nothing is wrong"


def _what(setup: Setup) -> str:
    model = setup.model
    parts = [
        f"{setup.name}: protocol {setup.protocol}",
        f"text {model.text.value}",
        f"chunk {model.chunk}",
        f"park {model.park.name.lower()}",
    ]
    if setup.defines:
        parts.append(" ".join(setup.defines))
    return ", ".join(parts)


def _fit_command(command: str) -> list[str]:
    if not command.isascii() or not command.isprintable() or len(command) > COLUMNS:
        command = "dynftrace-emu replay FILE"
    return [command]


def command_for(path: str) -> str:
    """The command that repeats a file; its last part alone if it is too long."""
    command = f"dynftrace-emu replay {shlex.quote(path)}"
    if len(command) > COLUMNS:
        command = f"dynftrace-emu replay {shlex.quote(path.rpartition('/')[2])}"
    return command


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _wrap(text: str, most: int) -> list[str]:
    return textwrap.wrap(_ascii(text), COLUMNS, max_lines=most, placeholder=" ...") or [""]


# --- rows ---


def _rows(replay: Replay, event: Event, names: Names, every_instruction: bool) -> list[_Row]:
    """The rows of an action: one, or one for each instruction."""
    lane = frozenset((event.cpu,))
    prefix = ""
    if replay.world.cpu_of.count(event.cpu) > 1 and event.action.kind == Kind.RUN:
        prefix = f"task {event.task}: "
    if every_instruction and event.executed:
        return [
            _Row(lane, event.number, 1, prefix + _executed(e, names), "", "", 0)
            for e in event.executed
        ]
    if event.action.kind == Kind.RUN and event.operation is None:
        return [_run_row(event, lane, names, prefix)]
    text, weight = _other(event, names)
    return [_Row(lane, event.number, 1, text, text, text, weight)]


def _run_row(event: Event, lane: frozenset[int], names: Names, prefix: str) -> _Row:
    begin, end = names.place(event.at), names.place(event.now)
    if not event.executed:
        return _Row(lane, event.number, 1, prefix + begin, prefix + begin, end, _PLAIN)
    first = event.executed[0]
    text = prefix + _executed(first, names)
    if end not in text:
        text += f" -> {end}"
    weight = _PLAIN
    if begin in names.sites:
        weight = _STALE if first.stale else _FETCH
    return _Row(lane, event.number, 1, text, prefix + begin, end, weight)


def describe(event: Event, names: Names) -> str:
    """An action in a few words."""
    lane = frozenset((event.cpu,))
    if event.action.kind == Kind.RUN and event.operation is None:
        return _run_row(event, lane, names, "").text
    return _other(event, names)[0]


def _executed(executed: Executed, names: Names) -> str:
    place = names.place(executed.ip)
    text = f"{place}: {names.instruction(executed.text, executed.ip + len(executed.code))}"
    return f"{text} [sees {executed.code.hex(' ')}]" if executed.stale else text


def _other(event: Event, names: Names) -> tuple[str, int]:
    """What an interrupt or the patcher does, and its weight."""
    at = names.place(event.at)
    match event.action.kind:
        case Kind.ACK:
            return "sync interrupt: acked", _EVENT
        case Kind.PARK:
            return f"parked at {at}", _EVENT
        case Kind.NMI:
            return f"NMI at {at}", _EVENT
        case Kind.ONLINE:
            return "comes online", _EVENT
        case Kind.TIMER:
            return f"timer interrupt at {at}", _EVENT
    return _patch(event, names)


def _patch(event: Event, names: Names) -> tuple[str, int]:
    match event.operation:
        case op.StoreText(piece):
            return f"{names.sites[piece.spot]}: {_stored(event, piece)}", _STORE
        case op.Compare(spot):
            return f"compare {names.sites[spot]}", _PLAIN
        case op.Send(cpus):
            whom = "all CPUs" if cpus is None else f"CPU {', '.join(map(str, cpus))}"
            return f"sync {whom if cpus != () else 'this CPU'}", _EVENT
        case op.WaitForAcks():
            return "all have synced", _WAIT
        case op.Stop():
            return "stop_machine", _EVENT
        case op.Stopped():
            return "all are parked", _WAIT
        case op.Resume():
            return "let all go", _EVENT
        case op.Load(what=what):
            return f"read {what}", _WAIT
        case op.Free(what=what):
            return f"free {what}", _EVENT
        case op.Write(what=what) | op.Add(what=what) | op.Until(what=what):
            return names.instruction(what, 0), _WAIT
    return to_text(event.action), _WAIT


def _stored(event: Event, piece: Piece) -> str:
    """The site's bytes, those just stored in brackets."""
    text = event.text[piece.spot]
    end = piece.offset + len(piece.data)
    parts = [
        text[: piece.offset].hex(" "), f"[{text[piece.offset : end].hex(' ')}]", text[end:].hex(" ")
    ]  # fmt: skip
    return " ".join(filter(None, parts))


def _mark_end(replay: Replay, rows: list[_Row]) -> None:
    """Mark the row in which it goes wrong, or add one."""
    if replay.finding is None:
        return
    if replay.at_end or not rows:
        everybody = frozenset(range(len(replay.world.cpus)))
        number = len(replay.events) + 1
        rows.append(_Row(everybody, number, 0, f"the end: {replay.finding.kind.value}", "", "", 0))
    rows[-1].weight, rows[-1].marked = _LAST, True


# --- making it fit ---


def _condense(rows: list[_Row], most: int) -> list[_Row]:
    """Put neighbours together: what is plain always, then what says least, up to ``most`` rows."""
    rows = list(rows)
    while True:
        costs = [_cost(a, b) for a, b in itertools.pairwise(rows)]
        if not costs or (min(costs) > _FREE and len(rows) <= most):
            return rows
        index = costs.index(min(costs))
        rows[index : index + 2] = [_together(rows[index], rows[index + 1])]


def _cost(a: _Row, b: _Row) -> int:
    if a.lanes == b.lanes and (a.weight == b.weight == _PLAIN or a.text == b.text):
        return _FREE
    return a.weight + b.weight + (0 if a.lanes == b.lanes else _OTHER_LANE)


def _together(a: _Row, b: _Row) -> _Row:
    lanes, steps = a.lanes | b.lanes, a.steps + b.steps
    weight = max(a.weight, b.weight)
    if len(lanes) > 1:
        text = f"... {steps} steps ..."
        return _Row(lanes, a.first, steps, text, "...", "...", weight)
    text = a.text if a.text == b.text else f"{a.begin} .. {b.end} ({steps} steps)"
    return _Row(lanes, a.first, steps, text, a.begin, b.end, weight)


# --- a line ---


def _lane_width(lanes: int) -> int:
    """Of a CPU's column; the patcher's, the last, has the rest."""
    return 14 if lanes <= 3 else 11


def _line(row: _Row, lanes: int) -> str:
    width = _lane_width(lanes)
    begin = _GUTTER + width * min(row.lanes)
    text = _ascii(row.text)
    line = list(" " * COLUMNS)
    for bar in range(_GUTTER, _GUTTER + width * lanes, width):
        if bar != begin + len(text):
            line[bar] = "|"
    if begin + len(text) > COLUMNS:
        text = text[: COLUMNS - begin - 1] + "~"
    line[begin : begin + len(text)] = text
    line[:_GUTTER] = f"{'>>' if row.marked else '':2}{row.first:>4} "
    return "".join(line).rstrip()
