"""The same C, traced by uftrace on Linux and by us: the same calls, by the same callers."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter

import pytest

from dynftrace_emu.ftrace.options import RunOptions
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.tracefs.controls import Controls
from tests.elf_builds import SOURCES, run

C_FILES = ("main.c", "console.c", "fold.c", "heap.c", "sched.c", "parser.c", "machine.c")
# Both as one compiler makes it without moving calls about.
COMMON = (
    "-std=gnu11 -O1 -fno-inline -fno-optimize-sibling-calls -fno-ipa-sra -fno-ipa-cp "
    "-fno-partial-inlining"
)
BARE = (
    "-ffreestanding -nostdlib -static -fno-pic -no-pie -mno-red-zone -fcf-protection=none "
    "-fno-stack-protector"
)


def calls_on_linux(folder):
    """(caller, function) of every call, counted, as uftrace saw them."""
    if shutil.which("uftrace") is None:
        pytest.skip("uftrace is not installed")
    program = folder / "hosted"
    files = [SOURCES / name for name in C_FILES]
    run("gcc", *COMMON.split(), "-DHOSTED", "-pg", "-o", program, *files)
    data = folder / "data"
    done = subprocess.run(
        ["uftrace", "record", "--no-libcall", "-d", data, program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "steps=186" in done.stdout, done.stderr
    return edges(run("uftrace", "dump", "-d", data))


def edges(dump):
    """From lines as ``12.3  4321: [entry] name(401136) depth: 2``."""
    stack, counts = ["nobody"], Counter()
    for line in dump.splitlines():
        if "[entry]" in line or "[exit ]" in line:
            name = line.split("]", 1)[1].split("(")[0].strip()
            depth = int(line.split("depth:")[1])
            del stack[depth + 1 :]
            if "[entry]" in line:
                counts[stack[-1], name] += 1
                stack.append(name)
    return counts


def calls_in_the_emulator(folder, style):
    """The same from the function tracer's events: ip and parent_ip."""
    program = folder / f"bare-{style.replace(' ', '')}.elf"
    files = [SOURCES / name for name in (*C_FILES, "start.S")]
    run("gcc", *COMMON.split(), *BARE.split(), *style.split(), "-o", program, *files)
    traced = Run(RunOptions(str(program), set=("buffer_size_kb=8192", "current_tracer=function")))
    controls = Controls(traced)
    traced.execute()
    assert traced.machine.console.lines[0][1] == "steps=186"
    text = controls.files.read("trace")
    counts = Counter()
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, caller = line.split(": ", 1)[1].split(" <-")
            counts[caller, name] += 1
    return counts


@pytest.fixture(scope="module")
def on_linux(tmp_path_factory):
    return calls_on_linux(tmp_path_factory.mktemp("uftrace"))


@pytest.mark.parametrize(
    "style",
    [
        "-pg",
        "-pg -mfentry",
        "-pg -mfentry -mrecord-mcount",
        "-pg -mfentry -mrecord-mcount -mnop-mcount",
        "-fpatchable-function-entry=5",
    ],
)
def test_calls_and_callers_are_those_that_uftrace_sees(tmp_path, on_linux, style):
    ours = calls_in_the_emulator(tmp_path, style)
    entered = ("main", "before_main")  # by whom differs: libc there, the runtime here
    theirs = Counter({edge: n for edge, n in on_linux.items() if edge[1] not in entered})
    mine = Counter({edge: n for edge, n in ours.items() if edge[1] not in entered})
    assert mine == theirs
    assert sum(mine.values()) > 2900
    for name in entered:
        assert sum(n for edge, n in ours.items() if edge[1] == name) == 1
        assert sum(n for edge, n in on_linux.items() if edge[1] == name) == 1
