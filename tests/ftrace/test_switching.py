"""S9, S10, S15: tracing on and off, nested, twice, during a pass; the switch over it all."""

from __future__ import annotations

import threading

import pytest

from dynftrace_emu.errors import FtraceBusyError, FtraceStateError, StopMachineTimeout
from dynftrace_emu.ftrace.encodings import JMP, NOP
from dynftrace_emu.ftrace.events import TextChanged, TracingSwitched
from dynftrace_emu.ftrace.ops import Listeners, OpsHash, site_array
from dynftrace_emu.kernel.structs import TraceBit
from tests.ftrace.tiny_kernel import TinyKernel

FUNCTIONS = ("f0", "f1", "f2")


@pytest.fixture
def tiny() -> TinyKernel:
    """f0 and f1 are patched away, f2 never ran."""
    tiny = TinyKernel(vcpus=2)
    tiny.call_all(["f0", "f1"])
    tiny.ftrace.ftraced_pass()
    return tiny


def state(tiny: TinyKernel) -> tuple[str, str, int, bool]:
    """Whom mcount follows, how f0, f1 and f2 read, who wants the unknown, and what tracing says.

    What the site map says of the three must be what they read as.
    """
    for function in FUNCTIONS:
        word, kind = tiny.map_word(function), tiny.kind(function)
        assert word in (0, KNOWN, KNOWN | COUNT)
        assert kind in ({"call"} if word == 0 else {"traced"} if word & COUNT else {"jmp", "nop"})
    return (
        tiny.pointer(),
        " ".join(tiny.kind(function) for function in FUNCTIONS),
        tiny.kernel.read("ftrace_unknown_ops"),
        tiny.ftrace.tracing,
    )


KNOWN, COUNT = 1 << 7, 1 << 8
RECORDING = ("ftrace_record_ip", "jmp jmp call", 0, False)
TRACING = ("ftrace_record_ip", "traced traced call", COUNT, True)
ALL_TRACING = ("ftrace_record_ip", "traced traced traced", COUNT, True)
DISABLED = ("ftrace_stub", "jmp jmp call", 0, False)


def guest_words(tiny: TinyKernel) -> tuple[str, int, int]:
    """All that says to guest code where a call belongs: the pointer, the map, the unknown."""
    return tiny.pointer(), tiny.map_word("f0"), tiny.kernel.read("ftrace_unknown_ops")


def watch_stops(tiny: TinyKernel) -> list[tuple[str, str]]:
    """What guest code goes by as the machine comes to stand, and as it is let go."""
    seen = []
    engine = tiny.machine.engine
    park, release = engine.park, engine.release

    def noting_park() -> None:
        park()
        seen.append(("parked", guest_words(tiny)))

    def noting_release() -> None:
        seen.append(("released", guest_words(tiny)))
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
    before = tiny.mcount_calls()
    tiny.call_all(["f0", "f2", "f2"])
    assert tiny.kernel.total("traced_calls") == 3
    assert tiny.mcount_calls() - before == 2  # f0 does not come by mcount any more
    assert tiny.recorded() == ["f0", "f1", "f2"]  # the first execution is recorded and traced
    tiny.ftrace.shutdown()
    tiny.call_all(["f0", "f2"])
    assert tiny.kernel.total("traced_calls") == 3
    assert tiny.mcount_calls() - before == 2  # the stop has dealt with f2, too
    assert state(tiny) == ("ftrace_record_ip", "jmp jmp jmp", 0, False)


def test_what_cannot_be_recorded_is_traced_all_the_same() -> None:
    tiny = TinyKernel(boot_records=0)
    tiny.ftrace.startup()
    tiny.call_all(["f0", "f0"])
    assert tiny.kernel.total("traced_calls") == 2
    assert (tiny.recorded(), tiny.skipped()) == ([], {"no_slot": 2})


def test_a_call_from_inside_the_recorder_is_traced_though_not_recorded(tiny: TinyKernel) -> None:
    tiny.ftrace.startup()
    cpu = tiny.begin("f2")
    tiny.run_to(cpu, tiny.trap_at)
    tiny.interrupt_with(cpu, "f3")
    assert tiny.kernel.total("traced_calls") == 1
    tiny.finish(cpu)
    assert tiny.kernel.total("traced_calls") == 2
    assert (tiny.recorded(), tiny.skipped()) == (["f0", "f1", "f2"], {"nested": 1})


