"""A replay as text that fits into a mail: 25 lines of 72 ASCII columns, a column a CPU.

Each action is a row. Rows that say least are put together until all fits (:func:`_condense`).
"""

from __future__ import annotations

import itertools
import shlex
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.explore import program as op
from dynftrace_emu.explore.lab import decode
from dynftrace_emu.explore.replay import End
from dynftrace_emu.explore.schedule import to_text
from dynftrace_emu.explore.state import Kind
from dynftrace_emu.explore.wording import Names, describe, describe_instruction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.replay import Event, Replay
    from dynftrace_emu.explore.setup import Setup
    from dynftrace_emu.explore.watch import Site

__all__ = ["COLUMNS", "LINES", "command_for", "draw"]

LINES, COLUMNS = 25, 72
_GUTTER = 7  # a mark, four digits, a space


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
_PLAIN, _WAIT, _EVENT, _FETCH, _STALE, _STORE, _LAST = 1, 3, 5, 8, 12, 20, 1000
_FREE = 0  # the cost of putting two rows together that always are
_OTHER_LANE = 6


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
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def _wrap(text: str, most: int) -> list[str]:
    return textwrap.wrap(_ascii(text), COLUMNS, max_lines=most, placeholder=" ...") or [""]


# --- rows ---


def _rows(replay: Replay, event: Event, names: Names, every_instruction: bool) -> list[_Row]:
    """The rows of an action: one, or one for each instruction."""
    lane, is_run = frozenset((event.cpu,)), event.action.kind == Kind.RUN
    several = is_run and replay.world.cpu_of.count(event.cpu) > 1
    who = f"task {event.task}: " if several else ""
    if every_instruction and event.executed:
        texts = [who + describe_instruction(executed, names) for executed in event.executed]
        return [_Row(lane, event.number, 1, text, text, text, _PLAIN) for text in texts]
    text = who + describe(event, names)
    begin, end = text, text
    if is_run and event.operation is None:
        begin, end = who + names.place(event.at), names.place(event.now)
    return [_Row(lane, event.number, 1, text, begin, end, _weight(event, names))]


def _weight(event: Event, names: Names) -> int:
    match event.operation:
        case op.StoreText():
            return _STORE
        case op.Send() | op.Stop() | op.Resume() | op.Free():
            return _EVENT
        case op.Compare():
            return _PLAIN
        case None if event.action.kind != Kind.RUN:
            return _EVENT
        case None:
            if names.place(event.at) not in names.sites or not event.executed:
                return _PLAIN
            return _STALE if event.executed[0].stale else _FETCH
    return _WAIT


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
    if a.text == b.text:
        return _FREE if a.lanes == b.lanes else a.weight
    if a.lanes == b.lanes and a.weight == b.weight == _PLAIN:
        return _FREE
    return a.weight + b.weight + (0 if a.lanes == b.lanes else _OTHER_LANE)


def _together(a: _Row, b: _Row) -> _Row:
    lanes, steps = a.lanes | b.lanes, a.steps + b.steps
    weight = max(a.weight, b.weight)
    if a.text == b.text:
        begin, end, text = a.begin, b.end, a.text
    elif len(lanes) > 1:
        begin = end = text = f"... {steps} steps ..."
    else:
        begin, end = a.begin, b.end
        text = f"{begin} .. {end} ({steps} steps)"
    return _Row(lanes, a.first, steps, text, begin, end, weight)


# --- a line ---


def _lane_width(lanes: int) -> int:
    """Of a CPU's column; the patcher's, the last, has the rest."""
    return 14 if lanes <= 3 else 11


def _line(row: _Row, lanes: int) -> str:
    width = _lane_width(lanes)
    begin = _GUTTER + width * min(row.lanes)
    text = _ascii(row.text)
    if 1 < len(row.lanes) < lanes:
        text += f" ({', '.join(f'CPU {lane}' for lane in sorted(row.lanes))})"
    line = list(" " * COLUMNS)
    for bar in range(_GUTTER, _GUTTER + width * lanes, width):
        if bar != begin + len(text):
            line[bar] = "|"
    if begin + len(text) > COLUMNS:
        text = text[: COLUMNS - begin - 1] + "~"
    line[begin : begin + len(text)] = text
    line[:_GUTTER] = f"{'>>' if row.marked else '':2}{row.first:>4} "
    return "".join(line).rstrip()
