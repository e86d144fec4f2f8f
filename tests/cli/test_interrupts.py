"""Ctrl-C, a reader that leaves, and a terminal: in processes of their own."""

from __future__ import annotations

import json
import re
import signal
import subprocess

import pytest

from tests.cli.conftest import on_a_terminal, spawn

ENGINES = {
    "threaded": ["--engine", "threaded", "--period", "0.2"],
    "deterministic": ["--engine", "deterministic", "--virtual-hz", "200000", "--period", "0.2"],
}
either = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
TICK_LINE = re.compile(r"\s+\d+\.\d\d\s+\d+\s+\d+\s")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def finish(process: subprocess.Popen) -> tuple[str, str]:
    try:
        return process.communicate(timeout=20)
    finally:
        process.kill()


def wait_for_tick(process: subprocess.Popen) -> None:
    for line in process.stdout:
        if TICK_LINE.match(line):
            return
    raise AssertionError(f"no tick: {process.stderr.read()}")


@either
def test_ctrl_c_ends_a_run_with_its_summary(engine: list[str]) -> None:
    process = spawn("run", "--seconds", "60", *engine)
    wait_for_tick(process)
    process.send_signal(signal.SIGINT)
    out, err = finish(process)
    assert process.returncode == 130
    assert re.search(r"\d+ call sites were recorded", out)
    assert re.search(r"vCPU 1: [\d,]+ iterations, checksum 0x", out)
    assert err == ""


@either
def test_ctrl_c_ends_a_json_run_with_its_document(engine: list[str]) -> None:
    """What was reached is written out. The guest's banner says that the run has begun."""
    process = spawn("run", "--seconds", "60", "--json", "-v", *engine)
    assert "mini-kernel" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, _ = finish(process)
    assert process.returncode == 130
    document = json.loads(out)
    assert 0 <= document["seconds"] < 60
    assert document["image"] == "mini-kernel"


@pytest.mark.parametrize(
    "arguments",
    [*(["run", "--seconds", "2", *engine] for engine in ENGINES.values()), ["inspect"]],
    ids=[*ENGINES, "inspect"],
)
def test_a_reader_that_leaves_after_one_line_is_no_error_to_shout_about(arguments) -> None:
    process = spawn(*arguments)
    assert "mini-kernel" in process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = finish(process)
    assert err == ""


def test_on_a_terminal_a_table_grows_a_row_a_tick_and_the_summary_follows() -> None:
    code, text = on_a_terminal("run", "--seconds", "1.5", *ENGINES["deterministic"])
    assert code == 0
    assert "\x1b[" in text  # the table is drawn anew as it grows
    plain = ESCAPE.sub("", text).replace("\r", "")
    for column in ("t", "found", "patched", "pages", "skipped", "mcount/s", "iterations/s"):
        assert column in plain
    final = plain[plain.rindex("pause us") :]
    rows = [line.split()[0] for line in final.splitlines() if TICK_LINE.match(" " + line)]
    assert rows == ["0.20", "0.40", "0.60", "0.80", "1.00", "1.20", "1.40"]
    assert "call sites were recorded" in final
    assert "vCPU 1:" in final


def test_no_color_is_respected() -> None:
    code, text = on_a_terminal(
        "run", "--seconds", "0.5", *ENGINES["deterministic"], NO_COLOR="1"
    )  # fmt: skip
    assert code == 0
    assert re.findall(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m", text) == []
    assert "found" in text


def test_without_a_terminal_there_are_plain_lines(cli) -> None:
    result = cli("run", "--seconds", "1.1", *ENGINES["deterministic"])
    assert result.code == 0
    assert "\x1b" not in result.out + result.err
    lines = result.out.splitlines()
    assert len([line for line in lines if TICK_LINE.match(line)]) == 5
