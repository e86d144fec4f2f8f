"""Instructions counted exactly: by the host, by the guest, and as the guest's time."""

import numpy as np
import pytest

from dynftrace_emu.errors import GuestFault
from dynftrace_emu.machine.engine import Park, RunEnd
from dynftrace_emu.machine.exits import ExitReason
from dynftrace_emu.machine.machine import TextSpan
from dynftrace_emu.machine.memory import COUNTER_PAGE
from dynftrace_emu.machine.vcpu import Reg
from tests.machine.guests import (
    NMI,
    TIMER,
    VIRTUAL_HZ,
    boot_guest,
    boot_threaded,
    deterministic,
    page_table_entries,
    words,
)

UD, DE, PF, BP = 6, 0, 14, 3
LOOP = """
ENTRY startup_64
        mov ecx, 100
1:      dec ecx
        jnz 1b
{end}
END startup_64
"""
LOOP_LENGTH = 1 + 2 * 100


def vcpu_of(text):
    return boot_guest(text).machine.vcpus[0]


# --- what the host is told ---


@pytest.mark.parametrize("budget", [1, 2, 3, 100, LOOP_LENGTH - 1, LOOP_LENGTH])
def test_a_budget_that_is_used_up_is_what_was_run(budget):
    vcpu = vcpu_of(LOOP.format(end="hlt"))
    assert vcpu.run(budget).reason is ExitReason.BUDGET
    assert vcpu.executed == budget
    assert vcpu[Reg.RCX] == 100 - budget // 2


