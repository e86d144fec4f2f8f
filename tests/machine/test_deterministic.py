"""The deterministic engine: schedule, virtual clock, host code beside the guest."""

import capstone
import pytest

from dynftrace_emu.errors import GuestExit, OptionError
from dynftrace_emu.kernel.boot import boot
from dynftrace_emu.kernel.mini_kernel import mini_kernel, workloads
from dynftrace_emu.machine.engine import RunEnd
from dynftrace_emu.machine.vcpu import Reg
from tests.machine.guests import (
    NMI,
    TIMER,
    VIRTUAL_HZ,
    boot_guest,
    deterministic,
    image_of,
    words,
)

ORDER_PORT = 0x50

TWO_LOOPS = """
ENTRY startup_64
        LOAD_IDT
        mov eax, 1
        mov edx, PORT_CPU_START
        out dx, eax
        jmp loop
END startup_64
ENTRY secondary_startup_64
        LOAD_IDT
        jmp loop
END secondary_startup_64
ENTRY loop
        sti
1:      out 0x50, al
        inc rbx
        jmp 1b
END loop
ENTRY nmi
        iretq
END nmi
ENTRY tick
        iretq
END tick
"""


def interleaving(seed, **options):
    """Which vCPU wrote to the port, one after the other, and where both end."""
    gates = {NMI: ("nmi", 1), TIMER: "tick"}
    kernel = boot_guest(
        TWO_LOOPS, vcpus=2, gates=gates, engine=deterministic(seed), **options
    )  # fmt: skip
    order = bytearray()
    for vcpu in kernel.machine.vcpus:
        vcpu.out_ports[ORDER_PORT] = lambda vcpu, _: order.append(vcpu.index)
    kernel.machine.run(0.02)
    return bytes(order), [(v.rip, v[Reg.RBX]) for v in kernel.machine.vcpus], kernel.machine.nmis


@pytest.mark.parametrize("options", [{}, {"hz": 1000, "nmi_rate": 500.0}], ids=["plain", "irqs"])
def test_the_same_seed_gives_the_same_interleaving(options):
    first, second = interleaving(5, **options), interleaving(5, **options)
    assert first == second
    order, ends, nmis = first
    assert order.count(0) > 5000
    assert order.count(1) > 5000
    assert b"\0\1" in order
    assert b"\1\0" in order
    assert (sum(nmis) > 0) == bool(options)
    assert len(ends) == 2


def test_different_seeds_give_different_interleavings():
    orders = {interleaving(seed)[0] for seed in range(6)}
    assert len(orders) == 6


def test_no_cpu_runs_ahead_of_another_by_more_than_a_slice():
    order, _, _ = interleaving(1)
    lead = 0
    for index in order:
        lead += 1 if index == 0 else -1
        assert abs(lead) <= 12_000 // 3 + 1


SPIN = """
ENTRY startup_64
        LOAD_IDT
        sti
        nop
        nop
loop:
        inc rbx
        jmp loop
END startup_64
"""


def executed(kernel, rip, rbx):
    """Instructions that SPIN has run when it stands at ``rip``: counted off the bytes."""
    start, loop = kernel.image.address("startup_64"), kernel.image.address("loop")
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    head = kernel.machine.memory.read(start, loop - start)
    before = sum(1 for _ in disassembler.disasm_lite(head, start))
    assert rip in (loop, loop + 3)
    return before + 2 * rbx - (rip == loop + 3)


@pytest.mark.parametrize(("hz", "virtual_hz", "seed"), [
    (100, VIRTUAL_HZ, 0), (333, VIRTUAL_HZ, 1), (1000, 1_000_000, 2), (7, 50_000, 3),
])  # fmt: skip
def test_each_tick_comes_at_its_exact_instruction(hz, virtual_hz, seed):
    """Between two instructions of the loop, whatever the slices were."""
    ticks, in_handler = 6, 5
    kernel = boot_guest(
        SPIN
        + f"""
    .data
    log:    .skip {ticks} * 16
    .text
    ENTRY tick
        mov rax, [rsp]
        mov [r14 + log], rax
        mov [r14 + log + 8], rbx
        add r14, 16
        iretq
    END tick
    """,
        gates={TIMER: "tick"},
        hz=hz,
        engine=deterministic(seed, virtual_hz),
    )
    kernel.machine.run((ticks + 0.5) / hz)
    log = words(kernel, "log", 2 * ticks)
    for n in range(ticks):
        count = executed(kernel, log[2 * n], log[2 * n + 1]) + n * in_handler
        assert count == (n + 1) * virtual_hz // hz


