"""Ring buffers, byte by byte and read while they are written."""

from __future__ import annotations

import struct
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynftrace_emu.ftrace.options import EngineName
from dynftrace_emu.ftrace.page_pool import PagePool
from dynftrace_emu.ftrace.ring_buffer import RingBufferCpu
from dynftrace_emu.kernel.structs import EventId
from dynftrace_emu.tracefs import TraceFs
from tests.tracers.call_tree import CallTree
from tests.tracers.oracle import make_run
from tests.tracers.pages import decode, time_extends

MILLION = 1_000_000


def check_decoding(part: RingBufferCpu) -> tuple[Counter, int]:
    """All pages of a CPU by our decoder and by the product's; kinds of events, and time extends."""
    pages = part.pages()
    expected = [event for page in pages.raw for event in decode(page.tobytes())]
    events, _ = part.peek()
    expected = expected[len(expected) - len(events) :]  # what was read of the first page is gone
    assert len(events) == len(expected)
    for row, raw in zip(events.table, expected, strict=True):
        kind, flags, preempt, pid = raw.common
        assert int(row["ts"]) == raw.ts
        assert (row["type"], row["flags"], row["preempt"], row["pid"]) == (
            kind,
            flags,
            preempt,
            pid,
        )
        payload = events.payloads[row["payload"]] if row["payload"] >= 0 else None
        assert fields(row) == fields_of(kind, raw.data[8:])
        assert payload == payload_of(kind, raw.data[8:])
    extends = sum(time_extends(page.tobytes()) for page in pages.raw)
    return Counter(raw.common[0] for raw in expected), extends


def fields(row) -> tuple[int, ...]:
    return tuple(int(row[name]) for name in ("ip", "parent_ip", "depth", "calltime", "rettime"))


def fields_of(kind: int, body: bytes) -> tuple[int, ...]:
    if kind == EventId.FUNCTION:
        return (*struct.unpack("<QQ", body), 0, 0, 0)
    if kind == EventId.GRAPH_ENTRY:
        ip, depth = struct.unpack("<Qi", body)
        return ip, 0, depth, 0, 0
    if kind == EventId.GRAPH_EXIT:
        ip, depth, _overrun, calltime, rettime = struct.unpack("<QiIQQ", body)
        return ip, 0, depth, calltime, rettime
    return 0, 0, 0, 0, 0


def payload_of(kind: int, body: bytes) -> object:
    if kind == EventId.KERNEL_STACK:
        (count,) = struct.unpack_from("<i", body)
        callers = struct.unpack_from(f"<{(len(body) - 8) // 8}Q", body, 8)
        if (1 << 64) - 1 in callers:
            assert callers.index((1 << 64) - 1) == count
        return callers[:count]
    if kind == EventId.PRINT:
        return body[8:].split(b"\0")[0].decode().removesuffix("\n")
    if kind == EventId.RAW_DATA:
        return body
    return None


def test_pages_of_every_kind_of_event() -> None:
    tree = CallTree(vcpus=2)
    tree.files.write("buffer_size_kb", "16")
    tree.files.write("options/func_stack_trace", "1")
    tree.files.write("current_tracer", "function")
    tree.files.write("set_ftrace_filter", "lock:stacktrace", append=True)
    kinds: Counter = Counter()
    for number in range(40):
        tree.call("sys_read", cpu=number % 2)
        tree.files.write("trace_marker", f"marker {number} " + "x" * (7 * number))
        tree.files.write("trace_marker_raw", "\1\2\3\4" + "r" * number)
        if number == 20:
            for part in tree.tracing.global_array.buffer.cpus:
                kinds += check_decoding(part)[0]
            tree.files.write("current_tracer", "function_graph")
        if number == 30:
            tree.tracing.global_array.buffer.read(17)
    for part in tree.tracing.global_array.buffer.cpus:
        kinds += check_decoding(part)[0]
    assert set(kinds) == {int(kind) for kind in EventId}


def test_markers_come_back() -> None:
    tree = CallTree()
    tree.files.write("trace_marker", "one\n")
    tree.files.write("trace_marker", "two")
    tree.files.write("trace_marker_raw", "abcdefg")
    events = tree.events()
    texts = [events.payloads[row["payload"]] for row in events.table]
    assert texts[:2] == ["one", "two"]
    assert texts[2].rstrip(b"\0") == b"abcdefg"


