"""stop_machine in the deterministic engine: where vCPUs park, what fn may rely on, giving up."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynftrace_emu.errors import MachineBusyError, StopMachineTimeout, TextBusyError
from dynftrace_emu.kernel.structs import PCPU, TASK
from dynftrace_emu.machine import deterministic as deterministic_module
from dynftrace_emu.machine import machine as machine_module
from dynftrace_emu.machine.engine import Park, RunEnd
from dynftrace_emu.machine.machine import TextSpan
from dynftrace_emu.machine.vcpu import Reg
from tests.machine.guests import IF, NMI, TIMER, boot_guest, deterministic, image_of

START_OTHER = """
        LOAD_IDT
        mov eax, 1
        mov edx, PORT_CPU_START
        out dx, eax
"""


def array(*addresses):
    return np.array(addresses, dtype=np.uint64)


def every(machine, period, work):
    """Host code that calls ``work`` each ``period`` seconds, as often as the run lasts."""

    def body():
        while True:
            yield period
            work()

    machine.kthread("stopper", body())


def poke(kernel, symbol, code):
    rows = np.frombuffer(code, dtype=np.uint8)[None, :]
    kernel.machine.poke_text(array(kernel.image.address(symbol)), rows)


# --- the span ---


@given(
    starts=st.lists(st.integers(0, 60), unique=True),
    size=st.integers(1, 8),
    ips=st.lists(st.integers(0, 80)),
)
def test_inside_a_span_means_behind_its_first_byte(starts, size, ips):
    span = TextSpan(array(*sorted(starts)), size)
    gaps = all(b - a >= size for a, b in itertools.pairwise(sorted(starts)))
    expected = [ip for ip in ips if any(start < ip < start + size for start in starts)]
    if gaps:  # sites do not overlap
        assert span.inside(array(*ips)).tolist() == expected


# --- where vCPUs park ---

SECTIONS = (
    """
ENTRY startup_64
"""
    + START_OTHER
    + """
        jmp work
END startup_64
ENTRY secondary_startup_64
        LOAD_IDT
        jmp work
END secondary_startup_64
ENTRY work
        sti
        nop
1:      inc rbx
        call irqs_off
        inc rbx
        call preempt_off
        inc rbx
        jmp 1b
END work
ENTRY irqs_off
        cli
        nop
        nop
        nop
        sti
        ret
END irqs_off
ENTRY preempt_off
        inc qword ptr gs:[PCPU_PREEMPT_COUNT]
        nop
        nop
        nop
        dec qword ptr gs:[PCPU_PREEMPT_COUNT]
        ret
END preempt_off
ENTRY nmi
        nop
        nop
        iretq
END nmi
ENTRY tick
        nop
        nop
        iretq