@pytest.mark.parametrize("switch", ["startup", "shutdown"])
def test_all_that_a_call_goes_by_is_stored_inside_the_stop(tiny: TinyKernel, switch: str) -> None:
    before = ("ftrace_record_ip", KNOWN, 0)
    after = ("ftrace_record_ip", KNOWN | COUNT, COUNT)
    if switch == "shutdown":
        tiny.ftrace.startup()
        before, after = after, before
    seen = watch_stops(tiny)
    getattr(tiny.ftrace, switch)()
    assert seen == [("parked", before), ("released", after)]


def test_a_call_of_an_unknown_site_belongs_to_what_its_one_load_gave(tiny: TinyKernel) -> None:
    """One vCPU has seen that nobody wants it, the other has not looked; then tracing comes on."""
    looked, not_yet = tiny.begin("f2", vcpu=0), tiny.begin("f3", vcpu=1)
    asks = tiny.mcount_asks
    tiny.run_to(not_yet, asks)
    tiny.run_to(looked, asks)
    looked.step()
    tiny.ftrace.startup()
    tiny.finish(not_yet)
    assert tiny.kernel.percpu("traced_calls") == [0, 1]
    tiny.finish(looked)
    assert tiny.kernel.percpu("traced_calls") == [0, 1]


def test_who_was_sent_to_the_tracers_and_meets_nobody_there_is_not_traced(
    tiny: TinyKernel,
) -> None:
    """mcount has seen that somebody wants it; before it asks who, tracing goes off."""
    tiny.ftrace.startup()
    unknown, known = tiny.begin("f2", vcpu=0), tiny.begin("f0", vcpu=1)
    tiny.run_to(unknown, tiny.address("ftrace_caller_unknown"))
    tiny.run_to(known, tiny.address("ftrace_caller"))
    tiny.ftrace.shutdown()
    tiny.finish(unknown)
    tiny.finish(known)
    assert tiny.kernel.percpu("traced_calls") == [0, 0]
    assert tiny.kernel.percpu("preempt_count") == [0, 0]


@pytest.mark.parametrize(
    ("function", "section"), [("f2", "__ftrace_unknown_section"), ("f0", "__ftrace_caller_section")]
)
def test_nothing_changes_between_asking_who_wants_a_call_and_telling_them(
    tiny: TinyKernel, function: str, section: str
) -> None:
    """A vCPU that is parked inside a tracer gets on first, at any of its instructions.

    So a call is told to whom the map says at one moment, with what they are at that moment.
    """
    tiny.ftrace.startup()
    inside = 0
    for steps in range(1, 100):
        before = tiny.kernel.total("traced_calls")
        cpu = tiny.begin(function, vcpu=1)
        tiny.run_to(cpu, tiny.address(section))
        for _ in range(steps):
            cpu.step()
        if not tiny.in_tracer()[1]:
            tiny.finish(cpu)
            break
        inside += 1
        seen = []
        tiny.ftrace.stop(lambda seen=seen: seen.append(tiny.kernel.percpu("preempt_count")))
        assert seen == [[0, 0]]
        tiny.finish(cpu)
        assert tiny.kernel.total("traced_calls") == before + 1
    else:
        raise AssertionError("it never came out")
    assert inside > 10


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
    assert [tiny.kind(function) for function in ("f0", "f1")] == ["traced", "traced"]
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
    assert [event.sites.tolist() for event in texts] == [[tiny.site("f0"), tiny.site("f1")]] * 2
    assert texts[0].before.tolist() == texts[1].after.tolist()
    assert texts[0].after.tolist() == texts[1].before.tolist()
    assert texts[0].after[0].tobytes() == tiny.call_bytes("f0", "ftrace_caller")
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
    assert (tiny.recorded()[-1], tiny.skipped()) == ("f2", {})  # recording goes on
    assert tiny.kernel.total("traced_calls") == (switch == "shutdown")  # and so does tracing
    tiny.machine.engine.park = park
    getattr(tiny.ftrace, switch)()
    kind, unknown = ("traced", COUNT) if switch == "startup" else ("jmp", 0)
    assert state(tiny) == ("ftrace_record_ip", f"{kind} {kind} {kind}", unknown, bool(unknown))
    tiny.call_all(FUNCTIONS)
    assert tiny.recorded() == [*FUNCTIONS]


