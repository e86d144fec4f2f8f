"""The threaded engine: real threads, stops at safepoints, and nothing left behind."""

import threading
import time

import numpy as np
import pytest

from dynftrace_emu.errors import (
    GuestExit,
    GuestFault,
    StopMachineTimeout,
    TextBusyError,
)
from dynftrace_emu.machine import machine as machine_module
from dynftrace_emu.machine import threaded as threaded_module
from dynftrace_emu.machine.engine import RunEnd
from dynftrace_emu.machine.machine import TextSpan
from dynftrace_emu.machine.vcpu import Reg
from tests.machine.guests import NMI, TIMER, boot_threaded, set_gate

LONG = 3600.0
GIVE_UP = 4.0
"""Seconds after which a run that hangs is interrupted, so that the test fails instead."""


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


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


def kthread(kernel, function):
    """Call ``function`` in a host thread once the run has begun."""

    def body():
        function()
        yield LONG

    kernel.machine.kthread("test", body())


TWO = """
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

# Counts in memory by instructions that a foreign stop would repeat, and in a register.
COUNTING = (
    TWO
    + """
ENTRY work
        sti
        xor r12d, r12d
1:      inc qword ptr gs:[PCPU_ITERATIONS]
        add qword ptr gs:[PCPU_CHECKSUM], 3
        mov eax, 5
        lea rcx, [rip + counters]
        mov rdx, gs:[PCPU_CPU]
        xadd [rcx + rdx * 8], rax
        inc r12
        SAFEPOINT
        jmp 1b
END work
.data
        .p2align 6
counters:
        .skip 64
