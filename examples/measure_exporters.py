"""How many events a second each format is written at, from a trace of a million events.

Run it on an idle machine; the figures are CPU time of one thread.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dynftrace_emu.export.chrome_reader import JsonTrace
from dynftrace_emu.export.convert import EXTENSIONS, convert_source
from dynftrace_emu.export.trace_source import SymbolTable, TraceInfo
from dynftrace_emu.ftrace.trace_events import EVENT, Events
from dynftrace_emu.kernel.structs import EventId

FUNCTIONS = 200
DEPTH = 6
BASE = 0xFFFF_FFFF_8100_0000


def make_trace(count: int) -> JsonTrace:
    """Make a function_graph trace of two CPUs: calls six deep, each returning before the next."""
    steps = np.arange(count, dtype=np.int64)
    phase = steps // 2 % (2 * DEPTH)  # down, then up again
    down = phase < DEPTH
    depth = np.where(down, phase, 2 * DEPTH - 1 - phase)
    table = np.zeros(count, dtype=EVENT)
    table["ts"], table["cpu"], table["pid"] = steps * 500, steps % 2, steps % 2 + 1
    table["type"] = np.where(down, int(EventId.GRAPH_ENTRY), int(EventId.GRAPH_EXIT))
    table["depth"], table["payload"] = depth, -1
    round_of = steps // (4 * DEPTH)
    number = (round_of * 7 + depth * 31) % FUNCTIONS
    table["ip"] = np.uint64(BASE + 4) + (16 * number).astype(np.uint64)
    entered = (4 * DEPTH * round_of + 2 * depth + steps % 2) * 500
    table["calltime"] = np.where(down, 0, entered)
    table["rettime"] = np.where(down, 0, table["ts"].astype(np.int64))
    functions = tuple((BASE + 16 * number, 16, f"do_{number}") for number in range(FUNCTIONS))
    info = TraceInfo("function_graph", 2, "local", SymbolTable(functions), {1: "init", 2: "kjob"})
    return JsonTrace(info, [], Events(table))


def main(count: int) -> None:
    """Write the trace in every format."""
    trace = make_trace(count)
    folder = Path(tempfile.mkdtemp())
    try:
        for extension in EXTENSIONS:
            begin = time.process_time()
            convert_source(trace, folder / f"trace{extension}")
            seconds = time.process_time() - begin
            print(f"{extension:<18} {count / seconds:>12,.0f} events/s")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
