"""Explores a job with a strategy, by many workers, and says what that has come to.

The outcome depends on the job, the strategy and its seed; not on who does the work, nor how many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from dynftrace_emu.explore import workers as crews
from dynftrace_emu.explore.job import Job, machine_of
from dynftrace_emu.explore.levels import Expansion, LevelSearch, Node, expand
from dynftrace_emu.explore.search import Outcome, pct, run_random, unjoined
from dynftrace_emu.explore.shrink import shrink
from dynftrace_emu.explore.verdict import Ending, Measured, Verdict, measure

if TYPE_CHECKING:
    from dynftrace_emu.explore.findings import Finding
    from dynftrace_emu.explore.state import Action
    from dynftrace_emu.explore.workers import Workers

__all__ = ["Kind", "Limits", "Strategy", "explore"]

_ROW = 128
"""States gone through as one piece of work, which takes some 10 ms ..."""
_ROW_BYTES = 1 << 20
"""... or fewer, if they are large."""
_STATE_BYTES = 1536
"""Of a state that is still to be gone through, beside its data."""
_ALONE = 5_000
"""States gone through here before anybody else is asked: many a search is over by then."""
_SAMPLE = 200
"""Schedules drawn as one piece of work."""
_PREFIXES = 64
_ACTIONS = 20_000
"""Actions of one piece of a search that joins nothing."""


class Kind(Enum):
    """Which of the possible schedules are run."""

    EXHAUSTIVE = "exhaustive"
    PCT = "pct"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Strategy:
    """How schedules are chosen.

    :param schedules: how many of them pct and random draw; ``seed``: from where.
    :param depth: of the bugs that pct looks for: ordering constraints that they need.
    """

    kind: Kind = Kind.EXHAUSTIVE
    schedules: int = 10_000
    depth: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """When to give up.

    :param states: known by an exhaustive search, about 0.3 KiB each.
    :param bytes: for those of them that are still to be gone through, about.
    """

    states: int = 2_000_000
    bytes: int = 1 << 30
    seconds: float | None = None


Progress = Callable[[Outcome], None]


def explore(
    job: Job,
    strategy: Strategy = Strategy(),
    limits: Limits = Limits(),
    workers: Workers | None = None,
    on_progress: Progress = lambda _: None,
    *,
    shorten: bool = True,
) -> Verdict:
    """Explore a job up to its bounds, the limits, or the first finding. Ctrl-C ends it early.

    A user's protocol is run by ``workers`` alone: they can be ended if it hangs.

    :param workers: None: this thread, or for a user's protocol a process.
    :param shorten: the schedule of the finding is made as short as it gets.
    :raises DynftraceError: the machine cannot be made of the job, or workers keep ending.
    """
    if workers is None:
        with crews.here() if job.source is None else crews.processes(1) as crew:
            return explore(job, strategy, limits, crew, on_progress, shorten=shorten)
    begin = time.monotonic()
    alone = workers if job.source is not None else crews.here()
    measured = next(
        alone.map(partial(measure, seed=strategy.seed, draws=strategy.kind is Kind.PCT), [job])
    )
    run = _Exploration(job, strategy, limits, measured, workers, on_progress)
    try:
        run.run()
        if shorten and run.outcome.found is not None:
            found = run.outcome.found
            run.outcome.found = next(alone.map(partial(_shorten, found=found), [job]))
    except KeyboardInterrupt:
        run.ending = Ending.INTERRUPTED
    return Verdict(job, strategy, limits, measured, run.outcome, run.ending,
                   time.monotonic() - begin, run.workers.count)  # fmt: skip


@dataclass
class _Exploration:
    job: Job
    strategy: Strategy
    limits: Limits
    measured: Measured
    workers: Workers
    on_progress: Progress
    outcome: Outcome = field(default_factory=Outcome)
    ending: Ending = Ending.DONE
    _until: float | None = None
    _expanded: int = 0

    def run(self) -> None:
        if self.limits.seconds is not None:
            self._until = time.monotonic() + self.limits.seconds
        if self.strategy.kind is not Kind.EXHAUSTIVE:
            self._sample()
        elif self.job.quiet:
            self._by_levels()
        else:
            self._unjoined()

    def _go_on(self, outcome: Outcome) -> bool:
        self.on_progress(outcome)
        if self._until is not None and time.monotonic() >= self._until:
            self.ending = Ending.TIME_LIMIT
            return False
        return True

    # --- exhaustive ---

    def _by_levels(self) -> None:
        size = len(self.measured.first.data) + _STATE_BYTES
        search = LevelSearch(
            self.measured.first,
            self.job.setup.bounds,
            self._expand,
            self.limits.states,
            max(1, self.limits.bytes // size),
            self._go_on,
        )
        self.outcome = search.outcome
        search.run()

    def _expand(self, nodes: Sequence[Node], spare: int | None) -> Iterator[Expansion]:
        row = max(1, min(_ROW, _ROW_BYTES // len(self.measured.first.data)))
        rows = [nodes[at : at + row] for at in range(0, len(nodes), row)]
        few = self._expanded < _ALONE or len(rows) < 2
        self._expanded += len(nodes)
        chosen = crews.here() if few and self.job.source is None else self.workers
        return chosen.map(partial(_expand_row, self.job, spare), rows)

    def _unjoined(self) -> None:
        stack: list[tuple[Action, ...]] = [()]
        while stack:
            wave, stack = stack[:_PREFIXES], stack[_PREFIXES:]
            left: list[tuple[Action, ...]] = []
            for outcome, more in self.workers.map(partial(_search_prefix, self.job), wave):
                self.outcome.add(outcome)
                left += more
                if outcome.found is not None:
                    self.outcome.found = outcome.found
                    return
                if not self._go_on(self.outcome):
                    self.outcome.truncated += len(left) + len(stack)
                    return
            stack = left + stack

    # --- drawn ---

    def _sample(self) -> None:
        total = self.strategy.schedules
        pieces = (range(at, min(at + _SAMPLE, total)) for at in range(0, total, _SAMPLE))
        draw = partial(_draw, self.job, self.strategy, self.measured.length)
        for outcome in self.workers.map(draw, pieces):
            self.outcome.add(outcome)
            if outcome.found is not None:
                self.outcome.found = outcome.found
                return
            if not self._go_on(self.outcome):
                return


# What workers do.


def _expand_row(job: Job, spare: int | None, row: Sequence[Node]) -> Expansion:
    world, _ = machine_of(job)
    return expand(world, row, spare)


def _search_prefix(
    job: Job, prefix: tuple[Action, ...]
) -> tuple[Outcome, list[tuple[Action, ...]]]:
    world, first = machine_of(job)
    world.load(first)
    return unjoined(world, job.setup.bounds, prefix, _ACTIONS)


def _shorten(
    job: Job, found: tuple[Finding, tuple[Action, ...]]
) -> tuple[Finding, tuple[Action, ...]]:
    world, first = machine_of(job)
    world.load(first)
    finding, schedule = shrink(world, found[1], found[0].kind)
    return finding, schedule


def _draw(job: Job, strategy: Strategy, length: int, numbers: range) -> Outcome:
    world, first = machine_of(job)
    world.load(first)
    seeds = (strategy.seed << 32 | number for number in numbers)
    if strategy.kind is Kind.PCT:
        return pct(world, job.setup.bounds, seeds, strategy.depth, length, lambda _: True)
    return run_random(world, job.setup.bounds, seeds, lambda _: True)
