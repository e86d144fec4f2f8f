"""Each call is an event in the buffer, or was read, overwritten or dropped and counted as such."""

from __future__ import annotations

import errno
import random
from collections import Counter
from fnmatch import fnmatchcase

import numpy as np
import pytest

from dynftrace_emu.errors import ControlFileError
from dynftrace_emu.ftrace.document import document
from dynftrace_emu.ftrace.options import EngineName
from dynftrace_emu.ftrace.trace_events import TraceFlag
from dynftrace_emu.kernel.structs import EventId
from dynftrace_emu.machine.engine import Park
from dynftrace_emu.machine.vcpu import Reg
from dynftrace_emu.tracefs import TraceFs
from tests.ftrace.invariants import check_text
from tests.tracers.oracle import Oracle, make_run, rebuild, sites_by_name, untouched_checksums

GLOBS = ("vfs_*", "*[rw]*", "s*", "[a-m]*", "*i*", "[!a-d]*")


def meddle(oracle: Oracle, tracer: str, seed: int):
    """A host thread that changes one thing after another while the guest runs."""
    choice, names = random.Random(seed), sites_by_name(oracle.run)
    model = oracle.models[""]
    oracle.write("current_tracer", tracer, tracer=tracer)
    while True:
        yield choice.uniform(0.0005, 0.008)
        what = choice.randrange(12)
        if what < 4:
            oracle.write("tracing_on", str(int(not model.on)), on=not model.on)
        elif what < 7:
            glob = choice.choice(GLOBS)
            chosen = frozenset(s for name, s in names.items() if fnmatchcase(name, glob))
            oracle.write("set_ftrace_filter", glob, filter=chosen)
        elif what < 8:
            oracle.write("set_ftrace_filter", "", filter=None)
        elif what < 9:
            glob = choice.choice(("*lock*", "vfs_read"))
            chosen = frozenset(s for name, s in names.items() if fnmatchcase(name, glob))
            oracle.write("set_ftrace_notrace", glob, notrace=chosen)
        elif what < 10:
            other = "nop" if model.tracer == tracer else tracer
            oracle.write("current_tracer", other, tracer=other)
        else:
            oracle.read(choice.choice((1, 7, 100, None)))


@pytest.mark.parametrize("overwrite", ["1", "0"])
@pytest.mark.parametrize(
    ("tracer", "park"),
    [
        ("function", Park.ANYWHERE),
        ("function", Park.PREEMPTIBLE),
        ("function_graph", Park.ANYWHERE),
        ("function_graph", Park.PREEMPTIBLE),
    ],
    ids=lambda value: getattr(value, "value", value),
)
def test_events_and_what_was_lost_are_the_calls(tracer: str, overwrite: str, park: Park) -> None:
    run = make_run(iterations=3, nmi_rate=400, park=park, seed=7, discover="scan", period=0.1)
    oracle = Oracle(run, returns=tracer == "function_graph")
    oracle.files.write("buffer_size_kb", "8")
    oracle.files.write("options/overwrite", overwrite)
    run.machine.kthread("meddling", meddle(oracle, tracer, seed=int(overwrite)), daemon=True)
    run.execute()
    oracle.write("current_tracer", "nop", tracer="nop")  # the stop checks
    assert oracle.checks > 10
    oracle.check_traced_calls()
    assert oracle.contexts[0] > 100
    assert oracle.contexts[TraceFlag.HARDIRQ] > 0
    assert sum(run.machine.nmis) > 50
    assert run.kernel.percpu("checksum") == untouched_checksums(3)
    check_text(run, document(run))