END tick
"""
)


def parked_ips(park):
    kernel = boot_guest(
        SECTIONS,
        vcpus=2,
        gates={NMI: ("nmi", 1), TIMER: "tick"},
        hz=9_973,
        nmi_rate=9_973,
        engine=deterministic(seed=3, park=park),
    )
    machine, ips = kernel.machine, []
    every(
        machine,
        0.000_101,
        lambda: machine.stop_machine(lambda: ips.extend(v.rip for v in machine.vcpus)),
    )
    machine.run(0.03)
    return kernel.image, ips


def within(image, symbol, first, last):
    start = image.address(symbol)
    return set(range(start + first, start + last + 1))


def unsafe_places(image):
    """By the text: behind cli up to sti, behind the inc up to the dec, the handlers."""
    inc = 9  # inc qword ptr gs:[disp32]
    return (
        within(image, "irqs_off", 1, 4)
        | within(image, "preempt_off", inc, inc + 3)
        | within(image, "nmi", 0, 3)
        | within(image, "tick", 0, 3)
    )


def test_a_preemptible_park_is_outside_everything_linux_would_not_stop_in():
    image, ips = parked_ips(Park.PREEMPTIBLE)
    assert len(ips) > 500
    assert not unsafe_places(image) & set(ips)
    assert len(set(ips)) >= 8  # yet not at one place only


def test_parking_anywhere_stops_in_all_of_them_too():
    image, ips = parked_ips(Park.ANYWHERE)
    assert image.address("preempt_off") + 10 in ips
    missed = [
        name
        for name in ("irqs_off", "preempt_off", "nmi", "tick")
        if not unsafe_places(image) & within(image, name, 0, 12) & set(ips)
    ]
    assert not missed


def test_an_nmi_handler_with_interrupts_on_is_no_place_to_park():
    kernel = boot_guest(
        """
    ENTRY startup_64
        LOAD_IDT
        sti
        nop
    1:  jmp 1b
    END startup_64
    ENTRY nmi
        sti
        .rept 100
        nop
        .endr
        iretq
    END nmi
    """,
        gates={NMI: ("nmi", 1)},
        nmi_rate=5_000,
    )
    machine, ips = kernel.machine, []
    handler = kernel.image.symbols["nmi"]
    every(
        machine,
        0.000_101,
        lambda: machine.stop_machine(lambda: ips.append(machine.vcpus[0].rip)),
    )
    machine.run(0.03)
    assert len(ips) > 100
    assert sum(machine.nmis) > 100
    assert not [ip for ip in ips if handler.address <= ip < handler.address + handler.size]


def test_where_each_vcpu_stood_is_kept_with_the_time():
    kernel = boot_guest(SECTIONS, vcpus=2)
    machine, seen = kernel.machine, []

    def look():
        seen.append(tuple((v.index, v.rip) for v in machine.vcpus))

    every(machine, 0.01, lambda: machine.stop_machine(look))
    machine.run(0.035)
    assert [stop.parked for stop in machine.stops] == seen
    assert [round(stop.time, 9) for stop in machine.stops] == [0.01, 0.02, 0.03]
    assert {(stop.pause_us, stop.tries) for stop in machine.stops} == {(0.0, 1)}


def test_stop_machine_returns_what_the_function_returns():
    kernel = boot_guest(SECTIONS)
    assert kernel.machine.stop_machine(lambda: "done") == "done"


def test_before_the_first_instruction_there_is_nobody_to_stop():
    """No vCPU may be parked yet by Linux's rule: interrupts are off at reset. It is no stop."""
    kernel = boot_guest(PATCHED_LOOP, vcpus=2)
    machine = kernel.machine

    def change():
        poke(kernel, "target", TWO)
        with pytest.raises(MachineBusyError):
            machine.stop_machine(lambda: None)
        return "done"

    def never():
        raise AssertionError("no ip can be inside anything yet")

    assert machine.stop_machine(change, never) == "done"
    assert machine.stops == []
    assert not any(vcpu.is_stale for vcpu in machine.vcpus)
    assert machine.now() == 0
    machine.run(0.01)
    assert kernel.read("last") == 2
    machine.stop_machine(lambda: None)
    assert len(machine.stops) == 1


def test_halted_offline_and_waiting_cpus_need_no_parking():
    kernel = boot_guest(
        """
    ENTRY startup_64
        LOAD_IDT
        mov eax, 1
        mov edx, PORT_CPU_START
        out dx, eax
        sti
    1:  hlt
        jmp 1b
    END startup_64
    ENTRY secondary_startup_64
        OFFLINE
    END secondary_startup_64
    ENTRY tick
        iretq
    END tick
    """,
        vcpus=3,
        gates={TIMER: "tick"},
        hz=100,
    )
    machine = kernel.machine
    every(machine, 0.03, lambda: machine.stop_machine(lambda: None))
    assert machine.run(0.1) is RunEnd.TIME
    assert len(machine.stops) == 3


# --- text ---

PATCHED_LOOP = """
VARIABLE last
VARIABLE rounds
ENTRY startup_64
        LOAD_IDT
        sti
        nop
1:      call target
        mov [rip + last], rax
        inc qword ptr [rip + rounds]
        jmp 1b
END startup_64
ENTRY target
        mov eax, 1
        ret
END target
"""
TWO = b"\xb8\x02\0\0\0"  # mov eax, 2


