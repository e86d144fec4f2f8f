"""Runs a kernel for a command: Ctrl-C, what is shown at the end, and how failures are reported."""

from __future__ import annotations

import json
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

from dynftrace_emu.cli.warnings import warn_of_debug_info
from dynftrace_emu.errors import (
    ControlFileError,
    DynftraceError,
    GuestFault,
    RecordError,
    StopMachineTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dynftrace_emu.ftrace.run import Run
    from dynftrace_emu.tracefs.controls import Controls

__all__ = ["finish", "interruptible", "run_and_catch", "show_console"]

INTERRUPTED = 130


def show_console(traced: Run, *, verbose: bool, as_json: bool) -> None:
    """Show what the guest prints: an ELF image's is output, our kernel's is for the curious."""
    if traced.image.elf is not None:
        traced.machine.console.on_line = lambda _, line: click.echo(line, err=as_json)
    elif verbose:
        traced.machine.console.on_line = print_console


class Interruptible(Protocol):
    """What can be told to end soon, from a signal handler."""

    def interrupt(self) -> None:
        """End soon."""


def print_console(vcpu: int, line: str) -> None:
    """Show a line of the guest's own."""
    click.echo(f"[cpu{vcpu}] {line}", err=True)


def run_and_catch(traced: Run) -> DynftraceError | None:
    """Run to the end; what went wrong is for :func:`finish`."""
    try:
        traced.execute()
    except DynftraceError as error:
        return error
    return None


@contextmanager
def interruptible(running: Interruptible) -> Iterator[threading.Event]:
    """Ctrl-C, or SIGTERM, ends what runs in order; a second one at once."""
    interrupted = threading.Event()

    def on_interrupt(_signal: int, _frame: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        running.interrupt()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, on_interrupt) for number in numbers]
    try:
        yield interrupted
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def finish(
    traced: Run,
    controls: Controls,
    failure: DynftraceError | None,
    interrupted: bool,
    *,
    as_json: bool,
    extra: dict[str, Any] | None = None,
    lines: Iterable[str] = (),
) -> int:
    """Show what was reached, then what went wrong, if something did.

    :param extra: what joins the JSON document; ``lines`` what joins the summary.
    """
    from dynftrace_emu.cli.summary import summary
    from dynftrace_emu.ftrace.document import document

    result = document(traced)
    if failure is not None:
        result["error"] = str(_named(traced, failure))
    shown, not_shown = controls.shown()
    if as_json:
        if shown:
            result["show"] = shown
        result |= extra or {}
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo("\n".join([*summary(traced, result), *lines]))
        _show(shown)
    sys.stdout.flush()
    if isinstance(failure, ControlFileError | RecordError):
        raise failure  # no fault of the guest's
    if failure is not None:
        _report(traced, failure)
        warn_of_debug_info(traced.image)
        return failure.exit_code
    warn_of_debug_info(traced.image)
    if not_shown is not None:
        raise not_shown
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
        where = _place(traced, failure.rip)
        return f"stop_machine: vCPU {failure.vcpu} did not park, it is at {where}: {failure.why}"
    if isinstance(failure, GuestFault):
        where = _place(traced, failure.rip)
        return f"vCPU {failure.vcpu}: {failure.what}, at {where}"
    return str(failure)


def _place(traced: Run, ip: int) -> str:
    line = traced.image.source_line(ip)
    return traced.image.symbolize(ip) + (f" ({line})" if line else "")


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