def test_host_code_finds_the_guest_at_the_exact_instruction():
    kernel = boot_guest(SPIN)
    machine, vcpu, seen = kernel.machine, kernel.machine.vcpus[0], []

    def body():
        for delay in (0.001, 0.0005, 0.0123):
            yield delay
            seen.append((machine.now(), executed(kernel, vcpu.rip, vcpu[Reg.RBX])))

    machine.kthread("probe", body())
    assert machine.run(0.02) is RunEnd.TIME
    assert [count for _, count in seen] == [2000, 3000, 27600]
    assert [time for time, _ in seen] == [0.001, 0.0015, 0.0138]


def test_kthreads_sleep_as_long_as_they_say_and_ties_go_in_their_order():
    kernel = boot_guest(SPIN)
    machine, log = kernel.machine, []

    def body(name, delays):
        for delay in delays:
            yield delay
            log.append((name, machine.now()))

    machine.kthread("a", body("a", [0.002, 0.002, 0.002]))
    machine.kthread("b", body("b", [0.003, 0.003]))
    machine.run(0.0045)
    assert log == [("a", 0.002), ("b", 0.003), ("a", 0.004)]
    machine.run(0.0045)
    assert log[3:] == [("b", 0.006), ("a", 0.006)] or log[3:] == [("a", 0.006), ("b", 0.006)]


def test_the_virtual_clock_counts_what_was_run():
    kernel = boot_guest(SPIN)
    machine = kernel.machine
    assert machine.now() == 0
    for end in (0.25, 0.5, 0.6):
        assert machine.run(end - machine.now()) is RunEnd.TIME
        assert machine.now() == end
    vcpu = machine.vcpus[0]
    assert executed(kernel, vcpu.rip, vcpu[Reg.RBX]) == 0.6 * VIRTUAL_HZ


def test_the_guests_clock_word_is_the_time_of_its_slice():
    """Never ahead, never back, and no further behind than a slice is long."""
    kernel = boot_guest(
        """
    ENTRY startup_64
    1:  mov rcx, gs:[PCPU_CLOCK_NS]
        out 0x50, al
        jmp 1b
    END startup_64
    """,
        engine=deterministic(seed=2),
    )
    vcpu, seen = kernel.machine.vcpus[0], []
    vcpu.out_ports[ORDER_PORT] = lambda vcpu, _: seen.append(vcpu[Reg.RCX])
    kernel.machine.engine.park_rule = kernel.machine.engine.park_rule.ANYWHERE
    kernel.machine.run(0.05)
    assert seen == sorted(seen)
    for n, clock in enumerate(seen):
        true = (3 * n + 1) / VIRTUAL_HZ * 1e9
        assert true - 12_000 / VIRTUAL_HZ * 1e9 - 1 <= clock <= true
    assert len(set(seen)) > 5


def test_a_halted_cpus_time_goes_on():
    kernel = boot_guest(
        """
    ENTRY startup_64
        LOAD_IDT
        sti
    1:  hlt
        jmp 1b
    END startup_64
    ENTRY tick
        mov rax, gs:[PCPU_CLOCK_NS]
        mov [r14 + log], rax
        add r14, 8
        iretq
    END tick
    .data
    log:    .skip 64
    """,
        gates={TIMER: "tick"},
        hz=100,
    )
    assert kernel.machine.run(0.055) is RunEnd.TIME
    assert words(kernel, "log", 6) == [n * 10_000_000 for n in (1, 2, 3, 4, 5, 0)]


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_port_ends_the_machine(code):
    kernel = boot_guest(f"""
    ENTRY startup_64
        mov al, {code}
        out PORT_EXIT, al
        hlt
    END startup_64
    """)
    if code == 0:
        assert kernel.machine.run(1.0) is RunEnd.SHUTDOWN
        return
    with pytest.raises(GuestExit) as caught:
        kernel.machine.run(1.0)
    assert (caught.value.vcpu, caught.value.code, caught.value.exit_code) == (0, code, 1)


def test_a_cpu_that_goes_offline_leaves_the_others_running():
    kernel = boot_guest(
        """
    VARIABLE others
    ENTRY startup_64
        mov eax, 1
        mov edx, PORT_CPU_START
        out dx, eax
        out dx, eax
        OFFLINE
    END startup_64
    ENTRY secondary_startup_64
        inc qword ptr [rip + others]
        mov ecx, 20000
    1:  dec ecx
        jnz 1b
        OFFLINE
    END secondary_startup_64
    """,
        vcpus=2,
    )
    assert kernel.machine.run(0.001) is RunEnd.TIME
    assert kernel.machine.run(None) is RunEnd.OFFLINE
    assert kernel.read("others") == 1  # started twice, runs once
    assert kernel.machine.now() == pytest.approx(0.02, abs=0.01)