def test_the_guest_runs_the_new_text_after_a_stop():
    kernel = boot_guest(PATCHED_LOOP)
    machine = kernel.machine
    machine.run(0.01)
    assert kernel.read("last") == 1
    machine.stop_machine(lambda: poke(kernel, "target", TWO))
    machine.run(0.01)
    assert kernel.read("last") == 2
    assert not machine.vcpus[0].is_stale


def test_text_is_stale_until_it_is_synced():
    """Without this the test above would show nothing."""
    kernel = boot_guest(PATCHED_LOOP)
    machine = kernel.machine
    machine.run(0.01)
    poke(kernel, "target", TWO)
    assert machine.vcpus[0].is_stale
    rounds = kernel.read("rounds")
    machine.run(0.01)
    assert kernel.read("rounds") > rounds + 100
    assert kernel.read("last") == 1
    machine.sync_text()
    machine.run(0.01)
    assert kernel.read("last") == 2


@pytest.mark.parametrize("sites", [3, 1200], ids=["few", "many"])
def test_every_vcpu_is_synced_with_every_site(sites):
    """Each iteration runs all sites and sums what they return."""
    kernel = boot_guest(
        f"""
    ENTRY startup_64
    {START_OTHER}
        jmp work
    END startup_64
    ENTRY secondary_startup_64
        LOAD_IDT
        jmp work
    END secondary_startup_64
    ENTRY work
        sti
        nop
    1:  xor ecx, ecx
        call all_sites
        mov rbx, rcx
        jmp 1b
    END work
    ENTRY all_sites
    first:
        .rept {sites}
        mov eax, 1
        add rcx, rax
        jmp .Lnext\\@
        .p2align 4
    .Lnext\\@:
        .endr
        ret
    END all_sites
    """.replace(".Lnext\\@:", "1:").replace(".Lnext\\@", "1f"),
        vcpus=2,
    )
    machine = kernel.machine
    machine.run(0.02)
    assert [vcpu[Reg.RBX] for vcpu in machine.vcpus] == [sites, sites]
    first = kernel.image.address("first")
    addresses = np.arange(sites, dtype=np.uint64) * np.uint64(16) + np.uint64(first)
    rows = np.tile(np.frombuffer(TWO, dtype=np.uint8), (sites, 1))
    machine.stop_machine(lambda: machine.poke_text(addresses, rows))
    machine.run(0.02)
    assert [vcpu[Reg.RBX] for vcpu in machine.vcpus] == [2 * sites, 2 * sites]


def test_a_function_that_fails_leaves_the_machine_synced_and_running():
    kernel = boot_guest(PATCHED_LOOP)
    machine = kernel.machine
    machine.run(0.01)

    def half_way():
        poke(kernel, "target", TWO)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        machine.stop_machine(half_way)
    machine.run(0.01)
    assert kernel.read("last") == 2
    assert machine.stop_machine(lambda: 5) == 5


# --- NMIs ---


def test_an_nmi_for_a_parked_vcpu_sees_all_old_or_all_new_text_and_changes_nothing():
    """Two words of text change by two stores; an NMI between them would see them differ."""
    kernel = boot_guest(
        """
    VARIABLE torn
    VARIABLE entered
    VARIABLE left
    VARIABLE nmi_rax
    ENTRY startup_64
        LOAD_IDT
        sti
        nop
    loop:
        inc rbx
        jmp loop
    END startup_64
    ENTRY patched
        .quad 0
        .quad 0
    END patched
    ENTRY nmi
        inc qword ptr [rip + entered]
        mov [rip + nmi_rax], rax
        mov rax, [rip + patched]
        cmp rax, [rip + patched + 8]
        je 1f
        inc qword ptr [rip + torn]
    1:  mov rax, [rip + nmi_rax]
        inc qword ptr [rip + left]
        iretq
    END nmi
    """,
        gates={NMI: ("nmi", 1)},
        nmi_rate=50,
        engine=deterministic(seed=8),
    )
    machine, vcpu = kernel.machine, kernel.machine.vcpus[0]
    site = kernel.image.address("patched")
    during = {"before": 0, "fn": 0, "after": 0}

    def state():
        return [vcpu[reg] for reg in (Reg.RIP, Reg.RSP, Reg.RBX, Reg.RAX, Reg.RFLAGS)]

    def patch():
        nmis = machine.nmis[0]
        for offset in (0, 8):
            value = np.full((1, 8), len(machine.stops) & 0xFF, dtype=np.uint8)
            machine.poke_text(array(site + offset), value)
        during["fn"] += machine.nmis[0] - nmis
        assert kernel.read("entered") == kernel.read("left") == machine.nmis[0]

    def stop():
        if vcpu.nmi.blocked:
            return
        before, nmis = state(), machine.nmis[0]
        at_patch = []
        machine.stop_machine(lambda: (at_patch.extend([state(), machine.nmis[0]]), patch()))
        assert at_patch[0] == before == state()
        during["before"] += at_patch[1] - nmis
        during["after"] += machine.nmis[0] - at_patch[1]

    every(machine, 0.001, stop)
    machine.run(0.4)
    assert during["before"] > 10
    assert during["after"] > 10
    assert during["fn"] == 0
    assert kernel.read("torn") == 0
    assert kernel.read("entered") == kernel.read("left") == machine.nmis[0]


