"""trace.dat: read back by us and by trace-cmd itself; damaged, on full disks, and after a kill."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynftrace_emu.export import trace_dat_spill
from dynftrace_emu.export.trace_dat import LOST_UNKNOWN, TraceDatWriter, read_trace_dat, recover
from dynftrace_emu.export.trace_dat_format import PAGE_SPACE
from dynftrace_emu.export.trace_dat_pack import Packer
from dynftrace_emu.export.trace_dat_spill import find_spills, spill_path
from dynftrace_emu.export.trace_file_error import TraceFileError
from dynftrace_emu.export.trace_source import HostEvent, SymbolTable, TraceInfo
from dynftrace_emu.ftrace.event_decoder import decode_pages
from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.ring_buffer import CpuStats
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.ftrace.trace_events import EVENT
from dynftrace_emu.kernel.structs import PAGE_SIZE, EventId
from tests.ftrace.conftest import assembled

TEXT = 0xFFFF_FFFF_8100_0000
SYMBOLS = SymbolTable(
    ((TEXT, 0x20, "first"), (TEXT + 0x40, 0, "second"), (TEXT + 0x80, 0x80, "third"))
)
INFO = TraceInfo("function", 2, "local", SYMBOLS, {7: "bash", 8: "a task"})
HOST_EVENTS = [
    HostEvent(5_000, "tick", {"sites": 3}),
    HostEvent(6_000, "stop", {"duration_ns": 1234}),
    HostEvent(7_000, "patched", {"ip": TEXT + 0x45}),
    HostEvent(8_000, "failed", {"ip": TEXT + 0x85, "odd": -1}),
    HostEvent(9_000, "page"),
    HostEvent(9_000, "tracing", {"enabled": 1, "sites": 12}),
]
needs_trace_cmd = pytest.mark.skipif(not shutil.which("trace-cmd"), reason="trace-cmd is missing")


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def calls(count, start=1000, step=100):
    table = np.zeros(count, EVENT)
    table["ts"] = start + step * np.arange(count, dtype=np.uint64)
    table["type"], table["pid"], table["payload"] = EventId.FUNCTION, 7, -1
    table["ip"] = TEXT + 5 + 0x40 * (np.arange(count, dtype=np.uint64) % 3)
    table["parent_ip"] = TEXT + 0x90
    return table


def everything(source):
    """All events in one table, payloads in place of their indexes, and [(cpu, ts, lost)]."""
    tables, payloads, losses = [np.zeros(0, EVENT)], [], []
    for events, lost in source.batches():
        table = events.table.copy()
        for cpu, count in lost.items():
            losses.append((cpu, int(table["ts"][table["cpu"] == cpu][0]), count))
        payloads += [events.payloads[at] for at in table["payload"] if at >= 0]
        tables.append(table)
    return np.concatenate(tables), payloads, losses


# --- a real run ---


@dataclass(frozen=True)
class Traced:
    info: TraceInfo
    pages: list  # of each CPU
    table: np.ndarray


@cache
def traced(tracer):
    options = RunOptions(engine=EngineName.DETERMINISTIC, vcpus=2, seconds=None, iterations=2)
    run = Run(options, image=assembled("dynamic", "mini-kernel"))
    run.tracing.set_tracer(run.tracing.global_array, tracer)
    run.execute()
    functions = sorted((f.address, f.size, f.name) for f in run.image.functions)
    # More than one name for an address: the last one stays.
    by_address = {function[0]: function for function in functions}
    symbols = SymbolTable(tuple(by_address.values()))
    buffer = run.tracing.global_array.buffer
    info = TraceInfo(tracer, 2, "local", symbols, run.tracing.comms())
    return Traced(info, [cpu.pages() for cpu in buffer.cpus], buffer.peek()[0].table)


def write_traced(path, tracer, lost=0, host=()):
    run = traced(tracer)
    with TraceDatWriter(path, run.info) as writer:
        for cpu, pages in enumerate(run.pages):
            writer.add_pages(cpu, pages.raw, pages.commit, lost)
        for event in host:
            writer.add_host_event(event)
    return run


@pytest.mark.parametrize("tracer", ["function", "function_graph"])
def test_raw_pages_of_a_run_come_back(tmp_path, tracer):
    run = write_traced(tmp_path / "trace.dat", tracer)
    source = read_trace_dat(tmp_path / "trace.dat")
    table, _, losses = everything(source)
    assert len(table) > 1000
    np.testing.assert_array_equal(table, run.table)
    assert losses == []
    assert source.info == run.info
    assert source.host_events == []
    assert names_in(tmp_path) == ["trace.dat"]


# --- events packed by us ---

u64 = st.integers(0, 2**64 - 1)
i32 = st.integers(-(2**31), 2**31 - 1)
delta = st.one_of(st.integers(0, 300), st.integers(0, 2**28), st.sampled_from([2**27, 2**60]))
printable = st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]))
bodies = {
    EventId.FUNCTION: st.fixed_dictionaries({"ip": u64, "parent_ip": u64}),
    EventId.GRAPH_ENTRY: st.fixed_dictionaries({"ip": u64, "depth": i32}),
    EventId.GRAPH_EXIT: st.fixed_dictionaries(
        {"ip": u64, "depth": i32, "calltime": u64, "rettime": u64}
    ),
    EventId.KERNEL_STACK: st.fixed_dictionaries(
        {"payload": st.lists(st.integers(1, 2**64 - 2), max_size=70).map(tuple)}
    ),
    EventId.PRINT: st.fixed_dictionaries({"payload": printable}),
    EventId.RAW_DATA: st.fixed_dictionaries(
        {"payload": st.binary(min_size=1, max_size=99).map(lambda data: data * 4)}
    ),
}
row = st.one_of(
    st.fixed_dictionaries(
        {
            "type": st.just(kind),
            "flags": st.integers(0, 255),
            "preempt": st.integers(0, 255),
            "pid": i32,
            "delta": delta,
        }
    ).flatmap(lambda common, body=body: body.map(lambda own: {**common, **own}))
    for kind, body in bodies.items()
)
lost_counts = st.sampled_from([0, 0, 0, 1, 12345, LOST_UNKNOWN])
part = st.tuples(st.integers(0, 1), lost_counts, st.integers(1, 40), st.lists(row, min_size=1))


def make_table(rows, repeat, ts):
    """``rows`` over and over, from ``ts`` on; the payloads stand by their rows."""
    table, payloads = np.zeros(len(rows) * repeat, EVENT), []
    table["payload"] = -1
    for index in range(len(table)):
        fields = rows[index % len(rows)]
        ts = min(ts + fields["delta"], 2**63)
        table[index]["ts"] = ts
        for name in fields.keys() - {"delta", "payload"}:
            table[index][name] = fields[name]
        if "payload" in fields:
            table[index]["payload"] = len(payloads)
            payloads.append(fields["payload"])
    return table, payloads, ts


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(part, max_size=6))
def test_packed_events_come_back(tmp_path, parts):
    path = tmp_path / "trace.dat"
    written, times, losses = {0: [], 1: []}, {0: 0, 1: 0}, {0: [], 1: []}
    with TraceDatWriter(path, INFO) as writer:
        for cpu, lost, repeat, rows in parts:
            table, payloads, times[cpu] = make_table(rows, repeat, times[cpu])
            table["cpu"] = cpu
            writer.add_events(cpu, table, payloads, lost)
            if lost:
                losses[cpu].append((int(table["ts"][0]), lost))
            written[cpu] += [(r, payloads[r["payload"]] if r["payload"] >= 0 else 0) for r in table]
    table, payloads, found = everything(read_trace_dat(path))
    expected = sorted(written[0] + written[1], key=lambda pair: (pair[0]["ts"], pair[0]["cpu"]))
    names = [name for name in EVENT.names if name not in ("number", "payload")]
    assert [tuple(r[names]) for r in table] == [tuple(r[names]) for r, _ in expected]
    assert payloads == [payload for r, payload in expected if r["payload"] >= 0]
    for cpu in (0, 1):
        assert [(ts, lost) for which, ts, lost in found if which == cpu] == losses[cpu]


@given(sizes=st.lists(st.integers(1, 700), min_size=1, max_size=9))
def test_pages_do_not_depend_on_how_events_come(sizes):
    table, packer, pages = calls(sum(sizes)), Packer(), []
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        made, replaces = packer.pages(table[start : start + size], (), 0)
        pages[len(pages) - replaces :] = made
    np.testing.assert_array_equal(pages, Packer().pages(table, (), 0)[0])
    raw = np.array(pages).view("u1")
    commit = raw.view("<u8")[:, 1].astype(np.int64)
    decoded, _, page = decode_pages(raw, commit, np.zeros(len(pages), np.int64))
    np.testing.assert_array_equal(decoded["ts"], table["ts"])
    assert (commit[:-1] > PAGE_SPACE - 28).all()
    assert (raw.view("<u8")[:, 0] == table["ts"][np.searchsorted(page, range(len(pages)))]).all()


def test_lost_events_are_counted_where_there_is_room(tmp_path):
    first, full = Packer().pages(calls(290), (), 0)[0].view("u1")[:2], np.array([4060, 4060])
    with TraceDatWriter(tmp_path / "trace.dat", INFO) as writer:
        writer.add_pages(0, first[:1], full[:1], lost=44)
        writer.add_pages(0, first[1:], full[1:], lost=LOST_UNKNOWN)
        writer.add_events(0, calls(3, start=10**6), lost=3)
        writer.add_events(1, calls(0), lost=2)
        writer.add_events(1, calls(1), lost=2)
    table, _, losses = everything(read_trace_dat(tmp_path / "trace.dat"))
    assert [(cpu, lost) for cpu, _, lost in losses] == [(0, 44), (1, 4), (0, LOST_UNKNOWN), (0, 3)]
    numbers = table["number"][table["cpu"] == 0]
    assert (numbers[0], numbers[-1]) == (44, 44 + 290 + 3 + 3 - 1)


def test_more_than_fits_a_part_streams_in_order(tmp_path):
    count, rng = 200_000, np.random.default_rng(1)
    with TraceDatWriter(tmp_path / "trace.dat", INFO) as writer:
        for cpu in (0, 1):
            table = calls(count)
            table["ts"] = np.sort(rng.integers(0, 50_000, count))
            writer.add_events(cpu, table)
    source = read_trace_dat(tmp_path / "trace.dat")
    sizes = [len(events) for events, _ in source.batches()]
    table, _, _ = everything(source)
    assert len(table) == 2 * count
    assert max(sizes) < 2 * 512 * 150
    order = table["ts"].astype(np.int64) * 2 + table["cpu"]
    assert (np.diff(order) >= 0).all()


def test_what_a_trace_is_of_comes_back(tmp_path):
    path = tmp_path / "trace.dat"
    info = TraceInfo("function_graph", 3, "counter", SYMBOLS, {1: "init"})
    with TraceDatWriter(path, info) as writer:
        writer.add_host_events(HOST_EVENTS)
        writer.set_stats(1, CpuStats(10, 20, 3, 4, 5, None))
        writer.info = TraceInfo("function_graph", 3, "counter", SYMBOLS, {1: "init", 9: "late"})
    source = read_trace_dat(path)
    assert source.info == writer.info
    assert source.host_events == HOST_EVENTS
    assert source.stats[1]["overrun"] == "20"
    assert source.stats[1]["dropped events"] == "3"
    assert everything(source)[0].size == 0


# --- trace-cmd ---


def trace_cmd(*args, says=""):
    done = subprocess.run(
        ["trace-cmd", *map(str, args)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(says, done.stderr)
    return done.stdout.splitlines()


def reported(run):
    """What `trace-cmd report` says of each event in front of its own words."""
    usecs = (run.table["ts"] + np.uint64(500)) // np.uint64(1000)
    for event, usec in zip(run.table, usecs.tolist(), strict=True):
        task = f"{run.info.comm(int(event['pid']))}-{event['pid']}"
        seconds = f"{usec // 10**6}.{usec % 10**6:06d}"
        yield task, int(event["cpu"]), seconds, run.info.symbols.name(int(event["ip"]))


CONVERTED = r"(CPU\d data recorded at offset=\w+\n +\d+ bytes in size .*\n)+"
LINE = re.compile(r" *(\S.*-\d+) +\[(\d+)\] +(\d+\.\d+): (\w+): +(.*)")


@needs_trace_cmd
def test_trace_cmd_reports_the_calls_we_read(tmp_path):
    path = tmp_path / "trace.dat"
    run = write_traced(path, "function", lost=17, host=HOST_EVENTS)
    lines = trace_cmd("report", path)
    assert lines[0] == "cpus=3"
    assert {"CPU:0 [17 EVENTS DROPPED]", "CPU:1 [17 EVENTS DROPPED]"} < set(lines)
    found = [match.groups() for match in map(LINE.fullmatch, lines) if match]
    calls = [
        (task, int(cpu), at, text) for task, cpu, at, name, text in found if name == "function"
    ]
    assert calls == list(reported(run))
    host = [(cpu, name, text) for _, cpu, _, name, text in found if name != "function"]
    assert host == [
        ("002", "tick", "the daemon woke up sites=3"),
        ("002", "stop", "stopped for 1234 ns"),
        ("002", "patched", run_symbol(run, TEXT + 0x45)),
        ("002", "failed", run_symbol(run, TEXT + 0x85) + " odd=-1"),
        ("002", "page", "capacity=0"),
        ("002", "tracing", "enabled=1 sites=12"),
    ]


def run_symbol(run, address):
    name, offset, _ = run.info.symbols.find(address)
    return f"{name}+{offset:#x}"


@needs_trace_cmd
def test_trace_cmd_reports_callers_and_flags(tmp_path):
    path = tmp_path / "trace.dat"
    run = write_traced(path, "function")
    lines = trace_cmd("report", "-l", "-O", "parent", path)[1:]
    pairs = [re.search(r"function: +(\S+) <-- (\S+)$", line).groups() for line in lines]
    name = run.info.symbols.name
    table = run.table
    assert pairs == [(name(int(e["ip"])), name(int(e["parent_ip"]))) for e in table]
    flags = [re.match(r" *\S+-\d+ +\d+([^\d ]\S+) ", line)[1] for line in lines]
    in_irq = ["h" in shown for shown in flags]
    assert in_irq == [bool(flags & 8) for flags in table["flags"]]


@needs_trace_cmd
def test_trace_cmd_draws_the_calls_we_read(tmp_path):
    path = tmp_path / "trace.dat"
    run = write_traced(path, "function_graph")
    found = [m.groups() for m in map(LINE.fullmatch, trace_cmd("report", path)) if m]
    entries = [(cpu, text) for _, cpu, _, name, text in found if name == "funcgraph_entry"]
    exits = sum(name == "funcgraph_exit" for _, _, _, name, _ in found)
    leaves = sum(text.endswith("();") for _, text in entries)
    is_entry = run.table["type"] == EventId.GRAPH_ENTRY
    expected = [
        (f"{event['cpu']:03d}", run.info.symbols.name(int(event["ip"])))
        for event in run.table[is_entry]
    ]
    assert [(cpu, re.search(r"(\S+)\(\)", text)[1]) for cpu, text in entries] == expected
    assert leaves + exits == (~is_entry).sum()


@needs_trace_cmd
@pytest.mark.parametrize("tracer", ["function", "function_graph"])
def test_trace_cmd_counts_dumps_and_converts(tmp_path, tracer):
    path, newer = tmp_path / "trace.dat", tmp_path / "newer.dat"
    write_traced(path, tracer, host=HOST_EVENTS)
    summary = "\n".join(trace_cmd("dump", "--summary", "-i", path))
    assert "\t\t6\t[Version]" in summary
    assert "3 [CPUs with tracing data]" in summary
    assert "[local] global" in summary
    assert trace_cmd("hist", path)
    trace_cmd("convert", "-i", path, "-o", newer, "--file-version", "7", says=CONVERTED)
    assert trace_cmd("report", newer) == trace_cmd("report", path)
    with pytest.raises(TraceFileError, match="version '7'"):
        read_trace_dat(newer)


@needs_trace_cmd
def test_trace_cmd_shows_counters_stacks_and_marks(tmp_path):
    path = tmp_path / "trace.dat"
    table = calls(4, start=1, step=1)
    table["type"][1:] = EventId.KERNEL_STACK, EventId.PRINT, EventId.RAW_DATA
    table["payload"][1:] = range(3)
    payloads = [(TEXT + 0x45, TEXT + 5), "hello there", b"\x2a\0\0\0abcd"]
    with TraceDatWriter(path, TraceInfo("function", 1, "counter", SYMBOLS, {7: "bash"})) as writer:
        writer.add_events(0, table, payloads)
    lines = [line.strip() for line in trace_cmd("report", path)]
    assert re.fullmatch(r"bash-7 +\[000\] +1: function: +first", lines[1])
    assert re.fullmatch(r"bash-7 +\[000\] +2: kernel_stack: +<stack trace >", lines[2])
    assert [line.split()[1] for line in lines[3:5]] == ["second", "first"]
    assert "hello there" in "\n".join(lines)
    assert "# 2a 61 62 63 64" in lines[-1]


# --- files that are damaged ---


def small_file(path):
    with TraceDatWriter(path, INFO) as writer:
        writer.add_events(0, calls(200), lost=5)
        writer.add_events(1, calls(50))
        writer.add_host_event(HOST_EVENTS[0])
    return path.read_bytes()


def read_all(path):
    source = read_trace_dat(path)
    return everything(source), source.host_events, source.stats


def test_files_cut_short_are_refused(tmp_path):
    path = tmp_path / "trace.dat"
    data = small_file(path)
    header = data.index(b"flyrecord")
    for size in [*range(0, 300), *range(300, header, 97), *range(header, header + 90)]:
        path.write_bytes(data[:size])
        with pytest.raises(TraceFileError, match=re.escape(str(path))) as caught:
            read_all(path)
        assert caught.value.exit_code == 2
    for size in (len(data) - 1, len(data) - PAGE_SIZE, len(data) - 3 * PAGE_SIZE):
        path.write_bytes(data[:size])
        with pytest.raises(TraceFileError, match="cut short"):
            read_all(path)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=st.floats(0, 1, exclude_max=True), data=st.binary(min_size=1, max_size=9))
def test_damaged_files_are_read_or_refused(tmp_path, where, data):
    path = tmp_path / "trace.dat"
    whole = bytearray(small_file(path))
    at = int(where * len(whole))
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    with contextlib.suppress(TraceFileError):
        read_all(path)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"\x17\x08\x44tracing", b"\x7fELF......", "no trace.dat"),
        (b"tracing6\0", b"tracing5\0", "version '5'"),
        (b"6\0\0\x08", b"6\0\x01\x08", "64-bit little-endian"),
        (b"\0\x08\0\x10\0\0", b"\0\x08\0\x20\0\0", "pages are not 4096"),
        (b"header_page", b"header_pale", "no header_page"),
        (b"flyrecord", b"latency  ", "latency tracer"),
        (b"name: function\n", b"nome: function\n", "format is damaged"),
        (b"parent_ip;", b"parent_xx;", "format of event function is damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, old, new, why):
    path = tmp_path / "trace.dat"
    data = small_file(path)
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(TraceFileError, match=why):
        read_all(path)


@pytest.mark.parametrize(
    ("word", "value", "why"),
    [
        (2, 4081, "length is impossible"),
        (2, 10, "length is impossible"),
        (2, 16, "goes beyond"),
        (4, 0, "goes beyond|too short"),
        (4, 1, "too short"),
        (4, 3, "too short"),  # three words are no function event
    ],
)
def test_damaged_pages_are_named(tmp_path, word, value, why):
    path = tmp_path / "trace.dat"
    data = bytearray(small_file(path))
    at = len(data) - 3 * PAGE_SIZE  # CPU 0 has two pages, then come CPU 1 and the host
    data[at + 4 * word : at + 4 * word + 4] = value.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(TraceFileError, match=f"CPU 0's page at {at:#x} is damaged: .*({why})"):
        read_all(path)


def test_a_file_of_another_machine_says_what_its_events_are(tmp_path):
    """As trace-cmd would have written it: no marks of ours, no host."""
    path = tmp_path / "trace.dat"
    with TraceDatWriter(path, TraceInfo("function_graph", 1)) as writer:
        table = calls(2)
        table["type"] = EventId.GRAPH_ENTRY, EventId.GRAPH_EXIT
        writer.add_events(0, table)
    data = (
        path.read_bytes()
        .replace(b".dynftrace.", b".something.")
        .replace(b"ftraced\0", b"another\0")
    )
    path.write_bytes(data)
    assert read_trace_dat(path).info.tracer == "function_graph"
    assert read_trace_dat(path).info.nr_cpus == 1


@pytest.mark.parametrize("name", ["missing.dat", "."])
def test_what_cannot_be_opened_is_said(tmp_path, name):
    with pytest.raises(TraceFileError):
        read_trace_dat(tmp_path / name)


# --- full disks and sudden ends ---


class FullDisk:
    """A file on a disk where so many bytes are free."""

    def __init__(self, file, room):
        self._file, self.room = file, room

    def write(self, data):
        data = memoryview(data)[: self.room]
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 100, PAGE_SIZE, 3 * PAGE_SIZE + 5])
def test_a_full_disk_leaves_what_was_written(tmp_path, room):
    path = tmp_path / "trace.dat"
    writer = TraceDatWriter(path, INFO)
    writer.add_events(1, calls(10))
    writer.add_events(0, calls(150))
    spill = writer._spills[0]
    disk = spill._file = FullDisk(spill._file, room)
    with pytest.raises(OSError, match="No space"):
        writer.add_events(0, calls(5_000, start=10**6))
    disk.room = 10**6
    writer.add_events(0, calls(1, start=10**9))
    writer.close()
    writer.close()
    table, _, losses = everything(read_trace_dat(path))
    assert (table["cpu"] == 1).sum() == 10
    kept = table["ts"][table["cpu"] == 0]
    assert 151 <= len(kept) < 5_000
    assert losses == [(0, 10**9, LOST_UNKNOWN)]


class SharedDisk(io.BytesIO):
    """One of several files that share ``room[0]`` bytes; holes take none."""

    def __init__(self, room, data=b""):
        super().__init__(data)
        self._room = room

    def write(self, data):
        if len(data) > self._room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room[0] -= len(data)
        return super().write(data)

    def truncate(self, size):
        self._room[0] += len(self.getvalue()) - size
        return super().truncate(size)


@pytest.mark.parametrize("size", [PAGE_SIZE, 5 * trace_dat_spill._MOVE + PAGE_SIZE])
def test_a_full_disk_is_enough_to_put_a_file_together(size):
    rng = np.random.default_rng(2)
    data = [rng.bytes(size) for _ in range(2)]
    room = [PAGE_SIZE]
    spills = [trace_dat_spill.Spill(SharedDisk(room, part)) for part in data]
    for spill in spills:
        spill.size = size
    target = SharedDisk(room)
    trace_dat_spill.assemble(target, 100, 200, spills)
    made = target.getvalue()
    assert made[PAGE_SIZE : PAGE_SIZE + size] == data[0]
    assert made[PAGE_SIZE + size :] == data[1]


def test_a_file_object_will_do_and_may_be_full(tmp_path):
    target = io.BytesIO()
    with TraceDatWriter(target, INFO) as writer:
        writer.add_events(0, calls(200), lost=5)
        writer.add_events(1, calls(50))
        writer.add_host_event(HOST_EVENTS[0])
    assert target.getvalue() == small_file(tmp_path / "trace.dat")
    full = FullDisk(io.BytesIO(), 1 << 13)
    writer = TraceDatWriter(full, INFO)
    writer.add_events(0, calls(2000))
    with pytest.raises(OSError, match="No space"):
        writer.close()
    writer.close()


KILLED = """
    import os, sys
    sys.path[:0] = sys.argv[2:]
    from tests.export.test_trace_dat import *
    writer = TraceDatWriter(sys.argv[1], INFO)
    for start in range(0, 10**6, 100_000):
        writer.add_events(0, calls(333, start))
        writer.add_events(1, calls(1, start))
    writer.add_host_event(HOST_EVENTS[0])
    os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_all_it_wrote(tmp_path):
    path = tmp_path / "trace.dat"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", dedent(KILLED), path, root], check=False, timeout=100
    )
    assert done.returncode == -signal.SIGKILL
    assert len(find_spills(path)) == 3
    source = read_trace_dat(path)
    assert len(everything(source)[0]) == 10 * 334
    assert source.host_events == HOST_EVENTS[:1]
    assert names_in(tmp_path) == ["trace.dat"]
    assert not recover(path)


