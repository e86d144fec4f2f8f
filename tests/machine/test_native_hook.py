"""Guests that poll nothing, in the threaded engine: stopped in front of any block, and exactly."""

import mmap
import platform
import threading

import pytest

from dynftrace_emu.errors import NativeHookError, StopMachineTimeout
from dynftrace_emu.machine import native_hook
from dynftrace_emu.machine import threaded as threaded_module
from dynftrace_emu.machine.engine import Park, RunEnd
from dynftrace_emu.machine.exits import Exit, ExitReason
from dynftrace_emu.machine.hypercalls import Request
from dynftrace_emu.machine.threaded import ThreadedEngine
from dynftrace_emu.machine.vcpu import Reg
from tests.machine.guests import NMI, TIMER, boot_guest, boot_threaded

GIVE_UP = 10.0
HANDLERS = {NMI: ("nmi", 1), TIMER: "tick"}

START = """
ENTRY startup_64
        LOAD_IDT
        mov eax, 1
        mov edx, PORT_CPU_START
        out dx, eax
        jmp work
END startup_64
ENTRY secondary_startup_64
        LOAD_IDT
        jmp work
END secondary_startup_64
ENTRY nmi
        inc qword ptr gs:[PCPU_NMI_COUNT]
        iretq
END nmi
ENTRY tick
        inc qword ptr gs:[PCPU_TIMER_INTERRUPTS]
        iretq
END tick
"""

# Each block counts in memory, by instructions that must not run twice, and in a register.
COUNTING = (
    START
    + """
ENTRY work
        mov rbx, gs:[PCPU_CPU]
        shl rbx, 6
        lea rax, [rip + counters]
        add rbx, rax
        xor r12d, r12d
        xor r13d, r13d
        xor r14d, r14d
        sti
        nop
first:  inc qword ptr [rbx]
        mov eax, 5
        xadd [rbx + 8], rax
        inc r12
        call middle
last:   inc qword ptr [rbx + 16]
        inc r13
        lea rsi, [rbx + 24]
        mov rdi, rsi
        mov ecx, 2
        rep movsq
        jmp first
middle: add qword ptr [rbx + 40], 7
        inc r14
        push r14
        pop rax
        ret
END work
.data
        .p2align 6
counters:
        .skip 64 * 2
"""
)


@pytest.fixture
def run():
    """Runs a machine to its end, interrupted if it hangs."""
    timers = []

    def run(kernel, seconds=None):
        timer = threading.Timer(GIVE_UP, kernel.machine.interrupt)
        timers.append(timer)
        timer.start()
        return kernel.machine.run(seconds)

    yield run
    for timer in timers:
        timer.cancel()
        timer.join()


def beside(kernel, body):
    """Run the generator ``body`` beside the guest, then end the run."""

    def whole():
        yield from body
        kernel.machine.interrupt()

    kernel.machine.kthread("test", whole())


def assert_each_instruction_ran_once(kernel, vcpu):
    """At a block's begin the counts in memory and in registers are the same."""
    address = kernel.image.address("counters") + 64 * vcpu.index
    counters = kernel.machine.memory.view(address, "<u8", 6).tolist()
    first, last, middle = vcpu[Reg.R12], vcpu[Reg.R13], vcpu[Reg.R14]
    assert (*counters[:3], counters[5]) == (first, 5 * first, last, 7 * middle)
    expected = {
        "first": (first, first, first),
        "middle": (first, first - 1, first - 1),
        "last": (first, first, first - 1),
    }
    for name, counts in expected.items():
        if vcpu.rip == kernel.image.address(name):
            assert (first, middle, last) == counts, name


