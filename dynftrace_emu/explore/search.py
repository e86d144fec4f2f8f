"""Strategies: which of the possible schedules are run.

*Exhaustive* is a depth-first search over all of them, up to a bound on preemptions (iterative
context bounding: Musuvathi and Qadeer, "Iterative Context Bounding for Systematic Testing", PLDI
2007). A state that was met before, with at least as many preemptions left, is not gone through
again: what follows is the same. *pct* gives each thread a random priority and lowers one at random
moments (Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs",
ASPLOS 2010). *random* takes any possible action, each as likely.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynftrace_emu.explore.findings import Finding, FindingClass, Found
from dynftrace_emu.explore.state import Action, Kind, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dynftrace_emu.explore.model import Bounds
    from dynftrace_emu.explore.world import World

__all__ = ["Outcome", "exhaustive", "pct", "run_random", "unjoined"]

PATCHER = -1
_FORCED_LIMIT = 400
"""Steps in a row in which only one thing is possible, and nothing ends: it waits for ever."""


@dataclass(slots=True)
class Outcome:
    """What a search has come to.

    ``schedules`` were run to their end, ``joined`` ended in a state met before, ``truncated`` were
    cut off by the bound on steps. ``starts``: different states in which patching began.
    """

    schedules: int = 0
    joined: int = 0
    truncated: int = 0
    states: int = 0
    actions: int = 0
    starts: int = 0
    found: tuple[Finding, tuple[Action, ...]] | None = None
    interrupted: bool = False

    def add(self, other: Outcome) -> None:
        """Take in what a part of the search has come to."""
        self.schedules += other.schedules
        self.joined += other.joined
        self.truncated += other.truncated
        self.states += other.states
        self.actions += other.actions
        self.starts += other.starts


@dataclass(slots=True)
class _Node:
    """A state on the path, and what is still to be tried in it."""

    state: State
    todo: Iterator[Action]
    actor: int | None
    preemptions: int
    enabled: frozenset[int]
    forced: int


def actor_of(action: Action) -> int | None:
    """The thread an action belongs to: a task, the patcher, or none: an interrupt."""
    if action.kind == Kind.RUN:
        return action.who
    return PATCHER if action.kind == Kind.PATCH else None


@dataclass(slots=True)
class _Exhaustive:
    world: World
    bounds: Bounds
    go_on: Callable[[Outcome], bool]
    joining: bool = True
    outcome: Outcome = field(default_factory=Outcome)
    _met: dict[tuple[object, ...], int] = field(default_factory=dict)
    _path: list[Action] = field(default_factory=list)
    _nodes: list[_Node] = field(default_factory=list)
    _starts: set[bytes] = field(default_factory=set)

    def run(self, prefix: Sequence[Action] = ()) -> Outcome:
        """Search below the world's present state, of what begins with ``prefix``."""
        self._enter(None, 0, 0)
        for first in prefix:
            self._nodes[-1].todo = iter(())
            self._take(self._nodes[-1], first)
        while self._nodes and self.outcome.found is None:
            node = self._nodes[-1]
            action = next(node.todo, None)
            if action is None:
                self._nodes.pop()
                if self._path:
                    self._path.pop()
                continue
            self._take(node, action)
            if self.outcome.actions % 4096 == 0 and not self.go_on(self.outcome):
                self.outcome.interrupted = True
                break
        self.outcome.starts = len(self._starts)
        return self.outcome

    def left(self) -> list[tuple[Action, ...]]:
        """What was not searched yet: how each schedule of it begins, in the order of the search."""
        return [
            (*self._path[:depth], action)
            for depth, node in reversed(list(enumerate(self._nodes)))
            for action in node.todo
        ]

    def _take(self, node: _Node, action: Action) -> None:
        world = self.world
        world.load(node.state)
        actor = actor_of(action)
        cost = self._cost(node, actor)
        if action.kind == Kind.PATCH and not world.begun:
            self._starts.add(_digest(node.state))
        self._path.append(action)
        self.outcome.actions += 1
        try:
            world.act(action)
        except Found as found:
            self.outcome.schedules += 1
            self.outcome.found = (found.finding, tuple(self._path))
            return
        now = node.actor if actor is None else actor
        if not self._enter(now, node.preemptions + cost, node.forced):
            self._path.pop()

    def _cost(self, node: _Node, actor: int | None) -> int:
        """1 for a switch away from a thread that could go on, once patching has begun."""
        if actor is None or node.actor in (None, actor) or not self.world.begun:
            return 0
        return int(node.actor in node.enabled)

    def _enter(self, actor: int | None, preemptions: int, forced: int) -> bool:
        """Begin with the actions of a state; False if there is nothing to try in it."""
        bound = self.bounds.preemptions
        if bound is not None and preemptions > bound:
            return False
        try:
            actions = self._possible()
        except Found as found:
            self.outcome.schedules += 1
            self.outcome.found = (found.finding, tuple(self._path))
            return False
        if not actions:
            self.outcome.schedules += 1
            return False
        if len(self._path) >= self.bounds.steps:
            self.outcome.truncated += 1
            return False
        forced = forced + 1 if len(actions) == 1 else 0
        state = self.world.save()
        if self.joining and not forced and self._met_before(state, actor, preemptions):
            self.outcome.joined += 1
            return False
        if forced > _FORCED_LIMIT:
            self.outcome.schedules += 1
            what = f"{forced} steps in which nothing else was possible, and no end"
            self.outcome.found = (Finding(FindingClass.DEADLOCK, what), tuple(self._path))
            return False
        enabled = frozenset(a for a in map(actor_of, actions) if a is not None)
        self._nodes.append(_Node(state, iter(actions), actor, preemptions, enabled, forced))
        return True

    def _possible(self) -> list[Action]:
        world = self.world
        if world.finished:
            world.check_end()
            return []
        actions = world.actions()
        if not actions:
            world.check_end()
        return actions

    def _met_before(self, state: State, actor: int | None, preemptions: int) -> bool:
        key = (
            _digest(state),
            tuple(task[1:] for task in state.tasks),
            state[2:],
            None if self.bounds.preemptions is None else actor,
        )
        before = self._met.get(key)
        if before is not None and before <= preemptions:
            return True
        if before is None:
            self.outcome.states += 1
        self._met[key] = preemptions
        return False


