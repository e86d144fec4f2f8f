"""The variant whose calls are never patched: the pointer alone says who is called."""

from __future__ import annotations

import pytest

from dynftrace_emu.errors import FtraceStateError
from dynftrace_emu.ftrace.ops import Listeners, OpsHash
from dynftrace_emu.kernel.structs import TraceBit
from tests.ftrace.invariants import check_map


def test_the_calls_stay_calls_and_the_pointer_leads_to_the_stub_or_the_tracers(make_run) -> None:
    run = make_run(variant="static", vcpus=1, seconds=0.4, tracing=(0.2, 0.3), virtual_hz=500_000)
    seen = {}

    def note(event) -> None:
        words = ("ftrace_trace_function", "ftrace_unknown_ops")
        seen[event.enabled] = tuple(run.kernel.read(word) for word in words)

    run.observe(note)
    run.execute()
    assert seen == {
        True: (run.image.address("ftrace_static_call"), 1 << TraceBit.FUNCTION),
        False: (run.image.address("ftrace_stub"), 0),
    }
    assert len(run.machine.stops) == 2  # who listens changes with the machine stopped
    text = next(s for s in run.image.segments if s.name == ".text")
    assert run.machine.memory.read(text.address, len(text.data)) == text.data
    assert 0 < run.kernel.total("traced_calls") < run.kernel.total("mcount_calls")
    check_map(run)  # sites stay unknown


def test_counting_needs_no_stop(make_run) -> None:
    """A single word decides, and each call loads it once."""
    run = make_run(variant="static", vcpus=1, seconds=0.3, virtual_hz=500_000)
    run.machine.kthread("counting", counting(run))
    run.execute()
    assert run.machine.stops == []
    assert 0 < run.kernel.total("traced_calls") < run.kernel.total("mcount_calls")


def counting(run):
    yield 0.1
    run.ftrace.startup()
    yield 0.1
    run.ftrace.shutdown()


def test_enables_nest_and_too_many_disables_are_refused(make_run) -> None:
    run = make_run(variant="static", vcpus=1)
    tracer = run.image.address("ftrace_static_call")
    run.ftrace.startup()
    run.ftrace.startup()
    run.ftrace.shutdown()
    assert run.kernel.read("ftrace_trace_function") == tracer
    assert run.kernel.read("ftrace_unknown_ops") == 1 << TraceBit.COUNT
    run.ftrace.shutdown()
    assert run.kernel.read("ftrace_trace_function") == run.image.address("ftrace_stub")
    assert run.kernel.read("ftrace_unknown_ops") == 0
    with pytest.raises(FtraceStateError):
        run.ftrace.shutdown()
    assert [event.enabled for event in run.switches] == [True, False]


def test_who_listens_stays_while_counting_ends(make_run) -> None:
    run = make_run(variant="static", vcpus=1)
    run.ftrace.startup()
    run.ftrace.listen(Listeners({TraceBit.PROFILE: OpsHash()}))
    run.ftrace.shutdown()
    assert run.ftrace.tracing
    assert run.kernel.read("ftrace_unknown_ops") == 1 << TraceBit.PROFILE
    run.ftrace.listen(Listeners())
    assert not run.ftrace.tracing
    assert [event.enabled for event in run.switches] == [True, False]
