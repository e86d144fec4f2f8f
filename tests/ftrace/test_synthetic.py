"""Generated kernels, run."""

from __future__ import annotations

import pytest

from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run


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
