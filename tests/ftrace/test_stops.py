"""S11, S12: what a pass may count on in a stop, and NMIs that come all the same."""

from __future__ import annotations

import numpy as np
import pytest

from dynftrace_emu.ftrace.encodings import JMP, NOP
from dynftrace_emu.ftrace.events import TextChanged
from dynftrace_emu.ftrace.protocols import stop_machine_protocol
from dynftrace_emu.kernel.callgraph import nmi_check
from dynftrace_emu.machine.vcpu import Reg
from tests.ftrace.conftest import FAST_HZ, assembled
from tests.ftrace.tiny_kernel import TinyKernel


@pytest.mark.parametrize("disabled", [JMP, NOP], ids=lambda encoding: encoding.name)
def test_every_vcpu_executes_the_new_text_after_a_pass_and_after_each_switch(disabled) -> None:
    """Each vCPU has its own translation of f0, which it goes on with unless it is synced."""
    tiny = TinyKernel(vcpus=3, disabled=disabled)

    def new_calls() -> tuple[list[int], list[int]]:
        """Calls to mcount, and to the tracers, when each vCPU calls f0 once."""
        counters = ("mcount_calls", "traced_calls")
        before = [np.array(tiny.kernel.percpu(counter)) for counter in counters]
        for vcpu in range(3):
            tiny.call("f0", vcpu)
        mcount, traced = (
            (tiny.kernel.percpu(counter) - then).tolist()
            for counter, then in zip(counters, before, strict=True)
        )
        return mcount, traced

    none, each = [0, 0, 0], [1, 1, 1]
    assert new_calls() == (each, none)
    tiny.ftrace.ftraced_pass()
    assert new_calls() == (none, none)
    tiny.ftrace.startup()
    assert new_calls() == (none, each)
    tiny.ftrace.shutdown()
    assert new_calls() == (none, none)


def test_every_vcpu_is_synced_before_any_is_let_go() -> None:
    tiny = TinyKernel(vcpus=3)
    tiny.call("f0")
    stale_at_release = []
    release = tiny.machine.engine.release

    def noting() -> None:
        stale_at_release.append([vcpu.is_stale for vcpu in tiny.machine.vcpus])
        release()

    tiny.machine.engine.release = noting
    tiny.ftrace.ftraced_pass()
    assert stale_at_release == [[False] * 3]


def test_vcpus_are_synced_even_if_the_pass_breaks_down_behind_its_first_store() -> None:
    def breaking(change):
        exchange, _ = stop_machine_protocol(change)
        yield exchange
        raise RuntimeError("the sync never comes")

    tiny = TinyKernel(vcpus=2, protocol=breaking)
    for vcpu in (0, 1):
        tiny.call("f0", vcpu)
    before = tiny.kernel.percpu("mcount_calls")
    with pytest.raises(RuntimeError):
        tiny.ftrace.ftraced_pass()
    assert tiny.bytes_at("f0")[:2] == b"\xeb\x03"
    for vcpu in (0, 1):
        tiny.call("f0", vcpu)
    assert tiny.kernel.percpu("mcount_calls") == before


@pytest.mark.parametrize("seed", range(2))
def test_text_changes_only_while_every_vcpu_is_preemptible(make_run, seed: int) -> None:
    """What Linux's stop_machine guarantees: interrupts on, preempt count 0, in no handler."""
    run = make_run(
        vcpus=2, seconds=2.5, period=0.1, boot_records=1000, seed=seed, nmi_rate=300,
        virtual_hz=FAST_HZ, tracing=(0.5, 1.0),
    )  # fmt: skip
    seen = []

    def observer(event) -> None:
        if isinstance(event, TextChanged):
            counts = run.kernel.percpu("preempt_count")
            seen.extend(
                (vcpu.interrupts_on, counts[vcpu.index], vcpu.nmi.blocked)
                for vcpu in run.machine.vcpus
            )

    run.observe(observer)
    run.execute()
    assert len(seen) >= 10
    assert set(seen) == {(True, 0, False)}


def test_nothing_changes_while_a_saved_ip_points_inside_a_site() -> None:
    """A task, say, that was switched out there: the stop is tried again until it has moved on."""
    tiny = TinyKernel()
    tiny.call_all(["f0", "f1"])
    inside = [tiny.site("f1") + 1, tiny.site("f1") + 4]
    seen = []

    def saved_ips():
        seen.append((tiny.bytes_at("f0"), tiny.bytes_at("f1")))
        # Its first byte and the byte behind its last are fine: whole instructions begin there.
        fine = [tiny.site("f1"), tiny.site("f1") + 5]
        words = [*fine, inside.pop()] if inside else fine
        yield "a stack", np.array(words, dtype=np.uint64)

    tiny.machine.saved_ips.append(saved_ips)
    assert tiny.ftrace.ftraced_pass().patched == 2
    assert seen == [(tiny.call_bytes("f0"), tiny.call_bytes("f1"))] * 3
    [stop] = tiny.machine.stops
    assert stop.tries == 3


def test_a_stop_waits_for_no_task_that_sleeps(make_run) -> None:
    """Nobody is switched out in a tracer, where interrupts are off.

    So what looks like an ip there, on the stack of a task that sleeps, was left behind by a call
    that is over, in a part of a frame that nobody has written to since. It must not count: the task
    may sleep for ever, and the stop would fail.
    """
    run = make_run(
        vcpus=1, seconds=4.0, period=0.2, boot_records=1000, seed=17, tracing=(0.5, None),
        virtual_hz=500_000,
    )  # fmt: skip
    run.execute()
    assert len(run.machine.stops) > 5
    assert {stop.tries for stop in run.machine.stops} == {1}