def _digest(state: State) -> bytes:
    """Data and registers, 16 bytes; the rest of a state is small and kept as it is."""
    digest = hashlib.blake2b(state.data, digest_size=16)
    for task in state.tasks:
        digest.update(task.registers)
    return digest.digest()


def exhaustive(
    world: World, bounds: Bounds, go_on: Callable[[Outcome], bool] = lambda _: True
) -> Outcome:
    """Run every schedule up to the bounds, or up to the first finding.

    :param go_on: asked now and then; False ends the search.
    """
    return _Exhaustive(world, bounds, go_on).run()


def unjoined(
    world: World, bounds: Bounds, prefix: Sequence[Action], actions: int
) -> tuple[Outcome, list[tuple[Action, ...]]]:
    """Run every schedule that begins with ``prefix``, joining no states.

    :param actions: after so many of them it ends, and tells what is left, in order.
    """
    search = _Exhaustive(world, bounds, lambda outcome: outcome.actions < actions, joining=False)
    outcome = search.run(prefix)
    outcome.interrupted = False
    return outcome, [] if outcome.found else search.left()


def _walk(
    world: World, steps: int, choose: Callable[[list[Action]], Action], outcome: Outcome
) -> None:
    """Run one schedule from the world's present state to its end."""
    path: list[Action] = []
    try:
        while not world.finished:
            actions = world.actions()
            if not actions or len(path) >= steps:
                break
            action = choose(actions)
            path.append(action)
            world.act(action)
        if len(path) >= steps and not world.finished:
            outcome.truncated += 1
        else:
            world.check_end()
    except Found as found:
        outcome.found = (found.finding, tuple(path))
    outcome.schedules += 1
    outcome.actions += len(path)


def run_random(
    world: World, bounds: Bounds, seeds: Iterator[int], go_on: Callable[[Outcome], bool]
) -> Outcome:
    """One schedule a seed, every choice as likely."""
    outcome, first = Outcome(), world.save()
    for seed in seeds:
        generator = random.Random(seed)
        world.load(first)
        _walk(
            world,
            bounds.steps,
            lambda actions, r=generator: actions[int(r.random() * len(actions))],  # type: ignore[misc]
            outcome,
        )
        if outcome.found is not None or not go_on(outcome):
            break
    return outcome


def pct(
    world: World,
    bounds: Bounds,
    seeds: Iterator[int],
    depth: int,
    length: int,
    go_on: Callable[[Outcome], bool],
) -> Outcome:
    """One schedule a seed by priorities, of which ``depth - 1`` fall at random moments.

    :param length: of a schedule in actions, about: where the moments are drawn from.
    """
    outcome, first = Outcome(), world.save()
    for seed in seeds:
        world.load(first)
        _walk(world, bounds.steps, _Priorities(seed, depth, length), outcome)
        if outcome.found is not None or not go_on(outcome):
            break
    return outcome


class _Priorities:
    """Chooses as PCT does; interrupts are threads, too."""

    def __init__(self, seed: int, depth: int, length: int) -> None:
        self._random = random.Random(seed)
        self._priority: dict[tuple[str, int], float] = {}
        self._moments = {int(self._random.random() * length): n for n in range(1, depth)}
        self._count = 0

    def __call__(self, actions: list[Action]) -> Action:
        best = max(actions, key=self._of)
        lowered = self._moments.get(self._count)
        self._count += 1
        if lowered is not None:
            self._priority[best.kind, best.who] = -lowered
            best = max(actions, key=self._of)
        same = [a for a in actions if a[:2] == best[:2]]
        return same[int(self._random.random() * len(same))]

    def _of(self, action: Action) -> float:
        key = action.kind, action.who
        if key not in self._priority:
            self._priority[key] = self._random.random()
        return self._priority[key]
