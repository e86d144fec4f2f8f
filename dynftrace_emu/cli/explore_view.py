"""Shows explorations: progress while they run, verdicts, the table of what ships."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

    from rich.status import Status

    from dynftrace_emu.explore.scenario import Scenario
    from dynftrace_emu.explore.search import Outcome
    from dynftrace_emu.explore.shipped import Check
    from dynftrace_emu.explore.verdict import Verdict

__all__ = ["ProgressView", "check_line", "scenario_lines", "show_verdict"]

_WIDTH = 80
_COLORS = {"FOUND": "red", "PROVEN": "green", "NOTHING": "yellow", "OK": "green", "FAILED": "red"}


def _colored(line: str) -> str:
    """The line, its first word in colour on a terminal that wants it."""
    word, space, rest = line.partition(" ")
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ or word not in _COLORS:
        return line
    return click.style(word, fg=_COLORS[word], bold=True) + space + rest


def show_verdict(verdict: Verdict, title: str, more: Iterable[str]) -> None:
    """Print a verdict; ``more`` stands below it."""
    for line in textwrap.wrap(f"{verdict.job.setup.name}: {title}", _WIDTH):
        click.echo(line)
    for line in verdict.lines():
        click.echo(_colored(line))
    for line in more:
        click.echo(line)


def scenario_lines(scenarios: Sequence[Scenario]) -> Iterator[str]:
    """What ``--list`` shows: names, what is expected of them, titles."""
    width = max(len(scenario.name) for scenario in scenarios)
    for scenario in scenarios:
        yield f"{scenario.name:{width}}  {expected(scenario)}"
        cure = f"; mended by {scenario.mended}" if scenario.mended else ""
        yield from textwrap.wrap(
            scenario.title + cure, _WIDTH, initial_indent="    ", subsequent_indent="    ",
            break_on_hyphens=False,
        )  # fmt: skip


def expected(scenario: Scenario) -> str:
    """What a scenario must come to, in a word."""
    return scenario.expects.value if scenario.expects else "clean"


def check_line(check: Check, width: int) -> str:
    """A row of the table of what ships."""
    verdict, scenario = check.verdict, check.scenario
    came = verdict.finding.kind.value if verdict.finding else "clean"
    if not verdict.finding and not verdict.is_exhaustive:
        came = "not exhaustive"
    wanted = "" if check.holds else f" (expected {expected(scenario)})"
    figures = f"{verdict.runs:,} schedules, {verdict.seconds:.1f} s"
    status = "OK" if check.holds else "FAILED"
    return _colored(f"{status:6} {scenario.name:{width}}  {came}{wanted}: {figures}")


class ProgressView(AbstractContextManager["ProgressView"]):
    """How far it is, on stderr if that is a terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._status: Status | None = None
        self._begin = time.monotonic()

    def __enter__(self) -> ProgressView:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.status import Status

            self._status = Status(self._name, console=Console(stderr=True))
            self._status.start()
        return self

    def show(self, outcome: Outcome) -> None:
        """Called every now and then."""
        if self._status is None:
            return
        runs = outcome.schedules + outcome.joined
        rate = runs / max(time.monotonic() - self._begin, 1e-9)
        found = "found" if outcome.found else "nothing found so far"
        states = f"{outcome.states:,} states, " if outcome.states else ""
        self._status.update(f"{self._name}: {states}{runs:,} schedules ({rate:,.0f}/s), {found}")

    def say(self, text: str) -> None:
        """Replace what is shown."""
        if self._status is not None:
            self._status.update(text)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()
