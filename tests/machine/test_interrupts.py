"""Timer interrupts: when they come, and what the CPU leaves on the stack (deterministic engine)."""

import pytest

from dynftrace_emu.errors import GuestFault
from dynftrace_emu.machine.engine import RunEnd
from tests.machine.guests import IF, TIMER, boot_guest, deterministic, words

TICK = {TIMER: "tick"}

# The first tick keeps its frame and ends the guest.
KEEP_FIRST_TICK = """
ENTRY tick
        KEEP_FRAME
        OFFLINE
END tick
"""


def test_a_tick_pushes_the_frame_of_the_interrupted_code_on_an_aligned_stack():
    kernel = boot_guest(
        """
    ENTRY startup_64
        LOAD_IDT
        sub rsp, 5
        sti
        nop
    loop:
        jmp loop
    END startup_64
    """
        + KEEP_FIRST_TICK,
        gates=TICK,
        hz=100,
    )
    assert kernel.machine.run(1.0) is RunEnd.OFFLINE
    rip, cs, rflags, rsp, ss, _, in_handler = words(kernel, "frame", 7)
    stack = kernel.machine.memory.region("stack 0/0")
    assert rip == kernel.image.address("loop")
    assert (cs, ss, rsp) == (0x10, 0x18, stack.end - 8 - 5)
    assert rflags & IF
    assert in_handler == (rsp & ~15) - 40
    assert not kernel.machine.vcpus[0].interrupts_on  # an interrupt gate


def test_iretq_goes_back_with_every_register_and_the_flags():
    """Sums computed with and without ticks are the same, flags carried over each instruction."""
    text = """
    VARIABLE ticks
    VARIABLE total
    ENTRY startup_64
        LOAD_IDT
        sti
        mov ecx, 30000
        xor eax, eax
        mov edx, 12345
    1:  imul rdx, rdx, 1103515245
        add rdx, 12345
        adc rax, rdx
        adc rax, 0
        lea rcx, [rcx - 1]
        jrcxz 2f
        jmp 1b
    2:  mov [rip + total], rax
        OFFLINE
    END startup_64
    ENTRY tick
        push rax
        inc qword ptr [rip + ticks]
        xor eax, eax
        stc
        pop rax
        iretq
    END tick
    """
    totals = []
    for hz in (0, 5000):
        kernel = boot_guest(text, gates=TICK, hz=hz)
        assert kernel.machine.run(1.0) is RunEnd.OFFLINE
        totals.append(kernel.read("total"))
        assert (kernel.read("ticks") > 100) == (hz > 0)
    total, rdx, carry = 0, 12345, 0
    for _ in range(30000):
        rdx = rdx * 1103515245 % 2**64 + 12345
        carry, rdx = rdx >> 64, rdx % 2**64
        total += rdx + carry
        carry, total = total >> 64, total % 2**64
        total = (total + carry) % 2**64
    assert totals == [total, total]


def test_no_tick_comes_while_interrupts_are_off_and_then_it_comes_at_once():
    """Ten ticks fall due behind cli; one is pending, none is seen before sti."""
    kernel = boot_guest(
        """
    VARIABLE ticks
    VARIABLE seen_before_sti, 99
    VARIABLE seen_after_sti, 99
    ENTRY startup_64
        LOAD_IDT
        cli
        mov ecx, 100000
    1:  dec ecx
        jnz 1b
        mov rax, [rip + ticks]
        mov [rip + seen_before_sti], rax
        sti
        .rept 32
        nop
        .endr
        mov rax, [rip + ticks]
        mov [rip + seen_after_sti], rax
        cli
        OFFLINE
    END startup_64
    ENTRY tick
        inc qword ptr [rip + ticks]
        iretq
    END tick
    """,
        gates=TICK,
        hz=100,
    )
    kernel.machine.run(1.0)
    assert (kernel.read("seen_before_sti"), kernel.read("seen_after_sti")) == (0, 1)


SHADOWS = {
    # Interrupts go on here, behind a wait in which a tick falls due.
    "sti": "cli; mov ecx, 30; 1: dec ecx; jnz 1b; sti",
    "mov ss": "mov eax, 0x18; mov ss, eax",
    "mov ss, wide": "mov r9d, 0x18; mov ss, r9w",
    "mov ss, memory": "mov ss, word ptr [rip + selector]",
}


