"""``run --set``, ``--at`` and ``--show``."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase

import pytest

from tests.ftrace.conftest import assembled
from tests.tracefs.conftest import events_in, functions_in

FAST = ("--engine", "deterministic", "--virtual-hz", "500000", "--seconds", "0.2")
BUSY = ("--engine", "deterministic", "--seconds", "0.3")
"""The workload is at work long before the end."""

REFUSED = {
    "unknown file": (["--set", "no_such_file=1"], "ENOENT"),
    "unknown file below a directory": (["--set", "options/no_such=1"], "ENOENT"),
    "unknown file, appended": (["--set", "no_such_file+=1"], "ENOENT"),
    "unknown file, later": (["--at", "0.1:no_such_file=1"], "ENOENT"),
    "unknown file, shown": (["--show", "no_such_file"], "ENOENT"),
    "shown among others": (["--show", "trace", "--show", "no_such_file"], "ENOENT"),
    "a directory": (["--set", "options=1"], "EISDIR"),
    "a directory, shown": (["--show", "per_cpu/cpu0"], "EISDIR"),
    "a file that can only be read": (["--set", "available_tracers=nop"], "EINVAL"),
    "a file that can only be written": (["--show", "trace_marker"], "EINVAL"),
    "unknown tracer": (["--set", "current_tracer=functions"], "EINVAL"),
    "the second of two": (["--set", "tracing_on=0", "--set", "tracing_on=maybe"], "EINVAL"),
    "no such function": (["--set", "set_ftrace_filter=no_such_function"], "EINVAL"),
    "a function that has not run": (
        ["--discover", "runtime", "--set", "set_ftrace_filter=vfs_read"],
        "EINVAL",
    ),
    "a CPU there is not": (["--set", "tracing_cpumask=ff"], "EOVERFLOW"),
    "more memory than there is": (["--set", "buffer_size_kb=99999999"], "ENOMEM"),
    "a marker while it is off": (["--set", "tracing_on=0", "--set", "trace_marker=x"], "EBADF"),
    "an option by an unknown name": (["--set", "trace_options=no_such"], "EINVAL"),
    "mkdir elsewhere": (["--set", "mkdir=options/x"], "EPERM"),
    "mkdir twice": (["--set", "mkdir=instances/x", "--set", "mkdir=instances/x"], "EEXIST"),
    "rmdir of nothing": (["--set", "rmdir=instances/x"], "ENOENT"),
    "a file of an instance that is not": (["--set", "instances/x/tracing_on=1"], "ENOENT"),
    "function_graph in an instance": (
        ["--set", "mkdir=instances/x", "--set", "instances/x/current_tracer=function_graph"],
        "EINVAL",
    ),
    "a file instances have not": (
        ["--set", "mkdir=instances/x", "--set", "instances/x/max_graph_depth=1"],
        "ENOENT",
    ),
    "no filters without calls": (
        ["--variant", "none", "--set", "set_ftrace_filter=vfs_read"],
        "ENOENT",
    ),
    "no tracers without calls": (
        ["--variant", "none", "--set", "current_tracer=function"],
        "EINVAL",
    ),
}  # fmt: skip


def check_one_line(result, *says: str) -> None:
    assert result.code == 2, result
    [line] = result.err.splitlines()
    assert line.startswith("dynftrace-emu: ")
    for word in says:
        assert word in line


@pytest.mark.parametrize(("arguments", "name"), REFUSED.values(), ids=REFUSED.keys())
def test_a_write_that_is_refused_is_one_line(cli, arguments: list[str], name: str) -> None:
    """The file, the errno's name and the reason; and nothing has run."""
    result = cli("run", *FAST, *arguments)
    file = arguments[-1].partition("=")[0].rstrip("+").rpartition(":")[2]
    check_one_line(result, file, f"{name}: ")
    assert len(result.err.rpartition(f"{name}: ")[2].split()) > 1  # a reason
    assert result.out == ""


