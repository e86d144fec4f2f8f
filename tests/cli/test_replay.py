"""``dynftrace-emu replay``: what git bisect run wants of it."""

import json

import pytest

from dynftrace_emu.cli.main import run_cli
from dynftrace_emu.explore.explorer import explore
from dynftrace_emu.explore.job import Job
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.setup import Setup, SiteSpec

SETUP = Setup("torn", "live", pad=59, tasks=(TaskSpec(0),), sites=(SiteSpec(new="nop"),))
MINE = """
from dynftrace_emu.explore.steps import Store, Sync

def patch(change, poke):
    yield Store(change.sites, change.new)
    yield Sync()
"""


@pytest.fixture
def counterexample(tmp_path):
    path = tmp_path / "cx.json"
    path.write_text(explore(Job(SETUP)).counterexample().dump())
    return path


def edited(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def test_it_still_fails(counterexample, capsys, monkeypatch):
    monkeypatch.chdir(counterexample.parent)
    assert run_cli(["replay", "cx.json"]) == 1
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.startswith("torn-fetch: CPU 0: executes ")
    assert output.out.endswith("dynftrace-emu replay cx.json\n")


def test_it_does_not_fail_any_more(counterexample, capsys):
    edited(counterexample, lambda d: d["setup"].update(protocol="stop_machine"))
    assert run_cli(["replay", str(counterexample)]) == 0
    assert capsys.readouterr().out.startswith("no torn-fetch any more: ")


def test_every_instruction(counterexample, capsys):
    run_cli(["replay", "-v", str(counterexample)])
    assert "mov rbp, rsp" in capsys.readouterr().out


def test_json(counterexample, capsys):
    assert run_cli(["replay", "--json", str(counterexample)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["end"] == "fails"
    assert document["finding"]["class"] == document["expected"] == "torn-fetch"
    assert [step["action"] for step in document["steps"]] == ["patch", "run task 0", "run task 0"]
    assert document["steps"][0]["text"]["site_work"].startswith("0f ")
    assert document["steps"][2]["instructions"][0]["code"].startswith("0f ")


def test_a_guest_that_has_changed_is_told_and_tried(counterexample, capsys):
    edited(counterexample, lambda d: d.update(image="0" * 64))
    assert run_cli(["replay", str(counterexample)]) == 1
    assert "the guest has changed since it was found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d.update(schema="dynftrace-emu/counterexample/2"), "its schema is"),
        (lambda d: d.pop("schedule"), "it has no 'schedule'"),
        (lambda d: d["setup"].update(protocol="gone"), "no protocol 'gone'"),
        (lambda d: d["setup"].update(protocol="breakpoint~drop:99"), "no mutant"),
        (lambda d: d["setup"].update(protocol="mine.py:patch"), "no protocol 'mine.py:patch'"),
        (lambda d: d["setup"].update(pad=10**12), "pad: 1000000000000 is not from 0 to"),
        (lambda d: d["setup"]["tasks"][0].update(cpu=900), "a task's cpu: 900 is not from 0 to"),
        (lambda d: d["setup"]["tasks"][0].update(rounds=10**9), "a task's rounds"),
        (lambda d: d["setup"]["tasks"][0].update(functions=["gone"]), "no symbol gone"),
        (
            lambda d: d["setup"]["tasks"][0].update(functions=["ftrace_func"]),
            "task 0 fails when nothing is patched",
        ),
        (lambda d: d["setup"]["sites"][0].update(symbol="ftrace_func"), "not in the guest's text"),
        (lambda d: d["setup"]["sites"][0].update(old="call:"), "is no encoding of a site"),
        (
            lambda d: d["setup"]["sites"][0].update(old="0f0b0f0b0f"),
            "task 0 fails when nothing is patched",
        ),
        (lambda d: d["setup"]["words"].append(["work", 0]), "is no variable of the guest"),
        (lambda d: d["setup"]["model"].update(chunk=3), "choose from 8, 16, 32, 64"),
        (lambda d: d["setup"]["bounds"].update(steps=0), "steps: 0 is not from 1 to"),
        (lambda d: d.update(source="raise SystemExit"), ""),
        (lambda d: d["finding"].update({"class": "deadlock"}), "it fails otherwise: torn-fetch"),
    ],
)
def test_what_cannot_be_run_is_for_bisect_to_skip(counterexample, capsys, change, error):
    edited(counterexample, change)
    assert run_cli(["replay", str(counterexample)]) == 125
    output = capsys.readouterr()
    assert error in output.err
    assert len(output.err.splitlines()) == 1


def test_no_such_file(tmp_path, capsys):
    assert run_cli(["replay", str(tmp_path / "gone.json")]) == 125
    assert run_cli(["replay", str(tmp_path)]) == 125
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_protocol_of_ones_own_travels_in_the_file(counterexample, capsys):
    edited(counterexample, lambda d: d.update(source=MINE))
    edited(counterexample, lambda d: d["setup"].update(protocol="mine.py:patch"))
    assert run_cli(["replay", str(counterexample)]) == 1


def test_and_can_be_held_against_todays(counterexample, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    assert run_cli(["replay", "--protocol", f"{mine}:patch", str(counterexample)]) == 1
    mine.write_text(
        MINE.replace("Store(", "Store(width=1, addresses=").replace(", ch", ", rows=ch")
    )
    assert run_cli(["replay", "--protocol", f"{mine}:patch", str(counterexample)]) == 1
    mine.write_text(MINE.replace("    yield Store(change.sites, change.new)\n", ""))
    assert run_cli(["replay", "--protocol", f"{mine}:patch", str(counterexample)]) == 0
    assert run_cli(["replay", "--protocol", "stop_machine", str(counterexample)]) == 0