@pytest.mark.parametrize("shadow", SHADOWS)
@pytest.mark.parametrize("at_start_of_text", [False, True])
def test_no_tick_comes_directly_behind(shadow, at_start_of_text):
    """Hundreds of ticks: none interrupts at ``behind``, many one instruction later."""
    main = """
    ENTRY startup_64
        LOAD_IDT
        sti
        nop
        jmp again
    END startup_64
    """
    loop = f"""
    ENTRY shadow
        jmp behind
    again:
        {SHADOWS[shadow]}
    behind:
        nop
    later:
        nop
        jmp again
    END shadow
    """
    if at_start_of_text:
        # The shadow's last instruction begins the text: nothing is mapped in front of it.
        before, _, last = SHADOWS[shadow].rpartition("; ")
        loop = f"""
        {last}
        behind:
            nop
        later:
            nop
            jmp again
        ENTRY shadow
        again:
            {before}
            jmp start
        END shadow
        """
        loop = "start:\n" + loop
    kernel = boot_guest(
        f"""
    {loop if at_start_of_text else main}
    {main if at_start_of_text else loop}
    VARIABLE selector, 0x18
    VARIABLE at_behind
    VARIABLE at_later
    VARIABLE ticks
    VARIABLE kept
    ENTRY tick
        mov [rip + kept], rax
        inc qword ptr [rip + ticks]
        lea rax, [rip + behind]
        cmp rax, [rsp]
        jne 1f
        inc qword ptr [rip + at_behind]
    1:  lea rax, [rip + later]
        cmp rax, [rsp]
        jne 2f
        inc qword ptr [rip + at_later]
    2:  cmp qword ptr [rip + ticks], 600
        je 3f
        mov rax, [rip + kept]
        iretq
    3:  OFFLINE
    END tick
    """,
        gates=TICK,
        hz=20_011,  # no multiple of the loop's length
        engine=deterministic(seed=3),
    )
    assert kernel.machine.run(2.0) is RunEnd.OFFLINE
    assert kernel.read("at_later") > 20
    assert kernel.read("at_behind") == 0


def test_sti_in_front_of_a_jump_to_itself_is_no_live_lock():
    """Every look finds ``sti`` in front of RIP; the tick comes all the same."""
    kernel = boot_guest(
        """
    ENTRY startup_64
        LOAD_IDT
        sti
    loop:
        jmp loop
    END startup_64
    """
        + KEEP_FIRST_TICK,
        gates=TICK,
        hz=100,
    )
    assert kernel.machine.run(0.5) is RunEnd.OFFLINE
    assert words(kernel, "frame", 1) == [kernel.image.address("loop")]


def test_hlt_behind_sti_is_executed_before_the_tick_that_waits():
    """Ticks are due when ``sti`` runs; each interrupts behind the hlt, never in front of it."""
    kernel = boot_guest(
        """
    VARIABLE behind_hlt
    VARIABLE elsewhere
    ENTRY startup_64
        LOAD_IDT
    1:  mov ecx, 500
    2:  dec ecx
        jnz 2b
        sti
        hlt
    woken:
        cli
        cmp qword ptr [rip + behind_hlt], 200
        jb 1b
        OFFLINE
    END startup_64
    ENTRY tick
        push rax
        lea rax, [rip + woken]
        cmp rax, [rsp + 8]
        pop rax
        jne 1f
        inc qword ptr [rip + behind_hlt]
        iretq
    1:  inc qword ptr [rip + elsewhere]
        iretq
    END tick
    """,
        gates=TICK,
        hz=2500,  # every 800 instructions: some fall due in the loop, some while halted
    )
    assert kernel.machine.run(2.0) is RunEnd.OFFLINE
    assert (kernel.read("behind_hlt"), kernel.read("elsewhere")) == (200, 0)


def test_a_cpu_that_goes_offline_behind_sti_stays_offline():
    """A tick is pending when ``sti`` runs, and the next instruction leaves the machine."""
    text = """
    VARIABLE ticks
    ENTRY startup_64
        LOAD_IDT
        mov ecx, 12000
    1:  dec ecx
        jnz 1b
        sti
        out PORT_CPU_OFFLINE, al
        hlt
        ud2
    END startup_64
    ENTRY tick
        inc qword ptr [rip + ticks]
        iretq
    END tick
    """
    for seed in range(24):  # in some a slice ends between the two
        kernel = boot_guest(text, gates=TICK, hz=100, engine=deterministic(seed))
        assert kernel.machine.run(0.1) is RunEnd.OFFLINE
        assert kernel.read("ticks") == 0


