"""Two results compared: what moved, and whether a ratio became worse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.bench.figures import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.bench.figures import Result

__all__ = ["Comparison", "Move", "compare"]

KINDS = {"instructions": ("instructions", "program"), "time": ("modes",)}
"""What can be compared, and which measurement's ratios that is."""


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
    """All ratios that both results have; ``missing`` are those that one of them lacks."""

    moves: tuple[Move, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    tolerance: float

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
        for figures, when in ((self.only_old, "now"), (self.only_new, "then")):
            if figures:
                names = (figure.removesuffix("/ratio") for figure in figures)
                yield f"not measured {when}: {', '.join(names)}"
        unmoved = len(self.moves) - len(list(self.moved()))
        yield f"{len(self.moves)} ratios compared: {unmoved} the same, {len(worse)} worse"


def compare(old: Result, new: Result, by: str, tolerance: float) -> Comparison:
    """Compare the ratios of two results.

    :param by: a key of :data:`KINDS`.
    :param tolerance: percent by which a ratio may grow.
    :raises BenchError: they have none in common.
    """
    then, now = _ratios(old, KINDS[by]), _ratios(new, KINDS[by])
    common = [figure for figure in now if figure in then]
    if not common:
        raise BenchError(f"nothing to compare: the two have no ratio of {by} in common")
    return Comparison(
        tuple(Move(figure, then[figure], now[figure]) for figure in common),
        tuple(figure for figure in then if figure not in now),
        tuple(figure for figure in now if figure not in then),
        tolerance,
    )


def _ratios(result: Result, kinds: tuple[str, ...]) -> dict[str, float]:
    return {
        figure.id: figure.median
        for figure in result.figures
        if figure.kind in kinds and figure.quantity == "ratio"
    }
