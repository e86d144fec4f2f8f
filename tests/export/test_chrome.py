"""Chrome's JSON."""

from __future__ import annotations

import io
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynftrace_emu.export.call_tree import CallTree
from dynftrace_emu.export.chrome import write_chrome
from tests.export.call_sources import (
    HOST,
    IP,
    call,
    enter,
    random_calls,
    real_trace,
    said,
    source,
    two_tasks,
)


def written(trace):
    out = io.BytesIO()
    write_chrome(trace, out)
    return json.loads(out.getvalue())["traceEvents"]


def check_nesting(events):
    """B and E match in each thread, in the order of the file, which is that of time there."""
    stacks, times, names = {}, {}, Counter()
    for event in events:
        thread = event["pid"], event["tid"]
        if event["ph"] not in "BE":
            continue
        assert event["ts"] >= times.get(thread, 0)
        times[thread] = event["ts"]
        if event["ph"] == "B":
            stacks.setdefault(thread, []).append(event["name"])
        else:
            names[stacks[thread].pop()] += 1
    assert not any(stacks.values())
    return names


def test_two_tasks() -> None:
    events = written(two_tasks(host_events=HOST))
    names = {
        (e["pid"], e["tid"] if e["name"] == "thread_name" else None): e["args"]["name"]
        for e in events
        if e["ph"] == "M"
    }
    assert names == {
        (1, None): "CPU 0", (2, None): "CPU 1", (3, None): "host", (1, 7): "bash-7",
        (1, 8): "worker/0-8", (2, 10): "<idle>-0", (3, 1): "ftraced", (3, 2): "stop_machine",
    }  # fmt: skip
    assert [e for e in events if e["ph"] == "B"][:2] == [
        {"ph": "B", "pid": 1, "tid": 7, "name": "main", "ts": 1.0},
        {"ph": "B", "pid": 1, "tid": 7, "name": "a", "ts": 2.0},
    ]
    assert [e for e in events if e["pid"] == 3 and e["ph"] != "M"] == [
        {"ph": "i", "s": "t", "pid": 3, "tid": 1, "name": "tick", "args": {"sites": 3}, "ts": 1.5},
        {"ph": "X", "dur": 0.4, "pid": 3, "tid": 2, "name": "stop", "args": {"duration_ns": 400},
         "ts": 1.6},
        {"ph": "i", "s": "t", "pid": 3, "tid": 1, "name": "patched",
         "args": {"ip": f"{IP['a']:#x}", "function": "a"}, "ts": 1.7},
    ]  # fmt: skip
    assert check_nesting(events) == Counter(["main", "a", "schedule", "b", "do_irq", "idle"])


def test_functions_are_moments() -> None:
    events = written(source(call(1234, "odd;na\nme<&>\"'", "main"), tracer="function"))
    assert events[-1] == {
        "ph": "i", "s": "t", "pid": 1, "tid": 7, "name": "odd;na\nme<&>\"'",
        "args": {"parent": "main"}, "ts": 1.234,
    }  # fmt: skip


def test_marks_are_moments() -> None:
    events = written(source(enter(1, "a"), said(5, 'he said "no"')))
    assert {"ph": "i", "s": "t", "pid": 1, "tid": 7, "name": 'he said "no"', "ts": 0.005} in events


def test_counts_stay_whole() -> None:
    events = written(source(enter(12345, "a"), clock="counter"))
    assert [e["ts"] for e in events if e["ph"] == "B"] == [12345]


@pytest.mark.parametrize("ts", [0, 999, 1000, 2**53 + 1, 2**63])
def test_times_are_not_rounded(ts) -> None:
    out = io.BytesIO()
    write_chrome(source(enter(ts, "a")), out)
    assert f'"name":"a","ts":{ts // 1000}.{ts % 1000:03d}}}'.encode() in out.getvalue()


def test_an_empty_trace_is_valid() -> None:
    assert {e["ph"] for e in written(source())} == {"M"}


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 60))
def test_calls_nest(rng, count) -> None:
    check_nesting(written(source(*random_calls(rng, count), cut=7)))


def test_the_mini_kernel(tmp_path) -> None:
    trace = real_trace("function_graph")
    write_chrome(trace, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_bytes())["traceEvents"]
    calls = {f.name: f.calls for f in CallTree(trace).functions()}
    assert check_nesting(events) == calls


def test_functions_of_the_mini_kernel() -> None:
    trace = real_trace("function")
    names = Counter(e["name"] for e in written(trace) if e["ph"] == "i" and e["pid"] <= 2)
    assert names == {f.name: f.calls for f in CallTree(trace).functions()}
