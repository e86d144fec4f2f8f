"""S9, S10, S15: tracing on and off, nested, twice, during a pass; the switch over it all."""

from __future__ import annotations

import threading

import pytest

from dynftrace_emu.errors import FtraceBusyError, FtraceStateError, StopMachineTimeout
from dynftrace_emu.ftrace.encodings import JMP, NOP
from dynftrace_emu.ftrace.events import TextChanged, TracingSwitched
from tests.ftrace.tiny_kernel import TinyKernel

FUNCTIONS = ("f0", "f1", "f2")


@pytest.fixture
def tiny() -> TinyKernel:
    """f0 and f1 are patched away, f2 never ran."""
    tiny = TinyKernel(vcpus=2)
    tiny.call_all(["f0", "f1"])
    tiny.ftrace.ftraced_pass()
    return tiny


def state(tiny: TinyKernel) -> tuple[str, str, bool]:
    """Whom mcount follows, what f0, f1 and f2 read as, and whether tracing says it is on."""
    kinds = {0xE8: "call", 0xEB: "jmp", 0x0F: "nop"}
    return (
        tiny.pointer(),
        " ".join(kinds[tiny.bytes_at(function)[0]] for function in FUNCTIONS),
        tiny.ftrace.tracing,
    )


RECORDING = ("ftrace_record_ip", "jmp jmp call", False)
TRACING = ("ftrace_count_call", "call call call", True)


def watch_stops(tiny: TinyKernel) -> list[tuple[str, str]]:
    """Whom mcount follows as the machine comes to stand, and as it is let go."""
    seen = []
    engine = tiny.machine.engine
    park, release = engine.park, engine.release

    def noting_park() -> None:
        park()
        seen.append(("parked", tiny.pointer()))

    def noting_release() -> None:
        seen.append(("released", tiny.pointer()))
        release()

    engine.park, engine.release = noting_park, noting_release
    return seen


# --- on and off ---


def test_on_and_off_again(tiny: TinyKernel) -> None:
    assert state(tiny) == RECORDING
    tiny.ftrace.startup()
    assert state(tiny) == TRACING
    tiny.ftrace.shutdown()
    assert state(tiny) == RECORDING
    assert len(tiny.machine.stops) == 3  # the pass, and one each


def test_while_tracing_every_call_reaches_the_tracer_recorded_or_not(tiny: TinyKernel) -> None:
    tiny.ftrace.startup()
    tiny.call_all(["f0", "f2", "f2"])
    assert tiny.kernel.total("traced_calls") == 3
    assert tiny.recorded() == ["f0", "f1"]  # f2 was traced, and waits for its record
    tiny.ftrace.shutdown()
    tiny.call_all(["f0", "f2"])
    assert tiny.kernel.total("traced_calls") == 3
    assert tiny.recorded() == ["f0", "f1", "f2"]


@pytest.mark.parametrize("switch", ["startup", "shutdown"])
def test_the_pointer_is_stored_inside_the_stop(tiny: TinyKernel, switch: str) -> None:
    before, after = "ftrace_record_ip", "ftrace_count_call"
    if switch == "shutdown":
        tiny.ftrace.startup()
        before, after = after, before
    seen = watch_stops(tiny)
    getattr(tiny.ftrace, switch)()
    assert seen == [("parked", before), ("released", after)]


def test_a_call_belongs_to_whom_its_one_load_of_the_pointer_gave(tiny: TinyKernel) -> None:
    """One vCPU has loaded the recorder, the other not yet; then tracing comes on."""
    loaded, not_yet = tiny.begin("f2", vcpu=0), tiny.begin("f2", vcpu=1)
    tiny.run_to(not_yet, tiny.address("mcount_load"))
    tiny.run_to(loaded, tiny.address("mcount_load"))
    loaded.step()
    tiny.ftrace.startup()
    tiny.finish(not_yet)
    assert tiny.kernel.percpu("traced_calls") == [0, 1]
    tiny.finish(loaded)
    assert tiny.kernel.percpu("traced_calls") == [0, 1]


@pytest.mark.parametrize("disabled", [JMP, NOP], ids=lambda encoding: encoding.name)
def test_new_records_are_dealt_with_in_the_same_stop(disabled) -> None:
    tiny = TinyKernel(disabled=disabled)
    tiny.call("f0")
    tiny.ftrace.ftraced_pass()
    tiny.call("f1")  # recorded, not patched yet
    stops = len(tiny.machine.stops)
    tiny.ftrace.startup()
    assert len(tiny.machine.stops) == stops + 1
    assert tiny.hashed() == set()
    assert [record.failed for record in tiny.records()] == [0, 0]
    tiny.ftrace.shutdown()
    first = disabled.rows(tiny.ftrace.arch.sites(), 0)[0, 0]
    assert [tiny.bytes_at(function)[0] for function in ("f0", "f1")] == [first, first]
    assert not tiny.ftrace.ftraced_pass().stopped  # nothing is left over for the daemon
    assert tiny.ftrace.arch.patcher.mismatches == []


