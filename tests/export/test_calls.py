"""Entries and exits as calls that nest."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynftrace_emu.export import calls as calls_module
from dynftrace_emu.export.call_tree import CallTree
from dynftrace_emu.export.calls import Calls
from dynftrace_emu.ftrace.trace_events import TraceFlag
from dynftrace_emu.kernel.structs import EventId
from tests.export.call_sources import (
    IP,
    NAMES,
    call,
    enter,
    leave,
    random_calls,
    real_trace,
    said,
    source,
    two_tasks,
)

BY_IP = {ip: name for name, ip in IP.items()}


def rows(trace):
    """Every call record: (lane's pid, "+" or "-", name, ts, level), made ones with a "*"."""
    calls = Calls(trace)
    found = []
    for batch in calls:
        for row in batch.calls:
            sign = ("+" if row["begin"] else "-") + "*" * bool(row["made"])
            name = BY_IP.get(int(row["ip"]), "?")
            pid = calls.lanes[row["lane"]].pid
            found.append((pid, sign, name, int(row["ts"]), int(row["level"])))
    return found


def shown(trace):
    """The same, shorter, where pids and levels do not matter."""
    return " ".join(f"{sign}{name}@{ts}" for _, sign, name, ts, _ in rows(trace))


def check_nesting(trace):
    """Begins and ends match in every lane, and time never goes back there."""
    stacks, times = {}, {}
    calls = Calls(trace)
    for batch in calls:
        for row in batch.calls:
            stack = stacks.setdefault(int(row["lane"]), [])
            assert row["ts"] >= times.get(int(row["lane"]), 0)
            times[int(row["lane"])] = row["ts"]
            if row["begin"]:
                assert row["level"] == len(stack)
                stack.append(row["ip"])
            else:
                assert stack.pop() == row["ip"]
                assert row["level"] == len(stack)
    assert not any(stacks.values())
    return calls


def test_whole_calls_are_passed_on_as_they_are() -> None:
    trace = two_tasks()
    # The one call that does not end is that of the idle task.
    assert rows(trace) == [
        (7, "+", "main", 1000, 0),
        (7, "+", "a", 2000, 1),
        (7, "+", "schedule", 2500, 2),
        (8, "+", "b", 3000, 0),
        (8, "+", "do_irq", 3100, 1),
        (8, "-", "do_irq", 3400, 1),
        (0, "+", "idle", 3500, 0),
        (7, "-", "schedule", 5000, 2),
        (7, "-", "a", 6000, 1),
        (8, "-", "b", 7000, 0),
        (7, "-", "main", 7500, 0),
        (0, "-*", "idle", 7500, 0),
    ]


def test_an_entry_without_exit_ends_with_the_trace() -> None:
    trace = source(enter(10, "main"), enter(20, "a", 1), leave(30, "a", 20, 1), said(50, "end"))
    assert shown(trace) == "+main@10 +a@20 -a@30 -*main@50"


def test_an_exit_without_entry_began_when_it_says() -> None:
    trace = source(
        enter(100, "c", 2), leave(110, "c", 100, 2), leave(120, "b", 60, 1), leave(130, "a", 50)
    )
    assert shown(trace) == "+*a@50 +*b@60 +c@100 -c@110 -b@120 -a@130"


def test_with_a_counter_as_clock_it_begins_with_the_first_event() -> None:
    trace = source(enter(3, "b", 1), leave(4, "b", 9000, 1), leave(5, "a", 8000), clock="counter")
    assert shown(trace) == "+*a@3 +b@3 -b@4 -a@5"


def test_the_depth_of_calls_that_nobody_knows_does_not_matter() -> None:
    trace = source(enter(10, "a", 5), enter(20, "b", 6), leave(30, "b", 20, 6))
    assert [row[-1] for row in rows(trace)] == [0, 1, 1, 0]


def test_a_missing_exit_is_made_up() -> None:
    trace = source(
        enter(10, "main"), enter(20, "a", 1), enter(40, "b", 1), leave(50, "b", 40, 1),
        leave(60, "main", 10),
    )  # fmt: skip
    assert shown(trace) == "+main@10 +a@20 -*a@20 +b@40 -b@50 -main@60"


def test_a_missing_entry_is_made_up_where_it_fits() -> None:
    trace = source(
        enter(10, "main"), enter(20, "a", 1), leave(30, "a", 20, 1), leave(50, "b", 35, 1),
        leave(70, "c", 25, 1), leave(80, "main", 10),
    )  # fmt: skip
    assert shown(trace) == "+main@10 +a@20 -a@30 +*b@35 -b@50 +*c@50 -c@70 -main@80"


def test_an_exit_of_another_function_is_another_call() -> None:
    trace = source(enter(10, "a"), leave(50, "b", 30))
    assert shown(trace) == "+a@10 -*a@10 +*b@30 -b@50"


def test_only_exits_come_with_a_threshold() -> None:
    trace = source(
        leave(100, "c", 50, 2), leave(110, "b", 40, 1), leave(200, "c", 150, 2),
        leave(210, "a", 30),
    )  # fmt: skip
    assert shown(trace) == "+*a@30 +*b@40 +*c@50 -c@100 -b@110 +*c@150 -c@200 -a@210"


def test_a_call_that_an_exit_knows_survives_lost_events() -> None:
    trace = source(
        enter(10, "main"), enter(20, "a", 1), leave(90, "main", 10), lost={2: 5}
    )  # fmt: skip
    assert shown(trace) == "+main@10 +a@20 -*a@20 -main@90"


def test_a_call_above_all_that_is_heard_of_survives_lost_events() -> None:
    trace = source(
        enter(10, "main"), enter(20, "a", 1), enter(80, "b", 1), leave(90, "b", 80, 1), lost={2: -1}
    )
    assert shown(trace) == "+main@10 +a@20 -*a@20 +b@80 -b@90 -*main@90"


def test_a_call_of_the_same_function_after_lost_events_is_another() -> None:
    trace = source(enter(10, "main"), leave(90, "main", 50), lost={1: 5})
    assert shown(trace) == "+main@10 -*main@10 +*main@50 -main@90"


def test_lost_events_leave_other_cpus_alone() -> None:
    trace = source(
        enter(10, "a", cpu=0), enter(20, "b", cpu=1, pid=8), leave(30, "a", 25, cpu=0),
        leave(40, "b", 20, cpu=1, pid=8), lost={2: 5},
    )  # fmt: skip
    assert shown(trace) == "+a@10 +b@20 -*a@10 +*a@25 -a@30 -b@40"


def test_nmis_have_a_lane_of_their_own() -> None:
    nmi = {"flags": TraceFlag.NMI}
    trace = source(
        enter(10, "main"), enter(20, "do_irq", **nmi), leave(30, "do_irq", 20, **nmi),
        leave(40, "main", 10),
    )  # fmt: skip
    assert shown(trace) == "+main@10 +do_irq@20 -do_irq@30 -main@40"
    assert [lane.nmi for lane in Calls(trace).lanes] == [False, True]


def test_every_lane_has_a_number_of_its_own() -> None:
    trace = source(
        enter(1, "idle", pid=0), enter(2, "idle", pid=0, cpu=1), enter(3, "a"), enter(4, "a", cpu=1)
    )
    lanes = Calls(trace).lanes
    assert [(lane.cpu, lane.pid) for lane in lanes] == [(0, 0), (0, 7), (1, 0), (1, 7)]
    assert [lane.tid for lane in lanes] == [10, 7, 11, 12]
    assert [lane.name(trace.info) for lane in lanes[:2]] == ["<idle>-0", "bash-7"]


def test_other_events_are_handed_on() -> None:
    trace = source(enter(1, "a"), said(2, "hello"), leave(3, "a", 1))
    (batch, _) = Calls(trace)
    assert [batch.others.payloads[row["payload"]] for row in batch.others.table] == ["hello"]
    assert batch.other_lanes.tolist() == [0]


def test_nothing_makes_no_calls() -> None:
    assert rows(source()) == []
    assert CallTree(source()).functions() == []


any_event = st.fixed_dictionaries(
    {
        "type": st.sampled_from([EventId.GRAPH_ENTRY, EventId.GRAPH_EXIT]),
        "ts": st.integers(0, 50),
        "ip": st.sampled_from([IP["a"], IP["b"]]),
        "depth": st.integers(0, 3),
        "pid": st.integers(7, 8),
        "cpu": st.integers(0, 1),
        "calltime": st.integers(0, 50),
        "rettime": st.integers(0, 50),
    }
)
losses = st.dictionaries(st.integers(0, 39), st.sampled_from([-1, 3]), max_size=4)


@settings(deadline=None)
@given(st.lists(any_event, max_size=40), losses, st.integers(1, 41))
def test_calls_nest_whatever_the_events_are(events, lost, cut) -> None:
    events.sort(key=lambda event: event["ts"])
    lost = {index: count for index, count in lost.items() if index < len(events)}
    trace = source(*events, lost=lost, cut=cut)
    calls = check_nesting(trace)
    ended = sum(int((~b.calls["begin"] & ~b.calls["made"]).sum()) for b in calls)
    assert ended == sum(event["type"] == EventId.GRAPH_EXIT for event in events)
    # Where the trace is cut makes no difference.
    trace.cut = 1000
    whole = rows(trace)
    trace.cut = cut
    assert rows(trace) == whole


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 200), st.integers(0, 3))
def test_what_is_whole_stays_as_it_is_and_a_hole_breaks_little(rng, count, holes) -> None:
    events = random_calls(rng, count)
    trace = source(*events, cut=rng.randint(1, 100))
    check_nesting(trace)
    plain = [row for row in rows(trace) if "*" not in row[1]]
    assert [(p, s, n, t) for p, s, n, t, _ in plain] == [
        (e["pid"], "+" if e["type"] == EventId.GRAPH_ENTRY else "-", BY_IP[e["ip"]], e["ts"])
        for e in events
    ]
    for _ in range(min(holes, len(events))):
        del events[rng.randrange(len(events))]
    check_nesting(source(*events))


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_event_by_event_gives_the_same_calls_as_in_bulk(rng) -> None:
    trace = source(*random_calls(rng, 60))
    bulk = rows(trace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls_module._Nesting, "_pair", lambda _, bad: ~bad)
        assert rows(trace) == bulk


