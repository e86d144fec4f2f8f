"""``dynftrace-emu explore``, as a person and as a program use it."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from types import MappingProxyType

import pytest

from dynftrace_emu.cli import explore_options
from dynftrace_emu.explore import scenarios, shipped
from dynftrace_emu.explore.counterexample import load
from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.scenario import Scenario
from dynftrace_emu.explore.setup import Setup
from tests.cli.conftest import on_a_terminal, spawn

EXAMPLE = Path(__file__).parents[2] / "examples" / "breakpoint_poker.c"
LIVE = ("explore", "--protocol", "live", "--to", "jmp", "--vcpus", "1", "--jobs", "1")
TORN = (*LIVE, "--site-offset", "63")


def test_nothing_found_is_0_and_proven(cli) -> None:
    result = cli(*LIVE)
    assert result.code == 0
    assert "PROVEN within these bounds" in result.out
    assert result.err == ""


def test_by_default_every_byte_of_a_site_changes(cli) -> None:
    """So a protocol that is wrong for any change of five bytes is not called right."""
    result = cli("explore", "--protocol", "live", "--vcpus", "1", "--jobs", "1")
    assert result.code == 1
    assert "FOUND torn-fetch" in result.out
    assert "not change" not in result.out
    assert "(bytes 2, 3, 4 do not change)" in " ".join(cli(*LIVE).out.split())


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_guest_code_that_never_comes_back_is_a_finding(cli, tmp_path) -> None:
    source = EXAMPLE.read_text().replace("mutex_lock(&text_mutex);", "for (;;) ;")
    (tmp_path / "poker.c").write_text(source)
    result = cli("explore", "--guest", "poker.c", "--vcpus", "1", "--jobs", "1")
    assert result.code == 1
    assert "FOUND deadlock: task 1 loops for ever at poker+" in result.out
    assert "poker.c, compiled: sha256 " in result.out


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_what_guest_code_stores_is_in_the_header(cli) -> None:
    result = cli("explore", "--guest", str(EXAMPLE), "--vcpus", "1", "--jobs", "1")
    assert result.code == 0
    assert "1 + 4 + 1 bytes to text" in result.out


def test_a_finding_is_1_and_a_file_that_replays(cli) -> None:
    result = cli(*TORN)
    assert result.code == 1
    assert "FOUND torn-fetch: " in result.out
    assert "it is in counterexample-site.json" in result.out
    replayed = cli("replay", "counterexample-site.json")
    assert replayed.code == 1
    assert "torn-fetch" in replayed.out


def test_the_file_goes_where_it_is_told_to(cli, tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    assert cli(*TORN, "-o", "folder").code == 1
    assert cli(*TORN, "--output", "mine.json").code == 1
    paths = tmp_path / "folder" / "counterexample-site.json", tmp_path / "mine.json"
    assert load(paths[0]) == load(paths[1])


def test_a_file_that_cannot_be_written_keeps_the_verdict(cli) -> None:
    result = cli(*TORN, "-o", "nowhere/mine.json")
    assert result.code == 1
    assert "FOUND torn-fetch" in result.out
    assert result.err == "dynftrace-emu explore: nowhere/mine.json: No such file or directory\n"


@pytest.mark.parametrize(
    ("command", "expected", "code"),
    [
        (TORN, "torn-fetch", 0),
        (TORN, "stale-text", 1),
        (TORN, "clean", 1),
        (LIVE, "clean", 0),
        (LIVE, "torn-fetch", 1),
    ],
)
def test_expect_turns_it_around(cli, command, expected, code) -> None:
    assert cli(*command, "--expect", expected).code == code


def test_what_is_drawn_can_be_expected_to_be_clean(cli) -> None:
    drawn = ("--strategy", "pct", "--schedules", "50")
    assert cli(*LIVE, *drawn, "--expect", "clean").code == 0
    assert cli(*TORN, *drawn, "--expect", "clean").code == 1


def test_classes_to_expect_are_those_there_are() -> None:
    assert set(explore_options.CLASSES) == {kind.value for kind in FindingClass}


def test_json_is_one_document(cli) -> None:
    result = cli(*TORN, "--json")
    assert result.code == 1
    document = json.loads(result.out)
    assert document["finding"]["class"] == "torn-fetch"
    assert document["counterexample"] == "counterexample-site.json"
    both = json.loads(cli("explore", "seed-live-line", "unsynced", "--json", "--jobs", "1").out)
    assert [d["name"] for d in both] == ["seed-live-line", "unsynced"]


def test_options_change_a_scenario(cli) -> None:
    assert cli("explore", "seed-live-line", "--jobs", "1").code == 1
    mended = ("--protocol", "stop_machine", "--vcpus", "1")
    assert cli("explore", "seed-live-line", *mended, "--jobs", "1").code == 0


def test_the_list_names_all_that_ships(cli) -> None:
    out = cli("explore", "--list").out
    assert max(map(len, out.splitlines())) <= 80
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if line[0] != " "}
    assert rows.keys() == scenarios.SCENARIOS.keys()
    assert rows["seed"] == "clean"
    assert rows["seed-live-line"] == "torn-fetch"
    listed = json.loads(cli("explore", "--list", "--json").out)
    assert [row["name"] for row in listed] == list(scenarios.SCENARIOS)


@pytest.fixture
def three(monkeypatch) -> None:
    """Three scenarios, of which the last one is not what it should be."""
    some = {name: scenarios.SCENARIOS[name] for name in ("seed-live-line", "synced")}
    wrong = Scenario("wrong", Setup(name="wrong", protocol="live"), FindingClass.DEADLOCK)
    found = MappingProxyType({**some, "wrong": wrong})
    monkeypatch.setattr(shipped, "SCENARIOS", found)
    monkeypatch.setattr(scenarios, "SCENARIOS", found)


@pytest.mark.usefixtures("three")
def test_what_ships_is_held_against_what_it_is_there_to_show(cli) -> None:
    result = cli("explore", "--jobs", "1", "--quick")
    lines = result.out.splitlines()
    assert result.code == 1
    assert [line.split()[:3] for line in lines[:3]] == [
        ["OK", "seed-live-line", "torn-fetch:"],
        ["OK", "synced", "clean:"],
        ["FAILED", "wrong", "clean"],
    ]
    assert "(expected deadlock)" in lines[2]
    assert lines[3] == "3 of 3 scenarios explored, 1 failed"
    document = json.loads(cli("explore", "--jobs", "1", "--json").out)
    assert [row["holds"] for row in document["scenarios"]] == [True, True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "no scenario 'nope': explore --list shows them"),
        (["--protocol", "nope"], "no protocol 'nope': choose from"),
        (["--protocol", "nope.py:f"], "nope.py: No such file or directory"),
        (["--from", "nope"], "is no encoding of a site"),
        (["--from", "call:nope"], "call:nope: a site calls one of"),
        (["--chunk", "7"], "'7' is not one of"),
        (["--preemptions", "-1"], "is not a number of preemptions, nor none"),
        (["--preemptions", "some"], "is not a number of preemptions, nor none"),
        (["--serializing", "iret,lfence"], "'lfence': choose from iret, cpuid, mov-cr"),
        (["--quick", "--seed", "1"], "leave --seed out"),
        (["--quick", "seed"], "leave seed out"),
        (["--cluster", "tcp://x", "--jobs", "2"], "say one of them"),
        (["--strategy", "pct", "--no-reduction"], "--no-reduction: pct and random"),
        (["--guest", "nope.c"], "nope.c: no such file"),
        (["--guest", "nope.c", "--protocol", "live"], "leave --protocol out"),
        (["--time-limit", "0"], "not in the range"),
        (["--expect", "nope"], "'nope' is not one of"),
        (["--vcpus", "4"], "not in the range"),
    ],
)
def test_what_is_used_wrongly_is_said_in_a_line(cli, arguments, message) -> None:
    result = cli("explore", *arguments)
    assert result.code == 2
    assert result.out == ""
    assert message in result.err
    assert result.err.count("\n") == 1


def test_a_protocol_of_ones_own(cli, tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dynftrace_emu.explore.steps import Store, Sync\n"
        "def patch(change, poke):\n"
        "    yield Store(change.sites, change.new[:, :2])\n"
        "    yield Sync()\n"
    )
    found = cli("explore", "--protocol", "mine.py:patch", "--site-offset", "63", "--jobs", "1")
    assert found.code == 1
    assert "torn-fetch" in found.out
    (tmp_path / "mine.py").unlink()  # its text is in the file
    assert cli("replay", "counterexample-site.json").code == 1


@pytest.mark.parametrize(
    ("function", "message"),
    [("wrong", "mine.py:2: ZeroDivisionError"), ("endless", "mine.py:4: it runs on and on")],
)
def test_a_bad_protocol_is_a_line(cli, tmp_path, function, message) -> None:
    (tmp_path / "mine.py").write_text(
        "def wrong(change, poke):\n    yield 1 / 0\n"
        "def endless(change, poke):\n    while True: pass\n    yield\n"
    )
    result = cli("explore", "--protocol", f"mine.py:{function}", "--jobs", "1")
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1


# --- in processes of their own ---

LONG = ("explore", "--protocol", "breakpoint", "--nmis", "3", "--timers", "3", "--rounds", "3")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_keeps_what_there_is(jobs) -> None:
    """To all processes, as a terminal does. It has begun when the terminal says so."""
    code, written = on_a_terminal(*LONG, "--jobs", jobs, interrupt_at=r"[\d,]{4,} states")
    assert code == 130
    assert "interrupted: not exhaustive" in written
    assert "Traceback" not in written
    assert "proven" not in written.lower()


def test_ctrl_c_ends_the_shipped_set_with_what_is_done() -> None:
    process = spawn("explore", "--jobs", "1")
    assert process.stdout.readline().startswith("OK ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "scenarios explored, 0 failed" in out
    assert err == ""


def test_a_reader_that_leaves_is_no_error_to_shout_about() -> None:
    process = spawn("explore", "--jobs", "1")
    assert process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert err == ""


def test_colour_is_for_terminals_that_want_it() -> None:
    _, written = on_a_terminal(*TORN, "-o", "/dev/null")
    assert "\x1b[31m\x1b[1mFOUND\x1b[0m" in written
    _, written = on_a_terminal(*TORN, "-o", "/dev/null", NO_COLOR="1")
    assert "FOUND torn-fetch" in written
    assert "\x1b" not in "".join(spawn(*TORN, "-o", "/dev/null").communicate(timeout=60))
