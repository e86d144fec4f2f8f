"""Rounds of modes: their structure, what is checked, and what an interruption leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynftrace_emu.bench.choice import Choice, choose, tenth
from dynftrace_emu.bench.figures import Result
from dynftrace_emu.bench.lab import CheckFailed, Interrupted
from dynftrace_emu.bench.modes import MODES
from dynftrace_emu.bench.sampling import Point, Reference, Sampler
from dynftrace_emu.bench.throughput import Sample, measure_modes
from tests.bench.conftest import small_plan

BY_NAME = {mode.name: mode for mode in MODES}


def test_each_mode_has_a_value_a_round_and_the_yardstick_is_1(lab) -> None:
    chosen = ["patched-jmp", "function", "hook-mcount"]
    plan = small_plan(lab, modes=chosen, workloads=["leaf"], rounds=2)
    result, order = Result("mini-kernel"), []
    lab.on_step = lambda _seconds, name: order.append(name)
    measure_modes(lab, plan, result)
    assert result.subjects("modes", "leaf") == ["none", *chosen]
    assert [len(figure.values) for figure in result.of("modes", "ratio", "leaf")] == [2] * 4
    assert result.find("modes/leaf/none/ratio").values == (1, 1)
    # 20 x 200 leaves an iteration, and few calls beside them; looks fall into iterations.
    for mode in ("function", "hook-mcount"):
        assert result.find(f"modes/leaf/{mode}/events").median == pytest.approx(4000, rel=0.3)
    assert result.find("modes/leaf/patched-jmp/events") is None
    assert order[1:] == [
        f"leaf: {mode}, round {number}"
        for number, modes in ((1, ["none", *chosen]), (2, [*chosen, "none"]))
        for mode in modes
    ]
    assert {row["round"] for row in result.rounds} == {0, 1}


def test_what_was_measured_before_an_interruption_is_kept(lab) -> None:
    plan = small_plan(lab, modes=["static", "patched-jmp"], workloads=["leaf"], rounds=5)
    result, steps = Result("mini-kernel"), []

    def on_step(_seconds: float, name: str) -> None:
        steps.append(name)
        if name == "leaf: patched-jmp, round 1":
            lab.interrupt()

    lab.on_step = on_step
    with pytest.raises(Interrupted):
        measure_modes(lab, plan, result)
    assert result.subjects("modes", "leaf") == ["none", "static"]
    assert steps[-1] == "leaf: patched-jmp, round 1"


def test_a_round_without_its_yardstick_is_no_ratio(lab, monkeypatch) -> None:
    """The order turns: in the second round the yardstick comes last."""
    plan = small_plan(lab, modes=["static"], workloads=["leaf"], rounds=2)
    result = Result("mini-kernel")
    monkeypatch.setattr(
        "dynftrace_emu.bench.throughput._measure", lambda *_: Sample(100, 0.1, 0.2, 400)
    )

    def on_step(_seconds: float, name: str) -> None:
        if name == "leaf: none, round 2":
            lab.interrupt()
            lab._check()

    lab.on_step = on_step
    with pytest.raises(Interrupted):
        measure_modes(lab, plan, result)
    assert result.find("modes/leaf/static/ratio").values == (1,)
    assert len([row for row in result.rounds if row["subject"] == "static"]) == 2


def test_added_is_what_an_event_adds_to_the_yardstick_of_its_round(lab, monkeypatch) -> None:
    samples = iter([Sample(100, 0.010, 1, 0), Sample(50, 0.010, 1, 500)])
    plan = small_plan(lab, modes=["function"], workloads=["leaf"])
    monkeypatch.setattr("dynftrace_emu.bench.throughput._measure", lambda *_: next(samples))
    result = Result("mini-kernel")
    measure_modes(lab, plan, result)
    assert result.find("modes/leaf/function/ratio").values == (pytest.approx(2),)
    assert result.find("modes/leaf/function/added").values == (pytest.approx(10_000),)
    assert result.find("modes/leaf/function/time").values == (pytest.approx(200),)


def test_checksums_of_a_run_are_those_of_the_reference(lab) -> None:
    """And one that is not is an error that says which mode it is."""
    reference = Reference(lab, "mini-kernel", "leaf")
    options = BY_NAME["patched-jmp"].options("mini-kernel", "leaf", 1, 1000)
    with lab.machine(options) as run:
        sampler = Sampler(run, lambda: 0)
        lab.settle(run, 0.03)
        points = sampler.take(lab, 0.05)
    assert points[-1].iterations - points[0].iterations >= 2
    assert [point.cpu_s for point in points] == sorted(point.cpu_s for point in points)
    reference.check("patched-jmp", points)
    wrong = replace(points[-1], checksum=points[-1].checksum ^ 1)
    with pytest.raises(CheckFailed, match="patched-jmp does not do the same work: after"):
        reference.check("patched-jmp", [*points, wrong])


def test_a_reference_counts_from_the_first_iteration(lab) -> None:
    reference = Reference(lab, "mini-kernel", "compute")
    assert reference.checksum(0) == 0
    assert len({reference.checksum(n) for n in range(5)}) == 5
    with pytest.raises(CheckFailed):
        reference.check("x", [Point(0, 0, 3, reference.checksum(4), 0)])


def test_functions_that_a_workload_calls_are_told_from_the_others(lab) -> None:
    choice = choose(lab, small_plan(lab), "compute")
    assert choice.calls["compute_step"] > 10
    assert "leaf_mix" in choice.not_called
    assert not set(choice.calls) & set(choice.not_called)
    assert choose(lab, small_plan(lab), "compute") == choice  # a baseline of counts relies on it


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ({"a": 50, "b": 30, "c": 8, "d": 8, "e": 2, "f": 2}, "ce"),
        ({"a": 98, "b": 1, "c": 1}, "bc"),
        ({"a": 86, "b": 14}, "b"),
        ({"a": 84, "b": 16}, "b"),
        ({"a": 60, "b": 40}, "b"),
        ({"a": 5}, "a"),
        ({}, ""),
        (dict.fromkeys("abcdefghijklmnopqrst", 3), "ab"),
    ],
)
def test_a_tenth_is_of_the_calls_whatever_order_the_functions_have(calls, expected) -> None:
    assert "".join(tenth(calls)) == expected
    assert tenth(dict(reversed(calls.items()))) == tenth(calls)


@pytest.mark.parametrize(("workload", "least"), [("default", 0.09), ("leaf", 0.005)])
def test_the_tenth_of_a_workload_is_not_most_of_its_calls(lab, workload, least) -> None:
    calls = choose(lab, small_plan(lab), workload).calls
    share = sum(calls[name] for name in tenth(calls)) / sum(calls.values())
    assert least < share < 0.11


def test_filters_are_written_before_the_tracer() -> None:
    choice = Choice({"f0": 80, "f1": 12, "f2": 8}, ("g", "h"))
    assert choice.writes(BY_NAME["none"]) == ()
    assert choice.writes(BY_NAME["function"]) == ("current_tracer=function",)
    assert choice.writes(BY_NAME["graph"]) == ("current_tracer=function_graph",)
    tracer = "current_tracer=function"
    assert choice.writes(BY_NAME["function-one"]) == ("set_ftrace_filter=g", tracer)
    assert choice.writes(BY_NAME["function-tenth"]) == ("set_ftrace_filter=f1", tracer)
    everything = Choice({"f": 1}, ())
    assert not everything.allows(BY_NAME["function-one"])
    assert everything.allows(BY_NAME["function"])


def test_a_mode_that_does_other_work_ends_the_bench(lab, monkeypatch) -> None:
    """What was measured before is kept."""
    made = lab.make

    def make(wanted, writes=()):
        run = made(wanted, writes)
        if wanted.variant == "static":  # somebody meddles with its results
            run.kernel.pcpu(0)["checksum"][0] = 1
        return run

    monkeypatch.setattr(lab, "make", make)
    plan = small_plan(lab, modes=["static", "patched-jmp"], workloads=["leaf"])
    result = Result("mini-kernel")
    with pytest.raises(CheckFailed, match="static, leaf does not do the same work: after"):
        measure_modes(lab, plan, result)
    assert result.subjects("modes", "leaf") == ["none"]
