"""What a verdict says, and what it must not."""

from __future__ import annotations

import re

import pytest

from dynftrace_emu._version import __version__
from dynftrace_emu.explore.explorer import Kind, Limits, Strategy, explore
from dynftrace_emu.explore.job import Job
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.model import Bounds, Model, Text
from dynftrace_emu.explore.setup import Setup, reference

SMALL = Setup(protocol="live", tasks=(TaskSpec(0, rounds=2),), bounds=Bounds(2, nmis=1, timers=1))


def said(verdict) -> str:
    return " ".join(" ".join(verdict.lines()).split())


def test_the_header_states_everything_it_holds_under() -> None:
    text = said(explore(Job(SMALL), Strategy(seed=5)))
    for pattern in (
        r"protocol live ",
        r"vCPUs 1, and one that patches",
        r"tasks 0: work x2 on vCPU 0",
        r"sites 1: site_work \(byte 4 of 64\): call:ftrace_caller -> jmp",
        r"start states \d+ in which patching begins",
        r"window instructions: \d+ of task 0",
        r"preemptions up to 2 ",
        r"NMIs up to 1, .*nested",
        r"timers up to 1",
        r"stores 2 bytes to text",
        r"text relaxed: .*chunks of 16 bytes",
        r"memory sequentially consistent; x86 is TSO",
        r"park rule preemptible",
        r"serializing .*no instruction",
        r"reductions quiet instructions, state joining .*, dead stack",
        r"strategy exhaustive",
        r"schedules [\d,]+ run .*, 0 truncated",
        r"[\d,]+ states, [\d,]+ actions in [\d.]+ s, [\d,]+ schedules/s, jobs 1",
        rf"version {re.escape(__version__)}, seed 5 ",
        r"PROVEN within these bounds",
    ):
        assert re.search(pattern, text), pattern


def test_no_line_is_too_long() -> None:
    assert max(map(len, explore(Job(SMALL)).lines())) <= 80


def test_the_window_is_what_the_tasks_execute() -> None:
    """Stepped through one by one; twice the rounds are twice as many."""
    setup = Setup(protocol="live", tasks=(TaskSpec(0),))
    world = reference(setup)
    world.quiet = False
    steps = 0
    while not world.tasks[0].done:
        world.run_alone(0)
        steps += 1
    assert steps > 10
    assert explore(Job(setup)).measured.window == (steps,)
    assert explore(Job(SMALL)).measured.window == (2 * steps,)


@pytest.mark.parametrize(
    ("strategy", "limits", "reason"),
    [
        (Strategy(Kind.RANDOM, schedules=50), Limits(), "they were drawn"),
        (Strategy(Kind.PCT, schedules=50), Limits(), "they were drawn"),
        (Strategy(), Limits(states=30), "were cut off"),
        (Strategy(), Limits(seconds=1e-9), "the time limit"),
    ],
    ids=["random", "pct", "states", "time"],
)
def test_what_is_no_proof_is_not_called_one(strategy, limits, reason) -> None:
    verdict = explore(Job(SMALL), strategy, limits)
    text = said(verdict)
    assert "proven" not in text.lower()
    assert f"{reason}" in text
    assert "not exhaustive" in text
    assert verdict.to_json()["exhaustive"] is False


def test_a_finding_is_no_proof_either() -> None:
    verdict = explore(Job(Setup(protocol="live", pad=59)))
    text = said(verdict)
    assert "FOUND torn-fetch: executes eb " in text
    assert "stores 1 + 1 bytes" in text
    assert "proven" not in text.lower()


def test_pct_prints_its_guarantee_in_numbers() -> None:
    verdict = explore(Job(SMALL), Strategy(Kind.PCT, schedules=50, depth=3))
    n, k, value = re.search(r"= 1/\((\d+) \* (\d+)\^2\) = ([\d.e-]+)", said(verdict)).groups()
    assert float(value) == pytest.approx(1 / (int(n) * int(k) ** 2), rel=0.05)
    assert int(n) == 1 + 1 + 4 * 2  # task, patcher; ack, park, NMI, timer on each of two CPUs
    assert verdict.to_json()["guarantee"] == pytest.approx(float(value), rel=0.05)


def test_json_has_what_the_text_has() -> None:
    setup = Setup(
        protocol="stop_machine",
        tasks=(TaskSpec(0),),
        model=Model(Text.STALE, 32, serializing=frozenset({"iret", "cpuid"})),
    )
    document = explore(Job(setup)).to_json()
    assert document["vcpus"] == 1
    assert document["text"] == "stale"
    assert document["chunk"] == 32
    assert document["serializing"] == ["cpuid", "iret"]
    assert document["truncated"] == 0
    assert document["preemptions"] is None
    assert document["store_widths"] == [2]
    assert document["schedules"] == document["ended"] + document["joined"]
    assert document["exhaustive"] is True
    assert document["finding"] is None
