"""Shows ticks as they come: a live table on a terminal, else a line each."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from types import TracebackType

    from rich.live import Live
    from rich.table import Table

    from dynftrace_emu.ftrace.ftraced import Tick
    from dynftrace_emu.ftrace.run import Run

__all__ = ["COLUMNS", "TickView", "cells"]

COLUMNS = (
    "t", "found", "patched", "pages", "skipped", "mcount/s", "iterations/s", "pause us",
)  # fmt: skip


def cells(tick: Tick, seconds: float) -> tuple[str, ...]:
    """One tick as text, a cell a column; rates are over the ``seconds`` since the last one."""
    span = max(seconds, 1e-9)
    return (
        f"{tick.t:.2f}",
        str(tick.found),
        str(tick.patched),
        f"+{tick.pages_added}" if tick.pages_added else "0",
        f"{tick.skipped:,}",
        f"{tick.mcount_calls / span:,.0f}",
        f"{tick.iterations / span:,.0f}",
        "-" if tick.stop_us is None else f"{tick.stop_us:,.0f}",
    )


class TickView(AbstractContextManager["TickView"]):
    """What a person sees while it runs. :meth:`show` is called from the daemon's thread."""

    def __init__(self, vcpus: int) -> None:
        self._vcpus = vcpus
        self._last = 0.0
        self._live: Live | None = None
        self._table: Table | None = None

    def begin(self, run: Run) -> None:
        """Say what runs, once it is known that it can."""
        image, options = run.image, run.options
        assert options.engine is not None
        vcpus = "vCPUs" if self._vcpus > 1 else "vCPU"
        click.echo(
            f"{image.name} ({options.variant}): {len(image.functions)} functions, "
            f"{len(image.call_sites)} call sites; {self._vcpus} {vcpus}, "
            f"{options.engine.value} engine"
        )
        if sys.stdout.isatty():
            self._begin_live()
        else:
            click.echo("  ".join(f"{name:>12}" for name in COLUMNS))

    def _begin_live(self) -> None:
        from rich.live import Live
        from rich.table import Table

        self._table = Table(*[], box=None, pad_edge=False)
        for name in COLUMNS:
            self._table.add_column(name, justify="right", min_width=8)
        self._live = Live(self._table, auto_refresh=False)
        self._live.start()

    def show(self, tick: Tick) -> None:
        """Add a row."""
        row = cells(tick, tick.t - self._last)
        self._last = tick.t
        if self._live is None or self._table is None:
            click.echo("  ".join(f"{cell:>12}" for cell in row))
        else:
            self._table.add_row(*row)
            self._live.refresh()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the table on the screen."""
        if self._live is not None:
            self._live.stop()
