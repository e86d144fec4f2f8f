"""``dynftrace-emu run``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynftrace_emu.cli.options import image_argument
from dynftrace_emu.cli.run_options import run_options, to_run_options
from dynftrace_emu.errors import OptionError

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.options import RunOptions

__all__ = ["run"]


@click.command(
    epilog="\b\nExamples:\n  dynftrace-emu run\n"
    "  dynftrace-emu run --engine deterministic --seed 7 --iterations 200 --tracing 1:3 --json\n"
    "  dynftrace-emu run --watch vfs_read\n"
    "  dynftrace-emu run --set current_tracer=function_graph --set 'set_ftrace_filter=vfs_*' "
    "--show trace"
)
@image_argument()
@run_options()
@click.option(
    "--lines", "show_lines", is_flag=True, help="Show traces with file:line of functions and calls."
)
@click.option("--watch", metavar="FUNC", help="Tell the life of FUNC's call site as a timeline.")
@click.option(
    "--repro",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run again what a failed run wrote to this file.",
)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    as_json: bool,
    verbose: bool,
    show_lines: bool,
    watch: str | None,
    repro: Path | None,
    **values: Any,
) -> int:
    """Boot IMAGE and watch it record its call sites, get them patched, and settle.

    IMAGE is a built-in name (mini-kernel, mini-kernel-nmi-broken, synthetic:N for a
    generated kernel of N functions), else a path to an ELF file or to assembly
    text (./x forces a path).
    """
    from dynftrace_emu.cli.repro import read_repro

    if repro is not None:
        _refuse_other_options(ctx)
        options, digest = read_repro(repro)
    else:
        if values["call"] is not None:
            _trace_the_call(values)
        options, digest = to_run_options(values), None
    shown = _Shown(as_json=as_json, verbose=verbose, lines=show_lines, watch=watch)
    return _execute(options, digest, shown)


def _trace_the_call(values: dict[str, Any]) -> None:
    """Show what the function does, unless the user says what is to be traced."""
    writes = [*values["set"], *(text.partition(":")[2] for text in values["at"])]
    if not any("current_tracer=" in text for text in writes) and values["tracing"] is None:
        values["set"] = (*values["set"], "current_tracer=function_graph")
    if not values["show"]:
        values["show"] = ("trace",)


def _refuse_other_options(ctx: click.Context) -> None:
    allowed = {"as_json", "verbose", "show_lines", "watch", "repro"}
    for name in ctx.params:
        source = ctx.get_parameter_source(name)
        if name not in allowed and source is click.core.ParameterSource.COMMANDLINE:
            raise OptionError("--repro takes every option from its file; give it alone")


@dataclass(frozen=True, slots=True)
class _Shown:
    """What of a run is shown, and how."""

    as_json: bool
    verbose: bool
    lines: bool
    watch: str | None


def _execute(options: RunOptions, digest: str | None, shown: _Shown) -> int:
    from dynftrace_emu.cli.execution import finish, interruptible, run_and_catch, show_console
    from dynftrace_emu.cli.live import TickView
    from dynftrace_emu.ftrace.run import Run
    from dynftrace_emu.ftrace.watch import Watch
    from dynftrace_emu.tracefs.controls import Controls

    with ExitStack() as stack:
        view = None if shown.as_json else stack.enter_context(TickView(options.vcpus))
        traced = Run(options, on_tick=view.show if view else None)
        traced.tracing.places = traced.image if shown.lines else None
        controls = Controls(traced)
        if traced.note:
            click.echo(f"note: {traced.note}", err=True)
        if digest is not None and digest != traced.image.sha256:
            click.echo("warning: the image differs from the one that failed", err=True)
        show_console(traced, verbose=shown.verbose, as_json=shown.as_json)
        watcher = Watch(traced, shown.watch) if shown.watch else None
        if view is not None:
            view.begin(traced)
        with interruptible(traced.machine) as interrupted:
            failure = run_and_catch(traced)
    if watcher is not None:
        for line in watcher.lines():
            click.echo(line, err=shown.as_json)
    return finish(traced, controls, failure, interrupted.is_set(), as_json=shown.as_json)
