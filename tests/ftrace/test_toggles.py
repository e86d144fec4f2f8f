"""300 times on or off, with the daemon running and NMIs arriving, in both engines."""

from __future__ import annotations

from collections import Counter

import pytest

from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.kernel.structs import BOOT_PARAMS
from dynftrace_emu.machine.engine import Park
from dynftrace_emu.machine.vcpu import Reg
from tests.ftrace.conftest import assembled
from tests.ftrace.invariants import check_invariants

TOGGLES = 300
MANY = 1_000_000  # iterations: without end, until the toggling is over
MORE = 20


def toggling_run(sleep: float, **options) -> Run:
    run = Run(
        RunOptions(vcpus=2, seconds=None, iterations=MANY, nmi_rate=500, period=0.05, **options),
        image=assembled("dynamic", "mini-kernel"),
    )
    run.machine.kthread("toggles", toggles(run, sleep))
    return run


def toggles(run: Run, sleep: float):
    """A host thread: 300 times on or off, off at the end; then each vCPU ends at the same count."""
    for count in range(TOGGLES):
        yield sleep
        if count % 2 == 0:
            run.dynamic.startup()
        else:
            run.dynamic.shutdown()
    params = run.machine.memory.view(run.image.address("boot_params"), BOOT_PARAMS.dtype)[0]
    params["iteration_limit"] = max(run.kernel.percpu("iterations")) + MORE


def untouched_checksums(iterations: int) -> list[int]:
    """What the vCPUs compute in a kernel without calls, where nobody switches anything."""
    options = RunOptions(
        engine=EngineName.THREADED, variant="none", seconds=None, iterations=iterations
    )
    run = Run(options, image=assembled("none", "mini-kernel"))
    run.execute()
    return run.kernel.percpu("checksum")


def check(run: Run) -> None:
    assert len(run.switches) == TOGGLES
    assert sum(run.machine.nmis) > 100
    assert len(run.daemon.ticks) > 5  # the daemon was at work, too
    check_invariants(run)
    first, second = run.kernel.percpu("iterations")
    assert first == second >= MORE
    assert run.kernel.percpu("checksum") == untouched_checksums(first)
    steps = [task.steps for cpu in (0, 1) for task in run.kernel.tasks(cpu)]
    assert len([memory for memory, _ in steps if memory]) >= 10
    assert all(memory == register for memory, register in steps)  # nothing ran twice
    assert run.kernel.total("traced_calls") > 1000


@pytest.mark.parametrize("park", Park, ids=lambda park: park.value)
def test_deterministic(park: Park) -> None:
    """And no text is stale: a site is run as a call exactly when it reads as one in memory.

    A call to where its bytes say: to mcount, or to the tracers. Counted by a hook in front of
    sites, and by one at each of the two that looks where it was called from.
    """
    run = toggling_run(0.004, engine=EngineName.DETERMINISTIC, seed=5, park=park)
    memory = run.machine.memory
    watched = frozenset(run.image.call_sites.tolist()[::16])
    read_as_call, called = Counter(), Counter()  # by site and target

    def on_site(vcpu) -> None:
        code = memory.read(vcpu.rip, 5)
        if code[:1] == b"\xe8":
            target = vcpu.rip + 5 + int.from_bytes(code[1:], "little", signed=True)
            read_as_call[vcpu.rip, target] += 1

    def on_target(vcpu, target: int) -> None:
        site = memory.read_u64(vcpu[Reg.RSP]) - 5
        if site in watched:
            called[site, target] += 1

    targets = [run.image.address(name) for name in ("mcount", "ftrace_caller")]
    for vcpu in run.machine.vcpus:
        for target in targets:
            vcpu.hook_instruction(target, lambda vcpu, target=target: on_target(vcpu, target))
        for site in watched:
            vcpu.hook_instruction(site, on_site)
    run.execute()
    check(run)
    assert sum(tick.patched for tick in run.daemon.ticks) > 0
    assert called == read_as_call
    for target in targets:
        assert len([site for site, where in called if where == target]) > 10


def test_threaded() -> None:
    run = toggling_run(0.001, engine=EngineName.THREADED)
    run.execute()
    check(run)
