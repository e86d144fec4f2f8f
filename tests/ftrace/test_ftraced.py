"""S5, S6, S8: the daemon: when it stops the machine, what a pass takes, how it all settles."""

from __future__ import annotations

import numpy as np
import pytest

from dynftrace_emu.ftrace.ftraced import Ftraced, Tick, equilibrium
from tests.ftrace.tiny_kernel import TinyKernel

# --- S5 ---


def test_the_machine_is_not_stopped_when_nothing_was_recorded() -> None:
    tiny = TinyKernel()
    parks = count_calls(tiny.machine.engine, "park")
    done = tiny.ftrace.ftraced_pass()
    assert (done.stopped, done.patched) == (False, 0)
    assert (parks, tiny.machine.stops) == ([], [])


def test_one_stop_for_what_was_recorded_and_none_when_that_is_done() -> None:
    tiny = TinyKernel()
    tiny.call_all(["f0", "f1"])
    passes = [tiny.ftrace.ftraced_pass() for _ in range(3)]
    assert [(done.stopped, done.patched) for done in passes] == [
        (True, 2),
        (False, 0),
        (False, 0),
    ]
    assert len(tiny.machine.stops) == 1


def test_skipped_and_known_calls_are_no_reason_to_stop() -> None:
    tiny = TinyKernel(boot_records=0)
    tiny.call_all(["f0", "f1"])  # no slot
    assert not tiny.ftrace.ftraced_pass().stopped
    tiny.call("f0")
    assert tiny.ftrace.ftraced_pass().stopped
    tiny.call("f0")  # a jump now
    assert not tiny.ftrace.ftraced_pass().stopped


def test_it_replenishes_always_stop_or_not_tracing_or_not_enabled_or_not() -> None:
    idle = TinyKernel(boot_records=0)
    done = idle.ftrace.ftraced_pass()
    assert (done.stopped, done.pages_added) == (False, 1)

    busy = TinyKernel()
    busy.call("f0")
    done = busy.ftrace.ftraced_pass()
    assert (done.stopped, done.pages_added) == (True, 1)

    tracing = TinyKernel()
    tracing.ftrace.startup()
    done = tracing.ftrace.ftraced_pass()
    assert (done.stopped, done.pages_added) == (False, 1)

    off = TinyKernel()
    off.ftrace.set_enabled(False)
    done = off.ftrace.ftraced_pass()
    assert (done.stopped, done.pages_added) == (False, 1)


def test_the_page_comes_after_the_machine_runs_again() -> None:
    tiny = TinyKernel()
    tiny.call("f0")
    pages_at_release = []
    release = tiny.machine.engine.release

    def noting() -> None:
        pages_at_release.append(len(tiny.ftrace.arch.records.pages))
        release()

    tiny.machine.engine.release = noting
    tiny.ftrace.ftraced_pass()
    assert pages_at_release == [1]
    assert len(tiny.ftrace.arch.records.pages) == 2


def test_the_daemon_sleeps_a_period_before_its_first_pass_and_after_each() -> None:
    tiny = TinyKernel(boot_records=0)
    daemon = Ftraced(tiny.kernel, tiny.ftrace, period=0.75)
    body = daemon.body()
    for passes in range(3):
        assert next(body) == 0.75
        assert len(daemon.ticks) == passes


def test_the_period_counts_from_the_end_of_the_last_pass() -> None:
    """A pass that takes time, since the stop has to be tried again: a saved ip is inside a site."""
    tiny = TinyKernel()
    tiny.call("f0")
    inside = [tiny.site("f0") + 2] * 5

    def saved_ips():
        if inside:
            yield "a stack", np.array([inside.pop()], dtype=np.uint64)

    tiny.machine.saved_ips.append(saved_ips)
    ends = []
    daemon = Ftraced(tiny.kernel, tiny.ftrace, 0.5, lambda _: ends.append(tiny.machine.now()))
    tiny.machine.kthread("ftraced", daemon.body())
    tiny.machine.run(1.2)
    assert tiny.machine.stops[0].tries == 6
    first, second = daemon.ticks
    assert first.t == 0.5 < ends[0]
    assert second.t == pytest.approx(ends[0] + 0.5)


def test_ticks_come_a_period_apart_also_when_there_is_nothing_to_do(make_run) -> None:
    run = make_run(vcpus=1, seconds=3.2, period=0.5, virtual_hz=100_000, boot_records=1000)
    run.execute()
    assert [tick.t for tick in run.daemon.ticks] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


# --- S6 ---


def test_a_pass_takes_only_the_records_made_since_the_last() -> None:
    """A site that a pass has dealt with is not looked at again: here somebody else changed it."""
    tiny = TinyKernel()
    tiny.call_all(["f0", "f1"])
    tiny.ftrace.ftraced_pass()
    tiny.poke("f0", tiny.call_bytes("f0"))
    tiny.poke("f1", b"\x90" * 5)
    tiny.call("f2")
    assert tiny.ftrace.ftraced_pass().patched == 1
    assert tiny.bytes_at("f0") == tiny.call_bytes("f0")
    assert tiny.bytes_at("f1") == b"\x90" * 5
    assert tiny.bytes_at("f2")[:2] == b"\xeb\x03"
    assert [record.failed for record in tiny.records()] == [0, 0, 0]


