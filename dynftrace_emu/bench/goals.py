"""What is to be reached, as data, and whether it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.bench.figures import Result

__all__ = ["GOALS", "Goal", "Outcome", "outcomes"]


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for a figure's median.

    :param figure: its id.
    :param over: the id of the figure whose median it is divided by; empty: none.
    :param at_least: the bound is a lower one.
    """

    what: str
    figure: str
    bound: float
    unit: str
    over: str = ""
    at_least: bool = False


GOALS = (
    Goal("patched jmp / none, default workload", "modes/default/patched-jmp/ratio", 1.03, "x"),
    Goal("patched nop / none, default workload", "modes/default/patched-nop/ratio", 1.01, "x"),
    Goal("patched jmp / none, leaf-call loop", "modes/leaf/patched-jmp/ratio", 1.15, "x"),
    Goal("function tracer, added an event", "modes/default/function/added", 75, "ns"),
    Goal(
        "the same / Python hook on entries",
        "modes/default/function/added",
        1 / 8,
        "x",
        over="modes/default/hook-entry/added",
    ),
    Goal("function_graph, added a call", "modes/default/graph/added", 200, "ns"),
    Goal("pause to enable 50,000 sites, 2 vCPUs", "patching/synthetic:50000/enable", 50, "ms"),
    Goal("pause to disable 50,000 sites, 2 vCPUs", "patching/synthetic:50000/disable", 50, "ms"),
    Goal(
        "enable, a site: at 50,000 / at 1,000",
        "patching/synthetic:50000/enable_growth",
        1.2,
        "x",
    ),
    Goal(
        "disable, a site: at 50,000 / at 1,000",
        "patching/synthetic:50000/disable_growth",
        1.2,
        "x",
    ),
    Goal(
        "record and first patch of 50,000 sites",
        "patching/synthetic:50000/record_and_patch",
        3000,
        "ms",
    ),
    Goal("start of a 50,000-function machine", "patching/synthetic:50000/start", 3000, "ms"),
    Goal("2 vCPUs / 1 vCPU, throughput", "vcpus/2 vCPUs/scaling", 1.85, "x", at_least=True),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A goal, and what was measured."""

    goal: Goal
    value: float

    @property
    def reached(self) -> bool:
        """Whether the bound is kept."""
        if self.goal.at_least:
            return self.value >= self.goal.bound
        return self.value <= self.goal.bound


def outcomes(result: Result) -> Iterator[Outcome]:
    """Of every goal whose figures were measured; those of patching alone are of any kernel."""
    for goal in GOALS:
        if result.image != "mini-kernel" and not goal.figure.startswith("patching/"):
            continue
        figure = result.find(goal.figure)
        over = result.find(goal.over) if goal.over else None
        if figure is None or (goal.over and (over is None or over.median <= 0)):
            continue  # a cost below the noise divides nothing
        yield Outcome(goal, figure.median / over.median if over is not None else figure.median)
