"""``dynftrace-emu explore --necessity``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dynftrace_emu.explore.necessity import Row
    from dynftrace_emu.explore.workers import Workers

__all__ = ["show_necessity"]

_INTERRUPTED = 130


def show_necessity(protocol: str, workers: Workers, *, as_json: bool, as_markdown: bool) -> int:
    """Print the table; returns the exit code: 1 if the protocol itself is not clean."""
    from dynftrace_emu.cli.explore_view import ProgressView
    from dynftrace_emu.explore.mutations import split_name
    from dynftrace_emu.explore.necessity import necessity
    from dynftrace_emu.explore.necessity_table import markdown, to_json, to_lines
    from dynftrace_emu.explore.protocol_file import read_protocol_file

    source = read_protocol_file(protocol) if ":" in split_name(protocol)[0] else None
    done = 0
    with workers, ProgressView("necessity") as view:

        def on_row(_row: Row, of: int) -> None:
            nonlocal done
            done += 1
            view.say(f"{done} of {of} mutants")

        table = necessity(protocol, source, workers, on_row)
    if as_json:
        click.echo(json.dumps(to_json(table), indent=1))
    elif as_markdown:
        click.echo(markdown(table), nl=False)
    else:
        for line in to_lines(table):
            click.echo(line)
    if table.interrupted:
        return _INTERRUPTED
    return int(table.itself.weakest is not None)
