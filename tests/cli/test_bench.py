"""``dynftrace-emu bench`` as a person uses it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from io import StringIO

import pytest
from rich.console import Console

from dynftrace_emu.bench.tables import tables
from dynftrace_emu.cli.bench_output import BEGIN, END, rich_table
from tests.bench.conftest import EVERYTHING, result_of
from tests.cli.conftest import COMMAND

RECORD = ("bench", "--only", "record", "--rounds", "1")


@pytest.fixture
def stored(tmp_path):
    """Writes a result; returns its path."""

    def store(name: str, figures: dict) -> str:
        path = tmp_path / name
        path.write_text(json.dumps(result_of(figures).to_json()))
        return str(path)

    return store


def test_list_says_what_can_be_chosen(cli) -> None:
    result = cli("bench", "--list")
    assert result.code == 0
    for name in ("--only:", "instructions", "--mode:", "hook-entry", "--workload:", "compute"):
        assert name in result.out


def test_a_measurement_is_shown_and_stored(cli, tmp_path) -> None:
    result = cli(*RECORD, "--json", "x.json")
    assert result.code == 0
    assert "recorder: hash hit" in result.out
    assert result.err == ""
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["complete"] is True
    assert document["settings"]["rounds"] == 1
    assert {row["subject"] for row in document["rounds"]} == {"stub", "miss", "hit", "skipped"}


def test_json_on_stdout_is_alone_there(cli) -> None:
    result = cli(*RECORD, "--json", "-")
    assert result.code == 0
    assert json.loads(result.out)["bench"] == "mini-kernel"
    assert result.err == ""


def test_a_stored_result_is_shown_without_measuring(cli, stored, tmp_path) -> None:
    result = cli("bench", "--from", stored("x.json", EVERYTHING), "--plot", "x.svg")
    assert result.code == 0
    assert "Time for the same work, workload leaf" in result.out
    assert "reached" in result.out
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")


WORSE = {**EVERYTHING, "instructions/default/function/ratio": (3.26,)}


def test_compare_exits_1_where_a_ratio_became_worse(cli, stored) -> None:
    old, new = stored("old.json", EVERYTHING), stored("new.json", WORSE)
    assert cli("bench", "--from", old, "--compare", old).code == 0
    assert cli("bench", "--from", old, "--compare", new).code == 0
    result = cli("bench", "--from", new, "--compare", old)
    assert result.code == 1
    assert "instructions/default/function/ratio: 3.2500 -> 3.2600 (+0.31 %, worse)" in result.out
    assert cli("bench", "--from", new, "--compare", old, "--tolerance", "1").code == 0
    assert cli("bench", "--from", new, "--compare", old, "--by", "time").code == 0


def test_compare_exits_1_where_a_ratio_is_missing_and_says_who_was_not_finished(
    cli, stored, tmp_path
) -> None:
    kept = {k: v for k, v in EVERYTHING.items() if k != "instructions/default/function/ratio"}
    old, new = stored("old.json", EVERYTHING), tmp_path / "new.json"
    document = result_of(kept).to_json()
    new.write_text(json.dumps({**document, "complete": False}))
    result = cli("bench", "--from", str(new), "--compare", old)
    assert result.code == 1
    assert "missing now: instructions/default/function" in result.out
    assert result.err == "the new result was not finished: figures may be missing\n"


@pytest.mark.parametrize("columns", [30, 45, 60, 80])
def test_a_narrow_terminal_cuts_no_number(columns) -> None:
    figures = {
        "modes/default/hook-instruction/ratio": (200.0, 217.0, 242.0),
        "modes/default/hook-instruction/time": (31_999.0,),
        "modes/default/hook-instruction/events": (69_721.0,),
        "modes/default/hook-instruction/added": (3_625.0,),
        "modes/default/patched-jmp/ratio": (1.011, 1.022, 1.053),
    }
    table = next(tables(result_of(figures)))
    drawn = rich_table(table, columns)
    assert drawn.width <= max(columns, 45)
    console = Console(width=columns, file=StringIO(), color_system=None)
    console.print(drawn, crop=False)
    shown = console.file.getvalue()
    assert "…" not in shown
    for number in ("217", "242", "31,999", "69,721", "3,625", "1.022", "1.011", "1.053"):
        assert number in shown.split()


def test_compare_beside_json_on_stdout_goes_to_stderr(cli, stored) -> None:
    old = stored("old.json", EVERYTHING)
    result = cli("bench", "--from", stored("new.json", WORSE), "--compare", old, "--json", "-")
    assert result.code == 1
    json.loads(result.out)
    assert "2 ratios compared: 1 the same, 1 worse" in result.err


def test_markdown_goes_between_the_marker_lines(cli, stored, tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Above\n\n{BEGIN}\nold\n{END}\n\nbelow\n")
    for _ in range(2):
        result = cli("bench", "--from", stored("x.json", EVERYTHING), "--markdown", "page.md")
        assert result.code == 0
        text = page.read_text()
        assert text.startswith(f"# Above\n\n{BEGIN}\n\n2026-01-02, a CPU")
        assert text.endswith(f"\n{END}\n\nbelow\n")
        assert "old" not in text
        assert "| recorder: hash hit | 205 |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "speed"], "--only speed: choose from modes"),
        (["--mode", "fast"], "--mode fast: choose from none"),
        (["--rounds", "0"], "--rounds 0: 1 to 1000 allowed"),
        (["nowhere"], "no image 'nowhere'"),
        (["--plot", "x.pdf"], ".svg or .png"),
        (["--json", "no/where/x.json"], "--json no/where/x.json: No such file or directory"),
        (["--markdown", "plain.md"], "plain.md: it has no lines <!-- bench: begin -->"),
        (["--from", "plain.md"], "plain.md cannot be read"),
        (["--from", "list.json"], "list.json is no document of bench --json"),
        (["--compare", "list.json"], "list.json is no document of bench --json"),
        (["--compare", "missing.json"], "missing.json"),
        (["--tolerance", "-1"], "-1"),
        (["--tolerance", "1"], "--tolerance is of no use without --compare"),
        (["--by", "instructions"], "--by is of no use without --compare"),
        (["--compare", "good.json", "--tolerance", "nan"], "--tolerance nan"),
        (["--compare", "good.json", "--tolerance", "inf"], "--tolerance inf"),
        (["--from", "good.json", "--compare", "zero.json"], "zero.json is damaged"),
        (["--from", "zero.json"], "zero.json is damaged"),
        (["--from", "empty.json"], "empty.json: it holds no figures"),
        (["--from", "good.json", "--quick"], "--quick is of no use with --from"),
        (["--from", "good.json", "--only", "modes"], "--only is of no use with --from"),
        (["--from", "good.json", "--mode", "none"], "--mode is of no use with --from"),
        (["--from", "good.json", "--workload", "leaf"], "--workload is of no use with --from"),
        (["--from", "good.json", "--rounds", "1"], "--rounds is of no use with --from"),
        (["--from", "good.json", "mini-kernel"], "IMAGE is of no use with --from"),
        (["--only", "vcpus", "--mode", "graph"], "--mode graph is not used by --only vcpus"),
        (
            ["--only", "instructions", "--mode", "hook-entry"],
            "--mode hook-entry is not used by --only instructions",
        ),
        (
            ["--only", "record", "--workload", "leaf"],
            "--workload leaf is not used by --only record",
        ),
        (["tiny.S"], "tiny.S has no workload whose iterations can be counted"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(cli, tmp_path, arguments, message) -> None:
    (tmp_path / "plain.md").write_text("# A page\n")
    (tmp_path / "list.json").write_text("[]")
    zero = {**EVERYTHING, "modes/leaf/none/ratio": (0.0,)}
    for name, figures in (("good", EVERYTHING), ("zero", zero), ("empty", {})):
        (tmp_path / f"{name}.json").write_text(json.dumps(result_of(figures).to_json()))
    (tmp_path / "tiny.S").write_text('.include "linkage.inc"\nENTRY startup_64\n hlt\n')
    result = cli("bench", *arguments)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert result.out == ""


def test_compare_of_nothing_in_common_is_wrong_use(cli, stored) -> None:
    old = stored("old.json", {"modes/leaf/none/ratio": (1.0,)})
    result = cli(*RECORD, "--compare", old)
    assert result.code == 2
    assert "no ratio of instructions in common" in result.err


def test_ctrl_c_shows_and_stores_what_is_done(tmp_path) -> None:
    """On a terminal the progress bar says what is being measured: then it is interrupted."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "bench", "--only", "modes", "--workload", "leaf", "--mode", "static",
         "--json", "x.json"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=slave, text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(slave)
    seen = b""
    while b"round 3" not in seen:
        seen += os.read(master, 4096)
    process.send_signal(signal.SIGINT)
    try:
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        os.close(master)
    assert process.returncode == 130
    assert "static" in out
    assert "It was not finished" in out
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["complete"] is False
    assert {row["subject"] for row in document["rounds"]} == {"none", "static"}