# Added up.


def test_tree_of_two_tasks() -> None:
    tree = CallTree(two_tasks())
    assert tree.timed
    assert {path: (n.calls, n.total_ns, n.self_ns) for path, n in tree.walk()} == {
        ("main",): (1, 6500, 2500),
        ("main", "a"): (1, 4000, 1500),
        ("main", "a", "schedule"): (1, 2500, 2500),
        ("b",): (1, 4000, 3700),
        ("b", "do_irq"): (1, 300, 300),
        ("idle",): (1, 4000, 4000),
    }


def test_only_the_outermost_call_of_a_recursion_is_total() -> None:
    tree = CallTree(
        source(
            enter(0, "a"),
            enter(10, "b", 1),
            enter(20, "a", 2),
            leave(50, "a", 20, 2),
            leave(70, "b", 10, 1),
            leave(100, "a", 0),
        )
    )
    stats = {f.name: (f.calls, f.total_ns, f.self_ns, f.min_ns, f.max_ns) for f in tree.functions()}
    assert stats == {"a": (2, 100, 70, 30, 100), "b": (1, 60, 30, 60, 60)}


def test_function_events_are_counted_below_their_callers() -> None:
    trace = source(
        call(1, "a", "main"), call(2, "b", "a"), call(3, "b", "a"), call(4, "b", "main"),
        tracer="function",
    )  # fmt: skip
    tree = CallTree(trace)
    assert not tree.timed
    counts = {path: node.calls for path, node in tree.walk()}
    assert counts == {
        ("main",): 0, ("main", "a"): 1, ("main", "b"): 1, ("a",): 0, ("a", "b"): 2,
    }  # fmt: skip
    assert [(f.name, f.calls, f.total_ns) for f in tree.functions()] == [("b", 3, 0), ("a", 1, 0)]