"""
)
HANDLERS = {NMI: ("nmi", 1), TIMER: "tick"}


def assert_nothing_ran_twice(kernel):
    registers = [vcpu[Reg.R12] for vcpu in kernel.machine.vcpus]
    counters = kernel.machine.memory.view(kernel.image.address("counters"), "<u8", 2)
    assert kernel.percpu("iterations") == registers
    assert kernel.percpu("checksum") == [3 * n for n in registers]
    assert counters.tolist() == [5 * n for n in registers]
    assert min(registers) > 0


def test_two_vcpus_run_on_two_threads_at_the_same_time(run):
    """Each waits for the other, without a safepoint: one thread alone would never end."""
    kernel = boot_threaded(
        TWO
        + """
    .set ROUNDS, 20
    .data
    here:   .skip 16
    .text
    ENTRY work
        mov rax, gs:[PCPU_CPU]
        lea rcx, [rip + here]
        out 0x50, al
        mov ebx, ROUNDS
    1:  mov [rcx + rax * 8], rbx
        mov rdx, rax
        xor rdx, 1
    2:  pause
        cmp [rcx + rdx * 8], rbx
        ja 2b
        dec rbx
        jnz 1b
        SAFEPOINT
        OFFLINE
    END work
    """,
        vcpus=2,
    )
    threads = {}
    for vcpu in kernel.machine.vcpus:
        vcpu.out_ports[0x50] = lambda vcpu, _: threads.update(
            {vcpu.index: threading.current_thread()}
        )
    kernel.machine.memory.view(kernel.image.address("here"), "<u8", 2)[:] = 21
    assert run(kernel) is RunEnd.OFFLINE
    assert len({*threads.values(), threading.current_thread()}) == 3


def test_stops_are_at_safepoints_and_nobody_moves_meanwhile(run):
    kernel = boot_threaded(COUNTING, vcpus=2, gates=HANDLERS, hz=500, nmi_rate=500.0)
    machine = kernel.machine
    moved, nmis = [], []

    def look():
        before = kernel.percpu("iterations"), list(machine.nmis)
        assert_nothing_ran_twice(kernel)
        for _ in range(200):
            now = kernel.percpu("iterations"), list(machine.nmis)
            if now != before:
                moved.append((before, now))
        nmis.append(before[1])

    def stops():
        while len(machine.stops) < 250 or not all(
            n > 2 for n in (*machine.nmis, *kernel.percpu("timer_interrupts"))
        ):
            machine.stop_machine(look)
        machine.interrupt()

    kthread(kernel, stops)
    assert run(kernel) is RunEnd.INTERRUPTED
    assert len(machine.stops) >= 250
    assert not moved
    behind_hlt = {at + 3 for at in kernel.image.scan.safepoints}  # out imm8, al; hlt
    assert {ip for stop in machine.stops for _, ip in stop.parked} == behind_hlt
    assert all(stop.pause_us > 0 for stop in machine.stops)
    assert_nothing_ran_twice(kernel)
    assert kernel.percpu("nmi_count") == machine.nmis
    assert min(machine.nmis) > 2
    assert min(kernel.percpu("timer_interrupts")) > 2


def test_a_stop_changes_text_for_every_vcpu(run):
    kernel = boot_threaded(
        TWO
        + """
    .data
    results: .skip 128
    .text
    ENTRY work
    1:  call target
        lea rcx, [rip + results]
        mov rdx, gs:[PCPU_CPU]
        mov [rcx + rdx * 8], rax
        inc qword ptr gs:[PCPU_ITERATIONS]
        SAFEPOINT
        jmp 1b
    END work
    ENTRY target
        mov eax, 0
        ret
    END target
    """.replace("ENTRY work", "ENTRY work\n        sti"),
        vcpus=2,
    )
    machine = kernel.machine
    results = machine.memory.view(kernel.image.address("results"), "<u8", 2)
    address = np.array([kernel.image.address("target") + 1], dtype=np.uint64)
    seen, expected, goals = [], [], []

    def patch(number):
        goals[:] = [n + 2 for n in kernel.percpu("iterations")]
        if number:
            seen.append(results.tolist())
            expected.append([number - 1, number - 1])
        machine.poke_text(address, np.array([[number, 0, 0, 0]], dtype=np.uint8))

    def patches():
        for number in range(40):
            machine.stop_machine(lambda number=number: patch(number))
            while any(n < g for n, g in zip(kernel.percpu("iterations"), goals, strict=True)):
                time.sleep(0)
        machine.interrupt()

    kthread(kernel, patches)
    assert run(kernel) is RunEnd.INTERRUPTED
    assert seen == expected
    assert len(seen) == 39


def test_run_goes_on_where_the_run_before_ended(run):
    kernel = boot_threaded(COUNTING, vcpus=2)
    machine, counts = kernel.machine, [0]
    for _ in range(3):
        before = machine.now()
        assert run(kernel, 0.05) is RunEnd.TIME
        assert machine.now() >= before + 0.05
        assert_nothing_ran_twice(kernel)
        counts.append(min(kernel.percpu("iterations")))
        assert machine.stop_machine(lambda: "between runs") == "between runs"
    assert counts == sorted(set(counts))
    now = machine.now()
    assert machine.now() == now  # its clock stands while nothing runs


def test_host_code_sleeps_its_time_across_runs(run):
    """A sleep of an hour does not end because a run did."""
    kernel = boot_threaded(COUNTING)
    woken = []

    def body():
        yield LONG
        woken.append(True)
        yield LONG

    kernel.machine.kthread("sleeper", body())
    for _ in range(2):
        assert run(kernel, 0.02) is RunEnd.TIME
    assert not woken


def test_a_stop_before_the_first_run_does_not_wait_for_threads_that_are_not_there(monkeypatch):
    monkeypatch.setattr(threaded_module, "STOP_LIMIT_S", 0.3)
    kernel = boot_threaded(COUNTING)
    assert kernel.machine.stop_machine(lambda: "stopped") == "stopped"


def test_interrupt_from_another_thread_ends_the_run():
    kernel = boot_threaded(COUNTING, vcpus=2)
    timer = threading.Timer(0.05, kernel.machine.interrupt)
    timer.start()
    assert kernel.machine.run(LONG) is RunEnd.INTERRUPTED
    timer.join()
    assert_nothing_ran_twice(kernel)


def test_a_fault_of_one_vcpu_ends_the_run_for_all(run):
    """vCPU 1 faults; vCPU 0 polls, and its thread ends in order."""
    kernel = boot_threaded(
        TWO
        + """
    ENTRY work
        cmp qword ptr gs:[PCPU_CPU], 0
        jne 2f
        sti
    1:  inc qword ptr gs:[PCPU_ITERATIONS]
        inc r12
        SAFEPOINT
        jmp 1b
    2:  xor eax, eax
    bad:
        mov [rax + 0x10], eax
    END work
    """,
        vcpus=2,
    )
    with pytest.raises(GuestFault, match="page fault") as caught:
        run(kernel)
    fault = caught.value
    assert (fault.vcpu, fault.vector, fault.error_code, fault.cr2) == (1, 14, 2, 0x10)
    assert fault.rip == kernel.image.address("bad")
    assert kernel.machine.vcpus[0][Reg.R12] == kernel.percpu("iterations")[0]


def test_a_fault_while_another_waits_at_hlt_ends_the_run(run):
    kernel = boot_threaded(
        TWO
        + """
    ENTRY work
        sti
        cmp qword ptr gs:[PCPU_CPU], 0
        jne 2f
    1:  SAFEPOINT
        hlt
        jmp 1b
    2:  ud2
    END work
    """,
        vcpus=2,
    )
    with pytest.raises(GuestFault, match="invalid opcode"):
        run(kernel)


def test_an_error_in_host_code_comes_out_of_run(run):
    kernel = boot_threaded(COUNTING, vcpus=2)

    def fail():
        raise ZeroDivisionError

    kthread(kernel, fail)
    with pytest.raises(ZeroDivisionError):
        run(kernel)


STUCK = (
    TWO
    + """