def test_recording_is_suspended_from_before_the_stop_to_after_it() -> None:
    """Calls while the others are being parked are dropped; a later call records the site."""
    tiny = TinyKernel(vcpus=2)
    tiny.call("f0")
    engine = tiny.machine.engine
    park, release = engine.park, engine.release

    def calling_park() -> None:
        tiny.call("f1", vcpu=1)
        park()

    def calling_release() -> None:
        release()
        tiny.call("f2", vcpu=1)

    engine.park, engine.release = calling_park, calling_release
    assert tiny.ftrace.ftraced_pass().patched == 1
    assert tiny.skipped() == {"suspended": 2}
    assert tiny.recorded() == ["f0"]
    assert tiny.kernel.read("ftrace_record_suspended") == 0
    tiny.call_all(["f1", "f2"])
    assert tiny.recorded() == ["f0", "f1", "f2"]
    engine.park, engine.release = park, release
    assert tiny.ftrace.ftraced_pass().patched == 2


def test_recording_goes_on_after_a_pass_that_could_not_stop_the_machine() -> None:
    tiny = TinyKernel()
    tiny.call("f0")

    def failing() -> None:
        raise RuntimeError("it does not park")

    park, tiny.machine.engine.park = tiny.machine.engine.park, failing
    with pytest.raises(RuntimeError):
        tiny.ftrace.ftraced_pass()
    tiny.machine.engine.park = park
    assert tiny.bytes_at("f0") == tiny.call_bytes("f0")
    tiny.call("f1")
    assert (tiny.recorded(), tiny.skipped()) == (["f0", "f1"], {})
    assert tiny.ftrace.ftraced_pass().patched == 2  # the next one tries again


def test_patched_records_leave_the_hash_and_failed_ones_stay() -> None:
    tiny = TinyKernel(300, boot_records=300)
    functions = [f"f{number}" for number in range(300)]
    tiny.call_all(functions)
    chain = next(c for bucket in range(1024) if len(c := tiny.chain(bucket)) > 1)
    bad = tiny.image.function_at(chain[-1].site).name  # behind one that will leave
    tiny.poke(bad, b"\xcc" * 5)
    before = tiny.records()
    tiny.ftrace.ftraced_pass()
    assert tiny.hashed() == {bad}
    unchanged = [old for old, new in zip(before, tiny.records(), strict=True) if old == new]
    assert len(unchanged) == 299  # a look-up may be standing on any of those that left
    [node] = [node for bucket in range(1024) for node in tiny.chain(bucket)]
    assert node.failed == 1
    assert tiny.memory.read_u64(node.pprev) == node.address
    tiny.call("lone")
    assert tiny.hashed() == {bad, "lone"}
    tiny.ftrace.ftraced_pass()
    assert tiny.hashed() == {bad}


# --- S8 ---


def tick(t: float, found: int) -> Tick:
    return Tick(t, found, found, 0, 0, 0, 0, None)


@pytest.mark.parametrize(
    ("found", "settled"),
    [
        ([], None),
        ([5], None),
        ([0], 1.0),
        ([5, 0, 0], 2.0),
        ([5, 0, 3, 0], 4.0),
        ([5, 0, 3], None),
        ([0, 0, 0], 1.0),
    ],
)
def test_equilibrium_is_the_first_tick_of_the_final_run_that_found_nothing(found, settled) -> None:
    ticks = [tick(float(number), count) for number, count in enumerate(found, start=1)]
    assert equilibrium(ticks) == settled


def test_it_settles_is_disturbed_by_the_second_wave_and_settles_again(make_run) -> None:
    run = make_run(vcpus=2, seconds=5.0, period=0.25, boot_records=1000, virtual_hz=1_000_000)
    run.execute()
    found = {tick.t: tick.found for tick in run.daemon.ticks}
    first = [t for t in found if t <= 1.5]
    second = [t for t in found if t > 1.5]
    assert sum(found[t] for t in first) > 200
    assert [found[t] for t in first[-2:]] == [0, 0]  # it had settled
    assert sum(found[t] for t in second) > 20
    assert [found[t] for t in second[-4:]] == [0] * 4
    settled = equilibrium(run.daemon.ticks)
    stops = [stop.time for stop in run.machine.stops]
    assert max(stops) < settled
    assert len(stops) == sum(1 for tick in run.daemon.ticks if tick.found)
    quiet = [tick for tick in run.daemon.ticks if tick.t > settled]
    assert {(tick.patched, tick.mcount_calls, tick.stop_us) for tick in quiet} == {(0, 0, None)}


def count_calls(owner, name: str) -> list[str]:
    """Replace a method by one that also counts; returns the growing list."""
    calls: list[str] = []
    method = getattr(owner, name)

    def counting(*arguments):
        calls.append(name)
        return method(*arguments)

    setattr(owner, name, counting)
    return calls