@pytest.mark.parametrize(("hz", "nmi_rate"), [(0, 0.0), (500, 500.0)], ids=["", "ticks, NMIs"])
def test_stops_ticks_and_nmis_come_between_blocks_and_nothing_runs_twice(run, hz, nmi_rate):
    kernel = boot_threaded(COUNTING, gates=HANDLERS, vcpus=2, hz=hz, nmi_rate=nmi_rate)
    machine = kernel.machine
    places = set()

    def look():
        for vcpu in machine.vcpus:
            assert vcpu.interrupts_on
            places.add(vcpu.rip)
            assert_each_instruction_ran_once(kernel, vcpu)

    def interrupted_often():
        counts = kernel.percpu("timer_interrupts") + kernel.percpu("nmi_count")
        return min(counts) > 5 if hz else max(counts) == 0

    def stops():
        yield 0.02  # the second one has started
        while len(machine.stops) < 400 or len(places) < 3 or not interrupted_often():
            machine.stop_machine(look)
            yield 0.00005 * (len(machine.stops) % 4)

    beside(kernel, stops())
    assert run(kernel) is RunEnd.INTERRUPTED
    look()
    assert len(machine.stops) >= 400  # it was not we who gave up
    assert len(places) >= 3
    assert interrupted_often()
    assert min(vcpu[Reg.R12] for vcpu in machine.vcpus) > 10_000


def test_no_tick_comes_between_sti_and_the_next_instruction():
    """Or the tick would come before the hlt that waits for it, and the CPU sleep too long."""
    kernel = boot_threaded(
        """
    ENTRY startup_64
        LOAD_IDT
        sti
        hlt
        nop
    END startup_64
    ENTRY tick
        iretq
    END tick
    """,
        gates={TIMER: "tick"},
        hz=100,
    )
    engine, vcpu = kernel.machine.engine, kernel.machine.vcpus[0]
    (slot,) = engine._slots
    engine._request(slot, Request.TIMER)
    assert vcpu.run(grace=0).reason is ExitReason.GATE  # interrupts have just come on
    hlt = vcpu.rip
    assert vcpu.read(hlt, 1) == b"\xf4"
    engine._after(slot, Exit(ExitReason.GATE))
    assert vcpu.rip == hlt
    exit_ = vcpu.run(grace=slot.grace)
    assert exit_.reason is ExitReason.HALTED
    engine._after(slot, exit_)
    assert vcpu.rip == kernel.image.address("tick")
    assert kernel.machine.memory.read_u64(vcpu[Reg.RSP]) == hlt + 1


def test_a_loop_that_looks_like_the_shadow_of_sti_still_gets_its_ticks(run):
    kernel = boot_threaded(
        """
    ENTRY startup_64
        LOAD_IDT
        sti
    1:  cmp r15, 5
        jne 1b
        OFFLINE
    END startup_64
    ENTRY tick
        inc r15
        iretq
    END tick
    """,
        gates={TIMER: "tick"},
        hz=500,
    )
    assert run(kernel) is RunEnd.OFFLINE


WINDOWS = (
    START
    + """
ENTRY work
1:      cli
        mov r12d, 1
        mov ecx, 3000
2:      dec ecx
        jnz 2b
        xor r12d, r12d
        sti
        nop
        nop
        jmp 1b
END work
"""
)


def test_a_vcpu_is_parked_only_while_its_interrupts_are_on(run):
    kernel = boot_threaded(WINDOWS, gates=HANDLERS, vcpus=2, hz=200, nmi_rate=200.0)
    machine = kernel.machine
    seen = []

    def look():
        seen.extend((vcpu[Reg.R12], vcpu.interrupts_on) for vcpu in machine.vcpus)

    def stops():
        yield 0.02
        while len(seen) < 80 or min(kernel.percpu("timer_interrupts")) == 0:
            machine.stop_machine(look)
            yield 0.0

    beside(kernel, stops())
    assert run(kernel) is RunEnd.INTERRUPTED
    assert len(seen) >= 80
    assert set(seen) == {(0, True)}
    assert min(kernel.percpu("timer_interrupts")) > 0


def test_a_stop_gives_up_on_interrupts_that_stay_off(run, monkeypatch):
    """And knows exactly where that CPU is, since it too was stopped by its gate."""
    monkeypatch.setattr(threaded_module, "STOP_LIMIT_S", 0.2)
    text = COUNTING.replace("        sti\n", "")
    kernel = boot_threaded(text, gates=HANDLERS, hz=100)

    def stop():
        yield 0.02
        kernel.machine.stop_machine(lambda: pytest.fail("it was stopped"))

    beside(kernel, stop())
    with pytest.raises(StopMachineTimeout, match="interrupts are off"):
        run(kernel)
    assert_each_instruction_ran_once(kernel, kernel.machine.vcpus[0])


