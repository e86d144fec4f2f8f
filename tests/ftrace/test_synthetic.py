"""Generated kernels, run."""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dynftrace_emu.ftrace.events import TextChanged
from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run

if TYPE_CHECKING:
    from dynftrace_emu.machine.engine import Kthread


def make(functions: int, **options) -> Run:
    defaults = {"engine": EngineName.DETERMINISTIC, "vcpus": 2, "seconds": None}
    return Run(RunOptions(image=f"synthetic:{functions}", **defaults | options))


def result(run: Run) -> list[int]:
    run.execute()
    return run.kernel.percpu("checksum")


@pytest.mark.parametrize("functions", [1, 300])
def test_the_result_is_the_same_in_all_variants_traced_or_not(functions):
    wanted = result(make(functions, variant="none", iterations=20))
    assert len(set(wanted)) == 2
    for options in (
        {"variant": "static"},
        {"variant": "dynamic", "period": 0.01},
        {"variant": "dynamic", "period": 0.01, "site": "nop"},
        {"variant": "dynamic", "set": ("current_tracer=function_graph",)},
    ):
        run = make(functions, iterations=20, **options)
        if run.options.set:
            from dynftrace_emu.tracefs.controls import Controls

            Controls(run)
        assert result(run) == wanted


def test_one_iteration_records_every_generated_function_and_there_is_room_for_all():
    run = make(700, iterations=1, vcpus=1)
    assert run.dynamic.arch.records.capacity >= len(run.image.call_sites)
    run.execute()
    begin = next(s for s in run.image.segments if s.name == ".text.synthetic").address
    recorded = [site for site in run.dynamic.arch.sites().tolist() if site >= begin]
    assert sorted(recorded) == [site for site in run.image.call_sites.tolist() if site >= begin]
    assert run.kernel.total("skipped_no_slot") == 0


def test_a_batch_that_is_asked_for_is_what_it_gets():
    assert make(700, boot_records=1).dynamic.arch.records.capacity == 145


# --- thousands of sites in one stop: no check, event or sync may be left out ---

MANY = 3000
NOPS = b"\x90" * 5


@pytest.fixture(params=list(EngineName), ids=lambda engine: engine.value)
def recorded(request) -> Run:
    """A kernel whose functions have all run, and whose sites wait for their first pass."""
    run = make(MANY, engine=request.param, period=1e6)
    everything = threading.Event()

    def body() -> Kthread:
        while min(run.kernel.percpu("iterations")) < 1:
            yield 0.01
        everything.set()
        run.machine.interrupt()

    run.machine.kthread("until all have run", body())
    run.machine.run(60)
    assert everything.is_set()
    assert run.dynamic.recorded > MANY
    return run


def poke(run: Run, site: int, code: bytes) -> None:
    """Change text behind ftrace's back, so that every vCPU sees it."""
    row = np.frombuffer(code, dtype=np.uint8).reshape(1, -1)
    run.machine.poke_text(np.array([site], dtype=np.uint64), row)
    run.machine.sync_text()


def bytes_at(run: Run, sites: list[int]) -> list[bytes]:
    return [run.machine.memory.read(site, 5) for site in sites]


def mcount_calls_in(run: Run, seconds: float) -> int:
    before = run.kernel.total("mcount_calls")
    run.machine.run(seconds)
    return run.kernel.total("mcount_calls") - before


def test_each_site_is_checked_and_told_of(recorded: Run) -> None:
    run, ftrace = recorded, recorded.dynamic
    changes, sites = [], ftrace.arch.sites().tolist()
    run.observe(changes.append, TextChanged)
    spoilt = [sites[number] for number in (0, MANY // 2, len(sites) - 1)]
    for site in spoilt:
        poke(run, site, NOPS)
    calls = bytes_at(run, sites)

    done = ftrace.ftraced_pass()

    assert (done.patched, done.failed) == (len(sites) - 3, 3)
    assert {mismatch.ip for mismatch in ftrace.arch.patcher.mismatches} == set(spoilt)
    assert all(mismatch.found == NOPS for mismatch in ftrace.arch.patcher.mismatches)
    expected = [call if call == NOPS else b"\xeb\x03" + call[2:] for call in calls]
    assert bytes_at(run, sites) == expected
    [change] = changes
    assert change.sites.tolist() == sites
    assert [bytes(row) for row in change.before] == calls
    assert [bytes(row) for row in change.after] == expected
    assert [s for s, bad in zip(sites, change.failed.tolist(), strict=True) if bad] == sorted(
        spoilt, key=sites.index
    )


def test_every_vcpu_is_synced_with_each_site(recorded: Run) -> None:
    """What was translated from the old text would still call mcount, or not call the tracers."""
    run, ftrace = recorded, recorded.dynamic
    assert mcount_calls_in(run, 0.3) > MANY
    ftrace.ftraced_pass()
    assert not any(vcpu.is_stale for vcpu in run.machine.vcpus)
    rare = 100  # the core's own functions that run for the first time, and calls half done
    assert mcount_calls_in(run, 0.3) < rare
    ftrace.startup()
    before = [run.kernel.percpu(name) for name in ("traced_calls", "iterations")]
    run.machine.run(2.0)
    traced, rounds = (
        [now - then for now, then in zip(run.kernel.percpu(name), old, strict=True)]
        for name, old in zip(("traced_calls", "iterations"), before, strict=True)
    )
    assert min(rounds) >= 2
    assert all(calls > MANY * (count - 1) for calls, count in zip(traced, rounds, strict=True))
    ftrace.shutdown()
    before = run.kernel.total("traced_calls")
    run.machine.run(0.3)
    assert run.kernel.total("traced_calls") - before < rare


def test_one_site_that_somebody_changed_does_not_hinder_the_others(recorded: Run) -> None:
    run, ftrace = recorded, recorded.dynamic
    ftrace.ftraced_pass()
    sites = ftrace.arch.sites().tolist()
    poke(run, sites[7], NOPS)
    ftrace.startup()
    traced = run.image.address("ftrace_caller")
    wanted = [b"\xe8" + struct.pack("<i", traced - site - 5) for site in sites]
    wanted[7] = NOPS
    assert bytes_at(run, sites) == wanted
    assert ftrace.arch.records.failed().nonzero()[0].tolist() == [7]
    assert ftrace.listening() == [(site, 1) for site in sorted(sites) if site != sites[7]]
