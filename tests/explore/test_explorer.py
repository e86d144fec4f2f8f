"""Strategies, limits, and that nobody can tell who did the work."""

from __future__ import annotations

import pytest

from dynftrace_emu.explore import explorer, job, workers
from dynftrace_emu.explore.explorer import Kind, Limits, Strategy, explore
from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.job import Job, machine_of
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.model import Bounds
from dynftrace_emu.explore.setup import Setup
from dynftrace_emu.explore.verdict import Ending

CLEAN = Job(Setup(protocol="live"))
TORN = Job(Setup(protocol="live", pad=59))
LARGE = Job(Setup(protocol="breakpoint", bounds=Bounds(nmis=2, timers=2)))
OF_THE_RUN = ("seconds", "schedules_per_second", "jobs")


@pytest.fixture(scope="module")
def two():
    with workers.processes(2) as crew:
        yield crew


def told(verdict) -> dict:
    document = verdict.to_json()
    for key in OF_THE_RUN:
        del document[key]
    return {**document, "schedule": verdict.schedule}


STRATEGIES = [
    Strategy(),
    Strategy(Kind.PCT, schedules=700, depth=2, seed=7),
    Strategy(Kind.RANDOM, schedules=700, seed=7),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.kind.value)
@pytest.mark.parametrize("what", [CLEAN, TORN], ids=["clean", "torn"])
def test_any_number_of_workers_gives_the_same(what, strategy, two, monkeypatch) -> None:
    monkeypatch.setattr(explorer, "_ALONE", 0)
    monkeypatch.setattr(explorer, "_ROW", 5)
    assert told(explore(what, strategy, workers=two)) == told(explore(what, strategy))


def test_a_cluster_gives_the_same(monkeypatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(explorer, "_ALONE", 0)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as local,
        workers.cluster(local.scheduler_address) as crew,
    ):
        assert told(explore(CLEAN, workers=crew)) == told(explore(CLEAN))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.kind.value)
def test_each_strategy_finds_the_torn_fetch(strategy) -> None:
    verdict = explore(TORN, strategy)
    assert verdict.finding.kind is FindingClass.TORN_FETCH
    assert not verdict.is_exhaustive


def test_only_an_exhaustive_search_proves() -> None:
    proven, *drawn = (explore(CLEAN, strategy) for strategy in STRATEGIES)
    assert proven.is_exhaustive
    for verdict in drawn:
        assert verdict.finding is None
        assert not verdict.is_exhaustive
        assert verdict.outcome.schedules == 700


def test_other_seeds_draw_other_schedules() -> None:
    counts = {
        explore(CLEAN, Strategy(Kind.RANDOM, schedules=200, seed=seed)).outcome.actions
        for seed in range(4)
    }
    assert len(counts) > 1


def test_too_many_states_are_cut_off_and_that_is_no_proof() -> None:
    verdict = explore(CLEAN, limits=Limits(states=100))
    assert verdict.outcome.states == 100
    assert verdict.outcome.truncated > 0
    assert not verdict.is_exhaustive


def test_states_that_wait_take_a_bounded_amount_of_memory() -> None:
    verdict = explore(CLEAN, limits=Limits(bytes=100_000))
    assert verdict.outcome.truncated > 0
    assert not verdict.is_exhaustive


@pytest.mark.parametrize("kind", Kind)
def test_the_time_limit_ends_it(kind, monkeypatch) -> None:
    monkeypatch.setattr(explorer, "_SAMPLE", 5)
    strategy = Strategy(kind, schedules=10**9)
    verdict = explore(LARGE, strategy, Limits(seconds=0.1))
    assert verdict.ending is Ending.TIME_LIMIT
    assert not verdict.is_exhaustive
    assert verdict.outcome.actions > 0


def test_ctrl_c_keeps_what_there_is() -> None:
    def interrupt(outcome) -> None:
        if outcome.states > 500:
            raise KeyboardInterrupt

    verdict = explore(LARGE, on_progress=interrupt)
    assert verdict.ending is Ending.INTERRUPTED
    assert verdict.outcome.states > 500
    assert verdict.outcome.truncated > 0
    assert not verdict.is_exhaustive


def test_without_reductions_nothing_else_is_found() -> None:
    """One CPU: all its schedules, every instruction, are few enough."""
    one = (TaskSpec(0),)
    for protocol, pad in (("live", 0), ("live", 59), ("live-unsynced", 0)):
        setup = Setup(protocol=protocol, pad=pad, tasks=one, bounds=Bounds(preemptions=1))
        reduced, plain = explore(Job(setup)), explore(Job(setup, quiet=False))
        kinds = [v.finding and v.finding.kind for v in (reduced, plain)]
        assert kinds[0] is kinds[1], setup
        assert plain.is_exhaustive == reduced.is_exhaustive
        if plain.is_exhaustive:
            assert plain.outcome.joined == 0
            assert plain.outcome.actions > reduced.outcome.actions


def test_the_unreduced_search_is_cut_into_pieces_that_make_it_up(monkeypatch, two) -> None:
    setup = Setup(protocol="live", tasks=(TaskSpec(0),), bounds=Bounds(preemptions=1))
    whole = explore(Job(setup, quiet=False))
    monkeypatch.setattr(explorer, "_ACTIONS", 50)
    monkeypatch.setattr(explorer, "_PREFIXES", 3)
    pieces = explore(Job(setup, quiet=False))
    assert pieces.outcome.schedules == whole.outcome.schedules
    assert pieces.outcome.actions > whole.outcome.actions  # prefixes are run again
    assert told(explore(Job(setup, quiet=False), workers=two))["ended"] == whole.outcome.schedules


def test_a_thread_keeps_few_machines() -> None:
    for pad in range(0, 48, 4):
        machine_of(Job(Setup(protocol="live", pad=pad)))
    assert len(job._machines.made) <= job._KEPT
