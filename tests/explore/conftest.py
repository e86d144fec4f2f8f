"""Small setups that fail, and their counterexamples."""

from __future__ import annotations

import dataclasses
import random

import pytest

from dynftrace_emu.explore.counterexample import Counterexample
from dynftrace_emu.explore.explorer import explore
from dynftrace_emu.explore.job import Job, machine_of
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.model import Bounds, Model, Text
from dynftrace_emu.explore.schedule import play
from dynftrace_emu.explore.setup import OpsSpec, Setup, SiteSpec
from dynftrace_emu.explore.state import Action

ONE = (TaskSpec(0),)
CALL_TO_NOP = (SiteSpec(new="nop"),)
NOPS_TO_CALL = (SiteSpec(old="nops", new="call:ftrace_caller"),)

BROKEN = {
    "torn": Setup("torn", "live", pad=59, tasks=ONE, sites=CALL_TO_NOP),
    "no-last-sync": Setup("no-last-sync", "breakpoint~drop:9", tasks=ONE, sites=CALL_TO_NOP),
    "no-middle-sync": Setup("no-middle-sync", "breakpoint~drop:7", sites=CALL_TO_NOP),
    "no-resume": Setup("no-resume", "stop_machine~drop:4"),
    "no-look": Setup(
        "no-look", "stop_machine~no-look:1", tasks=(TaskSpec(0), TaskSpec(0)), sites=NOPS_TO_CALL,
        ops=(OpsSpec(before=(), after=("site_work",)),), model=Model(Text.COHERENT),
    ),
    "nmi": Setup(
        "nmi", "stop_machine~bytes:2", tasks=ONE, sites=CALL_TO_NOP, defines=("LAB_NMI_TRACES",),
        nmi_rule=False, bounds=Bounds(nmis=1),
    ),
    "two-sites": Setup(
        "two-sites", "breakpoint~drop:9", tasks=(TaskSpec(0, ("work", "other")),),
        sites=(SiteSpec(new="nop"), SiteSpec("site_other", new="nop")),
        ops=(OpsSpec(before=("site_work", "site_other")),),
    ),
}  # fmt: skip


@pytest.fixture(params=sorted(BROKEN))
def broken(request) -> Setup:
    """Each of them in turn."""
    return BROKEN[request.param]


@pytest.fixture
def counterexample_of():
    """The shortest counterexample of a setup; found once."""

    def find(setup: Setup) -> Counterexample:
        if setup not in _found:
            _found[setup] = explore(Job(setup)).counterexample()
        return dataclasses.replace(_found[setup])

    return find


def lengthened(found: Counterexample, seed: int) -> tuple[Action, ...]:
    """A longer schedule that ends in the same class: others get on in between."""
    world, first = machine_of(found.job)
    generator = random.Random(seed)
    schedule = found.schedule
    for _ in range(60):
        at = generator.randrange(len(schedule))
        world.load(first)
        play(world, schedule[:at])
        longer = (*schedule[:at], generator.choice(world.actions()), *schedule[at:])
        world.load(first)
        finding, done = play(world, longer)
        if finding is not None and finding.kind is found.finding.kind and done == longer:
            schedule = longer
    world.load(first)
    return schedule


_found: dict[Setup, Counterexample] = {}