def test_the_first_execution_of_a_site_is_recorded_and_traced() -> None:
    """Every execution of a call site since the recorder was ready is an event."""
    run = make_run(iterations=1, discover="runtime", period=0.05, seed=3)
    files = TraceFs(run.tracing)
    files.write("current_tracer", "function")
    ready = run.image.address("ftrace_ready")
    executed: list[list[int]] = [[], []]

    def on_call(vcpu) -> None:
        if run.machine.memory.read_u64(ready):
            executed[vcpu.index].append(run.machine.memory.read_u64(vcpu[Reg.RSP]) - 5)

    for vcpu in run.machine.vcpus:
        for target in ("mcount", "ftrace_caller"):
            vcpu.hook_instruction(run.image.address(target), on_call)
    run.execute()
    on_stacks = Counter(word - 5 for _, words in run.kernel.saved_ips() for word in words.tolist())
    for cpu, part in enumerate(run.tracing.global_array.buffer.cpus):
        stats = part.stats()
        assert stats.overrun == stats.dropped == 0
        table = part.peek()[0].table
        assert len(table) == stats.entries > 1000
        assert not Counter(table["ip"].tolist()) - Counter(executed[cpu])
        untold = Counter(executed[cpu]) - Counter(table["ip"].tolist())
        assert untold <= on_stacks  # a task was switched out on its way to the tracer, and is still
    known = set(run.dynamic.arch.sites().tolist())
    missing = set(executed[0] + executed[1]) - known
    skipped = sum(run.kernel.total(f"skipped_{why}") for why in ("nested", "suspended"))
    assert len(missing) <= skipped
    assert known <= set(executed[0] + executed[1]) | {run.image.address("ftrace_dynamic_init") + 4}


@pytest.mark.parametrize("park", Park, ids=lambda park: park.value)
def test_graph_begins_and_ends_in_the_middle_of_calls(park: Park) -> None:
    run = make_run(iterations=3, discover="scan", park=park, seed=11, nmi_rate=200)
    files = TraceFs(run.tracing)
    handler = run.image.address("return_to_handler")
    late_returns = []
    grabbed = {}

    def grab() -> None:
        grabbed["events"] = run.tracing.global_array.buffer.peek()[0]
        grabbed["lost"] = run.tracing.global_array.buffer.peek()[1]
        words = [w for _, words in run.kernel.saved_ips() for w in words.tolist()]
        standing = sum(vcpu.rip == handler for vcpu in run.machine.vcpus)  # just returned to it
        grabbed["hooked"] = words.count(handler) + standing

    def control():
        yield 0.08  # boot is over
        files.write("current_tracer", "function_graph")
        yield 0.15
        run.tracing.stop(grab)
        files.write("current_tracer", "nop")
        grabbed["ended"] = True

    def on_return(vcpu) -> None:
        if "ended" in grabbed:
            late_returns.append(vcpu.index)

    # Not the handler's first instruction: a task may have been switched out behind that.
    section = run.image.address("__return_to_handler_section")
    for vcpu in run.machine.vcpus:
        vcpu.hook_instruction(section, on_return)
    run.machine.kthread("control", control())
    run.execute()
    events = grabbed["events"]
    assert not grabbed["lost"]
    done, still_open = rebuild(run, events)
    assert len(done) > 500
    assert sum(1 for span in done if span.switched) > 10  # it was switched out in the middle
    assert len(still_open) == grabbed["hooked"] > 3
    assert len(late_returns) == grabbed["hooked"] - run_dead(run, handler)
    assert any(span.exit["flags"] & TraceFlag.HARDIRQ for span in done)
    for span in done:
        if span.parent is not None and span.parent.exit is not None:
            assert span.exit["rettime"] <= span.parent.exit["rettime"]
    assert run.kernel.percpu("checksum") == untouched_checksums(3)
    check_text(run, document(run))


def run_dead(run, handler: int) -> int:
    """Hooked returns that nobody has made: on the stacks as they are at the end."""
    return sum(words.tolist().count(handler) for _, words in run.kernel.saved_ips())


