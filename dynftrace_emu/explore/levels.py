"""Exhaustive search, breadth first: the states of one level are gone through by many at once.

A level holds the states that are one action further than those of the level before; what each of
them leads to (:func:`expand`) can be found out anywhere, in any order. Whether a state was met
before is decided in one place, in the order of the levels. So the outcome is the same for any
number of workers, no state is gone through twice, and a finding is one of the shortest.

With a bound on preemptions all that fewer of them lead to comes first, as in iterative context
bounding (Musuvathi and Qadeer, PLDI 2007). A state is then met with the thread that ran last.

A state counts as met before if its fingerprint was: 128 bits, of all that can differ.

Nobody may wait for ever, not even in a circle: once all states are known, those from which no end
can be reached are looked for.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dynftrace_emu.explore.findings import Finding, FindingClass, Found
from dynftrace_emu.explore.search import Outcome, actor_of
from dynftrace_emu.explore.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dynftrace_emu.explore.model import Bounds
    from dynftrace_emu.explore.state import Action, Cpu, Task
    from dynftrace_emu.explore.world import World

__all__ = ["Expansion", "LevelSearch", "Node", "expand", "fingerprint"]

_DIGEST = 16
_ENDS = b""
"""The key of where an edge leads to if nothing follows."""
_CIRCLE = Finding(FindingClass.DEADLOCK, "whatever happens from here on, there is no end")


class Node(NamedTuple):
    """A state to go on from, and the thread that ran last if that matters."""

    state: State
    actor: int | None


class Edge(NamedTuple):
    """An action, the preemptions it costs (0 or 1), and the key of the node it leads to."""

    action: Action
    cost: int
    key: bytes


@dataclass(slots=True)
class Expansion:
    """What a row of nodes leads to.

    :param edges: of each node, in order; of the last one up to the finding, if there is one.
    :param cut: nodes of which some edges are left out: they cost a preemption too many.
    :param nodes: those that edges lead to, by their key.
    :param starts: states in which the protocol begins.
    :param found: the finding, and the action that made it (None: none was possible).
    """

    edges: list[list[Edge]] = field(default_factory=list)
    cut: set[int] = field(default_factory=set)
    nodes: dict[bytes, Node] = field(default_factory=dict)
    starts: set[bytes] = field(default_factory=set)
    found: tuple[Finding, Action | None] | None = None
    parts: dict[Any, Any] = field(default_factory=dict)
    """Of the states in ``nodes``; empty in the end."""

    def share(self, state: State) -> State:
        """The same state; what equals a part of another one is that part: it is sent once."""
        one = self.parts.setdefault
        return State(
            one(state.data, state.data),
            tuple([one(task, task) for task in state.tasks]),
            tuple([one(cpu, cpu) for cpu in state.cpus]),
            *state[3:],
        )


def fingerprint(state: State) -> bytes:
    """16 bytes that stand for a state, in any process."""
    digest = hashlib.blake2b(state.data, digest_size=_DIGEST)
    for part in (*state.tasks, *state.cpus):
        digest.update(_digest(part))
    digest.update(repr(state[3:]).encode())
    return digest.digest()


@lru_cache(maxsize=1 << 15)
def _digest(part: Task | Cpu) -> bytes:
    """The same for a task or a CPU, of which most are as they were in the state before."""
    return hashlib.blake2b(repr(part).encode(), digest_size=_DIGEST).digest()


def expand(
    world: World, nodes: Sequence[Node], spare: int | None, only: FindingClass | None = None
) -> Expansion:
    """Do every action that is possible in each of the nodes.

    :param spare: preemptions that may still be made; None: any number, nobody counts.
    :param only: findings of other classes are ends like any other.
    """
    result = Expansion()
    for number, node in enumerate(nodes):
        edges: list[Edge] = []
        result.edges.append(edges)
        world.load(node.state)
        begun, action = world.begun, None
        try:
            actions = world.actions()
            if not actions:
                world.check_end()
            threads = {actor_of(action) for action in actions} if spare is not None else set()
            for action in actions:
                actor = actor_of(action)
                cost = int(begun and None not in (actor, node.actor) and actor != node.actor
                           and node.actor in threads)  # fmt: skip
                if cost and not spare:
                    result.cut.add(number)
                    continue
                world.load(node.state)
                try:
                    world.act(action)
                    key = _arrived(world, node, actor, result, spare)
                except Found as found:
                    if only not in (None, found.finding.kind):
                        key = _ENDS
                    else:
                        raise
                edges.append(Edge(action, cost, key))
                if not begun and world.begun:
                    result.starts.add(fingerprint(node.state))
        except Found as found:
            if only not in (None, found.finding.kind):
                result.cut.add(number)
                continue
            result.found = found.finding, action
            break
    result.parts.clear()
    return result


def _arrived(
    world: World, node: Node, actor: int | None, result: Expansion, spare: int | None
) -> bytes:
    """Note where an action has led to; returns its key."""
    if world.finished:
        world.check_end()
        return _ENDS
    state = world.save()
    key = fingerprint(state)
    ran = None
    if spare is not None:
        ran = node.actor if actor is None else actor
        key += repr(ran).encode()
    if key not in result.nodes:
        result.nodes[key] = Node(result.share(state), ran)
    return key


@dataclass(slots=True)
class _Graph:
    """The states met and how they are connected, by number in the order they were met.

    Number 0 is where the search begins. Of each edge the ends are kept, and of each state the edge
    that led to it first.
    """

    numbers: dict[bytes, int] = field(default_factory=dict)
    actions: dict[Action, int] = field(default_factory=dict)
    parents: array[int] = field(default_factory=lambda: array("I"))
    by: array[int] = field(default_factory=lambda: array("I"))
    sources: array[int] = field(default_factory=lambda: array("I"))
    targets: array[int] = field(default_factory=lambda: array("I"))
    ends: set[int] = field(default_factory=set)
    """States from which an end, or what lies beyond the bounds, is one action away."""

    def add(self, key: bytes) -> int:
        """Give a state its number."""
        number = self.numbers[key] = len(self.parents)
        self.parents.append(0)
        self.by.append(0)
        return number

    def lead(self, parent: int, action: Action, number: int) -> None:
        """Note how a state is first reached."""
        self.parents[number] = parent
        self.by[number] = self.actions.setdefault(action, len(self.actions))

    def connect(self, source: int, target: int) -> None:
        """Note an edge."""
        self.sources.append(source)
        self.targets.append(target)

    def path(self, number: int) -> tuple[Action, ...]:
        """The actions that first led to a state."""
        known = list(self.actions)
        found = []
        while number:
            found.append(known[self.by[number]])
            number = self.parents[number]
        return tuple(reversed(found))

    def endless(self) -> int | None:
        """The first state from which no end can be reached."""
        reached = np.zeros(len(self.parents), dtype=bool)
        reached[list(self.ends)] = True
        sources = np.frombuffer(self.sources, dtype=np.uint32)
        targets = np.frombuffer(self.targets, dtype=np.uint32)
        while len(more := sources[reached[targets] & ~reached[sources]]):
            reached[more] = True
        left = np.flatnonzero(~reached)
        return int(left[0]) if len(left) else None


class _Ready(NamedTuple):
    """A node to go through, its number and the length of the path to it."""

    length: int
    number: int
    node: Node


class _Over(Exception):
    """The search ends here."""


@dataclass(slots=True)
class LevelSearch:
    """A search from ``first`` on.

    :param expander: does :func:`expand` for rows of nodes, in their order; it may be given up.
    :param most: states to know by their fingerprint; schedules that lead to more are truncated.
    :param most_open: nodes to keep that are still to be gone through, likewise.
    :param go_on: asked after each row; False ends the search.
    """

    first: State
    bounds: Bounds
    expander: Callable[[Sequence[Node], int | None], Iterator[Expansion]]
    most: int
    most_open: int = 1 << 62
    go_on: Callable[[Outcome], bool] = lambda _: True
    outcome: Outcome = field(default_factory=Outcome)
    _graph: _Graph = field(default_factory=_Graph)
    _taken: bytearray = field(default_factory=bytearray)
    """Of each state, whether it has been in a level."""
    _starts: set[bytes] = field(default_factory=set)
    _later: list[_Ready] = field(default_factory=list)
    """Nodes that cost one preemption more, the nearest first."""
    _open: int = 1
    """Nodes that are still to be gone through."""

    def run(self) -> Outcome:
        """Search to the end of the bounds, or to the first finding."""
        spare = self.bounds.preemptions
        self._number(fingerprint(self.first))
        ready = [_Ready(0, 0, Node(self.first, None))]
        try:
            while ready:
                self._layer(deque(ready), spare)
                ready, self._later = self._later, []
                spare = spare - 1 if spare else spare
            self._look_for_circles()
        except _Over:
            pass
        except KeyboardInterrupt:
            self.outcome.interrupted = True
            self.outcome.truncated += self._open
            raise
        finally:
            self.outcome.starts = len(self._starts)
        return self.outcome

    def _number(self, key: bytes) -> int:
        self._taken.append(0)
        self.outcome.states += 1
        return self._graph.add(key)

    def _layer(self, ready: deque[_Ready], spare: int | None) -> None:
        """Everything that costs no further preemption."""
        level: list[_Ready] = []
        while level or ready:
            length = level[0].length if level else ready[0].length
            while ready and ready[0].length == length:
                node = ready.popleft()
                if self._taken[node.number]:
                    self.outcome.joined += 1
                    self._open -= 1
                else:
                    self._taken[node.number] = 1
                    level.append(node)
            if length >= self.bounds.steps:
                self.outcome.truncated += len(level) + len(ready)
                self._open -= len(level) + len(ready)
                return
            level = self._next(level, spare)

    def _next(self, level: list[_Ready], spare: int | None) -> list[_Ready]:
        """The level behind this one."""
        following: list[_Ready] = []
        sources = iter(level)
        for expansion in self.expander([ready.node for ready in level], spare):
            self._starts |= expansion.starts
            for number, edges in enumerate(expansion.edges):
                source = next(sources)
                self._open -= 1
                if number in expansion.cut:
                    self._graph.ends.add(source.number)
                for edge in edges:
                    self._follow(source, edge, expansion.nodes, following)
            if expansion.found is not None:
                self._found(source, *expansion.found)
            if not self.go_on(self.outcome):
                self.outcome.interrupted = True
                self.outcome.truncated += self._open
                raise _Over
        return following

    def _follow(
        self, source: _Ready, edge: Edge, nodes: dict[bytes, Node], following: list[_Ready]
    ) -> None:
        graph, outcome = self._graph, self.outcome
        outcome.actions += 1
        if edge.key == _ENDS:
            outcome.schedules += 1
            graph.ends.add(source.number)
            return
        number = graph.numbers.get(edge.key)
        known = number is not None
        if number is None:
            if outcome.states >= self.most or self._open >= self.most_open:
                outcome.truncated += 1
                return
            number = self._number(edge.key)
        graph.connect(source.number, number)
        if self._taken[number] or (known and edge.cost):
            outcome.joined += 1
            return
        self._open += 1
        graph.lead(source.number, edge.action, number)
        ready = _Ready(source.length + 1, number, nodes[edge.key])
        if edge.cost:
            self._later.append(ready)
        else:
            self._taken[number] = 1
            following.append(ready)

    def _found(self, source: _Ready, finding: Finding, action: Action | None) -> None:
        self.outcome.schedules += 1
        self.outcome.actions += action is not None
        path = self._graph.path(source.number)
        self.outcome.found = finding, path if action is None else (*path, action)
        raise _Over

    def _look_for_circles(self) -> None:
        if self.outcome.truncated:
            return  # what was not gone through may end
        number = self._graph.endless()
        if number is not None:
            self.outcome.found = _CIRCLE, self._graph.path(number)