# --- sites ---

FIVE_NOPS = (
    """
ENTRY startup_64
"""
    + START_OTHER
    + """
        jmp work
END startup_64
ENTRY secondary_startup_64
        LOAD_IDT
        jmp work
END secondary_startup_64
ENTRY work
        sti
        nop
1:      inc rbx
site:   nop
        nop
        nop
        nop
        nop
        inc r12
        jmp 1b
END work
ENTRY nmi
        .rept 40
        nop
        .endr
        iretq
END nmi
"""
)


def site_span(kernel, size=5, symbol="site"):
    return TextSpan(array(kernel.image.address(symbol)), size)


@pytest.mark.parametrize("with_span", [True, False])
def test_a_vcpu_inside_a_site_is_stepped_out_before_the_function_runs(with_span):
    kernel = boot_guest(FIVE_NOPS, vcpus=2, engine=deterministic(seed=2))
    machine = kernel.machine
    site, ips = kernel.image.address("site"), []
    text = (lambda: site_span(kernel)) if with_span else None

    def stop():
        machine.stop_machine(lambda: ips.extend(v.rip for v in machine.vcpus), text)

    every(machine, 0.000_101, stop)
    machine.run(0.03)
    inside = [ip for ip in ips if site < ip < site + 5]
    assert len(ips) > 500
    assert bool(inside) != with_span
    assert {stop.tries for stop in machine.stops} == {1}
    for vcpu in machine.vcpus:  # stepping skips and repeats nothing
        assert vcpu[Reg.RBX] - vcpu[Reg.R12] in (0, 1)


USING = 1 << 28  # in preempt_count


def using_guest(seed, **options):
    """Two vCPUs whose r14 says whether they are using something; an NMI may come in between."""
    return boot_guest(
        """
    ENTRY startup_64
    """
        + START_OTHER
        + f"""
        jmp work
    END startup_64
    ENTRY secondary_startup_64
        LOAD_IDT
        jmp work
    END secondary_startup_64
    ENTRY work
        sti
    1:  inc rbx
        add qword ptr gs:[PCPU_PREEMPT_COUNT], {USING}
        inc r14
        mov ecx, 300
        call away
        dec r14
        sub qword ptr gs:[PCPU_PREEMPT_COUNT], {USING}
        inc r12
        .rept 60
        nop
        .endr
        jmp 1b
    END work
    ENTRY away
    1:  dec ecx
        jnz 1b
        ret
    END away
    ENTRY nmi
        .rept 40
        nop
        .endr
        iretq
    END nmi
    """,
        vcpus=2,
        gates={NMI: ("nmi", 1)},
        engine=deterministic(seed, **options),
        nmi_rate=5_000,
    )