def test_switching_before_the_recorder_is_registered_waits_for_the_initcall() -> None:
    """The stub is a stub for everybody: what calls mcount before the initcall leaves no trace."""
    tiny = TinyKernel(initcall=False)
    tiny.ftrace.startup()
    assert tiny.ftrace.tracing
    assert tiny.pointer() == "ftrace_stub"
    tiny.call("f0")
    assert tiny.kernel.total("traced_calls") == 0
    tiny.call("ftrace_dynamic_init")
    assert tiny.pointer() == "ftrace_record_ip"
    tiny.call("f0")
    assert tiny.kernel.total("traced_calls") == 1
    assert tiny.recorded() == ["f0"]
    tiny.ftrace.shutdown()
    assert tiny.pointer() == "ftrace_record_ip"
    assert tiny.kernel.total("traced_calls") == 1


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
        lambda ftrace: ftrace.listen(Listeners()),
        lambda ftrace: ftrace.stop(lambda: None),
    ],
    ids=["startup", "shutdown", "ftraced_pass", "set_enabled", "listen", "stop"],
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
    assert state(tiny) == ("ftrace_record_ip", "jmp jmp jmp", 0, False)
    tiny.ftrace.startup()  # and afterwards all is as ever
    assert state(tiny) == ALL_TRACING


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
    assert state(tiny) == ALL_TRACING


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


# --- passes while tracing ---


@pytest.mark.parametrize("disabled", [JMP, NOP], ids=lambda encoding: encoding.name)
def test_a_pass_makes_calls_to_the_tracers_of_what_ran_first_while_tracing(disabled) -> None:
    tiny = TinyKernel(disabled=disabled)
    events = []
    tiny.ftrace.observers.append(events.append)
    tiny.ftrace.startup()
    tiny.call_all(["f0", "f1", "f0"])
    assert tiny.recorded() == ["f0", "f1"]
    assert tiny.bytes_at("f0") == tiny.call_bytes("f0")
    events.clear()
    done = tiny.ftrace.ftraced_pass()
    assert (done.stopped, done.patched, done.failed) == (True, 2, 0)
    assert [tiny.kind(function) for function in FUNCTIONS] == ["traced", "traced", "call"]
    assert [tiny.map_word(function) for function in FUNCTIONS] == [KNOWN | COUNT] * 2 + [0]
    [text] = [event for event in events if isinstance(event, TextChanged)]
    assert (text.why, text.sites.tolist()) == ("ftraced", [tiny.site("f0"), tiny.site("f1")])
    assert text.before[0].tobytes() == tiny.call_bytes("f0")
    assert text.after[0].tobytes() == tiny.call_bytes("f0", "ftrace_caller")
    assert not [event for event in events if isinstance(event, TracingSwitched)]
    assert tiny.hashed() == set()
    before = tiny.mcount_calls()
    tiny.call_all(["f0", "f1"])
    assert tiny.kernel.total("traced_calls") == 5  # each call was traced, whatever it came by
    assert tiny.mcount_calls() == before
    assert not tiny.ftrace.ftraced_pass().stopped


def test_a_pass_while_tracing_takes_only_the_records_made_since_the_last(tiny: TinyKernel) -> None:
    tiny.ftrace.startup()
    assert not tiny.ftrace.ftraced_pass().stopped  # what was known is dealt with
    tiny.call_all(FUNCTIONS)
    stops = len(tiny.machine.stops)
    done = tiny.ftrace.ftraced_pass()
    assert (done.stopped, done.patched) == (True, 1)
    assert len(tiny.machine.stops) == stops + 1
    assert state(tiny) == ALL_TRACING
    assert not tiny.ftrace.ftraced_pass().stopped


def test_a_pass_disables_what_nobody_wants_and_makes_calls_of_the_rest() -> None:
    """Filters decide site by site; those who want every site get unknown ones as well."""
    tiny = TinyKernel(vcpus=2)
    one = OpsHash(filter=site_array([tiny.site("f0"), tiny.site("f2")]))
    tiny.kernel.enable_bits(1 << TraceBit.PROFILE)
    tiny.ftrace.listen(Listeners({TraceBit.PROFILE: one}))
    assert tiny.kernel.read("ftrace_unknown_ops") == 0  # who has a filter does not get the unknown
    tiny.call_all(["f0", "f1"])
    assert tiny.kernel.total("traced_calls") == 0
    assert tiny.ftrace.ftraced_pass().patched == 2
    assert [tiny.kind(function) for function in FUNCTIONS] == ["traced", "jmp", "call"]
    profiled = KNOWN | 1 << TraceBit.PROFILE
    assert [tiny.map_word(function) for function in FUNCTIONS] == [profiled, KNOWN, 0]