@pytest.mark.parametrize("writes", range(12))
def test_putting_together_goes_on_where_it_ended(tmp_path, monkeypatch, writes):
    path = tmp_path / "trace.dat"
    monkeypatch.setattr(trace_dat_spill, "_MOVE", PAGE_SIZE)
    write, done = trace_dat_spill.write_at, []

    def interrupted(target, at, data):
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(at)
        write(target, at, data)

    writer = TraceDatWriter(path, INFO)
    for cpu, count in enumerate((500, 300, 0)):
        writer.add_events(cpu, calls(count))
    with monkeypatch.context() as patch:
        patch.setattr(trace_dat_spill, "write_at", interrupted)
        if writes < 1 + 4 + 3:  # the table, and pages
            with pytest.raises(KeyboardInterrupt):
                writer.close()
        else:
            writer.close()
    assert len(everything(read_trace_dat(path))[0]) == 800
    assert names_in(tmp_path) == ["trace.dat"]


def test_a_file_that_is_being_recorded_is_left_alone(tmp_path):
    path = tmp_path / "trace.dat"
    with TraceDatWriter(path, INFO) as writer:
        writer.add_events(0, calls(5))
        with pytest.raises(TraceFileError, match="still being recorded"):
            read_trace_dat(path)
        with pytest.raises(TraceFileError, match="still being recorded"):
            TraceDatWriter(path, INFO)
    assert len(everything(read_trace_dat(path))[0]) == 5


def test_what_an_older_recording_left_does_not_get_in(tmp_path):
    path = tmp_path / "trace.dat"
    other = tmp_path / "trace.dat2.cpu0.part"
    other.touch()
    spill_path(path, 7).write_bytes(b"old")
    small_file(path)
    assert names_in(tmp_path) == ["trace.dat", other.name]
