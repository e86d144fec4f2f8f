"""Figures, stored and read again; goals; comparisons. With results made by hand."""

from __future__ import annotations

import json

import pytest

from dynftrace_emu.bench.compare import compare
from dynftrace_emu.bench.environment import describe
from dynftrace_emu.bench.figures import BenchError, Result
from dynftrace_emu.bench.goals import GOALS, outcomes
from tests.bench.conftest import EVERYTHING, result_of


def test_a_figure_is_the_median_of_its_rounds() -> None:
    figure = result_of({"modes/default/function/ratio": (3.0, 1.0, 2.5, 9.0)}).figures[0]
    assert (figure.median, figure.low, figure.high) == (2.75, 1.0, 9.0)
    assert figure.id == "modes/default/function/ratio"


def test_a_stored_result_is_read_as_it_was() -> None:
    result = result_of(EVERYTHING, notes=["something was left out"], rounds=[{"round": 0}])
    document = json.loads(json.dumps(result.to_json()))
    assert Result.from_json(document, "x.json") == result
    stored = {figure["id"]: figure for figure in document["figures"]}
    assert stored["modes/default/function/ratio"]["values"] == [2.0, 3.0, 2.5]
    assert stored["modes/default/function/ratio"]["median"] == 2.5
    assert stored["instructions/default/function/ratio"]["exact"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("bench"), "is no document of bench"),
        (lambda d: d.update(schema=99), "has schema 99; 1 is known"),
        (lambda d: d.pop("figures"), "is damaged: KeyError 'figures'"),
        (lambda d: d["figures"].append(5), "is damaged: TypeError"),
        (lambda d: d["figures"][0].update(values=[]), "is damaged: ValueError"),
        (lambda d: d["figures"][0].update(values=["fast"]), "is damaged: ValueError"),
        (lambda d: d["figures"][0].update(values=[0]), "is damaged: .*/none/ratio cannot be 0"),
        (lambda d: d["figures"][0].update(values=[float("nan")]), "is damaged: .* cannot be nan"),
        (lambda d: d["figures"][1].update(values=[float("inf")]), "is damaged: .* cannot be inf"),
        (lambda d: d["figures"][1].update(values=[10**400]), "is damaged: OverflowError"),
    ],
)
def test_what_is_no_stored_result_is_refused(change, message) -> None:
    document = result_of(EVERYTHING).to_json()
    change(document)
    with pytest.raises(BenchError, match=f"x\\.json {message}"):
        Result.from_json(document, "x.json")


def test_a_list_is_no_stored_result() -> None:
    with pytest.raises(BenchError, match=r"x\.json is no document"):
        Result.from_json([], "x.json")


def test_the_environment_says_what_a_reader_must_know() -> None:
    found = describe()
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["unicorn"].startswith("2.")


# --- goals ---


def test_a_goal_is_reached_up_to_its_bound() -> None:
    for value, reached in ((1.03, True), (1.031, False)):
        (outcome,) = outcomes(result_of({"modes/default/patched-jmp/ratio": (value,)}))
        assert outcome.reached is reached
    for value, reached in ((1.85, True), (1.84, False)):
        (outcome,) = outcomes(result_of({"vcpus/2 vCPUs/scaling": (value,)}))
        assert outcome.reached is reached


def test_a_goal_may_be_of_two_figures() -> None:
    figures = {"modes/default/function/added": (70.0,), "modes/default/hook-entry/added": (500.0,)}
    found = {outcome.goal.what: outcome for outcome in outcomes(result_of(figures))}
    outcome = found["the same / Python hook on entries"]
    assert outcome.value == pytest.approx(0.14)
    assert not outcome.reached


def test_a_cost_below_the_noise_divides_nothing() -> None:
    for base in (0.0, -3.0):
        figures = {
            "modes/default/function/added": (7.0,),
            "modes/default/hook-entry/added": (base,),
        }
        (outcome,) = outcomes(result_of(figures))
        assert outcome.goal.what == "function tracer, added an event"


def test_goals_of_what_was_not_measured_are_not_shown() -> None:
    assert list(outcomes(result_of({}))) == []
    assert len(list(outcomes(result_of(EVERYTHING)))) < len(GOALS)


def test_goals_of_the_mini_kernel_are_not_another_kernels() -> None:
    result = result_of(EVERYTHING)
    result.image = "synthetic:200"
    found = {outcome.goal.figure.partition("/")[0] for outcome in outcomes(result)}
    assert found == {"patching"}


