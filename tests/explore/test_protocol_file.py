"""Protocols out of files: right ones, and all that can be wrong with one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dynftrace_emu.errors import DynftraceError, OptionError, ProtocolError
from dynftrace_emu.explore import protocol_file
from dynftrace_emu.explore.explorer import explore
from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.job import Job, machine_of
from dynftrace_emu.explore.protocol_file import protocol_of, read_protocol_file
from dynftrace_emu.explore.protocols import PROTOCOLS
from dynftrace_emu.explore.setup import Setup, build

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_protocol.py"
HEAD = """
import sys
import numpy as np
from dynftrace_emu.explore.steps import *

def patch(change, poke):
"""


def operations(body: str, name: str = "mine.py:patch"):
    source = HEAD + "".join(f"    {line}\n" for line in body.splitlines())
    return machine_of(Job(Setup(protocol=name), source))[0].program.operations(())


def test_the_example_does_what_the_built_in_protocol_does() -> None:
    name = f"{EXAMPLE}:patch"
    mine = build(Setup(protocol=name), protocol_of(name, read_protocol_file(name)))
    built_in = build(Setup(protocol="breakpoint"), PROTOCOLS["breakpoint"])
    assert [o._replace(step=0) for o in mine.program.operations(())] == [
        o._replace(step=0) for o in built_in.program.operations(())
    ][: len(mine.program.operations(()))]


def test_the_protocol_in_the_docs_is_the_example() -> None:
    text = (EXAMPLE.parents[1] / "docs" / "explore.md").read_text()
    block = next(b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "patch(" in b)
    name = f"{EXAMPLE}:patch"
    made = [
        machine_of(Job(Setup(protocol=name), source))[0].program.operations(())
        for source in (block, EXAMPLE.read_text())
    ]
    assert made[0] == made[1]


def test_the_example_that_leaves_out_a_sync_is_torn() -> None:
    verdict = explore(Job(Setup(protocol=f"{EXAMPLE}:hasty"), EXAMPLE.read_text()))
    assert verdict.finding.kind is FindingClass.TORN_FETCH


BAD = {
    "raises": ("yield Sync()\n1 / 0", r"mine\.py:8: ZeroDivisionError: division by zero"),
    "leaves": ("yield Sync()\nsys.exit(3)", r"mine\.py:8: SystemExit: 3"),
    "endless": ("while True: yield Sync()", r"more than 4096 operations: no end"),
    "silent": ("while True: pass\nyield", r"mine\.py:7: it runs on and on, and no step comes"),
    "stubborn": (
        "while True:\n try:\n  while True: pass\n except Exception: pass\nyield",
        r"runs on and on",
    ),
    "recursive": ("def f(): f()\nf()\nyield", r"mine\.py:7: RecursionError"),
    "no-step": ("yield 42", r"step 1: 42 is not a step"),
    "no-generator": ("return None", r"patch returns NoneType, not a generator of steps"),
    "outside": (
        "yield Store(np.array([0x1234], np.uint64), change.new)",
        r"step 1: a store of 5 bytes at 0x1234 is outside every site",
    ),
    "behind": (
        "yield Store(change.sites + np.uint64(1), change.new)",
        r"a store of 5 bytes at 0xf{7}\w+ is outside every site",
    ),
    "shape": (
        "yield Store(change.sites, np.zeros(5, np.uint8))",
        r"shape \(1,\) with bytes of shape \(5,\): \(n,\) and \(n, size\) are needed",
    ),
    "width": ("yield Store(change.sites, change.new, 3)", r"stores of 3 bytes: 1, 2, 4 or 8"),
    "byte": ("yield Store(change.sites, [[300]])", r"step 1: Store: .*300"),
    "data": ("yield WriteData(8, b'x')", r"0x8 is outside the guest's data"),
    "text-data": ("yield WriteData(poke.address('poke_refs'), 'x')", r"WriteData of str"),
    "symbol": ("poke.address('nope')\nyield", r"mine\.py:7: ImageError: .*no symbol nope"),
    "cpu": ("yield Sync(cpus=(7,))", r"CPU 7 is none of 0 to 2"),
    "free": ("yield Free('x', None)", r"step 1: Free: "),
    "frozen": ("change.new[:] = 0\nyield", r"mine\.py:7: ValueError: .*read-only"),
}


@pytest.mark.parametrize(("body", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_said_in_a_line(body, message) -> None:
    with pytest.raises(ProtocolError, match=message) as caught:
        operations(body)
    assert "\n" not in str(caught.value)


def test_reading_for_ever_ends() -> None:
    source = HEAD + "    while True: yield Read(poke.address('poke_refs'))\n"
    program = machine_of(Job(Setup(protocol="mine.py:patch"), source))[0].program
    assert len(program.operations((0,) * 255)) == 1
    with pytest.raises(ProtocolError, match="more than 256 words read"):
        program.operations((0,) * 256)


def test_a_protocol_that_differs_from_run_to_run_is_refused() -> None:
    source = (
        "turns = []\n" + HEAD + "    turns.append(0)\n    yield Sync(wait=len(turns) % 2 == 0)\n"
    )
    with pytest.raises(ProtocolError, match="differ from one run to the next"):
        machine_of(Job(Setup(protocol="mine.py:patch"), source))


FILES = {
    "syntax": ("def f(:", r"mine\.py:1: invalid syntax"),
    "null": ("a\0b", r"null bytes"),
    "loop": ("while True: pass", r"mine\.py:1: it runs on and on"),
    "import": ("import nosuchmodule", r"mine\.py:1: ModuleNotFoundError"),
    "empty": ("", r"mine\.py has no function 'patch'"),
    "number": ("patch = 5", r"mine\.py has no function 'patch'"),
    "arguments": ("def patch(): yield", r"TypeError: patch\(\) takes 0"),
}


@pytest.mark.parametrize(("source", "message"), FILES.values(), ids=FILES)
def test_files_that_are_no_protocol(source, message) -> None:
    with pytest.raises(DynftraceError, match=message) as caught:
        machine_of(Job(Setup(protocol="mine.py:patch"), source))
    assert caught.value.exit_code == 2


def test_dataclasses_and_helpers_of_the_file_work() -> None:
    source = """
