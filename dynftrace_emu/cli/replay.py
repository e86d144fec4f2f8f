"""``dynftrace-emu replay``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynftrace_emu.cli.options import json_option
from dynftrace_emu.errors import DynftraceError, ReplayError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.replay import Event, Replay

__all__ = ["replay"]

SCHEMA = "dynftrace-emu/replay/1"


@click.command(
    epilog="\b\nExit code: 1 it still fails, 0 it does not any more, 125 it cannot be run, or fails"
    "\notherwise: what git bisect run wants.\n\n\b\nExamples:\n  dynftrace-emu replay cx.json"
    "\n  git bisect run dynftrace-emu replay cx.json"
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--protocol", metavar="NAME|FILE.py:FUNCTION", help="Use this one, not that of the file."
)
@click.option("-v", "--verbose", is_flag=True, help="Every instruction, as long as it gets.")
@json_option("Print one JSON document.")
def replay(file: Path, protocol: str | None, verbose: bool, as_json: bool) -> int:
    """Run the counterexample in FILE once more, and show it as a mail can hold it.

    If it has a protocol of its own, in Python, that is run, too. It answers for this one schedule;
    explore answers for all.
    """
    from dynftrace_emu.explore.counterexample import load
    from dynftrace_emu.explore.diagram import command_for, draw
    from dynftrace_emu.explore.replay import End, run, with_protocol

    try:
        counterexample = load(file)
        if protocol is not None:
            counterexample = with_protocol(counterexample, protocol)
        result = run(counterexample)
    except DynftraceError as error:
        raise ReplayError(_with_name(str(error), file)) from None
    if result.image_changed:
        click.echo(f"{file}: the guest has changed since it was found", err=True)
    if as_json:
        click.echo(json.dumps(_document(result), indent=1))
    else:
        for line in draw(result, command_for(str(file)), every_instruction=verbose):
            click.echo(line)
    if result.end is End.DIFFERS and result.finding is not None:
        raise ReplayError(f"{file}: it fails otherwise: {result.finding.kind.value}")
    return int(result.end is End.FAILS)


def _with_name(message: str, file: Path) -> str:
    return message if message.startswith(str(file)) else f"{file}: {message}"


def _document(result: Replay) -> dict[str, Any]:
    found, expected = result.finding, result.counterexample.finding
    return {
        "schema": SCHEMA,
        "end": result.end.value,
        "expected": expected.kind.value,
        "finding": found and {"class": found.kind.value, "what": found.what, "cpu": found.cpu},
        "image_changed": result.image_changed,
        "steps": list(_steps(result)),
    }


def _steps(result: Replay) -> Iterator[dict[str, Any]]:
    from dynftrace_emu.explore.schedule import to_text
    from dynftrace_emu.explore.wording import Names, describe

    names = Names(result)
    for event in result.events:
        yield {
            "step": event.number,
            "action": to_text(event.action),
            "cpu": event.cpu,
            "what": describe(event, names),
            "instructions": _instructions(event),
            "text": {n: t.hex(" ") for n, t in zip(names.sites, event.text, strict=True)},
        }


def _instructions(event: Event) -> list[dict[str, Any]]:
    return [
        {"ip": f"{e.ip:#x}", "code": e.code.hex(" "), "text": e.text, "stale": e.stale}
        for e in event.executed
    ]
