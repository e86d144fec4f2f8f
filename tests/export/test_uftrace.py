"""uftrace's data directory; uftrace itself reads it."""

from __future__ import annotations

import random
import re
import shutil
import struct
import subprocess

import pytest

from dynftrace_emu.errors import OptionError
from dynftrace_emu.export.call_tree import CallTree
from dynftrace_emu.export.uftrace import write_uftrace
from tests.export.call_sources import (
    IP,
    call,
    enter,
    leave,
    random_calls,
    real_trace,
    source,
    two_tasks,
)

needs_uftrace = pytest.mark.skipif(
    shutil.which("uftrace") is None, reason="Debian package uftrace is missing"
)
DURATION = r"(?:[\d.]+ +[num]?s)?"  # nothing is said of no time


def uftrace(command, directory, *options):
    """What uftrace prints, and nothing else."""
    arguments = ["uftrace", *command.split(), "--no-pager", "-d", directory, *options]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    return done.stdout


def reported(directory):
    """Calls by function, as ``uftrace report`` counts them."""
    lines = uftrace("report", directory).splitlines()[2:]
    found = [re.fullmatch(rf" +{DURATION} +{DURATION} +(\d+)  (.*)", line) for line in lines]
    return {match[2]: int(match[1]) for match in found}


def replayed(directory):
    """The lines of ``uftrace replay``, without times."""
    lines = uftrace("replay", directory, "-f", "tid").splitlines()[1:]
    return [line.strip() for line in lines if line.strip()]


def flames(directory):
    lines = uftrace("dump --flame-graph", directory).splitlines()
    return {path: int(count) for path, count in (line.rsplit(" ", 1) for line in lines)}


def test_the_files(tmp_path) -> None:
    write_uftrace(two_tasks(), tmp_path / "t.uftrace")
    directory = tmp_path / "t.uftrace"
    assert sorted(path.name for path in directory.iterdir()) == [
        "10.dat", "7.dat", "8.dat", "info", "kernel.sym", "sid-0123456789abcdef.map", "task.txt",
    ]  # fmt: skip
    assert (directory / "task.txt").read_text() == (
        'SESS timestamp=0.000000000 pid=7 sid=0123456789abcdef exename="/kernel"\n'
        "TASK timestamp=0.000000000 tid=7 pid=7\n"
        "TASK timestamp=0.000000000 tid=8 pid=7\n"
        "TASK timestamp=0.000000000 tid=10 pid=7\n"
    )
    start = (IP["b"] - 5) & (1 << 47) - 1
    entry, irq, *_ = struct.iter_unpack("<QQ", (directory / "8.dat").read_bytes())
    assert entry == (3000, start << 16 | 0b0000000000_101_0_00)
    assert irq[1] & 0xFFFF == 0b0000000001_101_0_00
    assert (directory / "info").read_bytes()[:8] == b"Ftrace!\0"


def test_function_traces_are_refused(tmp_path) -> None:
    with pytest.raises(OptionError, match="needs a function_graph trace"):
        write_uftrace(source(call(1, "a", "main"), tracer="function"), tmp_path / "t.uftrace")
    assert not (tmp_path / "t.uftrace").exists()


def test_only_a_directory_of_the_kind_is_replaced(tmp_path) -> None:
    directory = tmp_path / "t.uftrace"
    write_uftrace(two_tasks(), directory)
    write_uftrace(source(enter(1, "a"), leave(2, "a", 1)), directory)
    assert {path.name for path in directory.glob("*.dat")} == {"7.dat"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "info").write_text("Dear diary")
    for other in (tmp_path / "mine", tmp_path / "mine" / "info"):
        with pytest.raises(OptionError, match="no uftrace data directory"):
            write_uftrace(two_tasks(), other)
    assert (tmp_path / "mine" / "info").read_text() == "Dear diary"


@needs_uftrace
def test_uftrace_shows_two_tasks(tmp_path) -> None:
    write_uftrace(two_tasks(), tmp_path)
    assert replayed(tmp_path) == [
        "[     7] | main() {",
        "[     7] |   a() {",
        "[     7] |     schedule() {",
        "[     8] | b() {",
        "[     8] |   do_irq();",
        "[    10] | idle() {",
        "[     7] |     } /* schedule */",
        "[     7] |   } /* a */",
        "[     8] | } /* b */",
        "[     7] | } /* main */",
        "[    10] | } /* idle */",
    ]
    assert flames(tmp_path) == {
        "main": 1, "main;a": 1, "main;a;schedule": 1, "b": 1, "b;do_irq": 1, "idle": 1,
    }  # fmt: skip


@needs_uftrace
def test_uftrace_shows_calls_without_beginning_or_end(tmp_path) -> None:
    trace = source(
        enter(100, "c", 2), leave(110, "c", 100, 2), leave(120, "b", 60, 1), enter(130, "a", 1)
    )
    write_uftrace(trace, tmp_path)
    assert replayed(tmp_path) == [
        "[     7] | b() {", "[     7] |   c();", "[     7] | } /* b */", "[     7] | a();",
    ]  # fmt: skip


@needs_uftrace
def test_uftrace_counts_as_we_do(tmp_path, request) -> None:
    rng = random.Random(request.node.name)
    trace = source(*random_calls(rng, 500))
    write_uftrace(trace, tmp_path)
    ours = {re.sub(r"\s", "_", f.name): f.calls for f in CallTree(trace).functions()}
    assert reported(tmp_path) == ours


@needs_uftrace
def test_uftrace_and_the_mini_kernel(tmp_path) -> None:
    trace = real_trace("function_graph")
    tree = CallTree(trace)
    write_uftrace(trace, tmp_path)
    assert reported(tmp_path) == {f.name: f.calls for f in tree.functions()}
    paths = {";".join(path): node.calls for path, node in tree.walk()}
    assert flames(tmp_path) == paths
    graph = uftrace("graph", tmp_path)
    drawn = re.findall(r"\((\d+)\) (\S+)$", graph, re.MULTILINE)
    assert drawn[0] == ("1", "kernel")
    shown = {}
    for count, name in drawn[1:]:
        shown[name] = shown.get(name, 0) + int(count)
    assert shown == {f.name: f.calls for f in tree.functions()}
    entered = [re.search(r"\| +(\S+)\(\)(;| \{)$", line) for line in replayed(tmp_path)]
    assert sum(match is not None for match in entered) == sum(f.calls for f in tree.functions())
