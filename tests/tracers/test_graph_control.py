"""What function_graph leaves out, against a walk of the tree of calls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynftrace_emu.ftrace.trace_events import TraceFlag
from dynftrace_emu.kernel.structs import EventId
from dynftrace_emu.tracefs import TraceFs
from tests.tracers.call_tree import CALLS, ROOTS, CallTree
from tests.tracers.oracle import make_run

ENTRY, EXIT = int(EventId.GRAPH_ENTRY), int(EventId.GRAPH_EXIT)
NAMES = sorted(CALLS)


def model(
    name: str,
    *,
    chosen: set[str],
    functions: set[str],
    notrace: set[str],
    max_depth: int,
    depth: int = 0,
    hidden: bool = False,
) -> Iterator[tuple[int, str, int]]:
    """What Linux shows of a call: trace_graph_entry() and the depth of what is shown."""
    shown = False
    if (not chosen or name in chosen) and not hidden:
        if name in notrace:
            hidden = True
        elif depth or not functions or name in functions:
            shown = not max_depth or depth < max_depth
    if shown:
        yield ENTRY, name, depth
    for callee in CALLS[name]:
        yield from model(
            callee, chosen=chosen, functions=functions, notrace=notrace, max_depth=max_depth,
            depth=depth + shown, hidden=hidden,
        )  # fmt: skip
    if shown:
        yield EXIT, name, depth


@pytest.fixture(scope="module")
def tree() -> CallTree:
    tree = CallTree()
    tree.files.write("current_tracer", "function_graph")
    return tree


some = st.sets(st.sampled_from(NAMES), max_size=4)


@settings(max_examples=80, deadline=None)
@given(chosen=some, functions=some, notrace=some, max_depth=st.integers(0, 4))
def test_filters_of_every_kind_together(
    tree: CallTree, chosen: set[str], functions: set[str], notrace: set[str], max_depth: int
) -> None:
    tree.files.write("set_ftrace_filter", " ".join(chosen))
    tree.files.write("set_graph_function", " ".join(functions))
    tree.files.write("set_graph_notrace", " ".join(notrace))
    tree.files.write("max_graph_depth", str(max_depth))
    for root in ROOTS:
        tree.call(root)
        expected = model(
            root, chosen=chosen, functions=functions, notrace=notrace, max_depth=max_depth
        )
        assert tree.graph(tree.events()) == list(expected)


@pytest.mark.parametrize("tracer", ["function", "function_graph"])
@pytest.mark.parametrize(
    ("file", "pids", "kept"),
    [
        ("set_ftrace_pid", "5", {5}),
        ("set_ftrace_pid", "5 7", {5, 7}),
        ("set_ftrace_notrace_pid", "5", {6, 7}),
        ("set_ftrace_pid", "", {5, 6, 7}),
    ],
)
def test_tasks(tracer: str, file: str, pids: str, kept: set[int]) -> None:
    tree = CallTree()
    tree.files.write("current_tracer", tracer)
    tree.files.write(file, pids)
    for pid in (5, 6, 7):
        tree.set_context(pid=pid)
        tree.call("sys_read")
    events = tree.events()
    assert set(events.table["pid"].tolist()) == kept
    calls = len(list(tree.walk("sys_read")))
    assert len(events) == calls * len(kept) * (2 if tracer == "function_graph" else 1)


@pytest.mark.parametrize("tracer", ["function", "function_graph"])
@pytest.mark.parametrize(("mask", "kept"), [("1", {0}), ("2", {1}), ("0", set()), ("3", {0, 1})])
def test_tracing_cpumask(tracer: str, mask: str, kept: set[int]) -> None:
    tree = CallTree(vcpus=2)
    tree.files.write("current_tracer", tracer)
    tree.files.write("tracing_cpumask", mask)
    for cpu in (0, 1):
        tree.call("sys_write", cpu)
    events = tree.events()
    assert set(events.table["cpu"].tolist()) == kept
    assert len(events) == len(kept) * len(list(tree.walk("sys_write"))) * (
        2 if tracer == "function_graph" else 1
    )


def test_tracing_thresh_tells_the_end_of_long_calls_only() -> None:
    nops = {f"wait_{microseconds}": 2 * microseconds for microseconds in (10, 300, 600, 2000)}
    tree = CallTree(dict.fromkeys(nops, ()), nops=nops)  # a nop takes half a microsecond
    tree.files.write("current_tracer", "function_graph")
    for thresh in (0, 1, 400, 1000, 10**6):
        tree.files.write("tracing_thresh", str(thresh))
        took = {}
        for name in nops:
            tree.call(name)
            table = tree.events().table
            exits = table[table["type"] == EXIT]
            assert (len(table) > len(exits)) == (thresh == 0)
            if len(exits):
                took[name] = int(exits["rettime"][0] - exits["calltime"][0])
        assert all(time >= thresh * 1000 for time in took.values())
        certain = {name for name in nops if int(name.removeprefix("wait_")) >= thresh}
        possible = {name for name in nops if int(name.removeprefix("wait_")) + 150 >= thresh}
        assert certain <= set(took) <= possible


def test_function_shows_context() -> None:
    tree = CallTree()
    tree.files.write("current_tracer", "function")
    tree.set_context(preempt_count=0x10000)
    tree.call("fput")
    tree.set_context(preempt_count=0x100000)
    tree.call("fput")
    tree.set_context(preempt_count=3)
    tree.call("fput")
    table = tree.events().table
    context = table["flags"] & (TraceFlag.HARDIRQ | TraceFlag.NMI)
    assert context.tolist() == [8, 8, 64, 64, 0, 0]
    assert table["preempt"].tolist() == [0, 0, 0, 0, 3, 3]


def test_without_funcgraph_irqs_no_function_of_an_interrupt_is_shown() -> None:
    tree = CallTree()
    tree.files.write("current_tracer", "function_graph")
    tree.files.write("options/funcgraph-irqs", "0")
    tree.set_context(preempt_count=0x10000)
    tree.call("sys_read")
    tree.set_context(preempt_count=0)
    assert not len(tree.events())
    tree.call("sys_read")
    assert len(tree.events()) == 2 * len(list(tree.walk("sys_read")))
    tree.files.write("options/funcgraph-irqs", "1")
    tree.set_context(preempt_count=0x10000)
    tree.call("sys_read")
    assert len(tree.events()) == 2 * len(list(tree.walk("sys_read")))


def test_of_a_running_kernel_what_is_shown_is_what_was_asked_for() -> None:
    run = make_run(iterations=1, discover="scan", seed=9)
    files = TraceFs(run.tracing)
    files.write("set_graph_function", "vfs_*")
    files.write("max_graph_depth", "2")
    files.write("options/funcgraph-irqs", "0")
    files.write("tracing_cpumask", "2")
    files.write("current_tracer", "function_graph")
    run.execute()
    events, lost = run.tracing.global_array.buffer.peek()
    table = events.table
    assert not lost
    assert len(table) > 100
    assert set(table["cpu"].tolist()) == {1}
    assert set(table["depth"].tolist()) == {0, 1}
    roots = {run.tracing.name(ip) for ip in table[table["depth"] == 0]["ip"].tolist()}
    assert len(roots) > 2
    assert all(name.startswith("vfs_") for name in roots)
    assert not (table[table["type"] == ENTRY]["flags"] & TraceFlag.HARDIRQ).any()
