"""Hand-made traces of calls, for the tests of everything that shows calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np

from dynftrace_emu.export.trace_source import HostEvent, SymbolTable, TraceInfo
from dynftrace_emu.ftrace.trace_events import EVENT, Events
from dynftrace_emu.kernel.structs import EventId

BASE = 0xFFFF_FFFF_8100_0000
NAMES = ("main", "a", "b", "c", "schedule", "do_irq", "idle", "odd;na\nme<&>\"'")
IP = {name: BASE + 0x100 * index + 5 for index, name in enumerate(NAMES)}
SYMBOLS = SymbolTable(tuple((ip - 5, 0x100, name) for name, ip in IP.items()))
COMMS = {0: "<idle>", 7: "bash", 8: "worker/0"}


@dataclass
class FakeSource:
    """A trace in memory, cut into batches of ``cut`` events.

    ``lost`` says of an event's index how many of its CPU's events were lost in front of it; a
    batch begins there.
    """

    events: Events
    tracer: str = "function_graph"
    nr_cpus: int = 2
    cut: int = 1 << 16
    lost: dict[int, int] = field(default_factory=dict)
    host_events: list[HostEvent] = field(default_factory=list)
    clock: str = "local"
    symbols: SymbolTable = SYMBOLS
    comms: dict[int, str] = field(default_factory=lambda: COMMS)

    @property
    def info(self) -> TraceInfo:
        return TraceInfo(self.tracer, self.nr_cpus, self.clock, self.symbols, self.comms)

    def batches(self):
        table = self.events.table
        cuts = sorted({0, *range(0, len(table), self.cut), *self.lost, len(table)})
        for start, stop in pairwise(cuts):
            lost = {}
            if start in self.lost:
                lost[int(table["cpu"][start])] = self.lost[start]
            yield Events(table[start:stop], self.events.payloads), lost


def events(*rows):
    """A table of ``rows``, dicts with the fields that are not 0 and perhaps a payload itself."""
    table, payloads = np.zeros(len(rows), EVENT), []
    table["payload"] = -1
    for index, row in enumerate(rows):
        for name, value in row.items():
            if name == "payload":
                payloads.append(value)
                value = len(payloads) - 1
            table[name][index] = value
    return Events(table, tuple(payloads))


def source(*rows, **fields):
    return FakeSource(events(*rows), **fields)


def enter(ts, name, depth=0, pid=7, cpu=0, **fields):
    row = {"type": EventId.GRAPH_ENTRY, "ts": ts, "ip": IP[name], "depth": depth}
    return {**row, "pid": pid, "cpu": cpu, **fields}


def leave(ts, name, calltime, depth=0, pid=7, cpu=0, **fields):
    row = {"type": EventId.GRAPH_EXIT, "ts": ts, "ip": IP[name], "depth": depth}
    return {**row, "pid": pid, "cpu": cpu, "calltime": calltime, "rettime": ts, **fields}


def call(ts, name, parent, pid=7, cpu=0, **fields):
    row = {"type": EventId.FUNCTION, "ts": ts, "ip": IP[name], "parent_ip": IP[parent] + 9}
    return {**row, "pid": pid, "cpu": cpu, **fields}


def said(ts, text, pid=7, cpu=0):
    return {"type": EventId.PRINT, "ts": ts, "payload": text, "pid": pid, "cpu": cpu}


def two_tasks(**fields):
    """Task 7 is switched out inside ``a`` and goes on later; an interrupt comes upon task 8."""
    return source(
        enter(1000, "main"),
        enter(2000, "a", 1),
        enter(2500, "schedule", 2),
        enter(3000, "b", pid=8),
        enter(3100, "do_irq", 1, pid=8),
        leave(3400, "do_irq", 3100, 1, pid=8),
        enter(3500, "idle", pid=0, cpu=1),
        leave(5000, "schedule", 2500, 2),
        leave(6000, "a", 2000, 1),
        leave(7000, "b", 3000, pid=8),
        leave(7500, "main", 1000),
        **fields,
    )


HOST = [
    HostEvent(1500, "tick", {"sites": 3}),
    HostEvent(1600, "stop", {"duration_ns": 400}),
    HostEvent(1700, "patched", {"ip": IP["a"]}),
]


def random_calls(random, count, lanes=3, ns=7):
    """A trace that is whole: ``count`` events at most, of tasks that take turns on two CPUs."""
    rows, ts, stacks = [], 1000, [[] for _ in range(lanes)]
    for _ in range(count):
        ts += random.randint(1, ns)
        lane = random.randrange(lanes)
        stack = stacks[lane]
        where = {"pid": 7 + lane // 2, "cpu": lane % 2}
        if stack and (len(stack) > 6 or random.random() < 0.5):
            name, begin = stack.pop()
            rows.append(leave(ts, name, begin, len(stack), **where))
        else:
            name = random.choice(NAMES)
            rows.append(enter(ts, name, len(stack), **where))
            stack.append((name, ts))
    return rows


@cache
def real_trace(tracer: str) -> FakeSource:
    """The mini-kernel's boot, as its tracer saw it."""
    from dynftrace_emu.ftrace.options import EngineName, RunOptions
    from dynftrace_emu.ftrace.run import Run
    from tests.ftrace.conftest import assembled

    options = RunOptions(
        engine=EngineName.DETERMINISTIC, seconds=0.3, discover="scan", boot_records=1000
    )
    run = Run(options, image=assembled(options.variant, options.image))
    run.tracing.set_tracer(run.tracing.global_array, tracer)
    run.execute()
    events, _ = run.tracing.global_array.buffer.peek()
    functions = {f.address: (f.address, f.size, f.name) for f in run.image.functions}
    symbols = SymbolTable(tuple(sorted(functions.values())))
    return FakeSource(
        events, tracer, host_events=HOST, cut=1000, symbols=symbols, comms=run.tracing.comms()
    )