@pytest.mark.parametrize("park", Park)
@pytest.mark.parametrize("seed", range(2))
def test_who_uses_what_changes_gets_on_first_wherever_it_stands(park, seed):
    """In a function it calls, or in an NMI handler over it: its preempt count says so."""
    kernel = using_guest(seed, park=park)
    machine, using, on_nmi = kernel.machine, [], []
    span = TextSpan(array(), 5, USING)

    def look():
        using.extend(vcpu[Reg.R14] for vcpu in machine.vcpus)
        on_nmi.extend(
            machine.memory.find(vcpu[Reg.RSP]).name.startswith("nmi") for vcpu in machine.vcpus
        )

    every(machine, 0.000_501, lambda: machine.stop_machine(look, lambda: span))
    machine.run(0.1)
    assert len(using) > 200
    assert set(using) == {0}
    assert any(on_nmi) == (park is Park.ANYWHERE)  # a handler is no use by itself
    assert {stop.tries for stop in machine.stops} == {1}
    for vcpu in machine.vcpus:
        assert vcpu[Reg.RBX] - vcpu[Reg.R12] in (0, 1)
        assert vcpu[Reg.R12] > 100


def test_without_such_a_span_parking_anywhere_stops_in_the_middle_of_a_use():
    kernel = using_guest(1, park=Park.ANYWHERE)
    machine, using = kernel.machine, []
    span = TextSpan(array(), 5)  # nothing is in use
    every(
        machine,
        0.000_501,
        lambda: machine.stop_machine(
            lambda: using.extend(vcpu[Reg.R14] for vcpu in machine.vcpus), lambda: span
        ),
    )
    machine.run(0.1)
    assert set(using) == {0, 1}


def test_an_nmi_frame_inside_a_site_makes_the_stop_wait():
    """Parked anywhere, vCPUs stand in NMI handlers whose frame is on the NMI stack."""
    kernel = boot_guest(
        FIVE_NOPS,
        vcpus=2,
        gates={NMI: ("nmi", 1)},
        nmi_rate=9_973,
        engine=deterministic(seed=2, park=Park.ANYWHERE),
    )
    machine, memory = kernel.machine, kernel.machine.memory
    site, in_handler, frames = kernel.image.address("site"), 0, []
    stacks = [memory.region(f"nmi stack {vcpu.index}") for vcpu in machine.vcpus]

    def look():
        nonlocal in_handler
        for vcpu, stack in zip(machine.vcpus, stacks, strict=True):
            if stack.address <= vcpu[Reg.RSP] < stack.end:
                in_handler += 1
                frames.append(memory.read_u64(stack.end - 40))

    every(machine, 0.000_101, lambda: machine.stop_machine(look, lambda: site_span(kernel)))
    machine.run(0.05)
    assert in_handler > 5
    assert not [ip for ip in frames if site < ip < site + 5]
    assert max(stop.tries for stop in machine.stops) > 1


HANDLER_WAITS = {
    "busy": "mov ecx, 60000; 1: dec ecx; jnz 1b",
    "asleep": "hlt; hlt",  # for two more ticks
}


@pytest.mark.parametrize("wait", HANDLER_WAITS)
def test_an_interrupt_frame_inside_a_site_makes_the_stop_try_again(wait):
    """The first tick's handler turns interrupts on and waits: preemptible, over such a frame."""
    kernel = boot_guest(
        f"""
    VARIABLE nested
    VARIABLE back
    ENTRY startup_64
        LOAD_IDT
        sti
    site:
        .rept 8
        nop
        .endr
        jmp site
    END startup_64
    ENTRY tick
        cmp qword ptr [rip + nested], 0
        jne 2f
        inc qword ptr [rip + nested]
        push rcx
        sti
        {HANDLER_WAITS[wait]}
        cli
        inc qword ptr [rip + back]
        pop rcx
    2:  iretq
    END tick
    """,
        gates={TIMER: "tick"},
        hz=1000,
    )
    machine, seen = kernel.machine, []
    saved_rip = machine.memory.region("stack 0/0").end - 16 - 40

    def body():
        yield 0.0015  # one tick has come
        assert (kernel.read("nested"), kernel.read("back")) == (1, 0)
        machine.memory.write_u64(saved_rip, kernel.image.address("site") + 3)
        machine.stop_machine(
            lambda: seen.append(kernel.read("back")), lambda: site_span(kernel, size=8)
        )

    machine.kthread("stopper", body())
    machine.run(0.2)
    assert seen == [1]
    assert len(machine.stops) == 1
    assert machine.stops[0].tries > 1


