"""The table of necessity: docs/necessity.md, and what is made of it.

The page's table of ``stop_machine`` is made anew in full, that of ``breakpoint`` in the one setup
that shows all of its mutants, which takes seconds rather than minutes.
"""

import json
from functools import cache
from pathlib import Path

import pytest

from dynftrace_emu.cli.main import run_cli
from dynftrace_emu.explore.battery import BATTERY, setups_for
from dynftrace_emu.explore.model import Text
from dynftrace_emu.explore.mutations import split_name
from dynftrace_emu.explore.necessity import Necessity, necessity
from dynftrace_emu.explore.necessity_table import markdown, sentence, to_json, to_lines
from dynftrace_emu.explore.workers import here

PAGE = Path(__file__).parents[2] / "docs" / "necessity.md"


def on_page(protocol: str) -> str:
    """What the page has of a protocol's table."""
    _, begin, rest = PAGE.read_text().partition(f"<!-- {protocol} -->\n")
    assert begin
    return rest.partition("<!-- end -->")[0]


@cache
def small() -> Necessity:
    """The table of ``stop_machine`` in three setups."""
    setups = [s for s in setups_for(stops=True) if s.name in ("call->nop", "crossing", "A->A")]
    return necessity("stop_machine", None, here(), setups=setups)


def rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]


def test_the_page_has_stop_machine_as_it_comes_out():
    table = necessity("stop_machine", None, here())
    assert on_page("stop_machine") == markdown(table)
    assert table.itself.weakest is None
    assert [row.mutation.name("") for row in table.rows if row.weakest is None] == ["~no-wait:3"]
    assert sentence(table).startswith("stop_machine itself is clean")


def test_the_page_has_breakpoint_as_it_comes_out_in_the_setup_that_shows_it():
    table = necessity("breakpoint", None, here(), setups=BATTERY[:1])
    assert rows(markdown(table)) == rows(on_page("breakpoint"))


@pytest.mark.parametrize("setup", BATTERY, ids=lambda setup: setup.name)
def test_breakpoint_itself_is_clean_in_every_setup_and_model(setup):
    def stop(_row, _of):
        raise KeyboardInterrupt

    table = necessity("breakpoint", None, here(), stop, setups=(setup,))
    assert table.interrupted
    assert table.itself.shown == dict.fromkeys(Text)


def test_what_a_relaxed_cpu_may_see_includes_all_else():
    assert any(row.weakest is Text.COHERENT for row in small().rows)
    for row in small().rows:
        others = [row.shown[text] for text in (Text.COHERENT, Text.STALE) if row.shown[text]]
        assert all(len(row.shown[Text.RELAXED].schedule) <= len(o.schedule) for o in others)


def test_as_json():
    document = json.loads(json.dumps(to_json(small())))
    assert document["clean"] is True
    assert document["steps"] == ["stop", "exchange 5 bytes", "sync", "resume"]
    names = [mutant["protocol"] for mutant in document["mutants"]]
    assert all(split_name(name)[1] for name in names)
    shown = document["mutants"][0]["shown"]["relaxed"]
    assert shown["class"] == "torn-fetch"
    assert shown["schedule"][-1] == "run task 0"


def test_as_text():
    lines = list(to_lines(small()))
    assert lines[0] == "stop_machine, step by step:"
    assert any(line.startswith("~drop:4") and "deadlock 7 (call->nop)" in line for line in lines)


def test_a_protocol_that_is_wrong_itself(capsys):
    assert run_cli(["explore", "--necessity", "live-unsynced", "--jobs", "1"]) == 1
    assert "is not clean itself" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--necessity", "gone"], "no protocol 'gone'"),
        (["--necessity", "live", "seed"], "leave the others out"),
        (["--necessity", "live", "--nmis", "1"], "leave the others out"),
        (["--markdown"], "--markdown is for --necessity"),
        (["--necessity", "gone.py:f"], "No such file"),
    ],
)
def test_used_wrongly(arguments, error, capsys):
    assert run_cli(["explore", *arguments]) == 2
    assert error in capsys.readouterr().err
