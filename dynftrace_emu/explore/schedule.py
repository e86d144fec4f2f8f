"""A schedule: the actions that are done one after the other, and what they end in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from dynftrace_emu.errors import ImageError
from dynftrace_emu.explore.findings import Finding, FindingClass, Found
from dynftrace_emu.explore.levels import fingerprint
from dynftrace_emu.explore.state import Action, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dynftrace_emu.explore.state import State
    from dynftrace_emu.explore.world import World

__all__ = ["Endless", "Played", "end_of", "parse", "play", "to_text"]

_NOUNS = {Kind.RUN: "task", Kind.PATCH: None}  # who it is; a CPU where nothing is said
_KINDS = frozenset(v for k, v in vars(Kind).items() if k.isupper())
_LINE = re.compile(
    r"(?P<kind>[a-z]+)(?: (?P<noun>[a-z]+) (?P<who>\d{1,4}))?(?: view (?P<view>\d{1,6}))?"
)


_MOST_STATES = 20_000
"""Of those looked through for an end, where nobody seems to get on any more."""


class Played(NamedTuple):
    """What a schedule came to: the finding, and the actions that were done up to it."""

    finding: Finding | None
    schedule: tuple[Action, ...]


def play(world: World, schedule: Sequence[Action], endless: Endless | None = None) -> Played:
    """Run a schedule from the world's present state.

    Actions that are not possible when their turn comes are left out.

    :param endless: see :func:`end_of`.
    """
    done: list[Action] = []
    try:
        for action in schedule:
            if action in world.actions():
                done.append(action)
                world.act(action)
    except Found as found:
        return Played(found.finding, tuple(done))
    return Played(end_of(world, endless), tuple(done))


def end_of(world: World, endless: Endless | None = None) -> Finding | None:
    """What is wrong where a schedule ends; nothing, if more can happen.

    :param endless: it is a deadlock, too, if this says that no end can be reached any more.
    """
    try:
        if world.finished or not world.actions():
            world.check_end()
            return None
    except Found as found:
        return found.finding
    if endless is not None and endless.holds(world):
        return Finding(FindingClass.DEADLOCK, "whatever happens from here on, there is no end")
    return None


class Endless:
    """Tells whether an end can still be reached, or all wait in a circle; remembers what it saw."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        """States from which no end can be reached."""

    def holds(self, world: World) -> bool:
        """Whether there is no end from here; False, too, if that takes too long to find out."""
        first = world.save()
        met, todo = {fingerprint(first)}, [first]
        if met <= self._known:
            return True
        while todo and len(met) < _MOST_STATES:
            for state in self._following(world, todo.pop()):
                if state is None:
                    return False
                key = fingerprint(state)
                if key not in met and key not in self._known:
                    met.add(key)
                    todo.append(state)
        if not todo:
            self._known |= met
        return not todo

    @staticmethod
    def _following(world: World, state: State) -> Iterator[State | None]:
        """The states one action further; None: an end, or something else that is wrong."""
        world.load(state)
        for action in world.actions():
            world.load(state)
            try:
                world.act(action)
            except Found:
                yield None
                return
            yield None if world.finished else world.save()


def to_text(action: Action) -> str:
    """``run task 1 view 2``, ``patch``, ``ack cpu 0``."""
    noun = _NOUNS.get(action.kind, "cpu")
    text = action.kind if noun is None else f"{action.kind} {noun} {action.who}"
    return f"{text} view {action.view}" if action.view else text


def parse(text: str, where: str) -> Action:
    """The opposite.

    :raises ImageError: it is no action; ``where`` is in the message.
    """
    match = _LINE.fullmatch(text)
    if match and match["kind"] in _KINDS and match["noun"] == _NOUNS.get(match["kind"], "cpu"):
        return Action(match["kind"], int(match["who"] or 0), int(match["view"] or 0))
    raise ImageError(f"{where}: {ascii(text)[:60]} is no action")