def test_a_return_address_inside_a_site_makes_the_stop_try_again():
    """The span covers a call and what follows it."""
    kernel = boot_guest(
        """
    VARIABLE inside
    ENTRY startup_64
        LOAD_IDT
        sti
        nop
    site:
        call callee
        nop
        nop
        nop
        mov ecx, 200
    1:  dec ecx
        jnz 1b
        jmp site
    END startup_64
    ENTRY callee
        inc qword ptr [rip + inside]
        mov ecx, 2000
    1:  dec ecx
        jnz 1b
        dec qword ptr [rip + inside]
        ret
    END callee
    """,
        engine=deterministic(seed=6),
    )
    machine, seen = kernel.machine, []
    callee = kernel.image.symbols["callee"]
    every(
        machine,
        0.01,
        lambda: machine.stop_machine(
            lambda: seen.append((kernel.read("inside"), machine.vcpus[0].rip)),
            lambda: site_span(kernel, size=8),
        ),
    )
    machine.run(0.1)
    assert len(seen) > 3
    assert {inside for inside, _ in seen} == {0}
    assert not [ip for _, ip in seen if callee.address <= ip < callee.address + callee.size]
    assert max(stop.tries for stop in machine.stops) > 1


def test_a_return_address_below_an_nmi_makes_the_stop_try_again_too():
    """Parked anywhere: a vCPU in its NMI handler has the interrupted stack as well."""
    kernel = boot_guest(
        """
    ENTRY startup_64
        LOAD_IDT
        sti
    site:
        call callee
        nop
        nop
        nop
        mov ecx, 100
    1:  dec ecx
        jnz 1b
        jmp site
    END startup_64
    ENTRY callee
        mov ecx, 100
    1:  dec ecx
        jnz 1b
        ret
    END callee
    ENTRY nmi
        .rept 100
        nop
        .endr
        iretq
    END nmi
    """,
        gates={NMI: ("nmi", 1)},
        nmi_rate=10_000,
        engine=deterministic(seed=6, park=Park.ANYWHERE),
    )
    machine, memory, vcpu = kernel.machine, kernel.machine.memory, kernel.machine.vcpus[0]
    nmi_stack, stack = memory.region("nmi stack 0"), memory.region("stack 0/0")
    site, in_nmi, inside = kernel.image.address("site"), [], []

    def look():
        rsp = vcpu[Reg.RSP]
        in_nmi.append(nmi_stack.address <= rsp < nmi_stack.end)
        if in_nmi[-1]:
            rsp = memory.read_u64(nmi_stack.end - 16)  # the interrupted one, in the frame
        live = memory.view(rsp, "<u8", (stack.end - rsp) // 8).tolist()
        inside.extend(ip for ip in live if site < ip < site + 8)

    every(
        machine, 0.0005, lambda: machine.stop_machine(look, lambda: site_span(kernel, size=8))
    )  # fmt: skip
    machine.run(0.05)
    assert sum(in_nmi) > 5
    assert not inside


def put_switched_out_task(kernel, ip):
    """A task of CPU 0, by hand, whose saved context on stack 1 returns to ``ip``."""
    memory = kernel.machine.memory
    sp = memory.region("stack 0/1").end - 64
    memory.write_u64(sp + 48, ip)
    task = np.zeros(1, dtype=TASK.dtype)
    task["thread_sp"], task["pid"], task["comm"] = sp, 7, b"sleeper"
    at = kernel.image.address("task")
    memory.write(at, task.tobytes())
    memory.write_u64(kernel.machine.vcpus[0][Reg.GS_BASE] + PCPU.offset("tasks"), at)
    return sp + 48


WITH_TASK = PATCHED_LOOP + "\n.data\ntask: .skip TASK_SIZE\n.text\n"


def test_a_task_switched_out_inside_a_site_makes_the_stop_try_again():
    kernel = boot_guest(WITH_TASK)
    machine, calls = kernel.machine, []
    target = kernel.image.address("target")
    machine.run(0.001)
    saved = put_switched_out_task(kernel, target + 2)
    tries = 0

    def span():
        nonlocal tries
        tries += 1
        if tries == 5:  # the task has run on, as it were
            machine.memory.write_u64(saved, target)
        return site_span(kernel, symbol="target")

    machine.stop_machine(lambda: calls.append(tries), span)
    assert calls == [5]
    assert [stop.tries for stop in machine.stops] == [5]


def test_a_saved_ip_that_stays_inside_a_site_ends_in_an_error_and_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(machine_module, "STOP_LIMIT_S", 0.05)
    kernel = boot_guest(WITH_TASK)
    machine, calls = kernel.machine, []
    target = kernel.image.address("target")
    machine.run(0.001)
    put_switched_out_task(kernel, target + 4)
    text = machine.memory.read(target, 16)
    rounds = kernel.read("rounds")
    with pytest.raises(TextBusyError, match=rf"task sleeper-7 of CPU 0 holds {target + 4:#x}"):
        machine.stop_machine(lambda: calls.append(1), lambda: site_span(kernel, symbol="target"))
    assert not calls
    assert machine.memory.read(target, 16) == text
    assert kernel.read("rounds") > rounds  # the guest got on between the tries
    assert machine.run(0.01) is RunEnd.TIME
    assert kernel.read("last") == 1


# --- giving up ---


@pytest.mark.parametrize(
    ("cause", "why"),
    [
        ("cli", "interrupts are off"),
        ("sti; inc qword ptr gs:[PCPU_PREEMPT_COUNT]", "preempt count is 1"),
    ],
)
def test_a_vcpu_that_does_not_park_is_named_and_nothing_is_changed(monkeypatch, cause, why):
    monkeypatch.setattr(deterministic_module, "STOP_LIMIT_S", 0.1)
    kernel = boot_guest(
        f"""
    ENTRY startup_64
    {START_OTHER}
        sti
        nop
    1:  jmp 1b
    END startup_64
    ENTRY secondary_startup_64
        {cause}
    stuck:
        jmp stuck
    END secondary_startup_64
    """,
        vcpus=2,
    )
    machine, calls = kernel.machine, []
    every(machine, 0.01, lambda: machine.stop_machine(lambda: calls.append(1)))
    with pytest.raises(StopMachineTimeout, match=f"vCPU 1 .*{why} for 0.1 s") as caught:
        machine.run(1.0)
    assert (caught.value.vcpu, caught.value.rip) == (1, kernel.image.address("stuck"))
    assert caught.value.exit_code == 1
    assert not calls
    assert not machine.stops


def test_parking_anywhere_stops_a_loop_with_interrupts_off():
    kernel = boot_guest(
        """
    ENTRY startup_64
        cli
    1:  inc rbx
        jmp 1b
    END startup_64
    """,
        engine=deterministic(park=Park.ANYWHERE),
    )
    flags = kernel.machine.stop_machine(lambda: kernel.machine.vcpus[0][Reg.RFLAGS])
    assert not flags & IF
    assert kernel.machine.run(0.01) is RunEnd.TIME


def test_images_of_these_tests_are_what_they_seem():
    """Five single nops, as -fpatchable-function-entry=5 makes them."""
    image = image_of(FIVE_NOPS)
    text = image.segments[0]
    at = image.address("site") - text.address
    assert text.data[at : at + 5] == b"\x90" * 5


def test_a_stop_inside_a_stop_is_refused_and_the_outer_one_goes_on():
    kernel = boot_guest(
        """
    ENTRY startup_64
    1:  jmp 1b
    END startup_64
    """,
        engine=deterministic(park=Park.ANYWHERE),
    )
    machine = kernel.machine

    def nested():
        with pytest.raises(MachineBusyError):
            machine.stop_machine(lambda: None)
        return "done"

    assert machine.stop_machine(nested) == "done"
    assert machine.stop_machine(lambda: "again") == "again"