ENTRY work
        sti
        cmp qword ptr gs:[PCPU_CPU], 1
        je 2f
1:      SAFEPOINT
        jmp 1b
2:      {instruction}
stuck:  jmp stuck
END work
"""
)


@pytest.mark.parametrize(
    ("instruction", "why"), [("cli", "interrupts are off"), ("nop", "it reached no safepoint")]
)
@pytest.mark.parametrize("by", ["a stop", "the end of the run"])
def test_a_vcpu_that_does_not_park_is_named_and_nothing_is_changed(
    monkeypatch, run, instruction, why, by
):
    monkeypatch.setattr(threaded_module, "STOP_LIMIT_S", 0.2)
    kernel = boot_threaded(STUCK.replace("{instruction}", instruction), vcpus=2)
    calls = []
    if by == "a stop":
        kthread(kernel, lambda: kernel.machine.stop_machine(lambda: calls.append(1)))
    with pytest.raises(StopMachineTimeout, match=f"vCPU 1 .*{why} for 0.2 s") as caught:
        run(kernel, 0.1 if by != "a stop" else None)
    assert (caught.value.vcpu, caught.value.rip) == (1, kernel.image.address("stuck"))
    assert not calls
    assert not kernel.machine.stops


def test_an_ip_that_stays_inside_a_site_ends_in_an_error_and_nothing_is_changed(monkeypatch, run):
    monkeypatch.setattr(machine_module, "STOP_LIMIT_S", 0.1)
    kernel = boot_threaded(COUNTING)
    calls = []
    site = np.array([kernel.image.scan.safepoints[0]], dtype=np.uint64)

    def stop():
        kernel.machine.stop_machine(lambda: calls.append(1), lambda: TextSpan(site, 4))

    kthread(kernel, stop)
    with pytest.raises(TextBusyError, match="vCPU 0 is at work with what is to change"):
        run(kernel)
    assert not calls


@pytest.mark.parametrize("code", [0, 9])
def test_the_exit_port_ends_the_machine_for_all(run, code):
    kernel = boot_threaded(
        TWO
        + f"""
    ENTRY work
        cmp qword ptr gs:[PCPU_CPU], 1
        je 2f
    1:  SAFEPOINT
        jmp 1b
    2:  mov al, {code}
        out PORT_EXIT, al
        hlt
    END work
    """.replace("ENTRY work", "ENTRY work\n        sti"),
        vcpus=2,
    )
    if code == 0:
        assert run(kernel) is RunEnd.SHUTDOWN
    else:
        with pytest.raises(GuestExit) as caught:
            run(kernel)
        assert (caught.value.vcpu, caught.value.code) == (1, 9)


HALTING = (
    TWO
    + """