from __future__ import annotations
from dataclasses import dataclass
from dynftrace_emu.explore.steps import Store, Sync

@dataclass
class Part:
    width: int

def stores(change, part):
    yield Store(change.sites, change.new[:, :part.width])

def patch(change, poke):
    yield from stores(change, Part(2))
    yield Sync()
"""
    program = machine_of(Job(Setup(protocol="mine.py:patch"), source))[0].program
    assert [type(o).__name__ for o in program.operations(())] == [
        "StoreText", "Send", "WaitForAcks",
    ]  # fmt: skip


def test_files_that_cannot_be_read(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bin.py").write_bytes(b"\xff\xfe")
    Path("big.py").write_text("#" * (protocol_file._MAX_BYTES + 1))
    for name, message in {
        "nosuch.py:f": "No such file",
        ".:f": "Is a directory",
        "bin.py:f": "no text in UTF-8",
        "big.py:f": "too big",
    }.items():
        with pytest.raises(OptionError, match=message):
            read_protocol_file(name)


def test_a_name_that_is_no_protocol() -> None:
    with pytest.raises(OptionError, match=r"choose from breakpoint, .*FILE\.py:FUNCTION"):
        protocol_of("nope")


def test_a_scenarios_own_protocol_is_known_in_it_alone() -> None:
    assert protocol_of("breakpoint-published-late", scenario="breakpoint-published-late")
    with pytest.raises(OptionError, match="no protocol"):
        protocol_of("breakpoint-published-late", scenario="seed")
