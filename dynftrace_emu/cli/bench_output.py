"""What ``bench`` puts out: a progress bar, tables, files."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

import click

from dynftrace_emu.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

    from rich.progress import Progress as Bar
    from rich.progress import TaskID
    from rich.table import Table as RichTable

    from dynftrace_emu.bench.figures import Result
    from dynftrace_emu.bench.tables import Table

__all__ = ["BEGIN", "END", "Progress", "check_outputs", "rich_table", "show", "write"]

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
"""The lines of a Markdown file between which the tables go."""
_WIDTH = 120  # of tables that go into a file or a pipe
_TEXT, _LEAST_TEXT = 16, 6  # how narrow the first column becomes, before headings do and at last
_LEAST_NUMBER = 5  # how narrow any other does, as headings are above them
_HEADING = 6  # how narrow a heading becomes as long as a range is whole


class Progress(AbstractContextManager["Progress"]):
    """A bar on stderr, if that is a terminal. It is drawn between steps, never during one.

    :param seconds: how long all steps take, about.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._under_way = seconds, 0.0
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            self._bar = Progress(
                BarColumn(30),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
                auto_refresh=False,
                transient=True,
            )
            self._task = self._bar.add_task("", total=self._seconds)
            self._bar.start()
        return self

    def step(self, seconds: float, name: str) -> None:
        """The step before is over; this one begins."""
        if self._bar is None or self._task is None:
            return
        self._bar.update(self._task, advance=self._under_way, description=name)
        self._bar.refresh()
        self._under_way = seconds

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def check_outputs(json_file: Path | None, plot_file: Path | None, markdown: Path | None) -> None:
    """Refuse what could not be written in the end, before anything is measured.

    :raises OptionError: a file cannot be opened, or what is there does not fit.
    :raises MissingExtraError: matplotlib is needed.
    """
    from dynftrace_emu.bench.plot import check_plot

    for option, path in (("--json", json_file), ("--plot", plot_file), ("--markdown", markdown)):
        if path is not None and str(path) != "-":
            _check_writable(option, path)
    if plot_file is not None:
        check_plot(plot_file)
    if markdown is not None and markdown.exists():
        _around(markdown)


def _check_writable(option: str, path: Path) -> None:
    """:raises OptionError: it cannot be opened for writing. It is as before, or not there."""
    is_new = not path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise OptionError(f"{option} {path}: {error.strerror}") from None
    if is_new:
        path.unlink()


def show(result: Result) -> None:
    """The tables, on stdout."""
    from rich.console import Console

    from dynftrace_emu.bench.tables import UNFINISHED, tables

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    for table in tables(result):
        console.print(rich_table(table, console.width), crop=False)
        if table.note:
            console.print(table.note, style="dim")
        console.print()
    for note in result.notes:
        click.echo(note)
    if not result.complete:
        click.echo(UNFINISHED)


def rich_table(table: Table, room: int) -> RichTable:
    """The table, at most ``room`` wide unless its numbers need more."""
    from rich import box
    from rich.table import Table as RichTable

    drawn = RichTable(
        title=table.title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    between = 2 * len(table.columns) - 1
    widths = _widths(table, room - between)
    for index, (column, width) in enumerate(zip(table.columns, widths, strict=True)):
        justify: Literal["left", "right"] = "right" if index else "left"
        drawn.add_column(column, justify=justify, width=width, overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    drawn.width = sum(widths) + between
    return drawn


def _widths(table: Table, room: int) -> list[int]:
    """Of each column. First text becomes narrower, then headings, then ranges are split.

    A number never is, whatever ``room`` there is.
    """
    columns = list(zip(*table.rows, strict=True))
    cells = [max(map(len, column)) for column in columns]
    headed = [max(cell, _HEADING) for cell in cells]
    halves = [_longest_word(cell.replace(" -", "_-") for cell in column) for column in columns]
    words = [_longest_word(column) for column in columns]
    widths = [max(cell, len(name)) for cell, name in zip(cells, table.columns, strict=True)]
    text = min(widths[0], _TEXT)
    stages = (
        [text, *widths[1:]],
        [text, *headed[1:]],
        [text, *halves[1:]],
        [min(text, _LEAST_TEXT), *halves[1:]],
        [min(text, _LEAST_TEXT), *words[1:]],
    )
    for stage in stages:
        for index, floor in enumerate(stage):
            excess = max(0, sum(widths) - room)
            widths[index] -= min(excess, max(0, widths[index] - floor))
    return widths


def _longest_word(cells: Iterable[str]) -> int:
    return max(_LEAST_NUMBER, *(len(word) for cell in cells for word in cell.split()))


def write(
    result: Result, json_file: Path | None, plot_file: Path | None, markdown: Path | None
) -> None:
    """Every file that was asked for.

    :raises OptionError: one cannot be written.
    """
    from dynftrace_emu.bench.plot import plot

    try:
        if json_file is not None and str(json_file) != "-":
            json_file.write_text(json.dumps(result.to_json(), indent=1) + "\n")
        if markdown is not None:
            _write_markdown(result, markdown)
        if plot_file is not None:
            plot(result, plot_file)
    except OSError as error:
        raise OptionError(f"cannot write {error.filename}: {error.strerror}") from None


def _write_markdown(result: Result, path: Path) -> None:
    from dynftrace_emu.bench.tables import markdown

    before, after = _around(path) if path.exists() else ("", "\n")
    path.write_text(f"{before}{BEGIN}\n\n{markdown(result)}\n{END}{after}")


def _around(path: Path) -> tuple[str, str]:
    """What stands in front of the marker lines and behind them.

    :raises OptionError: they are not both there, once.
    """
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise OptionError(f"--markdown {path}: it has no lines {BEGIN} and {END} to write between")
    before, _, rest = text.partition(BEGIN)
    return before, rest.partition(END)[2]