ENTRY work
        {flag}
1:      hlt
        inc qword ptr gs:[PCPU_ITERATIONS]
        SAFEPOINT
        cmp qword ptr gs:[PCPU_ITERATIONS], 10
        jb 1b
        OFFLINE
END work
"""
)


def test_hlt_wakes_at_the_tick_and_stops_find_it_parked(run):
    kernel = boot_threaded(
        HALTING.replace("{flag}", "sti"), vcpus=2, gates=HANDLERS, hz=100
    )  # fmt: skip
    assert run(kernel) is RunEnd.OFFLINE
    assert kernel.percpu("timer_interrupts") == [10, 10]


def test_a_stop_finds_a_halted_vcpu_parked(run):
    """The one thing that would wake them is 100 s away: they stand at their first hlt."""
    kernel = boot_threaded(HALTING.replace("{flag}", "sti"), vcpus=2, gates=HANDLERS, nmi_rate=0.01)
    machine = kernel.machine
    hlt = kernel.image.address("work") + 1
    there = []  # of each stop, whether all stood there; not yet at first

    def stops():
        while there.count(True) < 15:
            before = len(machine.stops)
            machine.stop_machine(lambda: None)
            parked = [{ip for _, ip in stop.parked} for stop in machine.stops[before:]]
            there.extend(ips == {hlt + 1} for ips in parked)
        machine.interrupt()

    kthread(kernel, stops)
    assert run(kernel) is RunEnd.INTERRUPTED
    assert all(there[there.index(True) :])  # and there they stay
    assert kernel.percpu("iterations") == [0, 0]


def test_hlt_with_interrupts_off_is_a_dead_cpu(run):
    kernel = boot_threaded(HALTING.replace("{flag}", "cli"), gates=HANDLERS, hz=100)
    with pytest.raises(GuestFault, match="dead CPU") as caught:
        run(kernel)
    assert caught.value.rip == kernel.image.address("work") + 1


def test_an_nmi_wakes_a_cpu_that_halted_with_interrupts_off(run):
    halting = (
        HALTING.replace("{flag}", "cli").replace("SAFEPOINT", "nop")
        + """
    ENTRY never_called
        SAFEPOINT
    END never_called
    """
    )
    kernel = boot_threaded(halting, gates=HANDLERS, hz=1000, nmi_rate=100.0)
    assert run(kernel) is RunEnd.OFFLINE
    assert kernel.percpu("nmi_count") == [10]
    assert kernel.percpu("timer_interrupts") == [0]


def test_a_machine_whose_cpus_all_wait_for_nothing_is_idle(run):
    """As in the deterministic engine: without a limit this would hang for ever."""
    kernel = boot_threaded(HALTING.replace("{flag}", "sti"), vcpus=2)
    assert run(kernel) is RunEnd.IDLE


def test_the_set_up_of_these_tests_delivers_interrupts(run):
    """A gate written by hand is one that the engine finds."""
    kernel = boot_threaded(COUNTING, hz=200)
    run(kernel, 0.03)
    assert kernel.percpu("timer_interrupts") == [0]
    set_gate(kernel, TIMER, kernel.image.address("tick"))
    run(kernel, 0.06)
    assert kernel.percpu("timer_interrupts")[0] > 0