# --- S12 ---


def nmi_run(make_run, **options):
    """A run with many passes and many NMIs."""
    defaults = {
        "vcpus": 2, "seconds": 1.5, "period": 0.05, "boot_records": 1000,
        "nmi_rate": 200, "virtual_hz": FAST_HZ, "tracing": (0.5, 1.0),
    }  # fmt: skip
    return make_run(**{**defaults, **options})


def count_calls_from_nmi(run) -> list[str]:
    """Names of the functions that called mcount on the NMI stack."""
    found: list[str] = []

    def on_mcount(vcpu) -> None:
        if run.machine.memory.find(vcpu[Reg.RSP]).name.startswith("nmi stack"):
            caller = run.machine.memory.read_u64(vcpu[Reg.RSP])
            found.append(run.image.function_at(caller).name)

    for vcpu in run.machine.vcpus:
        vcpu.hook_instruction(run.image.address("mcount"), on_mcount)
    return found


def test_nmi_code_never_calls_mcount(make_run) -> None:
    run = nmi_run(make_run)
    calls = count_calls_from_nmi(run)
    run.execute()
    assert sum(run.machine.nmis) > 200
    assert run.kernel.total("nmi_count") == sum(run.machine.nmis)
    assert calls == []


def test_an_nmi_handler_counts_as_one_in_preempt_count(make_run) -> None:
    """As Linux's nmi_enter() has it: bits of their own, above those of interrupts."""
    run = nmi_run(make_run, seconds=1.0, tracing=(0.3, None))
    inside, outside = set(), set()

    def count(vcpu) -> int:
        return run.kernel.percpu("preempt_count")[vcpu.index] >> 20 & 0xF

    for vcpu in run.machine.vcpus:
        for name, seen in (("default_do_nmi", inside), ("ftrace_caller", outside)):
            vcpu.hook_instruction(
                run.image.address(name), lambda vcpu, seen=seen: seen.add(count(vcpu))
            )
    run.execute()
    assert sum(run.machine.nmis) > 20
    assert (inside, outside) == ({1}, {0})


def test_nmis_may_come_often_from_the_first_instruction_on(
    make_run,
) -> None:
    """A CPU whose kernel has not loaded its IDT yet must not be sent any."""
    run = make_run(vcpus=2, seconds=0.05, nmi_rate=30_000)
    run.execute()
    assert run.kernel.total("nmi_count") == sum(run.machine.nmis) > 100


def test_the_broken_image_does_and_is_caught_without_running_it(make_run) -> None:
    run = nmi_run(make_run, image="mini-kernel-nmi-broken", tracing=None)
    calls = count_calls_from_nmi(run)
    run.execute()
    assert set(calls) == {"nmi_watchdog_tick"}
    check = nmi_check(run.image)
    assert check.path == ("nmi", "do_nmi", "default_do_nmi", "nmi_watchdog_tick")
    assert run.image.function_at(check.site).name == "nmi_watchdog_tick"
    assert nmi_check(assembled("dynamic", "mini-kernel")).clean


def test_a_parked_vcpu_takes_an_nmi_and_stands_where_it_stood(make_run) -> None:
    run = nmi_run(make_run)
    engine = run.machine.engine
    before, after = [], []
    release, deliver = engine.release, engine.deliver_nmi
    taken = []

    def noting_release() -> None:
        before.append([vcpu.rip for vcpu in run.machine.vcpus])
        taken.clear()
        count = run.kernel.total("nmi_count")
        release()
        assert run.kernel.total("nmi_count") == count + len(taken)  # each ran to its end
        if taken:
            after.append((before[-1], [vcpu.rip for vcpu in run.machine.vcpus]))

    def noting_deliver(vcpu) -> None:
        taken.append(vcpu.index)
        deliver(vcpu)

    engine.release, engine.deliver_nmi = noting_release, noting_deliver
    run.execute()
    assert len(after) >= 3
    assert all(stood == stands for stood, stands in after)


def test_an_nmi_in_a_stop_sees_all_of_the_old_text_or_all_of_the_new(make_run) -> None:
    """Between park and release NMIs come before the first store or after the last, and synced."""
    run = nmi_run(make_run)
    engine, memory = run.machine.engine, run.machine.memory
    park, release, deliver = engine.park, engine.release, engine.deliver_nmi
    stopped = [False]
    seen = []

    def noting_deliver(vcpu) -> None:
        if stopped[0]:
            seen.append((memory.gather(run.dynamic.arch.sites(), 5).tobytes(), vcpu.is_stale))
        deliver(vcpu)

    texts = []

    def observer(event) -> None:
        if isinstance(event, TextChanged):
            texts.append(memory.gather(run.dynamic.arch.sites(), 5).tobytes())

    def noting_park() -> None:
        park()
        stopped[0] = True
        texts.append(memory.gather(run.dynamic.arch.sites(), 5).tobytes())

    def noting_release() -> None:
        # A stop that has to be tried again lets them go with the text as it was.
        seen.clear()
        release()
        stopped[0] = False
        for text, stale in seen:
            met.append(text == texts[-1])
            assert not stale

    met: list[bool] = []
    engine.park, engine.release, engine.deliver_nmi = noting_park, noting_release, noting_deliver
    run.observe(observer)
    run.execute()
    assert len(met) >= 3
    assert all(met)
