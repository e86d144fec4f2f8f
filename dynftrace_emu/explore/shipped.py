"""The scenarios that ship, each held against what it is there to show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dynftrace_emu.explore.explorer import Limits, explore
from dynftrace_emu.explore.job import Job
from dynftrace_emu.explore.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.scenario import Scenario
    from dynftrace_emu.explore.verdict import Verdict
    from dynftrace_emu.explore.workers import Workers

__all__ = ["Check", "check_all"]

_QUICK_STATES = 50_000


@dataclass(frozen=True, slots=True)
class Check:
    """A scenario, and what it came to."""

    scenario: Scenario
    verdict: Verdict

    @property
    def holds(self) -> bool:
        """A broken one is found, as its class; a mended one is clean, all of it."""
        if self.scenario.expects is None:
            return self.verdict.is_exhaustive
        finding = self.verdict.finding
        return finding is not None and finding.kind is self.scenario.expects


def check_all(workers: Workers, *, quick: bool = False) -> Iterator[Check]:
    """Explore every scenario that ships, in their order; each by one worker.

    :param quick: give up on one that has more than 50,000 states; it is not exhaustive then.
    """
    names = list(SCENARIOS)
    for name, verdict in zip(names, workers.map(partial(_explore, quick), names), strict=True):
        yield Check(SCENARIOS[name], verdict)


def _explore(quick: bool, name: str) -> Verdict:
    limits = Limits(states=_QUICK_STATES) if quick else Limits()
    return explore(Job(SCENARIOS[name].setup), limits=limits, shorten=False)
