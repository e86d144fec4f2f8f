"""The hooks that people use instead see what they should: as many as the guest itself counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynftrace_emu.bench.modes import MODES, Hook, traceable
from dynftrace_emu.bench.neighbours import install_hook

ITERATIONS = 3


@pytest.fixture
def hooked(lab):
    """Runs a few iterations of "leaf" under a hook; returns what it saw, and the run."""

    def run(hook: Hook):
        (mode,) = (mode for mode in MODES if mode.hook is hook)
        options = replace(
            mode.options("mini-kernel", "leaf", 1, 1000), iterations=ITERATIONS, seconds=None
        )
        with lab.machine(options) as run:
            seen = install_hook(run, hook, lab.image("mini-kernel", "dynamic"))
            lab.run(run, None)
            return seen, run

    return run


def test_the_hook_on_mcount_sees_each_call(hooked) -> None:
    seen, run = hooked(Hook.MCOUNT)
    assert set(seen) == {run.image.address("mcount")}
    assert len(seen) == run.kernel.total("mcount_calls")


def test_the_hook_on_entries_sees_the_functions_that_have_call_sites(hooked, lab) -> None:
    seen, run = hooked(Hook.ENTRY)
    names = [run.image.function_at(address).name for address in seen]
    assert set(names) <= set(traceable(lab.image("mini-kernel", "dynamic")))
    assert names.count("leaf_mix") == ITERATIONS * 20 * 200  # firmware/workloads/leaf.S
    assert names.count("leaf_step") == ITERATIONS * 20


def test_the_hook_on_blocks_names_the_function(hooked) -> None:
    seen, _ = hooked(Hook.BLOCK)
    assert seen[0] == "startup_64"
    assert seen.count("leaf_mix") == ITERATIONS * 20 * 200  # it is one block


def test_the_hook_on_instructions_sees_each(hooked) -> None:
    seen, run = hooked(Hook.INSTRUCTION)
    assert seen[0] == run.image.entry
    leaf = run.image.address("leaf_mix")
    assert seen.count(leaf) == ITERATIONS * 20 * 200