@pytest.mark.parametrize(
    ("end", "reason", "more"),
    [
        ("hlt", ExitReason.HALTED, 1),
        ("nop; nop; hlt", ExitReason.HALTED, 3),
        ("out PORT_EXIT, al; hlt", ExitReason.SHUTDOWN, 1),
        ("out PORT_EXIT, al; nop; nop", ExitReason.SHUTDOWN, 1),
        ("out PORT_CPU_OFFLINE, al; hlt", ExitReason.OFFLINE, 2),
        ("out PORT_SAFEPOINT, al; hlt", ExitReason.SAFEPOINT, 2),
        ("ud2", UD, 1),
        ("int3", BP, 1),
        ("mov rax, [0]", PF, 1),
        ("xor edx, edx; div ecx", DE, 2),
        ("call away; nop; nop", UD, 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("rest", [0, 1, 10_000])
@pytest.mark.parametrize("nmi_rate", [0, 1], ids=["", "irets watched"])
def test_a_run_that_ends_early_says_how_far_it_came(end, reason, more, rest, nmi_rate):
    """Whatever the budget was; what ends it has begun."""
    text = LOOP.format(end=end) + "\nENTRY away\nud2\niretq\nEND away\n"
    vcpu = boot_guest(text, nmi_rate=nmi_rate).machine.vcpus[0]
    length = LOOP_LENGTH + more
    exit_ = vcpu.run(length + rest)
    if isinstance(reason, ExitReason):
        assert exit_.reason is reason
    else:
        assert (exit_.reason, exit_.value) == (ExitReason.EXCEPTION, reason)
    assert vcpu.executed == length


@pytest.mark.parametrize(
    ("text", "rip"),
    [("jmp 1f; hlt; 1: nop; hlt", 3), ("mov eax, 0xf4000000; nop", 5)],
    ids=["jumped over", "inside an instruction"],
)
def test_a_hlt_in_front_that_did_not_run_is_no_halt(text, rip):
    vcpu = vcpu_of("ENTRY startup_64\n" + text.replace("; ", "\n") + "\nEND startup_64\n")
    entry = vcpu.rip
    assert vcpu.run(1).reason is ExitReason.BUDGET
    assert vcpu.rip == entry + rip
    assert vcpu.read(vcpu.rip - 1, 1) == b"\xf4"


def test_each_run_is_counted_by_itself():
    vcpu = vcpu_of(LOOP.format(end="2: jmp 2b"))
    for budget in (7, 1, 100, 3):
        vcpu.run(budget)
        assert vcpu.executed == budget
    vcpu.step()
    assert vcpu.executed == 1


# --- what the guest sees ---


def test_the_counter_page_grows_by_one_with_each_instruction():
    vcpu = vcpu_of(f"""
    ENTRY startup_64
        movabs rbx, {COUNTER_PAGE}
        mov rax, [rbx]
        mov rcx, [rbx]
        nop
        mov rdx, [rbx]
        jmp 1f
    1:  mov rsi, [rbx]
        call away
        hlt
    END startup_64
    ENTRY away
        mov rdi, [rbx]
        ret
    END away
    """)
    assert vcpu.run(100).reason is ExitReason.HALTED
    seen = [vcpu[register] for register in (Reg.RAX, Reg.RCX, Reg.RDX, Reg.RSI, Reg.RDI)]
    assert seen == [2, 3, 5, 7, 9]
    assert vcpu.executed == 11


def test_it_grows_in_a_loop_whose_code_is_translated_once():
    rounds = 500
    kernel = boot_guest(f"""
    ENTRY startup_64
        movabs rbx, {COUNTER_PAGE}
        lea rdi, [rip + log]
        mov ecx, {rounds}
    1:  mov rax, [rbx]
        mov [rdi], rax
        add rdi, 8
        dec ecx
        jnz 1b
        hlt
    END startup_64
    .data
    log:    .skip 8 * {rounds}
    """)
    vcpu = kernel.machine.vcpus[0]
    assert vcpu.run(100_000).reason is ExitReason.HALTED
    log = kernel.machine.memory.view(kernel.image.address("log"), "<u8", rounds).tolist()
    assert log == [4 + 5 * n for n in range(rounds)]
    assert vcpu.executed == 3 + 5 * rounds + 1


def test_each_vcpu_sees_its_own():
    kernel = boot_guest(
        f"""
    ENTRY startup_64
        movabs rbx, {COUNTER_PAGE}
    1:  mov rax, [rbx]
        jmp 1b
    END startup_64
    """,
        vcpus=2,
    )
    one, other = kernel.machine.vcpus
    other.rip = one.rip
    one.run(101)
    other.run(8)
    assert (one[Reg.RAX], other[Reg.RAX]) == (100, 8)
    one.run(9)
    assert (one[Reg.RAX], other[Reg.RAX]) == (9, 8)


def test_guest_code_cannot_write_to_the_counter_page():
    kernel = boot_guest(f"""
    ENTRY startup_64
        movabs rbx, {COUNTER_PAGE}
        mov qword ptr [rbx], 5
    END startup_64
    """)
    with pytest.raises(GuestFault) as caught:
        kernel.machine.run(0.01)
    fault = caught.value
    assert (fault.vector, fault.error_code, fault.cr2) == (PF, 3, COUNTER_PAGE)  # present, a write


def test_where_instructions_are_not_counted_there_is_no_counter():
    kernel = boot_threaded("""
    ENTRY startup_64
        SAFEPOINT
        OFFLINE
    END startup_64
    """)
    memory = kernel.machine.memory
    assert COUNTER_PAGE not in page_table_entries(memory.ram.tobytes(), memory.root)


# --- the virtual clock ---


@pytest.mark.parametrize("seed", range(3))
def test_the_virtual_clock_has_come_as_far_as_the_guest_when_that_ends(seed):
    """Each fault ends a slice early; so does the end."""
    faults = 100
    kernel = boot_guest(
        f"""
    ENTRY startup_64
        LOAD_IDT
        mov ebx, {faults}
    1:  ud2
        dec ebx
        jnz 1b
        OFFLINE
    END startup_64
    ENTRY skip
        add qword ptr [rsp], 2
        iretq
    END skip
    """,
        gates={UD: "skip"},
        engine=deterministic(seed),
    )
    assert kernel.machine.run(None) is RunEnd.OFFLINE
    assert kernel.machine.now() * VIRTUAL_HZ == 2 + faults * (1 + 2 + 2) + 2


@pytest.mark.parametrize("rate", [1000, 9973, 60_000])
def test_the_virtual_clock_counts_each_instruction_once_however_often_nmis_come(rate):
    """At the higher rates NMIs wait for the iretq of the one before: a run ends in front of it."""
    handler = 302
    kernel = boot_guest(
        """
    ENTRY startup_64
        LOAD_IDT
        sti
    loop:
        inc rbx
        jmp loop
    END startup_64
    ENTRY nmi
        inc r12
        .rept 300
        nop
        .endr
        iretq
    END nmi
    """,
        gates={NMI: ("nmi", 1)},
        nmi_rate=rate,
        engine=deterministic(seed=1),
    )
    machine, vcpu = kernel.machine, kernel.machine.vcpus[0]
    machine.run(0.05)
    assert vcpu[Reg.R12] == sum(machine.nmis) > 10
    loop = kernel.image.address("loop")
    assert vcpu.rip in (loop, loop + 3)  # in no handler
    ran = 2 + 2 * vcpu[Reg.RBX] - (vcpu.rip == loop + 3) + handler * vcpu[Reg.R12]
    assert ran == round(machine.engine.vcpu_time(vcpu) * VIRTUAL_HZ)


# --- the guest's time ---

CLOCK = """
.include "trace/trace.inc"

# Note in this CPU's area if time has gone back since it looked last. Nothing may come in between.
.macro LOOK
        TRACE_CLOCK_LOCAL
        cmp rax, gs:[PCPU_CHECKSUM]
        jae .Lforward\\@
        inc qword ptr gs:[PCPU_SKIPPED_NESTED]
.Lforward\\@:
        mov gs:[PCPU_CHECKSUM], rax
        inc qword ptr gs:[PCPU_ITERATIONS]
.endm
"""


@pytest.mark.parametrize("virtual_hz", [VIRTUAL_HZ, 333_333, 1_000_003, 7_000])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_guests_time_is_what_its_cpu_has_run(virtual_hz, seed):
    """ns = (count * mul >> 32) + offset, where the offset is the same before and behind."""
    rounds, length, before = 400, 11 + 2 * 30, 4
    kernel = boot_guest(
        f"""
    ENTRY startup_64
        mov rbp, gs:[PCPU_PVCLOCK + PVCLOCK_COUNTER]
        lea rdi, [rip + log]
        mov ebx, {rounds}
    again:
        mov rax, gs:[PCPU_PVCLOCK + PVCLOCK_OFFSET]
        mov rdx, [rbp]
        mov rsi, gs:[PCPU_PVCLOCK + PVCLOCK_OFFSET]
        mov [rdi], rax
        mov [rdi + 8], rdx
        mov [rdi + 16], rsi
        add rdi, 24
        mov ecx, 30
    1:  dec ecx
        jnz 1b
        nop
        dec ebx
        jnz again
        OFFLINE
    END startup_64
    .data
    log:    .skip 24 * {rounds}
    """,
        engine=deterministic(seed, virtual_hz),
    )
    assert kernel.machine.run(None) is RunEnd.OFFLINE
    assert kernel.machine.now() * virtual_hz == pytest.approx(before - 1 + rounds * length + 2)
    log = words(kernel, "log", 3 * rounds)
    mul = int(kernel.pcpu(0)["pvclock"]["mul"][0])
    times = {
        number: (count * mul >> 32) + offset
        for number, (offset, count, offset_behind) in enumerate(
            zip(log[::3], log[1::3], log[2::3], strict=True)
        )
        if offset == offset_behind
    }
    assert len(times) > 0.8 * rounds
    assert len(set(log[::3])) > 3  # of several slices
    for number, time in times.items():
        true = (before + 1 + number * length) * 1e9 / virtual_hz  # as that instruction has begun
        assert abs(time - true) <= 2  # two roundings: of the slice's start, of what was run in it


@pytest.mark.parametrize("park", Park)
@pytest.mark.parametrize("seed", range(3))
def test_the_guests_time_never_goes_back_whatever_comes_in_between(park, seed):
    """Ticks and faults, whose handlers look at the clock, and stops."""
    kernel = boot_guest(
        CLOCK
        + """
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
    ENTRY work
        sti
    1:  mov ecx, 13
    2:  dec ecx
        jnz 2b
        ud2
        jmp 1b
    END work
    ENTRY fault
        LOOK
        add qword ptr [rsp], 2
        iretq
    END fault
    ENTRY tick
        LOOK
        iretq
    END tick
    """,
        gates={TIMER: "tick", UD: "fault"},
        vcpus=2,
        hz=250,
        engine=deterministic(seed, virtual_hz=333_333, park=park),
    )
    machine = kernel.machine

    def stops():
        while True:
            yield 0.000_7
            machine.stop_machine(lambda: None)

    machine.kthread("stops", stops())
    machine.run(0.1)
    assert min(kernel.percpu("iterations")) > 100
    assert kernel.percpu("skipped_nested") == [0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_who_has_to_get_on_before_a_stop_can_read_the_clock_meanwhile(seed):
    """However few instructions it is given at a time, and again in the middle of a reading."""
    using = 1 << 28
    kernel = boot_guest(
        CLOCK
        + f"""
    ENTRY startup_64
        inc rbx
        add qword ptr gs:[PCPU_PREEMPT_COUNT], {using}
        .rept 3
        LOOK
        .endr
        sub qword ptr gs:[PCPU_PREEMPT_COUNT], {using}
        inc r12
        .rept 40
        nop
        .endr
        jmp startup_64
    END startup_64
    """,
        engine=deterministic(seed, park=Park.ANYWHERE),
    )
    machine, vcpu = kernel.machine, kernel.machine.vcpus[0]
    span = TextSpan(np.zeros(0, dtype=np.uint64), 5, using)
    counts = []

    def stops():
        while True:
            yield 0.000_501
            machine.stop_machine(
                lambda: counts.extend(kernel.percpu("preempt_count")), lambda: span
            )

    machine.kthread("stops", stops())
    machine.run(0.05)
    assert len(counts) > 50
    assert set(counts) == {0}
    assert {stop.tries for stop in machine.stops} == {1}
    assert vcpu[Reg.RBX] - vcpu[Reg.R12] in (0, 1)
    assert kernel.percpu("iterations")[0] > 1000
    assert kernel.percpu("skipped_nested") == [0]


@pytest.mark.parametrize("seed", range(3))
def test_an_nmi_that_comes_into_a_stop_does_not_see_an_earlier_time(seed):
    """A stop takes no time; a handler that runs in it sees the time it began at, or a later one."""
    kernel = boot_guest(
        CLOCK
        + """
    ENTRY startup_64
        LOAD_IDT
        sti
    1:  cli
        LOOK
        sti
        jmp 1b
    END startup_64
    ENTRY nmi
        mov r14, rax
        mov r15, rdx
        inc r12
        TRACE_CLOCK_LOCAL
        cmp rax, gs:[PCPU_CHECKSUM]
        jae 1f
        inc r13
    1:  mov rax, r14
        mov rdx, r15
        iretq
    END nmi
    """,
        gates={NMI: ("nmi", 1)},
        nmi_rate=500,
        engine=deterministic(seed),
    )
    machine, vcpu = kernel.machine, kernel.machine.vcpus[0]

    def stops():
        while True:
            yield 0.001
            machine.stop_machine(lambda: None)

    machine.kthread("stops", stops())
    machine.run(0.2)
    assert vcpu[Reg.R12] > 50
    assert vcpu[Reg.R13] == 0
    assert kernel.total("skipped_nested") == 0


def test_on_threads_the_guests_time_never_goes_back_from_run_to_run_either():
    kernel = boot_threaded(
        CLOCK
        + """
    ENTRY startup_64
        mov eax, 1
        mov edx, PORT_CPU_START
        out dx, eax
        jmp work
    END startup_64
    ENTRY secondary_startup_64
        jmp work
    END secondary_startup_64
    ENTRY work
        sti
    1:  SAFEPOINT
        LOOK
        jmp 1b
    END work
    """,
        vcpus=2,
    )
    machine, counts = kernel.machine, [0]
    for _ in range(3):
        machine.run(0.05)
        machine.stop_machine(lambda: None)
        counts.append(min(kernel.percpu("iterations")))
    assert counts == sorted(set(counts))
    assert kernel.percpu("skipped_nested") == [0, 0]
