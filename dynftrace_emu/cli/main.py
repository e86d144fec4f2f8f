"""The ``dynftrace-emu`` command: finds its sub-commands, and turns errors into exit codes.

0: done. 1: the guest or a check failed. 2: used wrongly. 125: a counterexample that cannot be run.
130: interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from dynftrace_emu._version import __version__
from dynftrace_emu.cli.bench import bench
from dynftrace_emu.cli.convert import convert
from dynftrace_emu.cli.explore import explore
from dynftrace_emu.cli.inspect import inspect
from dynftrace_emu.cli.record import record
from dynftrace_emu.cli.replay import replay
from dynftrace_emu.cli.report import report
from dynftrace_emu.cli.run import run
from dynftrace_emu.errors import DynftraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["cli", "run_cli"]

_INTERRUPTED = 130


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExamples:\n  dynftrace-emu run --seconds 5 --tracing 2:3\n"
    "  dynftrace-emu record -p function_graph -o trace.dat",
)
@click.version_option(__version__, prog_name="dynftrace-emu")
def cli() -> None:
    """Linux's dynamic ftrace of 2008, alive in an emulated SMP computer."""


cli.add_command(run)
cli.add_command(record)
cli.add_command(report)
cli.add_command(convert)
cli.add_command(replay)
cli.add_command(inspect)
cli.add_command(explore)
cli.add_command(bench)


def run_cli(arguments: Sequence[str]) -> int:
    """Run a command line; returns its exit code. Every expected error is one line on stderr."""
    try:
        result = cli.main(list(arguments), prog_name="dynftrace-emu", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _complain(context.command_path if context else "dynftrace-emu", error.format_message())
        return error.exit_code
    except DynftraceError as error:
        _complain("dynftrace-emu", str(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; nothing more can be said, and the flush at exit must
        # not say so either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _complain(who: str, message: str) -> None:
    click.echo(f"{who}: {' '.join(message.split())}", err=True)
