"""The options of a run, which every command that runs a kernel has."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import click

from dynftrace_emu.cli.options import (
    Decorator,
    SizeType,
    TracingType,
    checked_variant,
    json_option,
    variant_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynftrace_emu.ftrace.options import RunOptions

__all__ = ["run_options", "to_run_options"]

_OPTIONS: tuple[Decorator, ...] = (
    click.option(
        "--engine",
        type=click.Choice(["threaded", "deterministic"]),
        help="A thread a vCPU and the wall clock, or one seeded thread and a virtual clock. "
        "[default: threaded, where the image has safepoints]",
    ),
    click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        help="Schedule of the deterministic engine.",
    ),
    click.option("--vcpus", type=int, default=2, show_default=True, help="1 to 64."),
    click.option(
        "--seconds",
        type=float,
        help="Run so long. [default: 5; no limit where --iterations is given alone]",
    ),
    click.option(
        "--iterations", type=int, help="Each vCPU ends after so many workload iterations."
    ),
    click.option(
        "--period", type=float, default=1.0, show_default=True, help="Seconds the daemon sleeps."
    ),
    click.option(
        "--boot-records",
        type=int,
        help="Records allocated at boot, in whole pages; 0: none. [default: 145, a page; room for "
        "all of synthetic:N]",
    ),
    click.option(
        "--site",
        type=click.Choice(["jmp", "nop"]),
        default="jmp",
        show_default=True,
        help="What a call becomes: the seed's jump, or the later 5-byte nop.",
    ),
    click.option(
        "--tracing",
        type=TracingType(),
        metavar="FROM[:UNTIL]",
        help="Seconds between which tracing is on: calls put back, and away again.",
    ),
    click.option(
        "--nmi-rate",
        type=float,
        default=0.0,
        show_default=True,
        metavar="HZ",
        help="NMIs a second and vCPU, at most.",
    ),
    click.option(
        "--park",
        type=click.Choice(["preemptible", "anywhere"]),
        help="Where a stop may park a vCPU (deterministic). [default: preemptible]",
    ),
    click.option(
        "--virtual-hz",
        type=int,
        help="Instructions a vCPU in a virtual second (deterministic). [default: 2000000]",
    ),
    variant_option(),
    click.option("--workload", help="What the vCPUs do: default, leaf, compute, shared."),
    json_option("Print one JSON document, and nothing else, on stdout."),
    click.option("-v", "--verbose", is_flag=True, help="Show the guest's own messages, on stderr."),
    click.option(
        "--discover",
        type=click.Choice(["auto", "runtime", "table", "scan"]),
        help="Learn of call sites as they run, of those in the image's table at boot, or of all. "
        "[default: auto: the table if there is one, else runtime; scan where --set names "
        "functions, and for record]",
    ),
    click.option(
        "--entry", metavar="SYMBOL", help="Where an ELF image starts, instead of its entry."
    ),
    click.option(
        "--call",
        metavar="'SYMBOL(...)'",
        help='Call one function of an ELF image with numbers and "texts"; print what it returns.',
    ),
    click.option(
        "--secondary",
        metavar="SYMBOL",
        help="Where the other vCPUs of an ELF image start. [default: secondary_start]",
    ),
    click.option(
        "--ram",
        type=SizeType(),
        metavar="SIZE",
        help="Free memory behind an ELF image. [default: 16M]",
    ),
    click.option(
        "--stack",
        type=SizeType(),
        metavar="SIZE",
        help="Stack of each of its vCPUs. [default: 64K]",
    ),
    click.option(
        "--set",
        "set",
        multiple=True,
        metavar="FILE=VALUE",
        help="Write VALUE to a control file before the run; FILE+=VALUE appends, mkdir=instances/X "
        "makes an instance.",
    ),
    click.option(
        "--at", multiple=True, metavar="T:FILE=VALUE", help="The same, T seconds into the run."
    ),
    click.option(
        "--show", multiple=True, metavar="FILE", help="Print a control file at the end, as trace."
    ),
)


def run_options() -> Decorator:
    """All of them; the command gets ``as_json``, ``verbose`` and fields of RunOptions."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return reduce(lambda f, option: option(f), reversed(_OPTIONS), function)

    return decorate


def to_run_options(values: dict[str, Any]) -> RunOptions:
    """What click parsed, as options.

    :raises OptionError: they do not go together.
    """
    from dynftrace_emu.ftrace.options import DEFAULT_SECONDS, EngineName, RunOptions
    from dynftrace_emu.machine.engine import Park

    values["variant"] = checked_variant(values["image"], values["variant"])
    if values["seconds"] is None and values["iterations"] is None:
        values["seconds"] = DEFAULT_SECONDS
    values["engine"] = EngineName(values["engine"]) if values["engine"] else None
    values["park"] = Park(values["park"]) if values["park"] else None
    return RunOptions(**values)
