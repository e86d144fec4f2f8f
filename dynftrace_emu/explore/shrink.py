"""A schedule that ends in a finding, made as short and as plain as it gets."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from dynftrace_emu.explore.levels import LevelSearch, expand
from dynftrace_emu.explore.model import Bounds
from dynftrace_emu.explore.schedule import Endless, play

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dynftrace_emu.explore.findings import Finding, FindingClass
    from dynftrace_emu.explore.state import Action
    from dynftrace_emu.explore.world import World

__all__ = ["shrink"]

_ACTIONS = 8_000
"""Tried in the search for a shorter one: some 0.3 s."""


class Shrunk(NamedTuple):
    """A finding, and the schedule that ends in it."""

    finding: Finding
    schedule: tuple[Action, ...]


def shrink(world: World, schedule: Sequence[Action], kind: FindingClass) -> Shrunk:
    """The shortest schedule found that ends in a finding of the same kind, from the present state.

    Parts are left out, halves first, then single actions (ddmin: Zeller and Hildebrandt,
    "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 2002). Then all that is shorter is
    searched, as far as that goes in a moment. Of what is as short the plainest is taken: fewest
    turns, and CPUs that see each store. No single action can be left out of what comes out. The
    same schedule gives the same one.
    """
    first = world.save()
    best = _Shrinker(world, kind).run(tuple(schedule))
    world.load(first)
    return best


class _Shrinker:
    def __init__(self, world: World, kind: FindingClass) -> None:
        self._world, self._kind = world, kind
        self._first = world.save()
        self._endless: Endless | None = None

    def run(self, schedule: tuple[Action, ...]) -> Shrunk:
        best = self._play(schedule)
        if best is None:  # nobody stands still, and all the same there is no end
            self._endless = Endless()
            best = self._play(schedule)
        assert best is not None, "the schedule does not repeat"
        best = self._improve(best, _without_parts)
        best = self._search(best)
        return self._improve(best, lambda s: itertools.chain(_without_parts(s), _plainer(s)))

    def _play(self, candidate: Sequence[Action]) -> Shrunk | None:
        self._world.load(self._first)
        finding, done = play(self._world, candidate, self._endless)
        if finding is None or finding.kind is not self._kind:
            return None
        return Shrunk(finding, done)

    def _improve(
        self, best: Shrunk, candidates: Callable[[tuple[Action, ...]], Iterator[tuple[Action, ...]]]
    ) -> Shrunk:
        """Take the first candidate that is better, until there is none."""
        while True:
            for candidate in candidates(best.schedule):
                if _weight(candidate) < _weight(best.schedule):
                    better = self._play(candidate)
                    if better is not None and _weight(better.schedule) < _weight(best.schedule):
                        best = better
                        break
            else:
                return best

    def _search(self, best: Shrunk) -> Shrunk:
        """Look through everything that is shorter, breadth first."""
        if len(best.schedule) < 2:
            return best
        self._world.load(self._first)
        search = LevelSearch(
            self._first,
            Bounds(steps=len(best.schedule) - 1),
            lambda nodes, spare: (expand(self._world, (n,), spare, self._kind) for n in nodes),
            _ACTIONS,
            go_on=lambda outcome: outcome.actions < _ACTIONS,
        )
        found = search.run().found
        shorter = None if found is None else self._play(found[1])
        return best if shorter is None else min(best, shorter, key=lambda s: _weight(s.schedule))


def _weight(schedule: Sequence[Action]) -> tuple[int, int, int]:
    """What to make small: actions, then turns, then fetches that do not see each store."""
    turns = sum(a[:2] != b[:2] for a, b in itertools.pairwise(schedule))
    return len(schedule), turns, sum(action.view for action in schedule)


def _without_parts(schedule: tuple[Action, ...]) -> Iterator[tuple[Action, ...]]:
    size = len(schedule) // 2
    while size:
        for begin in range(0, len(schedule), size):
            yield schedule[:begin] + schedule[begin + size :]
        size //= 2


def _plainer(schedule: tuple[Action, ...]) -> Iterator[tuple[Action, ...]]:
    """Runs of one actor drawn together with others of his; fetches that see more."""
    turns = [list(turn) for _, turn in itertools.groupby(schedule, lambda action: action[:2])]
    for index, turn in enumerate(turns):
        rest = turns[:index] + turns[index + 1 :]
        for at, other in enumerate(rest):
            if other[0][:2] == turn[0][:2]:
                yield tuple(itertools.chain(*rest[:at], other, turn, *rest[at + 1 :]))
                yield tuple(itertools.chain(*rest[:at], turn, other, *rest[at + 1 :]))
    for index, action in enumerate(schedule):
        for view in range(action.view):
            yield (*schedule[:index], action._replace(view=view), *schedule[index + 1 :])
