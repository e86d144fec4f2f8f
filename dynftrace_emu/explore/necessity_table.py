"""The table of :mod:`.necessity`, for people, for a page and for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynftrace_emu._version import __version__
from dynftrace_emu.explore.model import Text
from dynftrace_emu.explore.schedule import to_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.necessity import Necessity, Row, Shown

__all__ = ["SCHEMA", "markdown", "to_json", "to_lines"]

SCHEMA = "dynftrace-emu/necessity/1"
_NOT = "not distinguishable"
_HEAD = ("mutant", "what is wrong", *(text.value for text in Text), "weakest model")


def _cells(row: Row, protocol: str) -> tuple[str, ...]:
    name = protocol if row.mutation is None else row.mutation.name("")
    weakest = row.weakest.value if row.weakest else ("-" if row.mutation is None else _NOT)
    return name, row.words, *(_shown(row.shown[text]) for text in Text), weakest


def _shown(shown: Shown | None) -> str:
    """The class, the number of actions, and the setup."""
    if shown is None:
        return "-"
    return f"{shown.finding.kind.value} {len(shown.schedule)} ({shown.setup})"


def _rows(table: Necessity) -> list[tuple[str, ...]]:
    return [_cells(row, table.protocol) for row in (table.itself, *table.rows)]


def _steps(table: Necessity) -> Iterator[str]:
    for number, step in enumerate(table.steps, 1):
        yield f"{number}. {step}"


def to_lines(table: Necessity) -> Iterator[str]:
    """As text; a line of the table is as long as it gets."""
    yield f"{table.protocol}, step by step:"
    yield from (f"  {line}" for line in _steps(table))
    yield f"setups: {', '.join(table.setups)}"
    yield ""
    rows = [_HEAD, *_rows(table)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        yield "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
    yield ""
    yield sentence(table)


def sentence(table: Necessity) -> str:
    """What it comes to."""
    if table.itself.weakest is not None:
        return f"{table.protocol} is not clean itself, so its mutants say nothing."
    if table.interrupted:
        return f"Interrupted after {len(table.rows)} mutants."
    shown = sum(row.weakest is not None for row in table.rows)
    return (
        f"{table.protocol} itself is clean in every setup and model. Of {len(table.rows)} mutants "
        f"{shown} are shown, {len(table.rows) - shown} are not distinguishable."
    )


def markdown(table: Necessity) -> str:
    """As a part of a page."""
    lines = [*_steps(table), "", f"Setups: {', '.join(table.setups)}.", ""]
    lines.append(_bar(_HEAD))
    lines.append(_bar(("---",) * len(_HEAD)))
    lines += [_bar(row) for row in _rows(table)]
    return "\n".join([*lines, "", sentence(table), ""])


def _bar(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def to_json(table: Necessity) -> dict[str, Any]:
    """For machines; schedules are as in a counterexample's file."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "protocol": table.protocol,
        "steps": list(table.steps),
        "setups": list(table.setups),
        "interrupted": table.interrupted,
        "clean": table.itself.weakest is None,
        "mutants": [_row_json(row, table.protocol) for row in table.rows],
        "itself": _row_json(table.itself, table.protocol),
    }


def _row_json(row: Row, protocol: str) -> dict[str, Any]:
    return {
        "protocol": protocol if row.mutation is None else row.mutation.name(protocol),
        "what": row.words,
        "weakest": row.weakest and row.weakest.value,
        "shown": {
            text.value: None
            if (shown := row.shown[text]) is None
            else {
                "class": shown.finding.kind.value,
                "what": shown.finding.what,
                "setup": shown.setup,
                "schedule": [to_text(action) for action in shown.schedule],
            }
            for text in Text
        },
    }
