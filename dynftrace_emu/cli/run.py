"""``dynftrace-emu run``."""

from __future__ import annotations

import json
import signal
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynftrace_emu.cli.options import TracingType, image_argument, json_option, variant_option
from dynftrace_emu.errors import (
    ControlFileError,
    DynftraceError,
    GuestFault,
    OptionError,
    StopMachineTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.ftrace.options import RunOptions
    from dynftrace_emu.ftrace.run import Run
    from dynftrace_emu.tracefs.controls import Controls

__all__ = ["run"]

INTERRUPTED = 130
_PAGE = 145  # records in a page; the model checks that this is ENTRIES_PER_PAGE


@click.command(
    epilog="\b\nExamples:\n  dynftrace-emu run\n"
    "  dynftrace-emu run --engine deterministic --seed 7 --iterations 200 --tracing 1:3 --json\n"
    "  dynftrace-emu run --watch vfs_read\n"
    "  dynftrace-emu run --set current_tracer=function_graph --set 'set_ftrace_filter=vfs_*' "
    "--show trace"
)
@image_argument()
@click.option(
    "--engine",
    type=click.Choice(["threaded", "deterministic"]),
    help="A thread a vCPU and the wall clock, or one seeded thread and a virtual clock. "
    "[default: threaded, where the image has safepoints]",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Schedule of the deterministic engine."
)
@click.option("--vcpus", type=int, default=2, show_default=True, help="1 to 64.")
@click.option(
    "--seconds",
    type=float,
    help="Run so long. [default: 5; no limit where --iterations is given alone]",
)
@click.option("--iterations", type=int, help="Each vCPU ends after so many workload iterations.")
@click.option(
    "--period", type=float, default=1.0, show_default=True, help="Seconds the daemon sleeps."
)
@click.option(
    "--boot-records",
    type=int,
    default=_PAGE,
    show_default=True,
    help="Records allocated at boot, in whole pages; 0: none.",
)
@click.option(
    "--site",
    type=click.Choice(["jmp", "nop"]),
    default="jmp",
    show_default=True,
    help="What a call becomes: the seed's jump, or the later 5-byte nop.",
)
@click.option(
    "--tracing",
    type=TracingType(),
    metavar="FROM[:UNTIL]",
    help="Seconds between which tracing is on: calls put back, and away again.",
)
@click.option(
    "--nmi-rate",
    type=float,
    default=0.0,
    show_default=True,
    metavar="HZ",
    help="NMIs a second and vCPU, at most.",
)
@click.option(
    "--park",
    type=click.Choice(["preemptible", "anywhere"]),
    help="Where a stop may park a vCPU (deterministic). [default: preemptible]",
)
@click.option(
    "--virtual-hz",
    type=int,
    help="Instructions a vCPU in a virtual second (deterministic). [default: 2000000]",
)
@variant_option()
@click.option("--workload", help="What the vCPUs do: default, leaf, compute, shared.")
@json_option("Print one JSON document, and nothing else, on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Show the guest's own messages, on stderr.")
@click.option(
    "--discover",
    type=click.Choice(["runtime", "scan"]),
    help="Learn of call sites as they run, or of all at boot. [default: runtime; scan where --set "
    "names functions]",
)
@click.option(
    "--set",
    "set",
    multiple=True,
    metavar="FILE=VALUE",
    help="Write VALUE to a control file before the run; FILE+=VALUE appends, mkdir=instances/X "
    "makes an instance.",
)
@click.option(
    "--at", multiple=True, metavar="T:FILE=VALUE", help="The same, T seconds into the run."
)
@click.option(
    "--show", multiple=True, metavar="FILE", help="Print a control file at the end, as trace."
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
    watch: str | None,
    repro: Path | None,
    **values: Any,
) -> int:
    """Boot IMAGE and watch it record its call sites, get them patched, and settle.

    IMAGE is a built-in name (mini-kernel, mini-kernel-nmi-broken), else a path to assembly text
    (./x forces a path).
    """
    from dynftrace_emu.cli.repro import read_repro

    if repro is not None:
        _refuse_other_options(ctx)
        options, digest = read_repro(repro)
    else:
        options, digest = _options(values), None
    return _execute(options, digest, as_json=as_json, verbose=verbose, watch=watch)


def _options(values: dict[str, Any]) -> RunOptions:
    from dynftrace_emu.ftrace.options import DEFAULT_SECONDS, EngineName, RunOptions
    from dynftrace_emu.machine.engine import Park

    if values["seconds"] is None and values["iterations"] is None:
        values["seconds"] = DEFAULT_SECONDS
    values["engine"] = EngineName(values["engine"]) if values["engine"] else None
    values["park"] = Park(values["park"]) if values["park"] else None
    return RunOptions(**values)


def _refuse_other_options(ctx: click.Context) -> None:
    allowed = {"as_json", "verbose", "watch", "repro"}
    for name in ctx.params:
        source = ctx.get_parameter_source(name)
        if name not in allowed and source is click.core.ParameterSource.COMMANDLINE:
            raise OptionError("--repro takes every option from its file; give it alone")


def _execute(
    options: RunOptions, digest: str | None, *, as_json: bool, verbose: bool, watch: str | None
) -> int:
    from dynftrace_emu.cli.live import TickView
    from dynftrace_emu.ftrace.run import Run
    from dynftrace_emu.ftrace.watch import Watch
    from dynftrace_emu.tracefs.controls import Controls

    with ExitStack() as stack:
        view = None if as_json else stack.enter_context(TickView(options.vcpus))
        traced = Run(options, on_tick=view.show if view else None)
        controls = Controls(traced)
        if digest is not None and digest != traced.image.sha256:
            click.echo("warning: the image differs from the one that failed", err=True)
        if traced.note:
            click.echo(f"note: {traced.note}", err=True)
        if verbose:
            traced.machine.console.on_line = _print_console
        watcher = Watch(traced, watch) if watch else None
        if view is not None:
            view.begin(traced)
        with _interruptible(traced) as interrupted:
            failure = _run_and_catch(traced)
    if watcher is not None:
        for line in watcher.lines():
            click.echo(line, err=as_json)
    return _finish(traced, controls, failure, interrupted.is_set(), as_json=as_json)


def _print_console(vcpu: int, line: str) -> None:
    click.echo(f"[cpu{vcpu}] {line}", err=True)


def _run_and_catch(traced: Run) -> DynftraceError | None:
    try:
        traced.execute()
    except DynftraceError as error:
        return error
    return None


@contextmanager
def _interruptible(traced: Run) -> Iterator[threading.Event]:
    """Ctrl-C ends the run in order; a second one at once."""
    interrupted = threading.Event()

    def on_interrupt(_signal: int, _frame: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        traced.machine.interrupt()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _finish(
    traced: Run,
    controls: Controls,
    failure: DynftraceError | None,
    interrupted: bool,
    *,
    as_json: bool,
) -> int:
    """Show what was reached, then what went wrong, if something did."""
    from dynftrace_emu.cli.summary import summary
    from dynftrace_emu.ftrace.document import document

    result = document(traced)
    if failure is not None:
        result["error"] = str(_named(traced, failure))
    shown = controls.shown()
    if as_json:
        if shown:
            result["show"] = shown
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo("\n".join(summary(traced, result)))
        _show(shown)
    sys.stdout.flush()
    if isinstance(failure, ControlFileError):
        raise failure  # a write was refused: no fault of the guest's
    if failure is not None:
        _report(traced, failure)
        return failure.exit_code
    if violations := traced.violations():
        _report_violations(traced, violations)
        return 1
    return INTERRUPTED if interrupted else 0


def _show(shown: dict[str, str]) -> None:
    """Control files as they are; a line tells them apart where there are several."""
    for path, text in shown.items():
        click.echo(f"\n==> {path} <==" if len(shown) > 1 else "")
        click.echo(text, nl=False)


def _named(traced: Run, failure: DynftraceError) -> str:
    """The error in one line, with the place as a symbol where it has one."""
    if isinstance(failure, StopMachineTimeout):
        where = traced.image.symbolize(failure.rip)
        return f"stop_machine: vCPU {failure.vcpu} did not park, it is at {where}: {failure.why}"
    if isinstance(failure, GuestFault):
        where = traced.image.symbolize(failure.rip)
        return f"vCPU {failure.vcpu}: {failure.what}, at {where}"
    return str(failure)


def _report(traced: Run, failure: DynftraceError) -> None:
    from dynftrace_emu.cli.repro import patch_lines, repeat_command, write_repro
    from dynftrace_emu.kernel.crash import crash_report

    if isinstance(failure, GuestFault):
        click.echo(crash_report(traced.kernel, failure, patch_lines(traced)), err=True)
    click.echo(f"dynftrace-emu: {_named(traced, failure)}", err=True)
    if failure.hint:
        click.echo(f"hint: {failure.hint}", err=True)
    path = write_repro(traced, _named(traced, failure))
    for line in repeat_command(traced, path):
        click.echo(line, err=True)


def _report_violations(traced: Run, violations: list[str]) -> None:
    from dynftrace_emu.cli.repro import repeat_command, write_repro

    for report in violations:
        click.echo(report, err=True)
    summary = f"{len(violations)} check{'s' if len(violations) > 1 else ''} failed"
    click.echo(f"dynftrace-emu: {summary}", err=True)
    for line in repeat_command(traced, write_repro(traced, summary)):
        click.echo(line, err=True)
