"""The shortest schedule that ends in a finding: a breadth-first search, states joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dynftrace_emu.explore.findings import Finding, FindingClass, Found
from dynftrace_emu.explore.schedule import end_of
from dynftrace_emu.explore.levels import fingerprint as key_of

if TYPE_CHECKING:
    from dynftrace_emu.explore.state import Action, State
    from dynftrace_emu.explore.world import World

__all__ = ["Search", "shortest"]


class _Path(NamedTuple):
    """How a state is reached: the state before, and the action."""

    before: _Path | None
    action: Action


@dataclass(slots=True)
class Search:
    """What the search has come to.

    :param complete: every schedule within ``below`` was looked at, or one was found; else the
        budget is used up.
    """

    found: tuple[Finding, tuple[Action, ...]] | None = None
    states: int = 0
    actions: int = 0
    complete: bool = True


def shortest(
    world: World,
    *,
    kind: FindingClass | None = None,
    below: int | None = None,
    budget: int | None = None,
) -> Search:
    """The first of the shortest schedules from the world's present state that end in a finding.

    :param kind: of which class; None: of any.
    :param below: only schedules with fewer actions.
    :param budget: most actions to try; None: as many as there are.
    """
    return _Breadth(world, kind, below, budget).run()


class _Breadth:
    def __init__(
        self, world: World, kind: FindingClass | None, below: int | None, budget: int | None
    ) -> None:
        self._world, self._kind = world, kind
        self._below, self._budget = below, budget
        self._search = Search()
        self._met: set[object] = set()

    def run(self) -> Search:
        world, search = self._world, self._search
        first = world.save()
        level: list[tuple[State, _Path | None, list[Action]]] = []
        self._enter(None, level)
        depth = 0
        while level and search.found is None and search.complete:
            depth += 1
            if self._below is not None and depth >= self._below:
                break
            level = self._next(level)
        world.load(first)
        return search

    def _next(
        self, level: list[tuple[State, _Path | None, list[Action]]]
    ) -> list[tuple[State, _Path | None, list[Action]]]:
        """The states one action behind those of ``level``."""
        world, search = self._world, self._search
        deeper: list[tuple[State, _Path | None, list[Action]]] = []
        for state, path, actions in level:
            for action in actions:
                if self._budget is not None and search.actions >= self._budget:
                    search.complete = False
                    return deeper
                search.actions += 1
                world.load(state)
                here = _Path(path, action)
                try:
                    world.act(action)
                except Found as found:
                    self._note(found.finding, here)
                else:
                    self._enter(here, deeper)
                if search.found is not None:
                    return deeper
        return deeper

    def _enter(
        self, path: _Path | None, level: list[tuple[State, _Path | None, list[Action]]]
    ) -> None:
        """Keep the world's state, if it was not met before, to go on from it."""
        world = self._world
        actions = [] if world.finished else world.actions()
        if not actions:
            finding = end_of(world, FindingClass.TORN_FETCH)
            if finding is not None:
                self._note(finding, path)
            return
        state = world.save()
        key = key_of(state)
        if key in self._met:
            return
        self._met.add(key)
        self._search.states += 1
        level.append((state, path, actions))

    def _note(self, finding: Finding, path: _Path | None) -> None:
        if self._kind is not None and finding.kind is not self._kind:
            return
        schedule: list[Action] = []
        while path is not None:
            schedule.append(path.action)
            path = path.before
        self._search.found = finding, tuple(reversed(schedule))