SYNTAX = {
    "no =": ["--set", "current_tracer"],
    "no file": ["--set", "=nop"],
    "no file, appended": ["--set", "+=nop"],
    "nothing": ["--set", ""],
    "no time": ["--at", "current_tracer=nop"],
    "a time in words": ["--at", "soon:current_tracer=nop"],
    "a negative time": ["--at=-1:current_tracer=nop"],
    "time nan": ["--at", "nan:current_tracer=nop"],
    "time inf": ["--at", "inf:current_tracer=nop"],
    "time alone": ["--at", "1"],
    "no write": ["--at", "1:"],
    "no value": ["--at", "1:current_tracer"],
}


@pytest.mark.parametrize("arguments", SYNTAX.values(), ids=SYNTAX.keys())
def test_bad_syntax_is_one_line(cli, arguments: list[str]) -> None:
    result = cli("run", *FAST, *arguments)
    check_one_line(result, arguments[0].partition("=")[0])
    assert result.out == ""


LATER = {
    "a refused value": (["--at", "0.1:current_tracer=functions"], "current_tracer", "EINVAL"),
    "an instance that is not": (["--at", "0.1:instances/x/trace="], "instances/x/trace", "ENOENT"),
    "the second": (
        ["--at", "0.1:tracing_on=2", "--at", "0.15:tracing_on=x", "--at", "0.16:tracing_on=y"],
        "tracing_on",
        "EINVAL",
    ),
}


@pytest.mark.parametrize(("arguments", "file", "name"), LATER.values(), ids=LATER.keys())
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_write_that_is_refused_later_ends_the_run(
    cli, arguments: list[str], file: str, name: str, as_json: bool
) -> None:
    result = cli("run", *FAST, *arguments, *(["--json"] if as_json else []))
    check_one_line(result, file, f"{name}: ")
    if as_json:
        document = json.loads(result.out)
        assert name in document["error"]
        assert 0.1 <= document["seconds"] < 0.2


def test_an_instance_that_was_never_made_cannot_be_shown(cli) -> None:
    result = cli("run", *FAST, "--show", "instances/x/trace")
    check_one_line(result, "instances/x/trace", "ENOENT: ")


def test_the_headline(cli) -> None:
    """Only the functions that were asked for, as function_graph shows them."""
    chosen = ("--set", "current_tracer=function_graph", "--set", "set_ftrace_filter=vfs_*")
    result = cli("run", "--engine", "deterministic", "--seconds", "0.6", *chosen, "--show", "trace")
    assert result.code == 0
    trace = result.out[result.out.index("# tracer: function_graph\n") :]
    functions = functions_in(trace)
    assert {"vfs_read", "vfs_write"} <= set(functions)
    assert all(fnmatchcase(name, "vfs_*") for name in functions)
    lines = events_in(trace)
    calls = [line for line in lines if re.search(r"\| +vfs_\w+\(\)(;| \{)", line)]
    assert len(calls) == len(functions)
    others = [line for line in lines if line not in calls and not re.search(r"\| +\}", line)]
    assert all(re.search(r"=>|^ ?-+$", line) for line in others)  # who runs now, and no more