@pytest.mark.parametrize("tracer", ["function", "function_graph"])
def test_times_far_apart(tracer: str) -> None:
    """At 2000 instructions a second, 600 of them are longer than an event's 27 bits can say."""
    tree = CallTree(
        {"top": ("slow", "quick", "slow"), "slow": (), "quick": ()},
        nops={"slow": 600, "quick": 1},
        virtual_hz=2000,
    )
    tree.files.write("current_tracer", tracer)
    began = tree.machine.engine._slots[0].clock
    for _ in range(30):
        tree.call("top")
    took = (tree.machine.engine._slots[0].clock - began) / 2000 * 1e9
    part = tree.tracing.global_array.buffer.cpus[0]
    kinds, extends = check_decoding(part)
    assert extends > 50
    assert sum(kinds.values()) == 120 * (2 if tracer == "function_graph" else 1)
    times = part.peek()[0].table["ts"].astype(np.int64)
    assert (np.diff(times) >= 0).all()
    assert took * 0.9 < times[-1] - times[0] <= took


event = st.tuples(
    st.integers(0, 255),  # flags
    st.integers(1, 2047),  # pid
    st.binary(min_size=4, max_size=600),
    st.one_of(st.integers(0, 1000), st.integers(0, 1 << 40)),  # time since the last
)