def test_observers_hear_what_was_switched(tiny: TinyKernel) -> None:
    events = []
    tiny.ftrace.observers.append(events.append)
    tiny.ftrace.startup()
    tiny.ftrace.shutdown()
    switched = [event for event in events if isinstance(event, TracingSwitched)]
    assert [(event.enabled, event.sites) for event in switched] == [(True, 2), (False, 2)]
    texts = [event for event in events if isinstance(event, TextChanged)]
    assert [event.why for event in texts] == ["startup_code", "shutdown_code"]
    assert texts[0].before.tolist() == texts[1].after.tolist()
    assert texts[0].after[0].tobytes() == tiny.call_bytes("f0")
    assert [vcpu for vcpu, _ in texts[0].parked] == [0, 1]


# --- nesting, twice, too often ---


def test_enables_nest_and_only_the_first_and_the_last_stop_the_machine(tiny: TinyKernel) -> None:
    stops = []
    for switch in ("startup", "startup", "startup", "shutdown", "shutdown"):
        getattr(tiny.ftrace, switch)()
        stops.append(len(tiny.machine.stops) - 1)
        assert state(tiny) == TRACING
    tiny.ftrace.shutdown()
    assert state(tiny) == RECORDING
    assert stops == [1] * 5
    assert len(tiny.machine.stops) - 1 == 2


def test_disable_without_enable_is_an_error_and_changes_nothing(tiny: TinyKernel) -> None:
    stops = len(tiny.machine.stops)
    with pytest.raises(FtraceStateError):
        tiny.ftrace.shutdown()
    assert state(tiny) == RECORDING
    assert len(tiny.machine.stops) == stops
    tiny.ftrace.startup()
    tiny.ftrace.shutdown()
    with pytest.raises(FtraceStateError):
        tiny.ftrace.shutdown()
    tiny.ftrace.startup()  # the count did not go below 0
    assert state(tiny) == TRACING


@pytest.mark.parametrize("switch", ["startup", "shutdown"])
def test_a_switch_that_cannot_stop_the_machine_changes_nothing(
    tiny: TinyKernel, switch: str
) -> None:
    if switch == "shutdown":
        tiny.ftrace.startup()
    before = state(tiny)

    def failing() -> None:
        raise StopMachineTimeout(0, 0, "it does not park")

    park, tiny.machine.engine.park = tiny.machine.engine.park, failing
    with pytest.raises(StopMachineTimeout):
        getattr(tiny.ftrace, switch)()
    assert state(tiny) == before
    tiny.call("f2")
    assert ("f2" in tiny.recorded()) == (switch == "startup")  # recording, or tracing, goes on
    assert tiny.kernel.total("traced_calls") == (switch == "shutdown")
    tiny.machine.engine.park = park
    getattr(tiny.ftrace, switch)()
    assert state(tiny) == (TRACING if switch == "startup" else RECORDING)
    tiny.call_all(FUNCTIONS)
    assert tiny.recorded() == [*FUNCTIONS]


def test_switching_before_the_recorder_is_registered_takes_effect_at_once() -> None:
    tiny = TinyKernel(initcall=False)
    tiny.ftrace.startup()
    tiny.call("f0")
    tiny.call("ftrace_dynamic_init")  # must not put the recorder in
    assert tiny.pointer() == "ftrace_count_call"
    tiny.ftrace.shutdown()
    assert tiny.pointer() == "ftrace_record_ip"
    assert tiny.kernel.total("traced_calls") == 2


def test_on_and_off_before_the_initcall_leaves_the_stub_until_then() -> None:
    tiny = TinyKernel(initcall=False)
    tiny.ftrace.startup()
    tiny.ftrace.shutdown()
    assert tiny.pointer() == "ftrace_stub"
    tiny.call("f0")
    tiny.call("ftrace_dynamic_init")
    assert tiny.pointer() == "ftrace_record_ip"
    assert tiny.recorded() == []


# --- during a pass ---


@pytest.mark.parametrize(
    "act",
    [
        lambda ftrace: ftrace.startup(),
        lambda ftrace: ftrace.shutdown(),
        lambda ftrace: ftrace.ftraced_pass(),
        lambda ftrace: ftrace.set_enabled(False),
    ],
    ids=["startup", "shutdown", "ftraced_pass", "set_enabled"],
)
def test_from_inside_a_pass_it_is_refused(tiny: TinyKernel, act) -> None:
    refused = []

    def observer(event) -> None:
        if isinstance(event, TextChanged) and not refused:
            with pytest.raises(FtraceBusyError) as error:
                act(tiny.ftrace)
            refused.append(error)

    tiny.ftrace.observers.append(observer)
    tiny.call("f2")
    patched = []
    daemon = threading.Thread(
        target=lambda: patched.append(tiny.ftrace.ftraced_pass().patched), daemon=True
    )
    daemon.start()
    daemon.join(10)  # where it is not refused, it waits for itself
    assert not daemon.is_alive()
    assert patched == [1]
    assert len(refused) == 1
    assert state(tiny) == ("ftrace_record_ip", "jmp jmp jmp", False)
    tiny.ftrace.startup()  # and afterwards all is as ever
    assert state(tiny) == TRACING


