"""``dynftrace-emu bench``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dynftrace_emu.cli.options import image_argument
from dynftrace_emu.errors import OptionError

if TYPE_CHECKING:
    from dynftrace_emu.bench.figures import Result
    from dynftrace_emu.errors import DynftraceError

__all__ = ["bench"]

INTERRUPTED = 130
_OUTPUT = click.Path(dir_okay=False, path_type=Path)
_OUTPUT_OR_DASH = click.Path(dir_okay=False, path_type=Path, allow_dash=True)
_INPUT = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    epilog="\b\nExamples:\n  dynftrace-emu bench --quick\n"
    "  dynftrace-emu bench --json now.json --plot now.svg\n"
    "  dynftrace-emu bench --only instructions --compare before.json\n"
    "  dynftrace-emu bench --only modes --workload leaf --mode patched-jmp --mode function"
)
@image_argument()
@click.option("--quick", is_flag=True, help="Few rounds and small kernels: under a minute.")
@click.option("--only", multiple=True, metavar="WHAT", help="Measure only this; see --list.")
@click.option("--mode", "modes", multiple=True, metavar="MODE", help="Only this mode, and none.")
@click.option("--workload", "workloads", multiple=True, metavar="NAME", help="Only this workload.")
@click.option("--rounds", type=int, metavar="N", help="So many rounds of everything.")
@click.option(
    "--json",
    "json_file",
    type=_OUTPUT_OR_DASH,
    help="Write one JSON document; - prints it, and no tables.",
)
@click.option("--plot", "plot_file", type=_OUTPUT, help="Draw it, as .svg or .png.")
@click.option(
    "--markdown", type=_OUTPUT, help="Put the tables into a file, between its two marker lines."
)
@click.option("--from", "from_file", type=_INPUT, help="Measure nothing: show this JSON document.")
@click.option("--compare", type=_INPUT, help="Say what moved since; exit 1 if worse.")
@click.option(
    "--by",
    type=click.Choice(["instructions", "time"]),
    default="instructions",
    show_default=True,
    help="What --compare looks at; instructions are exact.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="PERCENT",
    help="By how much a ratio may grow. [default: 0; 10 for time]",
)
@click.option("--list", "list_all", is_flag=True, help="Say what can be chosen.")
def bench(
    image: str,
    list_all: bool,
    json_file: Path | None,
    plot_file: Path | None,
    markdown: Path | None,
    from_file: Path | None,
    compare: Path | None,
    by: str,
    tolerance: float | None,
    **chosen: Any,
) -> int:
    """Measure what tracing costs, against a build without calls and against hooks in Python.

    IMAGE is a built-in name, or a path. An ELF image is run from its start to its end in each mode,
    and its instructions are counted.
    """
    from dynftrace_emu.cli.bench_output import check_outputs, show, write

    if list_all:
        _list()
        return 0
    _check_options(from_file, compare, tolerance)
    check_outputs(json_file, plot_file, markdown)
    old = None if compare is None else _read(compare)
    if from_file is not None:
        result, failure, interrupted = _read(from_file), None, False
        if not result.figures:
            raise OptionError(f"--from {from_file}: it holds no figures")
    else:
        result, failure, interrupted = _measure(image, chosen)
    if json_file == Path("-"):
        click.echo(json.dumps(result.to_json(), indent=2))
    else:
        show(result)
    write(result, json_file, plot_file, markdown)
    if failure is not None:
        raise failure
    if interrupted:
        return INTERRUPTED
    if old is not None:
        return _compare(old, result, by, tolerance, err=json_file == Path("-"))
    return 0


def _check_options(from_file: Path | None, compare: Path | None, tolerance: float | None) -> None:
    """:raises OptionError: an option would be ignored, or is no number."""
    context = click.get_current_context()
    given = {
        parameter.name: parameter.human_readable_name
        if isinstance(parameter, click.Argument)
        else max(parameter.opts, key=len)
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }
    if from_file is not None:
        for name in ("image", "quick", "only", "modes", "workloads", "rounds"):
            if name in given:
                raise OptionError(f"{given[name]} is of no use with --from, which measures nothing")
    if compare is None:
        for name in ("by", "tolerance"):
            if name in given:
                raise OptionError(f"{given[name]} is of no use without --compare")
    if tolerance is not None and not math.isfinite(tolerance):
        raise OptionError(f"--tolerance {tolerance}: a number of percent is needed")


def _measure(image: str, chosen: dict[str, Any]) -> tuple[Result, DynftraceError | None, bool]:
    """Measure until it is done, fails or is interrupted; what there is comes back in any case."""
    from dynftrace_emu.bench import environment
    from dynftrace_emu.bench.figures import Result
    from dynftrace_emu.bench.lab import Interrupted, Lab
    from dynftrace_emu.bench.measure import estimate, measure
    from dynftrace_emu.bench.plan import make_plan
    from dynftrace_emu.cli.bench_output import Progress
    from dynftrace_emu.cli.execution import interruptible
    from dynftrace_emu.errors import DynftraceError

    lab = Lab()
    plan = make_plan(lab, image, **chosen)
    result = Result(image, plan.settings(), environment.describe())
    failure = None
    with interruptible(lab) as interrupted, Progress(estimate(plan)) as progress:
        lab.on_step = progress.step
        try:
            measure(lab, plan, result)
        except Interrupted:
            pass
        except DynftraceError as error:
            failure = error
    return result, failure, interrupted.is_set()


def _read(path: Path) -> Result:
    """:raises BenchError: it is no result."""
    from dynftrace_emu.bench.figures import BenchError, Result

    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{path} cannot be read: {error}") from None
    return Result.from_json(document, str(path))


def _compare(old: Result, new: Result, by: str, tolerance: float | None, *, err: bool) -> int:
    """Say what moved; 1 if a ratio became worse, or is missing."""
    from dynftrace_emu.bench.compare import compare

    if tolerance is None:
        tolerance = 0.0 if by == "instructions" else 10.0
    comparison = compare(old, new, by, tolerance)
    for result, which in ((old, "old"), (new, "new")):
        if not result.complete:
            click.echo(f"the {which} result was not finished: figures may be missing", err=True)
    for line in comparison.lines():
        click.echo(line, err=err)
    return 1 if comparison.failed else 0


def _list() -> None:
    from dynftrace_emu.bench.modes import MODES
    from dynftrace_emu.bench.plan import KINDS, WORKLOADS

    groups = {
        "--only": KINDS,
        "--mode": {mode.name: mode.what for mode in MODES},
        "--workload": WORKLOADS,
    }
    for option, choices in groups.items():
        click.echo(f"{option}:")
        for name, what in choices.items():
            click.echo(f"  {name:<17} {what}")