@pytest.mark.parametrize("index", [0, 2, 77])
def test_starting_a_cpu_that_is_not_there_does_nothing(index):
    kernel = boot_guest(
        f"""
    ENTRY startup_64
        mov eax, {index}
        mov edx, PORT_CPU_START
        out dx, eax
        OFFLINE
    END startup_64
    """,
        vcpus=2,
    )
    assert kernel.machine.run(None) is RunEnd.OFFLINE


def test_lines_of_two_cpus_do_not_mix_on_the_console():
    kernel = boot_guest(
        """
    ENTRY startup_64
        mov eax, 1
        mov edx, PORT_CPU_START
        out dx, eax
        jmp talk
    END startup_64
    ENTRY secondary_startup_64
        jmp talk
    END secondary_startup_64
    ENTRY talk
        mov esi, 40
    1:  mov ecx, 60
        mov eax, 'a'
        add rax, gs:[PCPU_CPU]
    2:  out PORT_DEBUG_CONSOLE, al
        dec ecx
        jnz 2b
        mov al, 10
        out PORT_DEBUG_CONSOLE, al
        dec esi
        jnz 1b
        mov al, '!'
        out PORT_DEBUG_CONSOLE, al
        OFFLINE
    END talk
    """,
        vcpus=2,
        engine=deterministic(seed=4),
    )
    heard = []
    kernel.machine.console.on_line = lambda vcpu, line: heard.append((vcpu, line))
    kernel.machine.run(1.0)
    lines = kernel.machine.console.lines
    assert heard == lines
    for vcpu, letter in ((0, "a"), (1, "b")):
        mine = [line for number, line in lines if number == vcpu]
        assert mine == [letter * 60] * 40 + ["!"]
    turns = [vcpu for vcpu, _ in lines]
    assert turns != sorted(turns)  # they did speak at the same time


def test_locked_instructions_are_atomic_between_cpus_and_others_are_not():
    """The control shows that the vCPUs do get between a load and its store."""
    text = """
    VARIABLE locked
    VARIABLE torn
    ENTRY startup_64
        mov ebx, 1
    1:  mov eax, ebx
        mov edx, PORT_CPU_START
        out dx, eax
        inc ebx
        cmp ebx, 4
        jb 1b
        jmp work
    END startup_64
    ENTRY secondary_startup_64
        jmp work
    END secondary_startup_64
    ENTRY work
        mov ecx, 4000
    1:  lock inc qword ptr [rip + locked]
        mov rax, [rip + torn]
        inc rax
        mov [rip + torn], rax
        dec ecx
        jnz 1b
        OFFLINE
    END work
    """
    kernel = boot_guest(text, vcpus=4, engine=deterministic(seed=1))
    assert kernel.machine.run(None) is RunEnd.OFFLINE
    assert kernel.read("locked") == 16000
    assert kernel.read("torn") < 16000


def test_spinlocks_guard_what_the_cpus_share():
    """Workload `shared`: nothing of the total is lost, whatever the interleaving."""
    image = mini_kernel()
    kernel = boot(
        image, 3, deterministic(seed=9), workload=workloads(image)["shared"], iterations=3
    )
    assert kernel.machine.run(20.0) is RunEnd.OFFLINE
    slots = words(kernel, "shared_slots", 64)
    steps = sum(task.steps[0] for cpu in range(3) for task in kernel.tasks(cpu))
    assert kernel.percpu("iterations") == [3, 3, 3]
    assert kernel.read("shared_operations") == 16 * steps == 16 * 20 * 9
    assert kernel.read("shared_total") == sum(slots) % 2**64 != 0
    assert kernel.read("shared_lock") == 0


def test_interrupt_ends_the_run_and_the_next_goes_on():
    kernel = boot_guest(SPIN)
    machine = kernel.machine

    def body():
        yield 0.01
        machine.interrupt()

    machine.kthread("ctrl-c", body())
    assert machine.run(1.0) is RunEnd.INTERRUPTED
    assert machine.now() == pytest.approx(0.01, abs=0.001)
    rbx = machine.vcpus[0][Reg.RBX]
    assert machine.run(0.01) is RunEnd.TIME
    assert machine.vcpus[0][Reg.RBX] > rbx


@pytest.mark.parametrize("count", [-1, 0, 65])
def test_a_number_of_vcpus_that_is_not_possible_is_refused(count):
    image = image_of(SPIN)
    with pytest.raises(OptionError, match=f"{count} vCPUs: 1 to 64"):
        boot(image, count, deterministic())


def test_a_virtual_clock_too_slow_to_tick_is_refused():
    with pytest.raises(OptionError, match="at least 1000"):
        boot_guest(SPIN, engine=deterministic(virtual_hz=999))
