"""The options of ``explore``, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dynftrace_emu.cli.options import json_option
from dynftrace_emu.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynftrace_emu.explore.explorer import Limits, Strategy
    from dynftrace_emu.explore.overrides import Overrides

__all__ = ["describing", "explore_options", "to_limits", "to_overrides", "to_strategy"]

CLASSES = (
    "torn-fetch", "stale-text", "mid-instruction-resume", "nmi-in-ftrace", "missed-callback",
    "wrong-callback", "lost-event", "wrong-result", "use-after-free", "unclaimed-int3",
    "guest-fault", "deadlock",
)  # fmt: skip
_FOR_ALL = ("show_list", "quick", "jobs", "cluster", "as_json")
SERIALIZING = ("iret", "cpuid", "mov-cr")
_OVERRIDES = (
    "protocol", "model", "chunk", "park", "serializing", "preemptions", "nmis", "timers", "vcpus",
    "rounds", "sites", "old", "new", "site_offset",
)  # fmt: skip


class _Preemptions(click.ParamType[int | str]):
    """A number, or ``none``: without a bound."""

    name = "n|none"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Parse."""
        if value == "none":
            return "none"
        if not str(value).isdecimal():
            self.fail(f"{value!r} is not a number of preemptions, nor none", param, ctx)
        return int(value)


class _Serializing(click.ParamType[frozenset[str]]):
    """Instructions, separated by commas."""

    name = "insn,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> frozenset[str]:
        """Parse."""
        if isinstance(value, frozenset):
            return value
        names = frozenset(filter(None, value.split(",")))
        for name in sorted(names - set(SERIALIZING)):
            self.fail(f"{name!r}: choose from {', '.join(SERIALIZING)}", param, ctx)
        return names


def explore_options() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """All of them, in the order of ``--help``."""
    options: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
        click.option("--list", "show_list", is_flag=True, help="Show the scenarios that ship."),
        click.option(
            "--quick", is_flag=True,
            help="All scenarios that ship, but give up on one beyond 50,000 states.",
        ),
        click.option(
            "--protocol", metavar="NAME|FILE.py:FUNCTION",
            help="How text is patched: a protocol that ships, or your own.",
        ),
        click.option(
            "--model", type=click.Choice(["coherent", "stale", "relaxed"]),
            help="When a store to text reaches another vCPU's fetch.  [default: relaxed]",
        ),
        click.option(
            "--chunk", type=click.Choice(["8", "16", "32", "64"]),
            help="Bytes that a fetch reads, and a store writes, as a whole.  [default: 16]",
        ),
        click.option(
            "--park", type=click.Choice(["preemptible", "anywhere"]),
            help="Where stop_machine may park a vCPU.  [default: preemptible]",
        ),
        click.option(
            "--serializing", type=_Serializing(),
            help=f"Instructions that sync a vCPU, too: {', '.join(SERIALIZING)}.",
        ),
        click.option(
            "--preemptions", type=_Preemptions(),
            help="At most so many switches away from who could go on.  [default: none]",
        ),
        click.option("--nmis", type=click.IntRange(0, 8), help="NMIs in a schedule."),
        click.option("--timers", type=click.IntRange(0, 8), help="Timer interrupts in it."),
        click.option(
            "--vcpus", type=click.IntRange(1, 3), help="vCPUs, beside the one that patches."
        ),
        click.option(
            "--rounds", type=click.IntRange(1, 100), help="How often each calls its functions."
        ),
        click.option("--sites", type=click.IntRange(1, 2), help="Sites that are changed."),
        click.option(
            "--from", "old", metavar="ENCODING",
            help="What a site is at first: call, call:SYMBOL, jmp, nop, nops, nop3+2 or hex.",
        ),
        click.option("--to", "new", metavar="ENCODING", help="What it becomes."),
        click.option(
            "--site-offset", type=click.IntRange(0, 4095),
            help="The first site's byte in its page; 63: the last one of a cache line.",
        ),
        click.option(
            "--necessity", metavar="NAME|FILE.py:FUNCTION",
            help="What each step of a protocol is needed for: drop or swap it, see what breaks.",
        ),
        click.option("--markdown", "as_markdown", is_flag=True, help="That as a table for a page."),
        click.option(
            "--strategy", type=click.Choice(["exhaustive", "pct", "random"]),
            default="exhaustive", show_default=True, help="Which schedules are run.",
        ),
        click.option(
            "--schedules", type=click.IntRange(1), default=10_000, show_default=True,
            help="How many pct and random draw.",
        ),
        click.option(
            "--depth", type=click.IntRange(1, 64), default=3, show_default=True,
            help="pct: the depth of bugs it gives its guarantee for.",
        ),
        click.option(
            "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
            help="Of what is drawn.",
        ),
        click.option(
            "--no-reduction", is_flag=True,
            help="Stop at every instruction and join no states, as a cross-check. Slow.",
        ),
        click.option(
            "--time-limit", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
            help="Give up then.",
        ),
        click.option(
            "--states", type=click.IntRange(1), default=2_000_000, show_default=True,
            help="States to keep; beyond that schedules are truncated.",
        ),
        click.option(
            "--jobs", type=click.IntRange(1, 1024), help="Processes.  [default: one a core]"
        ),
        click.option("--cluster", metavar="ADDRESS", help="Use a Dask cluster instead."),
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), metavar="FILE|DIR",
            help="Where a counterexample goes.  [default: counterexample-NAME.json]",
        ),
        click.option(
            "--expect", type=click.Choice([*CLASSES, "clean"]), metavar="CLASS",
            help="Exit 0 if just this is found (clean: nothing), else 1.",
        ),
        click.option(
            "--guest", type=click.Path(path_type=Path), metavar="FILE",
            help="Guest code that patches by itself, in C or assembly, in place of a protocol.",
        ),
        click.option(
            "--call", metavar="'FUNCTION(ARGS)'",
            help="What each vCPU calls of an ELF image, whose site is patched.",
        ),
        json_option("Print one JSON document."),
    ]  # fmt: skip

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def describing(context: click.Context) -> list[str]:
    """The options given that are for one exploration, not for all that ships."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in ("names", *_FOR_ALL)
        and context.get_parameter_source(parameter.name or "") is not ParameterSource.DEFAULT
    ]


def to_overrides(values: dict[str, Any]) -> Overrides:
    """What the options say about a setup."""
    from dynftrace_emu.explore.overrides import overrides_from

    chunk = values["chunk"] and int(values["chunk"])
    return overrides_from({**{name: values[name] for name in _OVERRIDES}, "chunk": chunk})


def to_strategy(values: dict[str, Any]) -> Strategy:
    """How schedules are chosen.

    :raises OptionError: --no-reduction is for exhaustive searches.
    """
    from dynftrace_emu.explore.explorer import Kind, Strategy

    kind = Kind(values["strategy"])
    if values["no_reduction"] and kind is not Kind.EXHAUSTIVE:
        raise OptionError("--no-reduction: pct and random join no states; leave it out")
    return Strategy(kind, values["schedules"], values["depth"], values["seed"])


def to_limits(values: dict[str, Any]) -> Limits:
    """When to give up."""
    from dynftrace_emu.explore.explorer import Limits

    return Limits(values["states"], seconds=values["time_limit"])
