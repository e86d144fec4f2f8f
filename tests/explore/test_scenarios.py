"""Every scenario that ships: a broken one gives its class, a mended one is clean."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from dynftrace_emu.explore.explorer import explore
from dynftrace_emu.explore.findings import Found
from dynftrace_emu.explore.job import Job
from dynftrace_emu.explore.lab import LabImage
from dynftrace_emu.explore.model import Bounds, Model, Text
from dynftrace_emu.explore.protocols import PROTOCOLS
from dynftrace_emu.explore.scenarios import SCENARIOS
from dynftrace_emu.explore.setup import build
from dynftrace_emu.explore.state import Action, Kind

BROKEN = [scenario for scenario in SCENARIOS.values() if scenario.expects]
CURES = ("name", "protocol", "defines", "sites")
"""What a mended scenario may differ in."""

# Where the bug of history strikes: a finding of the right class elsewhere is another bug.
STRIKES = {
    "seed-live-line": r"executes eb \S\S \S\S \S\S \S\S  jmp",
    "unsynced": "executes the old call",
    "patcher-syncs-alone": "executes the old call",
    "nmi-half-written": r"executes e8 \S\S \S\S \S\S 00  call",
    "nmi-not-waited-for-before": r"executes e8 \S\S \S\S \S\S 00  call",
    "nmi-not-waited-for-after": r"executes e8 \S\S \S\S ff ff  call",
    "nmi-nested": "no end",
    "nops": r"executes \S\S \S\S ff ff  ",
    "nops-two": r"executes ff ff  ",
    "nops-in-place": r"executes 0f 90 90 90 90  ",
    "breakpoint-no-sync-1": r"executes 0f \S\S \S\S ff ff  ",
    "breakpoint-no-sync-2": "executes e8 1f 44 00 00  call",
    "breakpoint-no-sync-3": "does not know",
    "breakpoint-head-first": "executes e8 1f 44 00 00  call",
    "breakpoint-published-late": "does not know",
    "breakpoint-skips": r"tracer_a wants work\+0x4.* is not told",
    "breakpoint-released-early": r"exception 14 at int3\+",
    "enable-mid-call-inside": "executes 00 00 00  ",
    "record-pending": r"work\+0x4\S* reads e8 .* not eb 03",
    "record-leaks": r"2 records of work\+0x4",
    "record-of-freed-text": r"writes to other\+0x4\S*, which has been freed",
    "trampoline-copied-over": r"executes e8 .* call",
    "trampoline-direct-early": r"tracer_a is told of other\+0x4.*, outside its filter",
    "trampoline-pair-torn": "tracer_b is called with argument 0x1",
    "trampoline-pair-preempted": "tracer_a is called with argument 0x2",
    "trampoline-freed": r"executes trampoline_a\+\S*, which has been freed",
    "kprobe-flag-first": r"executes \S\S 00 00 00  ",
    "online-unsynced": "executes the old call",
    "page-translation-kept": "executes the old call",
}


def found(name, **changes):
    return explore(Job(dataclasses.replace(SCENARIOS[name].setup, **changes)))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_broken_one_gives_its_class_and_a_mended_one_is_clean(name):
    scenario = SCENARIOS[name]
    verdict = found(name)
    assert verdict.outcome.truncated == 0
    if scenario.expects is None:
        assert verdict.finding is None
        assert verdict.is_exhaustive
    else:
        assert verdict.finding.kind is scenario.expects
        assert re.search(STRIKES[name], verdict.finding.what)


@pytest.mark.parametrize("scenario", BROKEN, ids=lambda scenario: scenario.name)
def test_broken_and_mended_differ_by_the_cure_alone(scenario):
    mended = SCENARIOS[scenario.mended]
    assert mended.expects is None
    broken, cured = (
        {k: v for k, v in vars(s.setup).items() if k not in CURES} for s in (scenario, mended)
    )
    assert broken == cured
    assert any(getattr(scenario.setup, cure) != getattr(mended.setup, cure) for cure in CURES[1:])


def test_a_protocol_has_one_name_and_a_name_has_one_protocol():
    own = {pair for scenario in SCENARIOS.values() for pair in scenario.protocols}
    assert len(own) == len({name for name, _ in own}) == len({protocol for _, protocol in own})
    assert not {name for name, _ in own} & set(PROTOCOLS)


def test_the_docs_tell_of_each_and_name_what_is_found():
    page = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text()
    rows = dict(re.findall(r"^\| `(\S+)` \| (.*?) \|", page, flags=re.MULTILINE))
    assert rows == {
        name: scenario.expects.value if scenario.expects else "clean"
        for name, scenario in SCENARIOS.items()
    }


# --- what the machine can do for them ---


def test_only_relaxed_text_shows_a_missing_sync_between_tail_and_head():
    for text in (Text.COHERENT, Text.STALE):
        assert found("breakpoint-no-sync-2", model=Model(text=text)).finding is None


def test_the_flag_and_buffer_cure_relies_on_coherent_text():
    # A parked CPU's NMI behind the flag, in front of the sync: nothing orders what it fetches.
    verdict = found("nmi-mods-code", model=Model(text=Text.RELAXED))
    assert verdict.finding.kind is SCENARIOS["nmi-half-written"].expects


def test_a_look_sees_the_ip_that_an_nmi_has_saved():
    assert found("nops-looked-at", bounds=Bounds(nmis=1)).finding is None


def test_stop_machine_holds_off_cpus_that_come_online():
    setup = dataclasses.replace(SCENARIOS["seed"].setup, bounds=Bounds(), offline=(1,))
    world = build(setup, PROTOCOLS["stop_machine"])
    online = Action(Kind.ONLINE, 1)
    assert online in world.actions()
    held_off = 0
    while not world.ended:
        world.act(next(a for a in world.actions() if a.kind in (Kind.PATCH, Kind.PARK)))
        held_off += online not in world.actions()
    assert held_off > 3
    assert online in world.actions()
    assert explore(Job(setup)).is_exhaustive


def test_interrupts_come_to_the_patcher_unless_it_has_stopped_the_machine():
    setup = dataclasses.replace(SCENARIOS["seed"].setup, bounds=Bounds(timers=1))
    world = build(setup, PROTOCOLS["stop_machine"])
    timer = Action(Kind.TIMER, world.patcher_cpu)
    assert timer in world.actions()
    world.act(Action(Kind.PATCH, 0))
    assert timer not in world.actions()


def test_a_fault_comes_out_the_same_when_it_is_played_again():
    setup = SCENARIOS["breakpoint-released-early"].setup
    schedule = explore(Job(setup)).outcome.found[1]
    world = build(setup, SCENARIOS[setup.name].protocol)
    first, findings = world.save(), []
    for _ in range(3):
        world.load(first)
        for action in schedule[:-1]:
            world.act(action)
        with pytest.raises(Found) as raised:
            world.act(schedule[-1])
        findings.append(raised.value.finding)
    assert len(set(findings)) == 1


@pytest.mark.parametrize(
    "defines", sorted({scenario.setup.defines for scenario in SCENARIOS.values()})
)
def test_stacks_are_aligned_as_a_cpu_aligns_its_frames(defines):
    # Else the NMI entry would not find its own frames from the top.
    assert LabImage(defines).image.address("lab_stacks") % 16 == 0