def test_at_does_it_at_its_time(cli) -> None:
    """In the order of the times, whatever their order on the command line."""
    writes = ("--at", "0.25:tracing_on=0", "--at", "0.2:current_tracer=function")
    result = cli("run", *BUSY, *writes, "--show", "trace", "--show", "tracing_on", "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert document["show"]["tracing_on"] == "0\n"
    trace = document["show"]["trace"]
    times = [float(time) for time in re.findall(r" (\d+\.\d{6}): ", trace)]
    assert len(times) > 100
    assert 0.2 <= min(times) < 0.21
    assert 0.24 < max(times) <= 0.251


def test_plus_appends(cli) -> None:
    writes = [f"set_ftrace_filter{text}" for text in ("=vfs_*", "=vfs_read", "+=pipe_read kfree")]
    arguments = [word for write in writes for word in ("--set", write)]
    later = ("--at", "0.1:set_ftrace_filter+=schedule", "--at", "0.1:set_ftrace_filter+=!kfree")
    result = cli("run", *FAST, *arguments, *later, "--show", "set_ftrace_filter", "--json")
    assert result.code == 0
    [text] = json.loads(result.out)["show"].values()
    assert sorted(text.split()) == ["pipe_read", "schedule", "vfs_read"]


def test_values_may_hold_what_separates(cli) -> None:
    writes = ("--set", "set_ftrace_filter=e1000_suspend:traceoff:3")
    writes += ("--set", "trace_marker=a=b:c+=d")
    later = ("--at", "0.1:set_ftrace_filter=e1000_resume:stacktrace")
    shown = ("--show", "set_ftrace_filter", "--show", "trace", "--show", "tracing_on")
    result = cli("run", *FAST, *writes, *later, *shown, "--json")
    assert result.code == 0
    show = json.loads(result.out)["show"]
    assert "e1000_suspend:traceoff:count=3\n" in show["set_ftrace_filter"]
    assert "e1000_resume:stacktrace:unlimited\n" in show["set_ftrace_filter"]
    assert "a=b:c+=d\n" in show["trace"]


def test_an_instance_is_made_used_and_removed(cli) -> None:
    writes = (
        "mkdir=instances/x", "instances/x/set_ftrace_filter=schedule", "mkdir=instances/y",
        "instances/x/current_tracer=function", "rmdir=instances/y",
    )  # fmt: skip
    arguments = [word for write in writes for word in ("--set", write)]
    shown = ("--show", "instances/x/trace", "--show", "trace", "--show", "enabled_functions")
    result = cli("run", *BUSY, *arguments, *shown, "--json")
    assert result.code == 0
    show = json.loads(result.out)["show"]
    assert set(functions_in(show["instances/x/trace"])) == {"schedule"}
    assert functions_in(show["trace"]) == []
    assert show["enabled_functions"] == "schedule (1)\n"


def test_an_instance_made_later_is_shown(cli) -> None:
    later = ("--at", "0.1:mkdir=instances/x", "--at", "0.1:instances/x/current_tracer=function")
    result = cli("run", *FAST, *later, "--show", "instances/x/current_tracer", "--json")
    assert json.loads(result.out)["show"] == {"instances/x/current_tracer": "function\n"}


def test_several_files_are_told_apart(cli) -> None:
    shown = ("--show", "tracing_on", "--show", "/trace_clock", "--show", "per_cpu/cpu0/stats")
    result = cli("run", *FAST, *shown)
    assert (result.code, result.err) == (0, "")
    parts = result.out.split("==> ")[1:]
    assert parts[0].startswith("tracing_on <==\n1\n")
    assert parts[1].startswith("/trace_clock <==\n[local]")
    assert parts[2].startswith("per_cpu/cpu0/stats <==\nentries: 0\n")


def test_one_file_is_printed_as_it_is_below_the_summary(cli) -> None:
    alone = cli("run", *FAST)
    result = cli("run", *FAST, "--show", "trace_clock")
    assert result.out.startswith(alone.out)
    assert result.out.removeprefix(alone.out).strip("\n") == "[local] counter"


def test_the_document_has_them_under_show_in_their_order(cli) -> None:
    files = ["tracing_on", "README", "current_tracer", "available_filter_functions"]
    shown = [word for file in files for word in ("--show", file)]
    result = cli("run", *FAST, *shown, "--discover", "scan", "--json")
    document = json.loads(result.out)
    assert list(document["show"]) == files
    image = assembled("dynamic", "mini-kernel")
    names = [image.function_at(site).name for site in image.call_sites.tolist()]
    assert document["show"]["available_filter_functions"].splitlines() == names
    assert document["show"]["current_tracer"] == "nop\n"


def test_set_before_anything_has_run_traces_from_the_first_call(cli) -> None:
    writes = ("--discover", "scan", "--set", "current_tracer=function")
    result = cli("run", *FAST, *writes, "--show", "trace", "--json")
    assert functions_in(json.loads(result.out)["show"]["trace"])[0] == "start_kernel"
