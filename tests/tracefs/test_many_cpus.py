"""What only shows with several vCPUs at work on the same thing."""

from __future__ import annotations

import errno
import re

import pytest

from dynftrace_emu.errors import ControlFileError
from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.tracefs import TraceFs
from tests.ftrace.conftest import assembled


def made(vcpus: int, seed: int = 0) -> tuple[Run, TraceFs]:
    options = RunOptions(
        engine=EngineName.DETERMINISTIC, seed=seed, vcpus=vcpus, discover="scan", seconds=None
    )
    run = Run(options, image=assembled("dynamic", "mini-kernel"))
    return run, TraceFs(run.tracing)


@pytest.mark.parametrize("seed", [6, 11])
def test_a_count_that_several_cpus_lower_ends_at_0(seed: int) -> None:
    run, files = made(4, seed)
    files.write("set_ftrace_filter", "*:stacktrace:1")
    files.write("buffer_size_kb", "4000")
    run.machine.run(0.3)
    listed = files.read("set_ftrace_filter")
    assert "unlimited" not in listed
    done = set(re.findall(r"(\w+):stacktrace:count=0", listed))
    assert len(done) > 50
    assert files.read("trace").count("<stack trace>") == len(done)


@pytest.mark.parametrize("seed", range(4))
def test_the_deepest_stack_is_one_stack(seed: int) -> None:
    """Interrupts come in the middle, with deeper ones."""
    run, files = made(2, seed)
    run.machine.run(1.0)
    files.write("stack_tracer_enabled", "1")
    for _ in range(15):
        files.write("stack_max_size", "0")
        run.machine.run(0.02)
        rows = re.findall(r"^ *\d+\) +(\d+) +(\d+) ", files.read("stack_trace"), re.MULTILINE)
        depths = [int(depth) for depth, _ in rows]
        assert depths == sorted(depths, reverse=True)
        assert files.read("stack_max_size") == f"{depths[0]}\n"


def test_one_cpus_part_of_a_snapshot_is_its_own() -> None:
    run, files = made(2)
    files.write("tracing_cpumask", "1")
    files.write("current_tracer", "function")
    run.machine.run(0.1)
    files.write("snapshot", "1")
    assert "[000]" in files.read("per_cpu/cpu0/snapshot")
    assert "Snapshot is allocated" in files.read("per_cpu/cpu1/snapshot")


def test_a_marker_goes_where_events_go() -> None:
    run, files = made(2)
    files.write("tracing_cpumask", "2")
    files.write("trace_marker", "hello")
    assert re.search(r"\[001\].*tracing_mark_write: hello", files.read("trace"))
    files.write("tracing_cpumask", "0")
    with pytest.raises(ControlFileError) as error:
        files.write("trace_marker", "nobody")
    assert error.value.errno == errno.EBADF
    run.machine.run(0.01)


def test_masks_are_groups_of_32_cpus() -> None:
    _, files = made(40)
    files.write("tracing_cpumask", "1,2")
    assert files.read("tracing_cpumask") == "01,00000002\n"
    with pytest.raises(ControlFileError):
        files.write("tracing_cpumask", "1,100000000")
