"""``dynftrace-emu convert``."""

from __future__ import annotations

from pathlib import Path

import click

from dynftrace_emu.errors import OptionError

__all__ = ["convert"]


@click.command(
    epilog="\b\nExamples:\n  dynftrace-emu convert trace.dat trace.pftrace\n"
    "  dynftrace-emu convert trace.dat flame.svg"
)
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def convert(source: Path, target: Path) -> None:
    """Convert the trace SOURCE to what the extension of TARGET says.

    .txt ftrace text, .dat trace.dat, .pftrace Perfetto, .json Chrome's trace viewer,
    .speedscope.json speedscope, .folded collapsed stacks, .svg a flame graph, .uftrace a directory
    that uftrace reads.
    """
    from dynftrace_emu.export.convert import convert as convert_trace

    if target.exists() and source.samefile(target):
        raise OptionError(f"{target}: source and target are the same file")
    try:
        convert_trace(source, target)
    except OSError as error:
        raise OptionError(f"{target}: {error.strerror}") from None
