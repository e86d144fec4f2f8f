"""record, report and convert: what they print, and what is left when they are cut short."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest

from dynftrace_emu.export.open_trace import open_trace
from dynftrace_emu.kernel.structs import EventId
from tests.cli.conftest import COMMAND, spawn
from tests.cli.test_interrupts import finish, wait_for_tick

QUICK = ("--engine", "deterministic", "--seconds", "0.3")
CPU_LINE = re.compile(
    r"vCPU (\d): ([\d,]+) events \+ ([\d,]+) overruns = ([\d,]+); ([\d,]+) calls were traced"
    r"(?:, each an entry and an exit, ([\d,]+) still open)?"
)
needs_trace_cmd = pytest.mark.skipif(not shutil.which("trace-cmd"), reason="trace-cmd is missing")


def cpu_lines(out: str) -> list[list[int]]:
    return [
        [int((number or "0").replace(",", "")) for number in match.groups()]
        for match in CPU_LINE.finditer(out)
    ]


def table_of(path):
    return [row for batch, _ in open_trace(path).batches() for row in batch.table]


# --- record ---


@pytest.mark.parametrize("tracer", ["function", "function_graph"])
def test_the_lines_at_the_end_add_up_and_are_what_the_file_holds(cli, tmp_path, tracer) -> None:
    result = cli("record", "-p", tracer, "-o", "trace.dat", *QUICK)
    assert (result.code, result.err) == (0, "")
    lines = cpu_lines(result.out)
    assert [line[0] for line in lines] == [0, 1]
    held = Counter(int(row["cpu"]) for row in table_of(tmp_path / "trace.dat"))
    for cpu, events, overruns, total, calls, still_open in lines:
        assert held[cpu] == events > 1000
        assert overruns == 0
        assert total == (calls if tracer == "function" else 2 * calls - still_open)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.dat"]


def test_it_traces_from_the_first_instruction(cli, tmp_path) -> None:
    cli("record", "-o", "trace.dat", *QUICK)
    source = open_trace(tmp_path / "trace.dat")
    first = table_of(tmp_path / "trace.dat")[0]
    assert source.info.symbols.name(int(first["ip"])) == "start_kernel"
    assert source.info.symbols.name(int(first["parent_ip"])) == "startup_64"


@pytest.mark.parametrize("write", ["current_tracer=function", "tracing_on=1"])
def test_unless_at_says_when(cli, tmp_path, write) -> None:
    cli("record", "-o", "trace.dat", "--at", f"0.2:{write}", *QUICK)
    times = [int(row["ts"]) for row in table_of(tmp_path / "trace.dat")]
    assert min(times) >= 200_000_000
    assert len(times) > 500


def test_the_letters_are_control_files(cli, tmp_path) -> None:
    result = cli(
        "record", "-p", "function_graph", "-l", "vfs_*", "-l", "sys_*", "-n", "*_read", "-g",
        "sys_write", "-O", "nofuncgraph-irqs", "-O", "sym-offset", "-C", "counter", "-b", "64",
        "-o", "trace.dat", "--engine", "deterministic", "--seconds", "0.5",
        *(word for file in (
            "current_tracer", "set_ftrace_filter", "set_ftrace_notrace", "set_graph_function",
            "options/funcgraph-irqs", "options/sym-offset", "trace_clock", "buffer_size_kb",
        ) for word in ("--show", file)), "--json",
    )  # fmt: skip
    assert result.code == 0
    shown = json.loads(result.out)["show"]
    chosen = set(shown["set_ftrace_filter"].split())
    assert {"vfs_read", "vfs_write", "sys_write"} <= chosen
    assert all(name.startswith(("vfs_", "sys_")) for name in chosen)
    assert {"vfs_read", "sys_read"} <= set(shown["set_ftrace_notrace"].split())
    assert shown["set_graph_function"] == "sys_write\n"
    assert (shown["options/funcgraph-irqs"], shown["options/sym-offset"]) == ("0\n", "1\n")
    assert "[counter]" in shown["trace_clock"]
    assert shown["buffer_size_kb"] == "64\n"
    source = open_trace(tmp_path / "trace.dat")
    names = {source.info.symbols.name(int(row["ip"])) for row in table_of(tmp_path / "trace.dat")}
    assert names == {"sys_write", "vfs_write"}
    assert source.info.clock == "counter"


def test_what_the_host_did_is_in_the_file(cli, tmp_path) -> None:
    cli(
        "record", "-o", "trace.dat", "--discover", "runtime", "--period", "0.1", "--boot-records",
        "1000", *QUICK,
    )  # fmt: skip
    found = Counter(event.name for event in open_trace(tmp_path / "trace.dat").host_events)
    assert found["tick"] >= 2
    assert found["stop"] >= 1
    assert found["patched"] > 100
    assert found["failed"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-p", "nope"), 2, "current_tracer: EINVAL: no tracer 'nope'"),
        (("-l", "no_such"), 2, "set_ftrace_filter: EINVAL: 'no_such' matches no available"),
        (("-o", "x.foo"), 2, "x.foo: no format of this extension"),
        (("-o", "missing/x.dat"), 2, "missing/x.dat: No such file or directory"),
        (("-b", "0"), 2, "buffer_size_kb: EINVAL"),
        (("-C", "nope"), 2, "trace_clock: EINVAL"),
        (("-O", "nope"), 2, "trace_options: EINVAL"),
    ],
)
def test_bad_options_are_told_in_one_line(cli, tmp_path, arguments, code, message) -> None:
    result = cli("record", *arguments, *QUICK)
    assert result.code == code
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_ctrl_c_leaves_what_was_recorded(tmp_path) -> None:
    process = spawn("record", "-o", tmp_path / "t.dat", "--seconds", "60", "--period", "0.2")
    wait_for_tick(process)
    process.send_signal(signal.SIGINT)
    out, err = finish(process)
    assert (process.returncode, err) == (130, "")
    events = sum(line[1] for line in cpu_lines(out))
    assert events == len(table_of(tmp_path / "t.dat")) > 1000


def test_a_closed_pipe_leaves_what_was_recorded(tmp_path) -> None:
    process = spawn("record", "-o", tmp_path / "t.dat", "--seconds", "60", "--period", "0.2")
    wait_for_tick(process)
    process.stdout.close()
    with process.stderr:
        assert process.wait(timeout=30) == 1
        assert process.stderr.read() == ""
    assert len(table_of(tmp_path / "t.dat")) > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["t.dat"]


def test_a_process_that_is_killed_leaves_what_was_recorded(tmp_path) -> None:
    process = spawn("record", "-o", tmp_path / "t.dat", "--seconds", "60", "--period", "0.2")
    wait_for_tick(process)
    process.kill()
    process.communicate(timeout=20)
    assert len(table_of(tmp_path / "t.dat")) > 1000


def test_a_file_that_may_not_grow_holds_what_was_written(tmp_path) -> None:
    """As on a full disk: writes fail in the middle."""
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        "from dynftrace_emu.cli.main import run_cli; sys.exit(run_cli(sys.argv[1:]))"
    )
    arguments = ["record", "-o", str(tmp_path / "t.dat"), "--seconds", "20"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments], capture_output=True, text=True, timeout=60,
        check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 1
    assert "what was recorded until then is kept" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(table_of(tmp_path / "t.dat")) > 1000


@needs_trace_cmd
def test_trace_cmd_reads_what_is_left_after_ctrl_c(tmp_path) -> None:
    process = spawn("record", "-o", tmp_path / "t.dat", "--seconds", "60", "--period", "0.2")
    wait_for_tick(process)
    process.send_signal(signal.SIGINT)
    finish(process)
    shown = subprocess.run(
        ["trace-cmd", "report", "t.dat"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        check=True,
    ).stdout  # fmt: skip
    assert shown.count("function:") == len(table_of(tmp_path / "t.dat"))


# --- report and convert ---


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A trace of each tracer."""
    folder = tmp_path_factory.mktemp("traces")
    for tracer in ("function", "function_graph"):
        subprocess.run(
            [*COMMAND, "record", "-p", tracer, "-o", f"{tracer}.dat", *QUICK], cwd=folder,
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
    return folder


@pytest.mark.parametrize("tracer", ["function", "function_graph"])
def test_the_text_has_a_line_for_each_event(cli, recorded, tracer) -> None:
    out = cli("report", recorded / f"{tracer}.dat").out.splitlines()
    assert out[0] == f"# tracer: {tracer}"
    rows = table_of(recorded / f"{tracer}.dat")
    drawn = [line for line in out if line and not line.startswith(("#", " ---"))]
    if tracer == "function":
        assert len(drawn) == len(rows)
        return
    opened = sum(line.endswith("{") for line in drawn)
    leaves = sum(line.endswith("();") for line in drawn)
    kinds = Counter(int(row["type"]) for row in rows)
    assert opened + leaves == kinds[EventId.GRAPH_ENTRY]


def test_the_table_counts_calls(cli, recorded) -> None:
    source = open_trace(recorded / "function_graph.dat")
    name = source.info.symbols.name
    calls = Counter(
        name(int(row["ip"]))
        for row in table_of(recorded / "function_graph.dat")
        if row["type"] == EventId.GRAPH_ENTRY
    )
    document = json.loads(cli("report", "--stat", "--json", recorded / "function_graph.dat").out)
    assert document["schema"] == 1
    assert {f["name"]: f["calls"] for f in document["functions"]} == calls
    for function in document["functions"]:
        assert 0 <= function["self_ns"] <= function["total_ns"]
        assert function["min_ns"] <= function["max_ns"]
    lines = cli("report", "--stat", recorded / "function_graph.dat").out.splitlines()
    assert len(lines) == 1 + len(calls)


@pytest.mark.parametrize("what", [(), ("--stat",), ("--graph",), ("--flame",)])
@pytest.mark.parametrize("tracer", ["function", "function_graph"])
def test_every_report_is_plain_in_a_pipe_and_json_when_asked(cli, recorded, tracer, what) -> None:
    result = cli("report", *what, recorded / f"{tracer}.dat")
    assert (result.code, result.err) == (0, "")
    assert "\x1b" not in result.out
    assert result.out.count("\n") > 5
    assert json.loads(cli("report", *what, "--json", recorded / f"{tracer}.dat").out)["schema"] == 1


@pytest.mark.parametrize(
    "extension", ["txt", "dat", "json", "pftrace", "speedscope.json", "folded", "svg", "uftrace"]
)
def test_every_extension_is_made(cli, tmp_path, recorded, extension) -> None:
    result = cli("convert", recorded / "function_graph.dat", f"out.{extension}")
    assert (result.code, result.out, result.err) == (0, "", "")
    made = tmp_path / f"out.{extension}"
    assert made.exists()
    if extension in ("json", "dat"):
        again = json.loads(cli("report", "--stat", "--json", made).out)["functions"]
        first = json.loads(cli("report", "--stat", "--json", recorded / "function_graph.dat").out)
        calls = {f["name"]: f["calls"] for f in first["functions"]}
        assert {f["name"]: f["calls"] for f in again} == calls


def test_the_text_file_is_the_report(cli, tmp_path, recorded) -> None:
    cli("convert", recorded / "function.dat", "out.txt")
    assert (tmp_path / "out.txt").read_text() == cli("report", recorded / "function.dat").out


@pytest.mark.parametrize("content", [b"", b"hello", b"{}", b'{"traceEvents": 3}', b"[1, 2]"])
def test_what_is_no_trace_is_told_in_one_line(cli, tmp_path, content) -> None:
    (tmp_path / "x").write_bytes(content)
    result = cli("report", "x")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("dynftrace-emu: x: ")
    assert result.err.count("\n") == 1


def test_source_and_target_must_differ(cli, tmp_path, recorded) -> None:
    shutil.copy(recorded / "function.dat", tmp_path / "t.dat")
    before = (tmp_path / "t.dat").read_bytes()
    result = cli("convert", "t.dat", "./t.dat")
    assert result.code == 2
    assert (tmp_path / "t.dat").read_bytes() == before


@pytest.mark.parametrize(
    "write", ["buffer_size_kb=4000", "snapshot=1", "current_tracer=nop", "trace=", "free_buffer=1"]
)
@pytest.mark.parametrize("tracer", ["function", "function_graph"])
def test_what_gives_a_buffer_up_loses_no_event(cli, tmp_path, tracer, write) -> None:
    out = cli(
        "record", "-p", tracer, "-o", "t.dat", "--at", f"0.21:{write}", "--engine",
        "deterministic", "--seconds", "0.4",
    ).out  # fmt: skip
    held = Counter(int(row["cpu"]) for row in table_of(tmp_path / "t.dat"))
    for cpu, events, overruns, total, calls, still_open in cpu_lines(out):
        assert held[cpu] == events
        if tracer == "function":
            assert total == calls
        elif write != "current_tracer=nop":  # what is open then returns unseen
            assert total == 2 * calls - still_open
        assert (overruns > 0) <= (write == "free_buffer=1")  # then there is hardly any room


def test_a_file_to_show_that_is_not_there_costs_no_result(cli) -> None:
    result = cli("run", "--show", "instances/typo/trace", "--show", "tracing_on", *QUICK)
    assert result.code == 2
    assert result.err == (
        "dynftrace-emu: instances/typo/trace: ENOENT: there is no control file "
        "'instances/typo/trace'\n"
    )
    assert "call sites were recorded" in result.out