def test_hlt_with_interrupts_off_is_a_dead_cpu():
    kernel = boot_guest(
        """
    ENTRY startup_64
        LOAD_IDT
        cli
    dead:
        hlt
        nop
    END startup_64
    """
        + KEEP_FIRST_TICK,
        gates=TICK,
        hz=100,
    )
    with pytest.raises(GuestFault, match="dead CPU") as caught:
        kernel.machine.run(1.0)
    assert (caught.value.vcpu, caught.value.rip) == (0, kernel.image.address("dead"))
    assert caught.value.vector is None


def test_a_tick_does_not_wake_a_cpu_that_halted_with_interrupts_off():
    """Only the NMI does; what stands behind the hlt runs after it."""
    kernel = boot_guest(
        """
    VARIABLE nmis
    VARIABLE nmis_when_woken, 99
    ENTRY startup_64
        LOAD_IDT
        cli
        hlt
        mov rax, [rip + nmis]
        mov [rip + nmis_when_woken], rax
        OFFLINE
    END startup_64
    ENTRY nmi
        inc qword ptr [rip + nmis]
        iretq
    END nmi
    """
        + KEEP_FIRST_TICK,
        gates={**TICK, 2: ("nmi", 1)},
        hz=1000,
        nmi_rate=10,
    )
    assert kernel.machine.run(2.0) is RunEnd.OFFLINE
    assert kernel.read("nmis_when_woken") == 1


def test_the_timer_is_off_until_the_guest_has_a_gate_for_it():
    """As a local APIC's is until the kernel sets it up: 20 ticks go by, then one comes."""
    kernel = boot_guest(
        """
    VARIABLE ticks
    VARIABLE seen, 99
    ENTRY startup_64
        LOAD_IDT
        lea rdi, [rip + idt + TIMER_VECTOR * 16]
        mov rcx, [rdi]
        mov qword ptr [rdi], 0
        sti
        mov eax, 200000
    1:  dec eax
        jnz 1b
        mov rax, [rip + ticks]
        mov [rip + seen], rax
        mov [rdi], rcx
        hlt
        cli
        OFFLINE
    END startup_64
    ENTRY tick
        inc qword ptr [rip + ticks]
        iretq
    END tick
    """,
        gates=TICK,
        hz=100,
    )
    assert kernel.machine.run(1.0) is RunEnd.OFFLINE
    assert (kernel.read("seen"), kernel.read("ticks")) == (0, 1)


def test_a_cpu_that_halted_before_there_was_a_gate_gets_its_ticks_once_there_is_one():
    """All CPUs share the table, and the boot CPU fills it while another sleeps already."""
    kernel = boot_guest(
        """
    ENTRY startup_64
        LOAD_IDT
        lea rdi, [rip + idt + TIMER_VECTOR * 16]
        mov rbx, [rdi]
        mov qword ptr [rdi], 0
        mov eax, 1
        mov edx, PORT_CPU_START
        out dx, eax
        mov ecx, 100000
    1:  dec ecx
        jnz 1b
        mov [rdi], rbx
        sti
    2:  hlt
        jmp 2b
    END startup_64
    ENTRY secondary_startup_64
        LOAD_IDT
        sti
    1:  hlt
        jmp 1b
    END secondary_startup_64
    ENTRY tick
        inc qword ptr gs:[PCPU_TIMER_INTERRUPTS]
        iretq
    END tick
    """,
        vcpus=2,
        gates=TICK,
        hz=100,
    )
    kernel.machine.run(0.5)
    assert min(kernel.percpu("timer_interrupts")) > 30


def test_a_machine_whose_cpus_all_wait_for_nothing_is_idle():
    kernel = boot_guest(
        """
    ENTRY startup_64
        mov eax, 1
        mov edx, PORT_CPU_START
        out dx, eax
        sti
    1:  hlt
        jmp 1b
    END startup_64
    """,
        vcpus=2,
    )
    assert kernel.machine.run(None) is RunEnd.IDLE
    assert kernel.machine.run(1.0) is RunEnd.IDLE


@pytest.mark.parametrize("hz", [50, 100, 1000])
def test_hlt_wakes_once_a_tick(hz):
    kernel = boot_guest(
        """
    VARIABLE ticks
    VARIABLE wakes
    ENTRY startup_64
        LOAD_IDT
        sti
    1:  hlt
        inc qword ptr [rip + wakes]
        jmp 1b
    END startup_64
    ENTRY tick
        inc qword ptr [rip + ticks]
        iretq
    END tick
    """,
        gates=TICK,
        hz=hz,
    )
    assert kernel.machine.run(1.0 + 0.5 / hz) is RunEnd.TIME
    assert (kernel.read("ticks"), kernel.read("wakes")) == (hz, hz)