def test_calls_of_the_mini_kernel() -> None:
    trace = real_trace("function_graph")
    calls = check_nesting(trace)
    table = trace.events.table
    assert len(table) > 1000
    # Nothing was lost, so only ends are made, at the end.
    assert [b.calls["made"].any() for b in calls][:-1] == [False] * (len(list(calls)) - 1)
    names = [trace.info.symbols.name(ip) for ip in table["ip"][table["type"] == 11].tolist()]
    tree = CallTree(trace)
    assert {f.name: f.calls for f in tree.functions()} == Counter(names)
    assert tree.root.children["start_kernel"].calls == 1


def test_calls_of_the_end_of_the_mini_kernels_trace() -> None:
    whole = real_trace("function_graph")
    rng = random.Random(4)
    for _ in range(10):
        start = rng.randrange(len(whole.events))
        part = type(whole)(type(whole.events)(whole.events.table[start:]), symbols=whole.symbols)
        calls = check_nesting(part)
        made = sum(int(b.calls["made"].sum()) for b in list(calls)[:-1])
        ends = sum(int((~b.calls["begin"]).sum()) for b in calls)
        kinds = Counter(part.events.table["type"].tolist())
        assert ends == kinds[EventId.GRAPH_ENTRY] + made  # the made ones are all begins


def test_names_are_whole() -> None:
    assert len(set(NAMES)) == len(IP)
