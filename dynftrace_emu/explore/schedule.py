"""A schedule: the actions that are done one after the other, and what they end in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from dynftrace_emu.errors import ImageError
from dynftrace_emu.explore.findings import Finding, FindingClass, Found
from dynftrace_emu.explore.levels import fingerprint
from dynftrace_emu.explore.state import Action, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynftrace_emu.explore.world import World

__all__ = ["Played", "end_of", "parse", "play", "to_text"]

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


def play(world: World, schedule: Sequence[Action], *, endless: bool = False) -> Played:
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
    return Played(end_of(world, endless=endless), tuple(done))


def end_of(world: World, *, endless: bool) -> Finding | None:
    """What is wrong where a schedule ends; nothing, if more can happen.

    :param endless: it is a deadlock, too, if no end can be reached whatever happens: they wait in
        a circle.
    """
    try:
        if world.finished or not world.actions():
            world.check_end()
            return None
    except Found as found:
        return found.finding
    if endless and _is_endless(world):
        return Finding(FindingClass.DEADLOCK, "whatever happens from here on, there is no end")
    return None


def _is_endless(world: World) -> bool:
    """Whether no end can be reached; False, too, if that takes too long to find out."""
    first = world.save()
    met, open_states = {fingerprint(first)}, [first]
    while open_states and len(met) < _MOST_STATES:
        state = open_states.pop()
        world.load(state)
        for action in world.actions():
            world.load(state)
            try:
                world.act(action)
            except Found:
                return False  # another end
            if world.finished:
                return False
            following = world.save()
            key = fingerprint(following)
            if key not in met:
                met.add(key)
                open_states.append(following)
    return not open_states


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
