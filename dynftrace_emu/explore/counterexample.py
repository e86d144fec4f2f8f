"""A schedule that ends in a finding, as a file: the same file gives the same end on any machine."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynftrace_emu import __version__
from dynftrace_emu.errors import ImageError
from dynftrace_emu.explore import setup as setups
from dynftrace_emu.explore.findings import Finding, FindingClass, Found
from dynftrace_emu.explore.world import Action

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dynftrace_emu.explore.setup import Setup
    from dynftrace_emu.explore.world import World

__all__ = ["Counterexample", "play", "shrink"]

SCHEMA = "dynftrace-emu/counterexample/1"


@dataclass(frozen=True)
class Counterexample:
    """A setup, the schedule to run in it, and what that ends in.

    :param source: the text of a user's protocol file; None for a built-in protocol.
    """

    setup: Setup
    schedule: tuple[Action, ...]
    finding: Finding
    source: str | None = None

    def dump(self) -> str:
        """As JSON text."""
        document = {
            "schema": SCHEMA,
            "version": __version__,
            "setup": setups.to_json(self.setup),
            "source": self.source,
            "finding": {
                "class": self.finding.kind.value,
                "what": self.finding.what,
                "cpu": self.finding.cpu,
                "ip": self.finding.ip,
            },
            "schedule": [list(action) for action in self.schedule],
        }
        return json.dumps(document, indent=1) + "\n"


def load(path: Path) -> Counterexample:
    """Read a file that :meth:`Counterexample.dump` has made.

    :raises ImageError: it cannot be read, or is none.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        if document.get("schema") != SCHEMA:
            raise ImageError(f"{path}: schema {document.get('schema')!r} is not {SCHEMA!r}")
        found = document["finding"]
        return Counterexample(
            setups.from_json(document["setup"]),
            tuple(Action(str(k), int(w), int(v)) for k, w, v in document["schedule"]),
            Finding(FindingClass(found["class"]), found["what"], found["cpu"], found["ip"]),
            document["source"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"{path} is no counterexample: {error}") from None


def play(world: World, schedule: Sequence[Action]) -> tuple[Finding | None, int]:
    """Run a schedule: what it ends in, and how many of its actions that took.

    Actions that are not possible when their turn comes are left out.
    """
    count = 0
    try:
        for count, action in enumerate(schedule, 1):  # noqa: B007
            if action in world.actions():
                world.act(action)
        if world.finished or not world.actions():
            world.check_end()
    except Found as found:
        return found.finding, count
    return None, len(schedule)


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
        finding, count = play(world, candidate)
        if finding is None or finding.kind is not kind:
            return None
        return finding, tuple(candidate[:count])

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