@pytest.fixture(scope="module")
def memory():
    tree = CallTree()
    return SimpleNamespace(memory=tree.machine.memory, pool=PagePool(tree.machine.memory, "test"))


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(event, max_size=120),
    overwrite=st.booleans(),
    reads=st.lists(st.tuples(st.integers(0, 120), st.integers(1, 9)), max_size=6),
)
def test_what_the_host_writes_is_read_again(memory, events, overwrite, reads) -> None:
    part = RingBufferCpu(memory.memory, memory.pool, 0, 3)
    try:
        part.set("overwrite", int(overwrite))
        written: list[tuple[int, int, bytes]] = []  # (ts, common, data), those not dropped
        consumed, dropped, now = [], 0, 0
        for index, (flags, pid, body, delay) in enumerate(events):
            now += delay
            common = EventId.RAW_DATA | flags << 16 | pid << 32
            if part.write(common, body, now):
                written.append((now, common, body))
            else:
                dropped += 1
            for at, limit in reads:
                if at == index:
                    got, _ = part.read(limit)
                    consumed += [(row, got.payloads[row["payload"]]) for row in got.table]
        check_decoding(part)
        left, _ = part.peek()
        stats = part.stats()
        assert stats.entries + stats.overrun + stats.read == len(written)
        assert stats.dropped == dropped
        assert stats.read == len(consumed)
        assert not (overwrite and dropped)
        assert overwrite or not stats.overrun
        rows = consumed + [(row, left.payloads[row["payload"]]) for row in left.table]
        for row, payload in rows:
            ts, common, body = written[int(row["number"])]
            assert int(row["ts"]) == ts
            assert (int(row["flags"]), int(row["pid"])) == (common >> 16 & 0xFF, common >> 32)
            assert payload == body.ljust(-(-len(body) // 4) * 4, b"\0")
        numbers = [int(row["number"]) for row, _ in rows]
        assert numbers == sorted(set(numbers))
        if len(left):
            assert left.table["number"][-1] == len(written) - 1
    finally:
        part.free()


# --- read while it is written ---


class Reader:
    """Drains a buffer beside the vCPUs and checks what it gets."""

    def __init__(self, run, limit: int | None) -> None:
        self.run, self.limit = run, limit
        self.read = 0
        self.next = [0] * len(run.machine.vcpus)
        self.last_ts = [0] * len(run.machine.vcpus)
        self.lost = [0] * len(run.machine.vcpus)
        self.sites = np.sort(run.image.call_sites)
        self.text = run.image.text_range
        self.problems: list[str] = []

    def take(self) -> int:
        events, lost = self.run.tracing.global_array.buffer.read(self.limit)
        table = events.table
        for cpu in np.unique(table["cpu"]).tolist():
            self._check(cpu, table[table["cpu"] == cpu], lost.get(cpu, 0))
        self.read += len(table)
        return len(table)

    def _check(self, cpu: int, table, lost: int) -> None:
        numbers, times = table["number"].astype(np.int64), table["ts"].astype(np.int64)
        gap = int(numbers[0]) - self.next[cpu]
        self._hold(gap == lost, f"CPU {cpu}: a gap of {gap} events, {lost} reported")
        self._hold((np.diff(numbers) == 1).all(), "a gap inside what was read at once")
        self._hold((np.diff(times) >= 0).all() and times[0] >= self.last_ts[cpu], "time went back")
        self._hold((table["type"] == EventId.FUNCTION).all(), "an event of another kind: torn")
        where = np.searchsorted(self.sites, table["ip"])
        known = self.sites[np.minimum(where, len(self.sites) - 1)] == table["ip"]
        self._hold(known.all(), "an ip that is no call site: torn")
        start, end = self.text
        parents = table["parent_ip"]
        self._hold(((parents >= start) & (parents < end)).all(), "a parent_ip outside the text")
        pids = table["pid"]
        own = (pids > 16 * cpu) & (pids <= 16 * (cpu + 1))
        self._hold(own.all(), f"CPU {cpu}: a pid of another: {np.unique(pids[~own])}")
        self.next[cpu], self.last_ts[cpu] = int(numbers[-1]) + 1, int(times[-1])
        self.lost[cpu] += lost

    def _hold(self, condition: bool, what: str) -> None:
        if not condition:
            self.problems.append(what)


def check_totals(run, reader: Reader) -> None:
    assert reader.problems == []
    for cpu, part in enumerate(run.tracing.global_array.buffer.cpus):
        stats = part.stats()
        traced = run.kernel.percpu("traced_calls")[cpu]
        assert stats.entries + stats.overrun + stats.dropped + stats.read == traced
        assert stats.overrun == reader.lost[cpu] + part.peek()[1]


@pytest.mark.parametrize(
    ("overwrite", "limit", "kilobytes"),
    [("1", None, "64"), ("0", None, "64"), ("1", 3000, "128"), ("0", 500, "256")],
)
def test_a_reader_drains_while_two_vcpus_write(
    overwrite: str, limit: int | None, kilobytes: str
) -> None:
    """A million events at least are written (half a million with a reader that takes little)."""
    run = make_run(
        engine=EngineName.THREADED, seconds=None, iterations=MILLION, discover="scan",
        workload="leaf",
    )  # fmt: skip
    files = TraceFs(run.tracing)
    files.write("buffer_size_kb", kilobytes)
    files.write("options/overwrite", overwrite)
    files.write("current_tracer", "function")
    reader = Reader(run, limit)
    wanted = MILLION if limit is None else MILLION // 2

    def draining():
        while run.kernel.total("traced_calls") < wanted:
            reader.take()
            yield 0.0
        run.machine.interrupt()

    run.machine.kthread("reader", draining())
    run.execute()
    while reader.take():
        pass
    assert reader.read > 10_000
    check_totals(run, reader)


def test_snapshots_resizes_resets_and_clocks_under_load() -> None:
    """Nothing is torn, doubled or lost by a snapshot; a resize begins anew."""
    run = make_run(
        engine=EngineName.THREADED, seconds=None, iterations=MILLION, discover="scan",
        workload="leaf",
    )  # fmt: skip
    files = TraceFs(run.tracing)
    files.write("buffer_size_kb", "2000")
    files.write("current_tracer", "function")
    array = run.tracing.global_array
    seen, lost_there, problems, done = [[], []], [0, 0], [], []

    def note(buffer) -> None:
        """A snapshot's events come behind those of the one before, none missing between but those
        that it says were overwritten.
        """
        for cpu, part in enumerate(buffer.cpus):
            events, lost = part.peek()
            lost_there[cpu] += lost
            seen[cpu].append(events.table[["ts", "ip", "pid"]].copy())

    def control():
        for _ in range(25):
            files.write("snapshot", "1")
            yield 0.0
            # Who was writing an event has written it after the next stop.
            run.tracing.stop(lambda: None)
            note(array.max_buffer)
        files.write("tracing_on", "0")
        run.tracing.stop(lambda: None)
        note(array.buffer)
        done.append(run.kernel.percpu("traced_calls"))
        files.write("tracing_on", "1")
        for kilobytes in ("64", "300", "8", "1", "900"):
            files.write("buffer_size_kb", kilobytes)
            yield 0.0
            files.write("trace", "")
            yield 0.0
            check(array.buffer)
            files.write("snapshot", "1")
            check(array.max_buffer)
            files.write("snapshot", "0")
            files.write("options/overwrite", str(int(int(kilobytes) < 100)))
        run.machine.interrupt()

    def check(buffer) -> None:
        reader = Reader(run, None)
        for part in buffer.cpus:
            events, lost = part.peek()
            if len(events):
                reader.next[part.cpu] = int(events.table["number"][0]) - lost
                reader._check(part.cpu, events.table, lost)
        problems.extend(reader.problems)

    run.machine.kthread("control", control())
    run.execute()
    assert problems == []
    total = [sum(len(table) for table in tables) for tables in seen]
    assert min(total) > 1000
    assert [count + lost for count, lost in zip(total, lost_there, strict=True)] == done[0]
    for tables in seen:
        times = np.concatenate(tables)["ts"].astype(np.int64)
        assert (np.diff(times) >= 0).all()


def test_a_reader_that_takes_some_while_pages_go() -> None:
    """Between the look and the taking the writer goes round: what was given is what was read."""
    tree = CallTree()
    tree.files.write("buffer_size_kb", "8")
    tree.files.write("current_tracer", "function")
    buffer = tree.tracing.global_array.buffer
    part = buffer.cpus[0]
    for _ in range(10):
        tree.call("sys_read")
    read = part.read

    def late(limit: int | None = None):
        for _ in range(100):
            tree.call("sys_read")  # as another thread's vCPU might
        return read(limit)

    part.read = late
    first, _ = buffer.read(limit=5)
    part.read = read
    rest, lost_rest = buffer.read()
    stats = part.stats()
    assert stats.read == len(first) + len(rest)
    gap = int(rest.table["number"][0]) - int(first.table["number"][-1]) - 1
    assert lost_rest.get(0, 0) == gap
    total = tree.kernel.percpu("traced_calls")[0]
    assert stats.entries + stats.overrun + stats.dropped + stats.read == total


def test_freeing_the_snapshot_while_a_trigger_takes_one() -> None:
    """A vCPU may take a snapshot up to the moment when the spare buffer goes: it must be the spare
    buffer that goes, not the one that is written to.
    """
    tree = CallTree()
    tree.files.write("snapshot", "1")
    tree.files.write("current_tracer", "function")
    array = tree.tracing.global_array
    stop = tree.tracing.stop

    def stop_then_trigger(fn):
        result = stop(fn)
        array.swap_snapshot()  # what fn:snapshot does, in the vCPU's thread
        return result

    tree.tracing.stop = stop_then_trigger
    tree.files.write("snapshot", "0")
    tree.tracing.stop = stop
    in_use = {(part.base, part.address) for part in array.buffer.cpus}
    free = {address for _, address in tree.tracing.pool._free}
    assert not {address for pair in in_use for address in pair} & free
    tree.call("sys_read")
    assert tree.names(tree.events()) == list(tree.walk("sys_read"))


def test_bytes_are_those_of_the_events_in_the_buffer() -> None:
    tree = CallTree()
    tree.files.write("current_tracer", "function")
    tree.call("sys_read")
    part = tree.tracing.global_array.buffer.cpus[0]
    whole = part.stats()
    part.read(3)
    left = part.stats()
    assert whole.bytes == 28 * whole.entries
    assert left.bytes == 28 * left.entries


def test_a_change_of_clock_begins_anew() -> None:
    tree = CallTree()
    tree.files.write("buffer_size_kb", "8")
    tree.files.write("current_tracer", "function")
    part = tree.tracing.global_array.buffer.cpus[0]
    calls = len(list(tree.walk("sys_read")))
    for clock in ("counter", "local", "counter"):
        for _ in range(30):
            tree.call("sys_read")
        tree.files.write("trace_clock", clock)
        stats = part.stats()
        assert (stats.entries, stats.overrun, stats.dropped, stats.read) == (0, 0, 0, 0)
        tree.call("sys_read")
        events, lost = part.peek()
        assert (len(events), lost) == (calls, 0)
        times = events.table["ts"].astype(np.int64)
        steps = np.diff(times)
        assert (steps == 1).all() if clock == "counter" else (steps > 100).all()
        check_decoding(part)