def test_every_goal_names_figures_that_are_measured() -> None:
    """A figure's name that changes must not make a goal disappear."""
    from dynftrace_emu.bench.modes import MODE_NAMES
    from dynftrace_emu.bench.patching import _quantities
    from dynftrace_emu.bench.plan import KINDS, SIZES, VCPUS, WORKLOADS

    subjects = {
        "modes": MODE_NAMES,
        "patching": [f"synthetic:{size}" for size in SIZES],
        "vcpus": [f"{n} vCPUs" for n in VCPUS],
    }
    scale = {name for name, *_ in _quantities()} | {"enable_growth", "disable_growth"}
    quantities = {"modes": {"ratio", "added"}, "patching": scale, "vcpus": {"scaling"}}
    for goal in GOALS:
        for name in filter(None, (goal.figure, goal.over)):
            kind, *workload, subject, quantity = name.split("/")
            assert kind in KINDS
            assert set(workload) <= set(WORKLOADS)
            assert subject in subjects[kind]
            assert quantity in quantities[kind]


# --- comparisons ---

OLD = {
    "instructions/default/none/ratio": (1.0,),
    "instructions/default/function/ratio": (3.0,),
    "instructions/default/graph/ratio": (8.0,),
    "instructions/leaf/function/ratio": (9.0,),
    "modes/default/function/ratio": (2.0,),
}


def test_a_ratio_that_grew_beyond_the_tolerance_is_worse() -> None:
    new = {**OLD, "instructions/default/function/ratio": (3.03,)}
    new["instructions/default/graph/ratio"] = (7.0,)
    for tolerance, worse in ((0, 1), (0.9, 1), (1, 0), (5, 0)):
        comparison = compare(result_of(OLD), result_of(new), "instructions", tolerance)
        assert len(list(comparison.worse())) == worse
    lines = list(compare(result_of(OLD), result_of(new), "instructions", 0).lines())
    assert lines == [
        "instructions/default/function/ratio: 3.0000 -> 3.0300 (+1.00 %, worse)",
        "instructions/default/graph/ratio: 8.0000 -> 7.0000 (-12.50 %, better)",
        "4 ratios compared: 2 the same, 1 worse",
    ]


def test_time_is_compared_only_where_it_is_asked_for() -> None:
    new = {**OLD, "modes/default/function/ratio": (4.0,)}
    assert not list(compare(result_of(OLD), result_of(new), "instructions", 0).worse())
    (worse,) = compare(result_of(OLD), result_of(new), "time", 10).worse()
    assert worse.figure == "modes/default/function/ratio"


def test_what_only_one_of_them_has_is_said() -> None:
    new = dict(OLD)
    del new["instructions/leaf/function/ratio"]
    new["instructions/default/static/ratio"] = (1.1,)
    comparison = compare(result_of(OLD), result_of(new), "instructions", 0)
    lines = list(comparison.lines())
    assert "missing now: instructions/leaf/function" in lines
    assert "not measured then: instructions/default/static" in lines
    assert lines[-1].endswith("0 worse, 1 missing")
    assert comparison.failed


@pytest.mark.parametrize(
    ("settings", "failed"),
    [
        ({"chosen": {}}, True),
        ({"chosen": {"workloads": ["leaf"], "modes": ["function"]}}, True),
        ({"chosen": {"workloads": ["default"]}}, False),
        ({"chosen": {"modes": ["graph"]}}, False),
        ({"chosen": {"only": ["modes"]}}, False),
        ({"chosen": {}, "modes": ["none", "graph"]}, True),  # the mode is not known any more
        ({"workloads": ["default"]}, False),  # an older document
    ],
)
def test_what_was_to_be_measured_and_is_missing_fails(settings, failed) -> None:
    new = result_of({k: v for k, v in OLD.items() if k != "instructions/leaf/function/ratio"})
    new.settings = settings
    comparison = compare(result_of(OLD), new, "instructions", 0)
    assert comparison.failed is failed
    assert comparison.missing + comparison.only_old == ("instructions/leaf/function/ratio",)


def test_what_is_not_of_the_same_thing_is_not_compared() -> None:
    old, new = result_of(OLD), result_of(OLD)
    new.settings = {"window_s": 0.1}
    assert not compare(old, new, "instructions", 0).failed
    with pytest.raises(BenchError, match=r"window_s was None then and is 0\.1 now"):
        compare(old, new, "time", 0)
    new.image = "synthetic:200"
    with pytest.raises(BenchError, match="image was mini-kernel then and is synthetic:200 now"):
        compare(old, new, "instructions", 0)


def test_nothing_in_common_is_an_error_not_a_success() -> None:
    with pytest.raises(BenchError, match="no ratio of instructions in common"):
        compare(result_of(OLD), result_of({"modes/leaf/none/ratio": (1,)}), "instructions", 0)