def test_sites_that_stay_as_they_are_are_not_touched(tiny: TinyKernel) -> None:
    """A second listener that wants what is a call already changes the map alone."""
    events = []
    tiny.ftrace.observers.append(events.append)
    f0 = OpsHash(filter=site_array([tiny.site("f0")]))
    tiny.ftrace.listen(Listeners({TraceBit.PROFILE: f0}))
    tiny.ftrace.startup()
    changed = [event.sites.tolist() for event in events if isinstance(event, TextChanged)]
    assert changed == [[tiny.site("f0")], [tiny.site("f1")]]
    both = KNOWN | COUNT | 1 << TraceBit.PROFILE
    assert [tiny.map_word(function) for function in FUNCTIONS] == [both, KNOWN | COUNT, 0]
    assert len([event for event in events if isinstance(event, TracingSwitched)]) == 1
    tiny.ftrace.shutdown()
    assert [tiny.kind(function) for function in FUNCTIONS] == ["traced", "jmp", "call"]
    tiny.ftrace.listen(Listeners())
    assert state(tiny) == RECORDING


def test_what_a_change_commits_is_committed_in_its_stop_or_not_at_all(tiny: TinyKernel) -> None:
    seen = watch_stops(tiny)
    everything = Listeners({TraceBit.PROFILE: OpsHash()})
    tiny.ftrace.listen(everything, lambda: seen.append("committed"))
    assert [kind if kind == "committed" else kind[0] for kind in seen] == [
        "parked",
        "committed",
        "released",
    ]
    before = guest_words(tiny)

    def failing() -> None:
        raise StopMachineTimeout(0, 0, "it does not park")

    tiny.machine.engine.park = failing
    seen.clear()
    with pytest.raises(StopMachineTimeout):
        tiny.ftrace.listen(Listeners(), lambda: seen.append("committed"))
    assert seen == []
    assert guest_words(tiny) == before
    assert tiny.ftrace.tracing


# --- S15 ---


def test_ftrace_enabled_off_leads_to_the_stub_and_patches_everything_away(
    tiny: TinyKernel,
) -> None:
    tiny.call("f2")  # recorded, not patched yet
    assert tiny.ftrace.ftrace_enabled
    tiny.ftrace.set_enabled(False)
    assert state(tiny) == ("ftrace_stub", "jmp jmp jmp", 0, False)
    assert not tiny.ftrace.ftrace_enabled
    tiny.call("lone")
    assert tiny.mcount_calls() == 5  # lone's site is a call, which returns from the stub at once
    assert (len(tiny.records()), tiny.skipped()) == (3, {})
    tiny.ftrace.set_enabled(True)
    assert state(tiny) == ("ftrace_record_ip", "jmp jmp jmp", 0, False)
    tiny.call("lone")
    assert tiny.recorded()[-1] == "lone"


def test_ftrace_enabled_stores_the_pointer_inside_a_stop(tiny: TinyKernel) -> None:
    seen = watch_stops(tiny)
    tiny.ftrace.set_enabled(False)
    tiny.ftrace.set_enabled(True)
    assert [(when, pointer) for when, (pointer, *_) in seen] == [
        ("parked", "ftrace_record_ip"),
        ("released", "ftrace_stub"),
        ("parked", "ftrace_stub"),
        ("released", "ftrace_record_ip"),
    ]


def test_ftrace_enabled_takes_a_running_tracer_away_and_gives_it_back(tiny: TinyKernel) -> None:
    tiny.ftrace.startup()
    tiny.ftrace.set_enabled(False)
    assert state(tiny) == DISABLED
    tiny.call_all(FUNCTIONS)
    assert tiny.kernel.total("traced_calls") == 0
    assert (tiny.recorded(), tiny.skipped()) == (["f0", "f1"], {})
    tiny.ftrace.set_enabled(True)
    assert state(tiny) == TRACING
    tiny.call_all(FUNCTIONS)
    assert tiny.kernel.total("traced_calls") == 3
    tiny.ftrace.set_enabled(False)
    assert state(tiny) == ("ftrace_stub", "jmp jmp jmp", 0, False)
    tiny.ftrace.set_enabled(True)
    assert state(tiny) == ALL_TRACING
    tiny.ftrace.shutdown()
    assert state(tiny) == ("ftrace_record_ip", "jmp jmp jmp", 0, False)


def test_what_is_switched_while_disabled_holds_once_enabled(tiny: TinyKernel) -> None:
    tiny.ftrace.set_enabled(False)
    tiny.ftrace.startup()
    assert state(tiny) == DISABLED
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
