"""Patching at scale, vCPUs, recording: each once, as small as it goes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynftrace_emu.bench import record
from dynftrace_emu.bench.figures import Result
from dynftrace_emu.bench.lab import CheckFailed, Interrupted
from dynftrace_emu.bench.measure import estimate, measure
from dynftrace_emu.bench.patching import measure_patching
from dynftrace_emu.bench.plan import KINDS, make_plan
from dynftrace_emu.bench.vcpus import measure_vcpus
from dynftrace_emu.errors import OptionError
from tests.bench.conftest import small_plan


def test_every_site_of_a_generated_kernel_is_recorded_patched_and_switched(lab) -> None:
    plan = replace(small_plan(lab, only=["patching"]), sizes=((100, 1),))
    result = Result("mini-kernel")
    measure_patching(lab, plan, result)
    (row,) = result.rounds
    # All of the 100, and what the kernel around them has called.
    assert 100 < row["sites"] < len(lab.image("synthetic:100", "dynamic").call_sites)
    for name in ("patch", "enable", "disable", "boot", "first_iteration", "memory", "records"):
        assert row[name] > 0, name
    pause = result.find("patching/synthetic:100/enable").median
    per_site = result.find("patching/synthetic:100/enable_per_site").median
    assert per_site == pytest.approx(pause * 1000 / row["sites"])


def test_cost_a_site_is_compared_between_sizes(lab, monkeypatch) -> None:
    from dynftrace_emu.bench.patching import Scale

    made = {
        1000: Scale(sites=1000, patch=10, enable=20, disable=40),
        50000: Scale(sites=50000, patch=500, enable=1100, disable=1000),
    }
    monkeypatch.setattr("dynftrace_emu.bench.patching._measure", lambda _, size: made[size])
    result = Result("mini-kernel")
    plan = replace(small_plan(lab), sizes=((1000, 1), (50000, 1)))
    measure_patching(lab, plan, result)
    growth = {
        name: result.find(f"patching/synthetic:50000/{name}_growth").median
        for name in ("patch", "enable", "disable")
    }
    assert growth == pytest.approx({"patch": 1, "enable": 1.1, "disable": 0.5})


def test_vcpus_scale_against_one_of_the_same_round(lab) -> None:
    plan = replace(small_plan(lab, workloads=["leaf"]), vcpus=(1, 2))
    result = Result("mini-kernel")
    measure_vcpus(lab, plan, result)
    assert result.subjects("vcpus") == ["1 vCPU", "2 vCPUs"]
    assert result.find("vcpus/1 vCPU/scaling").values == (1,)
    one = result.find("vcpus/1 vCPU/throughput").median
    two = result.find("vcpus/2 vCPUs/throughput").median
    assert result.find("vcpus/2 vCPUs/scaling").median == pytest.approx(two / one)
    assert all(len(row["pauses_us"]) == 6 and min(row["pauses_us"]) > 0 for row in result.rounds)


def test_recording_is_measured_where_it_happens(lab) -> None:
    """The guest's own passes; that sites were recorded, or calls skipped, is checked inside."""
    result = Result("mini-kernel")
    record.measure_record(lab, small_plan(lab, only=["record"]), result)
    assert result.subjects("record") == ["stub", "miss", "hit", "skipped"]


@pytest.mark.parametrize(
    ("recorded", "skipped", "records"),
    [
        (record.FUNCTIONS - 1, 0, record.FUNCTIONS),
        (record.FUNCTIONS, 1, record.FUNCTIONS),
        (1, record.FUNCTIONS * record.PASSES, 0),
        (0, 5, 0),
    ],
)
def test_a_recorder_that_does_something_else_is_an_error(recorded, skipped, records) -> None:
    with pytest.raises(CheckFailed, match=f"with {records} records {recorded} sites"):
        record._check(recorded, skipped, records)


def test_a_plan_that_ends_early_is_not_complete(lab) -> None:
    plan = small_plan(lab, only=["record"])
    result = Result("mini-kernel")
    lab.interrupt()
    with pytest.raises(Interrupted):
        measure(lab, plan, result)
    assert not result.complete
    assert estimate(plan) > 0


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"only": ["speed"]}, "--only speed: choose from modes, instructions"),
        ({"modes": ["fast"]}, "--mode fast: choose from none, static"),
        ({"workloads": ["late"]}, "--workload late: choose from default, leaf, compute"),
        ({"rounds": 0}, "--rounds 0: 1 to 1000"),
    ],
)
def test_a_choice_that_is_not_there_is_refused(lab, chosen, message) -> None:
    with pytest.raises(OptionError, match=message):
        make_plan(lab, "mini-kernel", **chosen)


def test_nothing_chosen_is_everything_in_its_order(lab) -> None:
    plan = make_plan(lab, "mini-kernel")
    assert plan.kinds == tuple(KINDS)
    assert plan.workloads == ("default", "leaf", "compute")
    assert [size for size, _ in plan.sizes] == [100, 1000, 10_000, 50_000]
    assert plan.vcpus == (1, 2, 4, 8)
    few = make_plan(lab, "mini-kernel", modes=["graph"], only=["record", "modes"])
    assert [mode.name for mode in few.modes] == ["none", "graph"]
    assert few.kinds == ("modes", "record")
