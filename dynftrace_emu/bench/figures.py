"""What was measured: figures with a value a round, and what is derived of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import isfinite
from statistics import median
from typing import Any

from dynftrace_emu.errors import OptionError

__all__ = ["SCHEMA", "BenchError", "Figure", "Result"]

SCHEMA = 1


class BenchError(OptionError):
    """A stored result that cannot be used."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: what it is of, and its value in each round.

    :param kind: which measurement it comes of (:data:`.plan.KINDS`).
    :param subject: what was measured, as a mode's name, ``synthetic:1000`` or ``2 vCPUs``.
    :param quantity: which of its figures, as ``ratio``.
    :param workload: what ran, or empty.
    :param exact: it has no noise: the same whenever it is measured.
    """

    kind: str
    subject: str
    quantity: str
    unit: str
    values: tuple[float, ...]
    workload: str = ""
    exact: bool = False

    @property
    def id(self) -> str:
        """A name that no other figure of a result has."""
        return "/".join(filter(None, (self.kind, self.workload, self.subject, self.quantity)))

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.values)

    @property
    def low(self) -> float:
        """The least of the rounds."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The greatest of the rounds."""
        return max(self.values)


@dataclass
class Result:
    """All that one run of the bench came to.

    :param rounds: what was read off in each round, a row each.
    :param notes: what was left out, and why.
    :param complete: it was not interrupted.
    """

    image: str
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    def find(self, figure_id: str) -> Figure | None:
        """The figure of that name, if it was measured."""
        return next((figure for figure in self.figures if figure.id == figure_id), None)

    def of(self, kind: str, quantity: str, workload: str = "") -> list[Figure]:
        """The figures of a kind that say one quantity, in the order they were measured."""
        return [
            figure
            for figure in self.figures
            if (figure.kind, figure.quantity, figure.workload) == (kind, quantity, workload)
        ]

    def workloads(self, kind: str) -> list[str]:
        """The workloads of a kind's figures, in their order."""
        return list(dict.fromkeys(f.workload for f in self.figures if f.kind == kind))

    def subjects(self, kind: str, workload: str = "") -> list[str]:
        """The subjects of a kind's figures, in their order."""
        found = (f for f in self.figures if (f.kind, f.workload) == (kind, workload))
        return list(dict.fromkeys(f.subject for f in found))

    def to_json(self) -> dict[str, Any]:
        """The document of ``bench --json``."""
        return {
            "schema": SCHEMA,
            "bench": self.image,
            "complete": self.complete,
            "environment": self.environment,
            "settings": self.settings,
            "notes": self.notes,
            "figures": [_figure_to_json(figure) for figure in self.figures],
            "rounds": self.rounds,
        }

    @classmethod
    def from_json(cls, document: Any, name: str) -> Result:
        """The inverse; ``name`` is the file's, for messages.

        :raises BenchError: it is no such document.
        """
        if not isinstance(document, dict) or "bench" not in document:
            raise BenchError(f"{name} is no document of bench --json")
        if document.get("schema") != SCHEMA:
            raise BenchError(f"{name} has schema {document.get('schema')!r}; {SCHEMA} is known")
        try:
            return cls(
                image=document["bench"],
                settings=document["settings"],
                environment=document["environment"],
                figures=[_figure_from_json(figure) for figure in document["figures"]],
                rounds=document["rounds"],
                notes=document["notes"],
                complete=document["complete"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BenchError(f"{name} is damaged: {type(error).__name__} {error}") from None


def _figure_to_json(figure: Figure) -> dict[str, Any]:
    derived = {"median": figure.median, "min": figure.low, "max": figure.high}
    plain = asdict(figure)
    return {"id": figure.id, **plain, "values": list(figure.values), **derived}


def _figure_from_json(plain: dict[str, Any]) -> Figure:
    values = tuple(float(value) for value in plain["values"])
    if not values:
        raise ValueError("a figure without values")
    names = ("kind", "subject", "quantity", "unit", "workload")
    texts = {name: str(plain[name]) for name in names}
    figure = Figure(values=values, exact=bool(plain["exact"]), **texts)
    for value in values:
        if not isfinite(value) or (figure.quantity == "ratio" and value <= 0):
            raise ValueError(f"{figure.id} cannot be {value:g}")
    return figure
