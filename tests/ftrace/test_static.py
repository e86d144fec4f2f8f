"""The variant whose calls are never patched: the pointer alone says who is called."""

from __future__ import annotations

import pytest

from dynftrace_emu.errors import FtraceStateError


def test_the_calls_stay_calls_and_the_pointer_leads_to_the_stub_or_the_tracer(make_run) -> None:
    run = make_run(variant="static", vcpus=1, seconds=0.4, tracing=(0.2, 0.3), virtual_hz=500_000)
    pointers = {}

    def note(event) -> None:
        pointers[event.enabled] = run.kernel.read("ftrace_trace_function")

    run.observe(note)
    run.execute()
    assert pointers == {
        True: run.image.address("ftrace_count_call"),
        False: run.image.address("ftrace_stub"),
    }
    assert run.machine.stops == []
    text = next(s for s in run.image.segments if s.name == ".text")
    assert run.machine.memory.read(text.address, len(text.data)) == text.data
    assert 0 < run.kernel.total("traced_calls") < run.kernel.total("mcount_calls")


def test_enables_nest_and_too_many_disables_are_refused(make_run) -> None:
    run = make_run(variant="static", vcpus=1)
    tracer = run.image.address("ftrace_count_call")
    run.ftrace.startup()
    run.ftrace.startup()
    run.ftrace.shutdown()
    assert run.kernel.read("ftrace_trace_function") == tracer
    run.ftrace.shutdown()
    assert run.kernel.read("ftrace_trace_function") == run.image.address("ftrace_stub")
    with pytest.raises(FtraceStateError):
        run.ftrace.shutdown()
    assert [event.enabled for event in run.switches] == [True, False]
