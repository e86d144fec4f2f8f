"""NMIs: the latch of SDM vol. 3A, 6.7.1, and the stack of their own (deterministic engine)."""

import pytest

from dynftrace_emu.machine.engine import RunEnd
from dynftrace_emu.machine.nmi import NmiLatch
from dynftrace_emu.machine.vcpu import Reg
from tests.machine.guests import IF, NMI, VIRTUAL_HZ, boot_guest, deterministic, words

ON_IST1 = {NMI: ("nmi", 1)}

COUNTING_LOOP = """
ENTRY startup_64
        LOAD_IDT
        cli
        xor ebx, ebx
        xor r12d, r12d
loop:
        inc rbx
        jmp loop
END startup_64
"""


def test_the_latch_keeps_one_and_loses_more():
    latch = NmiLatch()
    assert not latch.take()
    latch.signal()
    assert latch.take()
    latch.signal()
    latch.signal()
    assert not latch.take()  # blocked: one is pending, the other lost
    latch.iret()
    assert latch.take()
    latch.iret()
    assert not latch.take()


def test_an_nmi_comes_with_interrupts_off_on_its_own_stack():
    kernel = boot_guest(
        COUNTING_LOOP
        + """
    ENTRY nmi
        KEEP_FRAME
        OFFLINE
    END nmi
    """,
        gates=ON_IST1,
        nmi_rate=100,
    )
    assert kernel.machine.run(1.0) is RunEnd.OFFLINE
    rip, cs, rflags, rsp, ss, _, in_handler = words(kernel, "frame", 7)
    memory = kernel.machine.memory
    assert rip in (kernel.image.address("loop"), kernel.image.address("loop") + 3)
    assert (cs, ss, rsp) == (0x10, 0x18, memory.region("stack 0/0").end - 8)
    assert not rflags & IF
    assert in_handler == memory.region("nmi stack 0").end - 40
    assert kernel.machine.nmis == [1]


RATE = 1000
PERIOD = VIRTUAL_HZ // RATE  # instructions


def test_an_nmi_that_waited_comes_directly_behind_the_iretq():
    """The handler outlasts three periods: each next NMI finds the CPU where the first did."""
    kernel = boot_guest(
        COUNTING_LOOP
        + f"""
    .set NMIS, 12
    VARIABLE nested
    VARIABLE deepest
    .data
    log:    .skip NMIS * 16
    .text
    ENTRY nmi
        inc qword ptr [rip + nested]
        mov rax, [rip + nested]
        cmp rax, [rip + deepest]
        jbe 1f
        mov [rip + deepest], rax
    1:  lea rdi, [rip + log]
        mov rax, r12
        shl rax, 4
        mov rcx, [rsp]
        mov [rdi + rax], rcx
        mov [rdi + rax + 8], rbx
        mov ecx, {4 * PERIOD}
    2:  dec ecx
        jnz 2b
        inc r12
        dec qword ptr [rip + nested]
        cmp r12, NMIS
        jb 3f
        OFFLINE
    3:  iretq
    END nmi
    """,
        gates=ON_IST1,
        nmi_rate=RATE,
    )
    assert kernel.machine.run(1.0) is RunEnd.OFFLINE
    log = words(kernel, "log", 24)
    assert set(log[::2]) == {log[0]}  # no instruction ran between two of them
    assert set(log[1::2]) == {log[1]}
    assert kernel.read("deepest") == 1
    assert kernel.machine.nmis == [12]
    assert kernel.machine.now() * RATE > 36  # as many were due: the others are lost


def test_nmis_stay_blocked_without_an_iret():
    kernel = boot_guest(
        COUNTING_LOOP
        + f"""
    ENTRY nmi
        inc r12
        mov ecx, {50 * PERIOD}
    1:  dec ecx
        jnz 1b
        OFFLINE
    END nmi
    """,
        gates=ON_IST1,
        nmi_rate=RATE,
    )
    assert kernel.machine.run(1.0) is RunEnd.OFFLINE
    assert kernel.machine.nmis == [1]
    assert kernel.machine.vcpus[0].nmi.pending


def test_any_iret_opens_the_latch():
    """The handler irets to itself: the NMI that waited comes before the next instruction."""
    kernel = boot_guest(
        COUNTING_LOOP
        + f"""
    VARIABLE ran_behind
    ENTRY nmi
        inc r12
        cmp r12, 2
        je 2f
        mov ecx, {4 * PERIOD}
    1:  dec ecx
        jnz 1b
        mov rax, rsp
        push 0x18
        push rax
        pushfq
        push 0x10
        lea rcx, [rip + inside]
        push rcx
        iretq
    inside:
        inc qword ptr [rip + ran_behind]
        jmp inside
    2:  KEEP_FRAME
        OFFLINE
    END nmi
    """,
        gates={NMI: ("nmi", 0)},
        nmi_rate=RATE,
    )
    assert kernel.machine.run(1.0) is RunEnd.OFFLINE
    assert words(kernel, "frame", 1) == [kernel.image.address("inside")]
    assert kernel.read("ran_behind") == 0