@pytest.mark.parametrize("tracer", ["function", "function_graph"])
def test_clock_counter_orders_events_of_all_vcpus(tracer: str) -> None:
    run = make_run(iterations=1, discover="scan", seed=2)
    files = TraceFs(run.tracing)
    files.write("trace_clock", "counter")
    files.write("current_tracer", tracer)
    run.execute()
    events, lost = run.tracing.global_array.buffer.peek()
    assert not lost
    times = events.table["ts"]
    assert len(times) > 2000
    assert (np.diff(times.astype(np.int64)) > 0).all()
    assert set(events.table["cpu"].tolist()) == {0, 1}
    if tracer == "function_graph":
        exits = events.table[events.table["type"] == EventId.GRAPH_EXIT]
        assert (exits["calltime"] <= exits["rettime"]).all()


def test_clock_counter_is_refused_where_vcpus_run_at_once() -> None:
    run = make_run(engine=EngineName.THREADED, seconds=1.0)
    with pytest.raises(ControlFileError) as caught:
        TraceFs(run.tracing).write("trace_clock", "counter")
    assert caught.value.errno == errno.EINVAL
    assert TraceFs(run.tracing).read("trace_clock").startswith("[local]")


@pytest.mark.parametrize("tracer", ["function", "function_graph"])
def test_events_out_of_nmis(tracer: str) -> None:
    """The broken image's NMI calls a traced function; it may come in the middle of a tracer."""
    run = make_run(
        image="mini-kernel-nmi-broken", iterations=1, discover="scan", nmi_rate=1500, seed=4
    )
    oracle = Oracle(run, returns=tracer == "function_graph")
    oracle.files.write("buffer_size_kb", "700")
    inside = []
    text = run.image.address("ftrace_caller"), run.image.address("__ftrace_text_end")

    def on_nmi(vcpu) -> None:
        interrupted = run.machine.memory.read_u64(vcpu[Reg.RSP])
        if text[0] <= interrupted < text[1]:
            inside.append(interrupted)

    for vcpu in run.machine.vcpus:
        vcpu.hook_instruction(run.image.address("nmi"), on_nmi)
    oracle.write("current_tracer", tracer, tracer=tracer)
    run.execute()
    assert len(inside) > 20
    oracle.check()
    oracle.check_traced_calls()
    events, lost = run.tracing.global_array.buffer.peek()
    assert not lost
    from_nmi = events.table[(events.table["flags"] & TraceFlag.NMI) != 0]
    assert {run.tracing.name(ip) for ip in from_nmi["ip"].tolist()} == {"nmi_watchdog_tick"}
    dropped = sum(part.stats().dropped for part in run.tracing.global_array.buffer.cpus)
    per_call = 2 if tracer == "function_graph" else 1
    assert len(from_nmi) + dropped >= per_call * sum(run.machine.nmis) - 2
    assert len(from_nmi) > 20
    assert run.kernel.percpu("checksum") == untouched_checksums(1)


@pytest.mark.parametrize("sizes", [(4000, 8000), (64, 8), (8, 1408)])
def test_what_a_resized_buffer_held_is_counted_as_overrun(sizes: tuple[int, int]) -> None:
    """Linux counts so what shrinking takes away; here the new buffer begins empty."""
    before, after = map(str, sizes)
    run = make_run(iterations=4, vcpus=2, nmi_rate=200, discover="scan")
    files = TraceFs(run.tracing)
    files.write("buffer_size_kb", before)
    files.write("current_tracer", "function")

    def resize():
        for size in (after, before, after):
            yield 0.02
            files.write("buffer_size_kb", size)

    run.machine.kthread("resizing", resize(), daemon=True)
    run.execute()
    assert files.read("buffer_size_kb") == f"{after}\n"
    stats = [buffer.stats() for buffer in run.tracing.global_array.buffer.cpus]
    counted = [s.entries + s.overrun + s.dropped + s.read for s in stats]
    assert counted == run.kernel.percpu("traced_calls")
    assert sum(s.overrun for s in stats) > 0
