"""The function profiler and the stack tracer."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from dynftrace_emu.kernel.structs import NMI_STACK_SLOT, STACK_SLOT, STACKS_PER_CPU, EventId
from dynftrace_emu.machine.vcpu import Reg
from dynftrace_emu.tracefs import TraceFs
from tests.tracers.call_tree import ROOTS, CallTree
from tests.tracers.oracle import make_run, rebuild, untouched_checksums


def durations(tree: CallTree) -> dict[tuple[int, str], list[int]]:
    """Of each function on each CPU, by its exit events."""
    events = tree.events()
    exits = events.table[events.table["type"] == EventId.GRAPH_EXIT]
    found = defaultdict(list)
    for cpu, ip, begin, end in exits[["cpu", "ip", "calltime", "rettime"]].tolist():
        found[cpu, tree.tracing.name(ip)].append(end - begin)
    return found


def test_hits_and_times_are_those_of_the_calls() -> None:
    tree = CallTree(vcpus=2)
    tree.files.write("function_profile_enabled", "1")
    tree.files.write("current_tracer", "function_graph")
    hits: dict[int, Counter[str]] = {0: Counter(), 1: Counter()}
    for cpu, root in ((0, "sys_read"), (1, "sys_write"), (0, "sys_write"), (0, "sys_read")):
        tree.call(root, cpu)
        hits[cpu].update(tree.walk(root))
    times = durations(tree)
    for cpu in (0, 1):
        rows = {tree.tracing.name(row.site): row for row in tree.tracing.profile.rows(cpu)}
        assert {name: row.hits for name, row in rows.items()} == hits[cpu]
        for name, row in rows.items():
            spans = times[cpu, name]
            assert len(spans) == row.hits
            assert row.time == sum(spans) > 0
            assert row.time_squared == sum(span**2 for span in spans)
            n = row.hits
            assert row.average == pytest.approx(sum(spans) / n)
            if n > 1:  # the sample variance, written as Linux writes it
                square = (n * sum(t * t for t in spans) - sum(spans) ** 2) / (n * (n - 1))
                assert row.variance == pytest.approx(square)
        check_text(tree, cpu, times)


def check_text(tree: CallTree, cpu: int, times: dict[tuple[int, str], list[int]]) -> None:
    """trace_stat/functionN: times in us, the function with the most time first."""
    lines = tree.files.read(f"trace_stat/function{cpu}").splitlines()
    assert lines[0].split() == ["Function", "Hit", "Time", "Avg", "s^2"]
    rows = [
        re.fullmatch(r"  (\S+) +(\d+) +([\d.]+) us +([\d.]+) us +([\d.]+) us *", line)
        for line in lines[2:]
    ]
    assert all(rows)
    totals = [float(row[3]) for row in rows]
    assert totals == sorted(totals, reverse=True)
    for row in rows:
        spans = times[cpu, row[1]]
        n, total = len(spans), sum(spans)
        assert int(row[2]) == n
        assert float(row[3]) == pytest.approx(total / 1000, abs=0.006)
        assert float(row[4]) == pytest.approx(total // n / 1000, abs=0.006)
        variance = (n * sum(t * t for t in spans) - total**2) // (n * (n - 1)) if n > 1 else 0
        # Linux divides by 1000 for us (once: kernel/trace/ftrace.c, function_stat_show).
        assert float(row[5]) == pytest.approx(variance / 1000 / 1000, abs=0.006)


def test_profile_begins_empty_and_ends_with_what_it_had() -> None:
    tree = CallTree()
    tree.call("sys_read")
    tree.files.write("function_profile_enabled", "1")
    tree.call("fput")
    tree.files.write("function_profile_enabled", "0")
    tree.call("sys_read")
    rows = {tree.tracing.name(row.site): row.hits for row in tree.tracing.profile.rows(0)}
    assert rows == {"fput": 1, "lock": 1}
    tree.files.write("function_profile_enabled", "1")
    assert tree.tracing.profile.rows(0) == []


def test_profile_follows_the_filter() -> None:
    tree = CallTree()
    tree.files.write("set_ftrace_filter", "lock copy*")
    tree.files.write("function_profile_enabled", "1")
    for root in ROOTS:
        tree.call(root)
    wanted = Counter(
        name for root in ROOTS for name in tree.walk(root) if name.startswith(("lock", "copy"))
    )
    rows = {tree.tracing.name(row.site): row.hits for row in tree.tracing.profile.rows(0)}
    assert rows == wanted


def test_profile_of_a_running_kernel_with_function_graph() -> None:
    """Hits against a hook where every call site leads; times against the same calls' trace."""
    run = make_run(iterations=1, discover="scan", seed=6, nmi_rate=300)
    files = TraceFs(run.tracing)
    files.write("function_profile_enabled", "1")
    files.write("current_tracer", "function_graph")
    executed = [Counter(), Counter()]

    def on_call(vcpu) -> None:
        executed[vcpu.index][run.machine.memory.read_u64(vcpu[Reg.RSP]) - 5] += 1

    for vcpu in run.machine.vcpus:
        vcpu.hook_instruction(run.image.address("ftrace_caller"), on_call)
    run.execute()
    events, lost = run.tracing.global_array.buffer.peek()
    assert not lost
    on_stacks = Counter(word - 5 for _, words in run.kernel.saved_ips() for word in words.tolist())
    exits = events.table[events.table["type"] == EventId.GRAPH_EXIT]
    for cpu in (0, 1):
        rows = run.tracing.profile.rows(cpu)
        hits = Counter({row.site: row.hits for row in rows})
        assert sum(hits.values()) > 1000
        assert not hits - executed[cpu]
        assert executed[cpu] - hits <= on_stacks  # switched out on the way to the tracer
        own = exits[exits["cpu"] == cpu]
        times: Counter[int] = Counter()
        for ip, begin, end in own[["ip", "calltime", "rettime"]].tolist():
            times[ip] += end - begin
        assert Counter({row.site: row.time for row in rows if row.time}) == times
    assert run.kernel.percpu("checksum") == untouched_checksums(1)


