"""``dynftrace-emu record``, with the letters trace-cmd users know."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynftrace_emu.cli.options import image_argument
from dynftrace_emu.cli.run_options import run_options, to_run_options
from dynftrace_emu.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from dynftrace_emu.errors import DynftraceError
    from dynftrace_emu.export.recorder import RecordedCpu, Recorder
    from dynftrace_emu.ftrace.options import RunOptions

__all__ = ["record"]


@click.command(
    epilog="\b\nExamples:\n  dynftrace-emu record -p function_graph -o trace.dat\n"
    "  dynftrace-emu record -p function -l 'vfs_*' -b 8192 --engine deterministic --seconds 2"
)
@image_argument()
@click.option(
    "-p", "tracer", default="function", show_default=True, metavar="TRACER", help="The tracer."
)
@click.option("-l", "filters", multiple=True, metavar="GLOB", help="Trace only these functions.")
@click.option("-n", "notrace", multiple=True, metavar="GLOB", help="Trace none of these.")
@click.option(
    "-g", "graph", multiple=True, metavar="FUNC", help="function_graph: FUNC and what it calls."
)
@click.option(
    "-O", "trace_options", multiple=True, metavar="OPTION", help="A trace option; no... for off."
)
@click.option("-C", "clock", metavar="CLOCK", help="The trace clock. [default: local]")
@click.option("-b", "size_kb", type=int, metavar="KB", help="KiB of each vCPU's buffer.")
@click.option(
    "-o",
    "output",
    type=click.Path(path_type=Path),
    default=Path("trace.dat"),
    show_default=True,
    help="The file to make: trace.dat, or by its extension what convert makes.",
)
@run_options()
def record(
    tracer: str,
    filters: tuple[str, ...],
    notrace: tuple[str, ...],
    graph: tuple[str, ...],
    trace_options: tuple[str, ...],
    clock: str | None,
    size_kb: int | None,
    output: Path,
    as_json: bool,
    verbose: bool,
    **values: Any,
) -> int:
    """Run IMAGE, trace it from its first instruction, and record the trace in a file.

    Every option of run is there too; a --at that writes current_tracer or tracing_on says when
    tracing begins instead.
    """
    values["knows_all"] = True
    writes = [
        *([f"buffer_size_kb={size_kb}"] if size_kb is not None else ()),
        *([f"trace_clock={clock}"] if clock is not None else ()),
        *(f"trace_options={option}" for option in trace_options),
        *_choice("set_ftrace_filter", filters),
        *_choice("set_ftrace_notrace", notrace),
        *_choice("set_graph_function", graph),
        *_start(tracer, values["at"]),
    ]
    values["set"] = (*writes, *values["set"])
    options = to_run_options(values)
    return _execute(options, output, as_json=as_json, verbose=verbose)


def _choice(file: str, patterns: Sequence[str]) -> Iterator[str]:
    for index, pattern in enumerate(patterns):
        yield f"{file}{'+' if index else ''}={pattern}"


def _start(tracer: str, at: Sequence[str]) -> Iterator[str]:
    """Set the tracer now, unless a timed write sets it; be deaf until one turns tracing on."""
    later = [text.partition(":")[2] for text in at]
    switches = [text for text in later if text.startswith("tracing_on=")]
    tracers = [text for text in later if text.startswith("current_tracer=")]
    if switches and switches[0] == "tracing_on=1":
        yield "tracing_on=0"
    if not tracers or tracers[0] == "current_tracer=nop":
        yield f"current_tracer={tracer}"


def _execute(options: RunOptions, output: Path, *, as_json: bool, verbose: bool) -> int:
    from dynftrace_emu.cli.execution import finish, interruptible, run_and_catch, show_console
    from dynftrace_emu.cli.live import TickView
    from dynftrace_emu.export.convert import convert_recording, converter
    from dynftrace_emu.export.recorder import Recorder
    from dynftrace_emu.ftrace.run import Run
    from dynftrace_emu.tracefs.controls import Controls

    if output.suffix == ".uftrace" and "current_tracer=function" in options.set:
        raise OptionError(f"{output}: uftrace shows how long calls take: use -p function_graph")
    convert = converter(output)  # refuses an extension that nothing makes, before anything runs
    target = output if convert is None else output.with_name(f"{output.name}.trace.dat")
    with ExitStack() as stack:
        view = None if as_json else stack.enter_context(TickView(options.vcpus))
        traced = Run(options, on_tick=view.show if view else None)
        controls = Controls(traced)
        if traced.note:
            click.echo(f"note: {traced.note}", err=True)
        recorder = Recorder(traced, target)
        show_console(traced, verbose=verbose, as_json=as_json)
        recorded: list[RecordedCpu] = []
        with interruptible(traced.machine) as interrupted:
            try:
                if view is not None:
                    view.begin(traced)
                failure = run_and_catch(traced)
            finally:  # also where nobody reads what we print any more, or Ctrl-C comes twice
                unwritten = _finish_recording(recorder, recorded)
            failure = failure or unwritten
            if convert is not None:
                failure = failure or _convert(partial(convert_recording, target, output, convert))
    extra = {"file": str(output), "recorded": [asdict(cpu) for cpu in recorded]}
    lines = _lines(recorded, output)
    return finish(
        traced, controls, failure, interrupted.is_set(), as_json=as_json, extra=extra, lines=lines
    )


def _convert(convert: Callable[[], None]) -> DynftraceError | None:
    from dynftrace_emu.errors import DynftraceError, RecordError

    try:
        convert()
    except DynftraceError as error:
        return RecordError(f"{error}; the recording is kept beside it, as .trace.dat")
    except OSError as error:
        return RecordError(f"{error.strerror}; the recording is kept beside it, as .trace.dat")
    return None


def _finish_recording(recorder: Recorder, recorded: list[RecordedCpu]) -> DynftraceError | None:
    from dynftrace_emu.errors import DynftraceError

    try:
        recorded += recorder.finish()
    except DynftraceError as error:
        return error
    return None


def _lines(recorded: Iterable[RecordedCpu], output: Path) -> Iterator[str]:
    for cpu in recorded:
        total = cpu.events + cpu.overruns
        line = (
            f"vCPU {cpu.vcpu}: {cpu.events:,} events + {cpu.overruns:,} overruns = {total:,}; "
            f"{cpu.calls:,} calls were traced"
        )
        if cpu.open_calls or total == 2 * cpu.calls > 0:
            line += f", each an entry and an exit, {cpu.open_calls:,} still open"
        yield line
    yield f"The trace is in {output}."