def test_from_another_thread_it_waits_for_the_pass_to_end(tiny: TinyKernel) -> None:
    order = []
    asked = threading.Event()

    def switch() -> None:
        asked.set()
        tiny.ftrace.startup()

    other = threading.Thread(target=switch, daemon=True)

    def observer(event) -> None:
        order.append(type(event).__name__ + getattr(event, "why", ""))
        if order == ["TextChangedftraced"]:
            other.start()
            assert asked.wait(10)
            other.join(0.05)  # it would be through by now, if it did not wait
            assert other.is_alive()
            assert not tiny.ftrace.tracing

    tiny.call("f2")
    tiny.ftrace.observers.append(observer)
    tiny.ftrace.ftraced_pass()
    other.join(10)
    assert not other.is_alive()
    assert order[0] == "TextChangedftraced"
    assert order[-2:] == ["TextChangedstartup_code", "TracingSwitched"]
    assert state(tiny) == TRACING


def test_of_two_enables_at_once_one_acts_and_the_other_nests(tiny: TinyKernel) -> None:
    asked = threading.Event()

    def switch() -> None:
        asked.set()
        tiny.ftrace.startup()

    other = threading.Thread(target=switch, daemon=True)

    def observer(event) -> None:
        if isinstance(event, TextChanged) and not asked.is_set():
            other.start()
            assert asked.wait(10)
            other.join(0.05)

    tiny.ftrace.observers.append(observer)
    stops = len(tiny.machine.stops)
    tiny.ftrace.startup()
    other.join(10)
    assert not other.is_alive()
    assert len(tiny.machine.stops) == stops + 1
    tiny.ftrace.shutdown()
    assert state(tiny) == TRACING
    tiny.ftrace.shutdown()
    assert state(tiny) == RECORDING


def test_the_daemon_does_nothing_but_replenish_while_tracing(tiny: TinyKernel) -> None:
    tiny.call("f2")
    tiny.ftrace.startup()
    tiny.call_all(FUNCTIONS)
    stops = len(tiny.machine.stops)
    done = tiny.ftrace.ftraced_pass()
    assert (done.stopped, done.patched) == (False, 0)
    assert len(tiny.machine.stops) == stops
    assert state(tiny) == TRACING


# --- S15 ---


def test_ftrace_enabled_off_leads_to_the_stub_and_patches_everything_away(
    tiny: TinyKernel,
) -> None:
    tiny.call("f2")  # recorded, not patched yet
    assert tiny.ftrace.ftrace_enabled
    tiny.ftrace.set_enabled(False)
    assert state(tiny) == ("ftrace_stub", "jmp jmp jmp", False)
    assert not tiny.ftrace.ftrace_enabled
    tiny.call("lone")
    assert tiny.mcount_calls() == 5  # lone's site is a call, which returns from the stub at once
    assert (len(tiny.records()), tiny.skipped()) == (3, {})
    tiny.ftrace.set_enabled(True)
    assert state(tiny) == ("ftrace_record_ip", "jmp jmp jmp", False)
    tiny.call("lone")
    assert tiny.recorded()[-1] == "lone"


def test_ftrace_enabled_stores_the_pointer_inside_a_stop(tiny: TinyKernel) -> None:
    seen = watch_stops(tiny)
    tiny.ftrace.set_enabled(False)
    tiny.ftrace.set_enabled(True)
    assert seen == [
        ("parked", "ftrace_record_ip"),
        ("released", "ftrace_stub"),
        ("parked", "ftrace_stub"),
        ("released", "ftrace_record_ip"),
    ]


def test_ftrace_enabled_takes_a_running_tracer_away_and_gives_it_back(tiny: TinyKernel) -> None:
    tiny.ftrace.startup()
    tiny.ftrace.set_enabled(False)
    assert state(tiny) == ("ftrace_stub", "jmp jmp call", False)
    tiny.call_all(FUNCTIONS)
    assert tiny.kernel.total("traced_calls") == 0
    tiny.ftrace.set_enabled(True)
    assert state(tiny) == TRACING
    tiny.ftrace.shutdown()
    assert state(tiny) == RECORDING


def test_what_is_switched_while_disabled_holds_once_enabled(tiny: TinyKernel) -> None:
    tiny.ftrace.set_enabled(False)
    tiny.ftrace.startup()
    assert state(tiny) == ("ftrace_stub", "jmp jmp call", False)
    tiny.ftrace.set_enabled(True)
    assert state(tiny) == TRACING
    tiny.ftrace.set_enabled(False)
    tiny.ftrace.shutdown()
    tiny.ftrace.set_enabled(True)
    assert state(tiny) == RECORDING


def test_setting_what_is_set_does_nothing(tiny: TinyKernel) -> None:
    stops = len(tiny.machine.stops)
    tiny.ftrace.set_enabled(True)
    assert len(tiny.machine.stops) == stops
    tiny.ftrace.set_enabled(False)
    tiny.ftrace.set_enabled(False)
    assert len(tiny.machine.stops) == stops + 1
