"""Counterexamples: written, read, run again, drawn."""

import dataclasses
import json

import pytest

from dynftrace_emu.errors import ImageError
from dynftrace_emu.explore import schedule as schedules
from dynftrace_emu.explore.counterexample import load
from dynftrace_emu.explore.diagram import COLUMNS, LINES, command_for, draw
from dynftrace_emu.explore.explorer import Kind, Strategy, explore
from dynftrace_emu.explore.job import Job, machine_of
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.replay import End, run
from dynftrace_emu.explore.scenarios import SCENARIOS
from dynftrace_emu.explore.state import Action

from .conftest import BROKEN, lengthened

COMMAND = "dynftrace-emu replay cx.json"


def test_a_counterexample_comes_back_as_it_was_and_fails_again(broken, counterexample_of, tmp_path):
    path = tmp_path / "cx.json"
    found = counterexample_of(broken)
    path.write_text(found.dump())
    again = load(path)
    assert (again.job, again.schedule, again.finding) == (found.job, found.schedule, found.finding)
    assert path.read_text() == again.dump()
    result = run(again)
    assert (result.end, result.finding) == (End.FAILS, found.finding)


def test_the_same_file_has_the_same_end_whatever_ran_before(broken, counterexample_of):
    found = counterexample_of(broken)
    world, first = machine_of(found.job)
    before = run(found).events
    world.load(first)
    explore(found.job, Strategy(Kind.RANDOM, 5, seed=7))
    assert run(found).events == before


def test_the_diagram_fits_into_a_mail(broken, counterexample_of):
    result = run(counterexample_of(broken))
    lines = list(draw(result, COMMAND))
    assert len(lines) <= LINES
    assert all(len(line) <= COLUMNS and line.isascii() and line.isprintable() for line in lines)
    assert lines[0].startswith(result.finding.kind.value)
    assert [line for line in lines if line.startswith(">>")] == [lines[-3]]
    assert lines[-1] == COMMAND


@pytest.mark.parametrize("name", [s.name for s in SCENARIOS.values() if s.expects])
def test_each_shipped_scenario_fits_into_a_mail_and_fails_again(name):
    found = explore(Job(SCENARIOS[name].setup)).counterexample()
    result = run(found)
    assert (result.end, result.finding) == (End.FAILS, found.finding)
    lines = list(draw(result, COMMAND))
    assert len(lines) <= LINES
    assert all(len(line) <= COLUMNS and line.isascii() for line in lines)


@pytest.mark.parametrize("seed", range(3))
def test_a_long_schedule_is_condensed(seed, counterexample_of):
    """With much that has nothing to do with it."""
    found = counterexample_of(BROKEN["two-sites"])
    result = run(dataclasses.replace(found, schedule=lengthened(found, seed)))
    assert result.end is End.FAILS
    lines = list(draw(result, COMMAND))
    assert len(lines) <= LINES < len(list(draw(result, COMMAND, every_instruction=True)))
    assert any("steps" in line for line in lines)


def test_what_the_diagram_says():
    """The site's bytes behind each store, and what a CPU makes of them."""
    result = run(explore(Job(BROKEN["torn"])).counterexample())
    old = result.world.watch.sites[0].old.hex(" ")
    half = f"0f {old[3:]}"
    torn = result.finding.what.partition("  ")[2]
    assert list(draw(result, COMMAND)) == [
        f"torn-fetch: CPU 0: executes {half}  {torn.replace('dword ptr ', '')}",
        "torn: protocol live, text relaxed, chunk 16, park preemptible",
        f"site_work: {old} -> 0f 1f 44 00 00",
        "",
        "       CPU 0         patcher (CPU 1)",
        f"     1 |             site_work: [0f] {old[3:]}",
        "     2 lab_task: call r13 -> site_work",
        f">>   3 site_work: {torn.replace('dword ptr ', '')}",
        "",
        COMMAND,
    ]


def test_a_cpu_that_sees_something_else_than_memory_is_shown(counterexample_of):
    lines = list(draw(run(counterexample_of(BROKEN["no-middle-sync"])), COMMAND))
    assert any("[sees " in line for line in lines)


def test_every_instruction_is_shown_once_and_changes_nothing(counterexample_of):
    found = counterexample_of(BROKEN["no-last-sync"])
    events = run(found).events
    world, first = machine_of(found.job)
    world.load(first)
    schedules.play(world, found.schedule)
    assert events[-1].text == tuple(world.text)
    executed = sum(max(1, len(event.executed)) for event in events)
    lines = list(draw(run(found), COMMAND, every_instruction=True))
    assert len(lines) - lines.index(next(x for x in lines if "CPU 0  " in x)) - 3 == executed