def test_an_interrupts_iret_inside_an_nmi_opens_the_latch_too():
    """As on hardware: a breakpoint in the handler returns, and the next NMI nests."""
    kernel = boot_guest(
        COUNTING_LOOP
        + f"""
    ENTRY breakpoint
        iretq
    END breakpoint
    ENTRY nmi
        inc r12
        cmp r12, 2
        je 2f
        mov ecx, {4 * PERIOD}
    1:  dec ecx
        jnz 1b
        int3
    behind:
        jmp behind
    2:  KEEP_FRAME
        OFFLINE
    END nmi
    """,
        gates={NMI: ("nmi", 0), 3: "breakpoint"},
        nmi_rate=RATE,
    )
    assert kernel.machine.run(1.0) is RunEnd.OFFLINE
    assert words(kernel, "frame", 1) == [kernel.image.address("behind")]


def test_an_nmi_wakes_a_cpu_that_halted_with_interrupts_off():
    kernel = boot_guest(
        """
    VARIABLE woken
    ENTRY startup_64
        LOAD_IDT
    1:  cli
        hlt
        inc qword ptr [rip + woken]
        cmp qword ptr [rip + woken], 5
        jb 1b
        OFFLINE
    END startup_64
    ENTRY nmi
        iretq
    END nmi
    """,
        gates=ON_IST1,
        nmi_rate=RATE,
    )
    assert kernel.machine.run(1.0) is RunEnd.OFFLINE
    assert (kernel.read("woken"), kernel.machine.nmis) == (5, [5])


def test_nmis_come_between_any_two_instructions():
    text = """
    ENTRY startup_64
        LOAD_IDT
        cli
    loop:
        inc rbx
        add rbx, 3
        nop
        lea rcx, [rbx + 4]
        xchg rax, rbx
        jmp loop
    end:
    END startup_64
    .data
    log:    .skip 128 * 8
    .text
    ENTRY nmi
        mov r8, [rsp]
        lea r9, [rip + log]
        mov [r9 + r12 * 8], r8
        inc r12
        cmp r12, 128
        je 1f
        iretq
    1:  OFFLINE
    END nmi
    """
    kernel = boot_guest(text, gates=ON_IST1, nmi_rate=10_007)
    assert kernel.machine.run(1.0) is RunEnd.OFFLINE
    loop = kernel.image.address("loop")
    boundaries = {loop + at for at in (0, 3, 7, 8, 12, 14)}
    assert set(words(kernel, "log", 128)) == boundaries


@pytest.mark.parametrize("rate", [10, 300])
def test_there_are_at_most_as_many_nmis_as_asked_for(rate):
    kernel = boot_guest(
        """
    ENTRY startup_64
        LOAD_IDT
        sti
        nop
    1:  jmp 1b
    END startup_64
    ENTRY nmi
        iretq
    END nmi
    """,
        gates=ON_IST1,
        nmi_rate=rate,
        engine=deterministic(seed=7),
    )
    kernel.machine.run(1.0)
    assert rate / 2 <= kernel.machine.nmis[0] <= rate


def test_the_source_of_nmis_is_off_until_the_guest_has_a_handler():
    """20 periods go by without a gate; then the guest fills it in."""
    kernel = boot_guest(
        f"""
    VARIABLE nmis
    ENTRY startup_64
        LOAD_IDT
        lea rdi, [rip + idt + NMI_VECTOR * 16]
        mov rbx, [rdi]
        mov qword ptr [rdi], 0
        mov ecx, {10 * PERIOD}
    1:  dec ecx
        jnz 1b
        mov rdx, [rip + nmis]
        mov [rdi], rbx
        mov ecx, {2 * PERIOD}
    2:  dec ecx
        jnz 2b
        OFFLINE
    END startup_64
    ENTRY nmi
        inc qword ptr [rip + nmis]
        iretq
    END nmi
    """,
        gates=ON_IST1,
        nmi_rate=RATE,
    )
    assert kernel.machine.run(1.0) is RunEnd.OFFLINE
    assert kernel.machine.vcpus[0][Reg.RDX] == 0
    assert kernel.machine.nmis == [kernel.read("nmis")]
    assert kernel.read("nmis") > 0
