"""trace_pipe as text, drained while two vCPUs write: nothing torn, doubled or out of order."""

from __future__ import annotations

import re
import threading

from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.tracefs import TraceFs
from tests.ftrace.conftest import assembled

ENOUGH = 1_000_000
LINE = re.compile(r" +(\S+)-(\d+) +\[(\d{3})\] [.\w]{5} +(\d+)\.(\d{6}): (\w+) <-(\w+)")
LOST = re.compile(r"CPU:(\d+) \[LOST (\d+) EVENTS\]")


def test_a_million_lines() -> None:
    options = RunOptions(engine=EngineName.THREADED, seconds=None, discover="scan")
    run = Run(options, image=assembled("dynamic", "mini-kernel"))
    files = TraceFs(run.tracing)
    files.write("current_tracer", "function")
    texts: list[str] = []

    def drain() -> None:
        buffers = run.tracing.global_array.buffer.cpus
        while sum(buffer.stats().read for buffer in buffers) < ENOUGH:
            texts.append(files.read("trace_pipe"))
        run.machine.interrupt()

    reader = threading.Thread(target=drain)
    reader.start()
    run.execute()
    reader.join(60)
    assert not reader.is_alive()
    texts.append(files.read("trace_pipe"))

    functions = {function.name for function in run.image.functions}
    last, seen, lost = [0, 0], [0, 0], [0, 0]
    for line in "".join(texts).splitlines():
        if gone := LOST.fullmatch(line):
            lost[int(gone[1])] += int(gone[2])
            continue
        match = LINE.fullmatch(line)
        assert match, line
        cpu, time = int(match[3]), int(match[4]) * 10**6 + int(match[5])
        assert time >= last[cpu]
        assert {match[6], match[7]} <= functions
        last[cpu] = time
        seen[cpu] += 1
    calls = run.kernel.percpu("traced_calls")
    assert sum(seen) >= ENOUGH
    assert [count + gone for count, gone in zip(seen, lost, strict=True)] == calls