@pytest.mark.parametrize("graph", [False, True])
def test_deepest_stack_is_the_deepest_chain(graph: bool) -> None:
    tree = CallTree()
    if graph:
        tree.files.write("current_tracer", "function_graph")
    tree.files.write("stack_tracer_enabled", "1")
    seen: dict[tuple[str, ...], int] = {}
    start = tree.machine.vcpus[0][Reg.RSP]
    for root in ROOTS:
        tree.call(root)
    for root in ROOTS:
        for chain in tree.chains(root):
            # Above each: the return address and the saved rbp; the first is at the stack's top.
            seen.setdefault(chain, 16 * len(chain) + (-start) % STACK_SLOT)
    deepest = max(seen.values())
    chains = [list(chain) for chain, size in seen.items() if size == deepest]
    assert int(tree.files.read("stack_max_size")) == deepest
    trace = tree.tracing.stack_tracer.trace()
    names = [tree.tracing.name(ip) for ip, _ in trace]
    assert names[: len(chains[0])] == chains[0]  # the first so deep stays
    assert "return_to_handler" not in names
    sizes = [size for _, size in trace]
    assert sizes[: len(chains[0])] == [deepest - 16 * n for n in range(len(chains[0]))]
    text = tree.files.read("stack_trace")
    assert f"({len(trace)} entries)" in text
    assert "return_to_handler" not in text
    assert [line.split()[3].split("+")[0] for line in text.splitlines()[2:]] == names


def test_writing_stack_max_size_forgets_what_was_seen() -> None:
    tree = CallTree()
    tree.files.write("stack_tracer_enabled", "1")
    tree.call("sys_read")
    deep = int(tree.files.read("stack_max_size"))
    tree.files.write("stack_max_size", "0")
    tree.call("fput")
    assert int(tree.files.read("stack_max_size")) == deep - 16 * (5 - 2)  # fput and lock
    tree.files.write("stack_max_size", str(deep))
    tree.call("sys_read")
    assert tree.tracing.stack_tracer.trace() == []


@pytest.mark.parametrize("graph", [False, True])
def test_deepest_stack_of_a_running_kernel(graph: bool) -> None:
    run = make_run(iterations=1, discover="scan", seed=8, nmi_rate=300)
    files = TraceFs(run.tracing)
    files.write("stack_tracer_enabled", "1")
    if graph:
        files.write("current_tracer", "function_graph")
    deepest = [0]

    def on_call(vcpu) -> None:
        rbp = vcpu[Reg.RBP]
        if rbp // STACK_SLOT % STACKS_PER_CPU != NMI_STACK_SLOT:
            deepest[0] = max(deepest[0], -rbp % STACK_SLOT)

    for vcpu in run.machine.vcpus:
        vcpu.hook_instruction(run.image.address("ftrace_caller"), on_call)
    run.execute()
    assert int(files.read("stack_max_size")) == deepest[0] > 300
    trace = run.tracing.stack_tracer.trace()
    assert trace[0][1] == deepest[0]
    assert [size for _, size in trace] == sorted((size for _, size in trace), reverse=True)
    names = [run.tracing.name(ip) for ip, _ in trace]
    assert "return_to_handler" not in names
    assert len(names) >= 6
    check_chain(run, [ip for ip, _ in trace])
    if graph:
        done, _ = rebuild(run, run.tracing.global_array.buffer.peek()[0])
        assert len(done) > 1000
    assert run.kernel.percpu("checksum") == untouched_checksums(1)


def check_chain(run, ips: list[int]) -> None:
    """Each but the first is behind a call; a direct one leads into the function below it."""
    memory, below = run.machine.memory, run.tracing.name(ips[0])
    for ip in ips[1:]:
        code = memory.read(ip - 5, 5)
        if code[0] == 0xE8 and below != "apic_timer_interrupt":  # that was not called
            target = (ip + int.from_bytes(code[1:], "little", signed=True)) % (1 << 64)
            assert run.tracing.name(target) == below
        below = run.tracing.name(ip)
