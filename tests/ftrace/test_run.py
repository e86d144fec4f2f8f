"""Whole runs in the deterministic engine: the workload's result never depends on ftrace.

Twenty seeds over the ways to run it, cheap enough to be run each time: every seed is here, and
every option meets several seeds. vCPU n must come to the same checksum in all of them.
"""

from __future__ import annotations

import json
from functools import cache

import pytest

from dynftrace_emu.ftrace.document import document
from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.machine.engine import Park
from dynftrace_emu.machine.vcpu import Reg, VCpu
from tests.ftrace.conftest import assembled
from tests.ftrace.invariants import check_invariants

ITERATIONS = 200
TRACING = {"tracing": (1.0, 3.0)}
NMIS = {"nmi_rate": 1000.0}
ANYWHERE = {"park": Park.ANYWHERE}
NONE = {"variant": "none"}
STATIC = {"variant": "static"}
NOPS = {"site": "nop"}

MOST = TRACING | NMIS | ANYWHERE
# The reference is seed 0: two vCPUs in a kernel built without calls.
RUNS = [
    # seed, vCPUs, options
    (1, 1, {}),
    (2, 1, STATIC),
    (3, 2, TRACING | STATIC),
    (4, 1, TRACING),
    (5, 1, TRACING | NOPS),
    (6, 1, NMIS),
    (7, 1, ANYWHERE),
    (8, 1, MOST),
    (9, 2, TRACING),
    (10, 1, NONE),
    (11, 1, ANYWHERE | NOPS),
    (12, 1, {"boot_records": 0}),
    (13, 1, STATIC | NMIS),
    (14, 1, ANYWHERE | TRACING),
    (15, 1, NONE | ANYWHERE),
    (16, 2, MOST | NOPS),
    (17, 1, TRACING | {"boot_records": 1000, "period": 0.25}),
]
WIDE_RUNS = [(18, NONE), (19, TRACING | ANYWHERE)]


def run_document(seed: int, vcpus: int, options: dict, iterations: int = ITERATIONS) -> dict:
    chosen = RunOptions(
        engine=EngineName.DETERMINISTIC,
        seed=seed,
        vcpus=vcpus,
        **{"seconds": None, "iterations": iterations, **options},
    )
    run = Run(chosen, image=assembled(chosen.variant, chosen.image))
    run.execute()
    check_invariants(run)
    return document(run)


@cache
def reference() -> list[str]:
    """What vCPUs 0 and 1 compute when there is nothing to trace."""
    return run_document(0, 2, NONE)["workload"]["checksum"]


def check_it_happened(result: dict, options: dict) -> None:
    """That the run was what it is meant to be: long enough, patched, traced, interrupted."""
    assert result["workload"]["iterations"] == [ITERATIONS] * result["vcpus"]
    assert result["seconds"] >= 5
    if result["variant"] == "dynamic":
        assert result["sites"][result["site"]] > 300
        assert sum(tick["patched"] for tick in result["ticks"]) > 300
    if "tracing" in options:
        assert [switch["enabled"] for switch in result["tracing"]] == [True, False]
        assert [switch["t"] for switch in result["tracing"]] == [1.0, 3.0]
        assert result["traced_calls"] > 10_000
        if result["variant"] == "dynamic":
            assert all(switch["sites"] > 100 for switch in result["tracing"])
    else:
        assert (result["tracing"], result["traced_calls"]) == ([], 0)
    assert (result["nmis"] > 2000) == ("nmi_rate" in options)


@pytest.mark.parametrize(("seed", "vcpus", "options"), RUNS, ids=lambda value: str(value)[:60])
def test_the_checksum_is_that_of_a_kernel_without_calls(seed, vcpus, options) -> None:
    result = run_document(seed, vcpus, options)
    check_it_happened(result, options)
    assert result["workload"]["checksum"] == reference()[:vcpus]


def test_so_it_is_for_each_of_eight_vcpus() -> None:
    without, traced = (run_document(seed, 8, options) for seed, options in WIDE_RUNS)
    for result, (_, options) in zip((without, traced), WIDE_RUNS, strict=True):
        check_it_happened(result, options)
    assert without["workload"]["checksum"] == traced["workload"]["checksum"]
    assert traced["workload"]["checksum"][:2] == reference()
    assert len(set(traced["workload"]["checksum"])) == 8  # each does its own work


def test_all_twenty_seeds_are_here() -> None:
    assert sorted([0, *(seed for seed, *_ in RUNS), *(seed for seed, _ in WIDE_RUNS)]) == [
        *range(20)
    ]


@pytest.mark.parametrize("options", [MOST, STATIC | TRACING], ids=["dynamic", "static"])
def test_one_seed_is_one_document_and_another_seed_is_another(options) -> None:
    def text(seed: int) -> str:
        short = {"tracing": (0.2, 0.8), "seconds": 1.5, "period": 0.1}
        result = run_document(seed, 2, {**options, **short}, iterations=500)
        del result["seed"]
        return json.dumps(result)

    assert text(7) == text(7) != text(8)


@pytest.mark.parametrize("variant", ["dynamic", "static"])
def test_traced_calls_are_the_loads_of_the_pointer_that_gave_the_tracer(variant) -> None:
    """Counted apart, by a hook on the instruction that loads; also calls of unrecorded sites."""
    options = RunOptions(
        engine=EngineName.DETERMINISTIC,
        seed=3,
        variant=variant,
        seconds=2.0,
        tracing=(0.5, 1.5),
        nmi_rate=100,
        park=Park.ANYWHERE,
    )
    run = Run(options, image=assembled(variant, "mini-kernel"))
    tracer = run.image.address("ftrace_count_call")
    loads = [0, 0]
    unrecorded = set()

    def on_load(vcpu: VCpu) -> None:
        if run.kernel.read("ftrace_trace_function") == tracer:
            loads[vcpu.index] += 1
            unrecorded.add(run.machine.memory.read_u64(vcpu[Reg.RSP]) - 5)

    for vcpu in run.machine.vcpus:
        vcpu.hook_instruction(run.image.address("mcount_load"), on_load)
    run.execute()
    if run.dynamic is not None:
        unrecorded -= set(run.dynamic.arch.sites().tolist()[:145])
    assert unrecorded
    assert run.kernel.percpu("traced_calls") == loads
    assert min(loads) > 10_000
    assert document(run)["traced_calls"] == sum(loads)


def test_mcount_calls_are_the_entries_to_mcount() -> None:
    options = RunOptions(
        engine=EngineName.DETERMINISTIC, seconds=1.0, period=0.25, boot_records=0, vcpus=2
    )
    entries, at_ticks = [], []
    run = Run(
        options,
        image=assembled("dynamic", "mini-kernel"),
        on_tick=lambda _: at_ticks.append(len(entries)),
    )
    for vcpu in run.machine.vcpus:
        vcpu.hook_instruction(run.image.address("mcount"), entries.append)
    run.execute()
    ticks = [tick.mcount_calls for tick in run.daemon.ticks]
    assert [sum(ticks[: n + 1]) for n in range(len(ticks))] == at_ticks
    assert run.kernel.total("mcount_calls") == len(entries) > 5000
