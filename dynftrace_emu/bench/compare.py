"""Two results compared: what moved, and whether a ratio became worse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.bench.figures import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.bench.figures import Figure, Result

__all__ = ["Comparison", "Move", "compare"]

KINDS = {"instructions": ("instructions", "program"), "time": ("modes",)}
"""What can be compared, and which measurement's ratios that is."""
_SAME = {"instructions": (), "time": ("warm_up_s", "window_s")}
"""Settings without which ratios of a kind cannot be compared."""


@dataclass(frozen=True, slots=True)
class Move:
    """A ratio to the build without calls, then and now."""

    figure: str
    old: float
    new: float

    @property
    def percent(self) -> float:
        """By how much it grew."""
        return (self.new / self.old - 1) * 100


@dataclass(frozen=True, slots=True)
class Comparison:
    """All ratios that both results have, and those that one of them lacks.

    :param missing: only in the old one, though the new one was to measure them.
    :param only_old: only in the old one, as the new one was restricted to others.
    """

    moves: tuple[Move, ...]
    missing: tuple[str, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    tolerance: float

    @property
    def failed(self) -> bool:
        """Whether a ratio is worse, or missing."""
        return bool(self.missing) or any(self.worse())

    def worse(self) -> Iterator[Move]:
        """Those that grew by more than the tolerance, in percent."""
        return (move for move in self.moves if move.percent > self.tolerance + 1e-9)

    def moved(self) -> Iterator[Move]:
        """Those that are not what they were."""
        return (move for move in self.moves if move.old != move.new)

    def lines(self) -> Iterator[str]:
        """It all in words."""
        worse = list(self.worse())
        for move in self.moved():
            verdict = "worse" if move in worse else "better" if move.percent < 0 else "tolerated"
            values = f"{move.old:.4f} -> {move.new:.4f}"
            yield f"{move.figure}: {values} ({move.percent:+.2f} %, {verdict})"
        for figures, what in (
            (self.missing, "missing now"),
            (self.only_old, "not chosen now"),
            (self.only_new, "not measured then"),
        ):
            if figures:
                names = (figure.removesuffix("/ratio") for figure in figures)
                yield f"{what}: {', '.join(names)}"
        unmoved = len(self.moves) - len(list(self.moved()))
        missing = f", {len(self.missing)} missing" if self.missing else ""
        yield f"{len(self.moves)} ratios compared: {unmoved} the same, {len(worse)} worse{missing}"


def compare(old: Result, new: Result, by: str, tolerance: float) -> Comparison:
    """Compare the ratios of two results.

    :param by: a key of :data:`KINDS`.
    :param tolerance: percent by which a ratio may grow.
    :raises BenchError: they have none in common, or are of different things.
    """
    _check_comparable(old, new, by)
    then, now = _ratios(old, KINDS[by]), _ratios(new, KINDS[by])
    common = [name for name in now if name in then]
    if not common:
        raise BenchError(f"nothing to compare: the two have no ratio of {by} in common")
    gone = [name for name in then if name not in now]
    missing = {name for name in gone if _was_asked(new, then[name])}
    return Comparison(
        tuple(Move(name, then[name].median, now[name].median) for name in common),
        tuple(name for name in gone if name in missing),
        tuple(name for name in gone if name not in missing),
        tuple(name for name in now if name not in then),
        tolerance,
    )


def _check_comparable(old: Result, new: Result, by: str) -> None:
    settings = ((name, old.settings.get(name), new.settings.get(name)) for name in _SAME[by])
    for name, then, now in (("image", old.image, new.image), *settings):
        if then != now:
            raise BenchError(f"cannot be compared: {name} was {then} then and is {now} now")


def _was_asked(result: Result, figure: Figure) -> bool:
    """Whether the run was to measure it: it may have been restricted to others.

    A document that does not say so holds what was measured, which is taken for what was chosen.
    """
    settings = result.settings
    measured = {"only": "kinds", "modes": "modes", "workloads": "workloads"}
    chosen = settings.get("chosen", {option: settings.get(measured[option]) for option in measured})
    asked = {"only": figure.kind, "modes": figure.subject, "workloads": figure.workload}
    return all(not chosen.get(option) or name in chosen[option] for option, name in asked.items())


def _ratios(result: Result, kinds: tuple[str, ...]) -> dict[str, Figure]:
    return {
        figure.id: figure
        for figure in result.figures
        if figure.kind in kinds and figure.quantity == "ratio"
    }
