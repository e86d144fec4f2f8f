"""A schedule that ends in a finding, made as short as it gets."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from dynftrace_emu.explore.schedule import play

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dynftrace_emu.explore.findings import Finding, FindingClass
    from dynftrace_emu.explore.state import Action
    from dynftrace_emu.explore.world import World

__all__ = ["shrink"]


def shrink(
    world: World, schedule: Sequence[Action], kind: FindingClass
) -> tuple[Finding, tuple[Action, ...]]:
    """The shortest schedule found that ends in a finding of the same kind.

    Parts are left out, halves first, then single actions (Zeller's ddmin), and actions of one
    actor are drawn together, until nothing of that works any more.
    """
    first = world.save()

    def outcome(candidate: Sequence[Action]) -> tuple[Finding, tuple[Action, ...]] | None:
        world.load(first)
        finding, done = play(world, candidate, kind)
        if finding is None or finding.kind is not kind:
            return None
        return finding, done

    best = outcome(schedule)
    assert best is not None, "the schedule does not repeat"
    while True:
        for candidate in _smaller(best[1]):
            shorter = outcome(candidate)
            if shorter is not None and _weight(shorter[1]) < _weight(best[1]):
                best = shorter
                break
        else:
            world.load(first)
            return best


def _weight(schedule: Sequence[Action]) -> tuple[int, int]:
    """What to make small: actions, then turns."""
    turns = sum(a[:2] != b[:2] for a, b in itertools.pairwise(schedule))
    return len(schedule), turns


def _smaller(schedule: tuple[Action, ...]) -> Iterator[tuple[Action, ...]]:
    size = len(schedule) // 2
    while size:
        for begin in range(0, len(schedule), size):
            yield schedule[:begin] + schedule[begin + size :]
        size //= 2
    for index in range(len(schedule) - 1):
        a, b = schedule[index], schedule[index + 1]
        if a[:2] != b[:2]:
            yield (*schedule[:index], b, a, *schedule[index + 2 :])