def anywhere(machine):
    return ThreadedEngine(machine, park=Park.ANYWHERE)


def test_under_the_rule_anywhere_interrupts_need_not_be_on(run):
    text = COUNTING.replace("        sti\n", "")
    kernel = boot_guest(text, engine=anywhere, gates=HANDLERS, vcpus=2, hz=500, nmi_rate=200.0)
    machine = kernel.machine

    def look():
        for vcpu in machine.vcpus:
            assert not vcpu.interrupts_on
            assert_each_instruction_ran_once(kernel, vcpu)

    def stops():
        yield 0.02
        while len(machine.stops) < 100:
            machine.stop_machine(look)
            yield 0.0

    beside(kernel, stops())
    assert run(kernel) is RunEnd.INTERRUPTED
    assert len(machine.stops) >= 100
    assert kernel.percpu("timer_interrupts") == [0, 0]


def test_but_who_uses_what_a_stop_may_change_is_let_finish(run):
    """That has a preempt count; most of the time, here, and not for long at a time."""
    kernel = boot_guest(
        START
        + """
    ENTRY work
    1:  inc qword ptr gs:[PCPU_PREEMPT_COUNT]
        mov ecx, 20
    2:  dec ecx
        jnz 2b
        dec qword ptr gs:[PCPU_PREEMPT_COUNT]
        jmp 1b
    END work
    """,
        engine=anywhere,
        vcpus=2,
    )
    counts = []

    def stops():
        yield 0.02
        for _ in range(50):
            kernel.machine.stop_machine(lambda: counts.extend(kernel.percpu("preempt_count")))
            yield 0.0

    beside(kernel, stops())
    assert run(kernel) is RunEnd.INTERRUPTED
    assert counts == [0] * 100


def test_grace_is_counted_in_blocks():
    kernel = boot_threaded(COUNTING)
    vcpu, requests = kernel.machine.vcpus[0], kernel.machine.words[0].requests
    vcpu.rip = kernel.image.address("work")
    requests[0] = 1
    for grace, place in ((0, "work"), (2, "first"), (1, "middle"), (1, "last"), (0, "last")):
        assert vcpu.run(grace=grace, at_once=1).reason is ExitReason.GATE
        assert vcpu.rip == kernel.image.address(place)


def test_what_is_not_wanted_at_once_waits_for_interrupts_to_be_on():
    kernel = boot_threaded(COUNTING)
    vcpu, requests = kernel.machine.vcpus[0], kernel.machine.words[0].requests
    vcpu.rip = kernel.image.address("work")
    assert not vcpu.interrupts_on
    requests[0] = 2
    assert vcpu.run(at_once=1).reason is ExitReason.GATE
    assert vcpu.interrupts_on
    assert vcpu.read(vcpu.rip - 1, 1) == b"\xfb"
    vcpu[Reg.RFLAGS] = 2
    requests[0] = 3
    assert vcpu.run(at_once=1).reason is ExitReason.GATE
    assert vcpu.read(vcpu.rip - 1, 1) == b"\xfb"


# --- hosts that cannot ---


@pytest.fixture
def fresh_host():
    """Nothing of what this process found out about its host is remembered, before and after."""
    found = (native_hook.why_no_native_hooks, native_hook._code_address)
    keep = native_hook._code()  # noqa: F841 - other machines may still use it
    for function in found:
        function.cache_clear()
    yield
    for function in found:
        function.cache_clear()
    native_hook._code.cache_clear()


def test_a_host_of_another_kind_has_none_and_says_so(fresh_host, monkeypatch):
    native_hook._code.cache_clear()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "linux on aarch64" in native_hook.why_no_native_hooks()
    with pytest.raises(NativeHookError, match=r"polls.*aarch64.*deterministic engine"):
        boot_threaded(COUNTING)


def test_a_host_that_forbids_executable_memory_has_none_and_says_so(fresh_host, monkeypatch):
    native_hook._code.cache_clear()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert "written and executed: Permission denied" in native_hook.why_no_native_hooks()


def test_this_host_can():
    assert native_hook.why_no_native_hooks() == ""
