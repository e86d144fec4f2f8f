"""The fixture ``explore``, for regression tests of people's own protocols (docs/explore.md).

Every pytest of an environment that has this package loads this module: it imports nothing that is
not needed for that.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dynftrace_emu.explore.job import Job
    from dynftrace_emu.explore.verdict import Verdict
    from dynftrace_emu.explore.workers import Workers

__all__ = ["Explored", "explore"]


@dataclass(frozen=True)
class Explored:
    """A verdict that a test makes its claim about.

    :param folder: where the counterexample of a claim that fails is written.
    """

    verdict: Verdict
    folder: Path

    def expect(self, finding: str | None) -> None:
        """Claim that just this class of finding is found; None: nothing, and that is proven.

        :raises Failed: it is not so.
        """
        __tracebackhide__ = True
        found = self.verdict.finding
        if (found.kind.value if found else None) == finding:
            if found is None and not self.verdict.is_exhaustive:
                pytest.fail(self._report("nothing is found, but that is no proof"), pytrace=False)
            return
        pytest.fail(self._report(f"expected {finding or 'nothing'}"), pytrace=False)

    def _report(self, claim: str) -> str:
        lines = [claim, *self.verdict.lines()]
        if self.verdict.finding:
            path = self.folder / f"counterexample-{self.verdict.job.setup.name}.json"
            path.write_text(self.verdict.counterexample().dump())
            lines.append(f"show it: dynftrace-emu replay {path}")
        return "\n".join(lines)


@dataclass
class _Crew:
    """One process for protocols of the user's own, begun when it is needed."""

    stack: ExitStack = field(default_factory=ExitStack)
    workers: Workers | None = None

    def apart(self) -> Workers:
        if self.workers is None:
            from dynftrace_emu.explore.workers import processes

            self.workers = self.stack.enter_context(processes(1))
        return self.workers


@pytest.fixture(scope="session")
def _explore_crew() -> Iterator[_Crew]:
    crew = _Crew()
    with crew.stack:
        yield crew


@pytest.fixture
def explore(
    request: pytest.FixtureRequest, tmp_path: Path, _explore_crew: _Crew
) -> Callable[..., Explored]:
    """``explore(scenario, protocol=..., **options)`` explores, and returns an :class:`Explored`.

    :param scenario: the name of one that ships; None: the small default of ``explore``.
    :param protocol: a name, ``file.py:function`` beside the test file, or a function of a file.
    :param options: those of the command, with ``_`` for ``-``: ``preemptions`` (``"none"``: no
        bound), ``nmis``, ``timers``, ``vcpus``, ``rounds``, ``sites``, ``old``, ``new``,
        ``site_offset``, ``model``, ``chunk``, ``park``, ``serializing``; ``strategy``,
        ``schedules``, ``depth``, ``seed``.
    """

    def run(
        scenario: str | None = None,
        protocol: str | Callable[..., Any] | None = None,
        **options: Any,
    ) -> Explored:
        from dynftrace_emu.explore.explorer import explore as search

        job = _job(scenario, protocol, options, request.path.parent)
        workers = _explore_crew.apart() if job.source is not None else None
        return Explored(search(job, _strategy(options), workers=workers), tmp_path)

    return run


def _job(
    scenario: str | None,
    protocol: str | Callable[..., Any] | None,
    options: dict[str, Any],
    folder: Path,
) -> Job:
    from dynftrace_emu.explore.job import Job
    from dynftrace_emu.explore.overrides import overrides_from
    from dynftrace_emu.explore.protocol_file import read_protocol_file
    from dynftrace_emu.explore.scenario import scenario_named
    from dynftrace_emu.explore.scenarios import SCENARIOS
    from dynftrace_emu.explore.setup import small_default

    if callable(protocol):
        protocol = f"{inspect.getsourcefile(protocol)}:{protocol.__name__}"
    elif protocol is not None and ":" in protocol:
        protocol = str(folder / protocol)
    given = {name: value for name, value in options.items() if name not in _STRATEGY}
    setup = small_default() if scenario is None else scenario_named(scenario, SCENARIOS).setup
    source = read_protocol_file(protocol) if protocol and ":" in protocol else None
    return Job(overrides_from({"protocol": protocol, **given}).apply(setup), source)


_STRATEGY = ("strategy", "schedules", "depth", "seed")


def _strategy(options: dict[str, Any]) -> Any:
    from dynftrace_emu.explore.explorer import Kind, Strategy

    given = {name: options[name] for name in _STRATEGY if name in options}
    if "strategy" in given:
        given["kind"] = Kind(given.pop("strategy"))
    return Strategy(**given)