def test_an_action_that_is_not_possible_means_it_does_not_fail_any_more(counterexample_of):
    found = counterexample_of(BROKEN["no-middle-sync"])
    mended = dataclasses.replace(
        found, job=Job(dataclasses.replace(found.job.setup, protocol="breakpoint"))
    )
    result = run(mended)
    assert result.end is End.IMPOSSIBLE
    assert next(draw(result, COMMAND)).startswith("no torn-fetch any more: ")


def test_a_schedule_in_which_nothing_goes_wrong_passes(counterexample_of):
    found = counterexample_of(BROKEN["torn"])
    setup = dataclasses.replace(found.job.setup, protocol="stop_machine", tasks=(TaskSpec(0),))
    shorter = dataclasses.replace(found, job=Job(setup), schedule=found.schedule[:2])
    assert run(shorter).end is End.PASSES


def test_another_class_is_another_end(counterexample_of):
    found = counterexample_of(BROKEN["torn"])
    other = counterexample_of(BROKEN["no-resume"]).finding
    assert run(dataclasses.replace(found, finding=other)).end is End.DIFFERS


def test_another_guest_in_which_the_schedule_does_not_fit_says_nothing(counterexample_of):
    found = counterexample_of(BROKEN["no-middle-sync"])
    job = Job(dataclasses.replace(found.job.setup, protocol="breakpoint"))
    with pytest.raises(ImageError, match="the guest has changed since"):
        run(dataclasses.replace(found, job=job, image="0" * 64))
    assert run(dataclasses.replace(found, image="0" * 64)).image_changed


@pytest.mark.parametrize(
    "action",
    [Action("run", 1), Action("run", 0, 3), Action("patch", 0), Action("nmi", 2), Action("ack", 0)],
)
def test_an_action_as_text_and_back(action):
    assert schedules.parse(schedules.to_text(action), "here") == action


@pytest.mark.parametrize(
    "text", ["", "run", "run cpu 1", "patch task 0", "fly cpu 1", "run task 99999"]
)
def test_text_that_is_no_action(text):
    with pytest.raises(ImageError, match="is no action"):
        schedules.parse(text, "schedule[0]")


def test_the_command_fits_or_names_the_file_alone():
    assert command_for("a b.json") == "dynftrace-emu replay 'a b.json'"
    assert command_for("/" + "long/" * 20 + "cx.json") == COMMAND
    found = explore(Job(BROKEN["torn"])).counterexample()
    assert list(draw(run(found), command_for("ü.json")))[-1] == "dynftrace-emu replay FILE"


def bad(**changes):
    return lambda document: {**document, **changes}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: {k: v for k, v in d.items() if k != "setup"}, "it has no 'setup'"),
        (lambda d: [], "no counterexample"),
        (lambda d: {}, "no counterexample"),
        (bad(schema="dynftrace-emu/counterexample/99"), "its schema is"),
        (bad(schema=["x"]), "its schema is"),
        (bad(schedule=["run task 1", "jump"]), r"schedule\[1\]: 'jump' is no action"),
        (bad(schedule=[["run", 1, 0]]), r"schedule\[0\] is \['run', 1, 0\], not text"),
        (bad(schedule=[]), "its schedule is empty"),
        (bad(schedule=["run task 99"]), r"schedule\[0\]: there is no 'run task 99' in its setup"),
        (bad(schedule=["patch", "nmi cpu 7"]), r"schedule\[1\]: there is no 'nmi cpu 7'"),
        (bad(schedule=["run task 0 view 999"]), "there is no 'run task 0 view 999'"),
        (bad(finding=None), "finding is None, not an object"),
        (bad(finding={"class": "odd", "what": "", "cpu": 0, "ip": None}), "finding.class is 'odd'"),
        (bad(finding={"class": "deadlock", "what": "", "cpu": 0, "ip": "x"}), "not an address"),
        (bad(seed=2**80), "seed is .*: too big"),
        (bad(quiet="yes"), "quiet is 'yes', not true or false"),
    ],
)
def test_a_file_that_is_none_is_told_in_one_line(change, error, counterexample_of, tmp_path):
    path = tmp_path / "cx.json"
    document = json.loads(counterexample_of(BROKEN["torn"]).dump())
    path.write_text(json.dumps(change(document)))
    with pytest.raises(ImageError, match=error) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000, "1" * 10_000, "null"])
def test_what_is_no_json(text, tmp_path):
    path = tmp_path / "cx.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ImageError):
        load(path)
