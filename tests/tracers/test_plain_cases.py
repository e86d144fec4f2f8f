"""The plain cases of the tracers, interrupted between any two of their instructions.

Nothing holds interrupts off there: whoever was interrupted begins anew. The deterministic engine
never takes these ways by itself (it has no TSC), so here the TSC is given to it.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
import pytest

from dynftrace_emu.ftrace.dynamic import DynamicFtrace
from dynftrace_emu.ftrace.trace_events import TraceFlag
from dynftrace_emu.ftrace.tracing import Tracing
from dynftrace_emu.kernel.boot import boot
from dynftrace_emu.kernel.image import KernelImage
from dynftrace_emu.kernel.structs import EventId, TraceBit
from dynftrace_emu.machine.deterministic import DeterministicEngine
from dynftrace_emu.machine.engine import Park
from dynftrace_emu.machine.vcpu import Reg
from dynftrace_emu.tracefs import TraceFs

TEXT = """
.include "arch/mcount.S"
.include "arch/entry.S"
ENTRY startup_64
        nop
rest:
        hlt
        jmp rest
END startup_64
FUNC leaf
        lea rax, [rdi + rsi]
        stc
        RETURN
END leaf
FUNC caller
        call leaf
        RETURN
END caller
FUNC tick_work
        RETURN
END tick_work
FUNC smp_apic_timer_interrupt
        add qword ptr gs:[PCPU_PREEMPT_COUNT], 0x10000
        call tick_work
        sub qword ptr gs:[PCPU_PREEMPT_COUNT], 0x10000
        RETURN
END smp_apic_timer_interrupt
FUNC nmi_work
        RETURN
END nmi_work
FUNC_NOTRACE do_nmi
        add qword ptr gs:[PCPU_PREEMPT_COUNT], 0x100000
        call nmi_work
        sub qword ptr gs:[PCPU_PREEMPT_COUNT], 0x100000
        RETURN
END do_nmi
FUNC_NOTRACE preempt_schedule_irq
        inc qword ptr gs:[preemptions]
        mov byte ptr gs:[PCPU_NEED_RESCHED], 0
        RETURN
END preempt_schedule_irq
.percpu preemptions, 8
"""
TICK, NMI = "apic_timer_interrupt", "nmi"
CALLS = {TICK: ("smp_apic_timer_interrupt", "tick_work"), NMI: ("nmi_work",)}
PRESERVED = [register for register in Reg if register.name.startswith("R")]
PRESERVED = [register for register in PRESERVED if register not in (Reg.RIP, Reg.R11, Reg.RFLAGS)]
IF, CF = 1 << 9, 1


@lru_cache
def image() -> KernelImage:
    return KernelImage.from_assembly(TEXT, name="plain")


class Plain:
    """A vCPU that calls ``caller`` with the plain cases in use."""

    def __init__(self, tracer: str) -> None:
        self.image = image()
        self.kernel = boot(
            self.image, 1, lambda m: DeterministicEngine(m, park=Park.ANYWHERE), hz=0
        )
        self.memory, self.cpu = self.kernel.machine.memory, self.kernel.machine.vcpus[0]
        self.ftrace = DynamicFtrace(self.kernel, known=self.image.call_sites)
        self.tracing = Tracing(self.kernel, self.ftrace)
        self.files = TraceFs(self.tracing)
        self.files.write("current_tracer", tracer)
        self.pcpu = self.kernel.pcpu(0)
        self.pcpu["pvclock"][0] = (0, 1 << 24, 0)
        self.kernel.machine.engine.set_pvclock = lambda *_: None
        self.pcpu["irqs_off"] = 0
        self.kernel.disable_bits(1 << TraceBit.KNOWN)
        self.cpu[Reg.RFLAGS] |= IF
        self.rest = self.image.address("startup_64") + 1
        self.top = self.cpu[Reg.RSP]
        self.new_page()

    def new_page(self) -> None:
        """None may be full in the middle of a call; it begins at a time long ago, so one call."""
        self.tracing.global_array.buffer.cpus[0].new_page()
        self.room = 40
        self.call()
        self.tracing.global_array.buffer.read()

    def begin(self) -> None:
        if self.room < 0:
            self.new_page()
        self.cpu[Reg.RSP] = self.top - 8
        self.memory.write_u64(self.top - 8, self.rest)
        self.cpu.rip = self.image.address("caller")
        for number, register in enumerate(PRESERVED):
            if register not in (Reg.RSP, Reg.RBP):
                self.cpu[register] = 0x1111 * (number + 1)
        self.cpu[Reg.RBP] = 0
        self.before = {register: self.cpu[register] for register in PRESERVED}

    def advance(self, instructions: int) -> None:
        """Run so many, or to the end of the call."""
        if instructions and self.cpu.rip != self.rest + 1:
            self.cpu.run(instructions)

    def finish(self) -> None:
        self.advance(5000)
        assert self.cpu.rip == self.rest + 1  # behind the hlt
        expected = dict(self.before)
        expected[Reg.RAX] = expected[Reg.RDI] + expected[Reg.RSI]
        expected[Reg.RSP] += 8
        assert {register: self.cpu[register] for register in PRESERVED} == expected
        assert self.cpu[Reg.RFLAGS] & CF  # what leaf returned in it
        assert int(self.pcpu["preempt_count"][0]) == int(self.pcpu["irqs_off"][0]) == 0

    def call(self) -> None:
        self.begin()
        self.finish()

    def interrupt(self, entry: str, nmi_after: int | None = None) -> bool:
        """Let a handler run to its iretq; says whether an NMI came after so many instructions."""
        rip, rsp, flags = self.cpu.rip, self.cpu[Reg.RSP], self.cpu[Reg.RFLAGS]
        stack = self.memory.region("nmi stack 0").end if entry == NMI else rsp
        frame = (stack & ~15) - 40
        for index, word in enumerate((rip, self.cpu[Reg.CS], flags, rsp, self.cpu[Reg.SS])):
            self.memory.write_u64(frame + 8 * index, word)
        self.cpu[Reg.RSP], self.cpu[Reg.RFLAGS] = frame, flags & ~IF
        self.cpu.rip = self.image.address(entry)
        steps = 0
        last = self.cpu.rip
        while self.cpu[Reg.RSP] != rsp or self.memory.read(last, 2) != b"\x48\xcf":
            if steps == nmi_after:
                self.interrupt(NMI)
            last = self.cpu.rip
            self.cpu.step()
            steps += 1
        return nmi_after is not None and steps > nmi_after

    def inside(self, ip: int) -> bool:
        """Whether who is interrupted here begins anew."""
        return any(begin <= ip < end for begin, end in self.kernel.restarts)

    def take(self):
        events, lost = self.tracing.global_array.buffer.read()
        assert not lost
        self.room -= len(events)
        return events.table


def check(plain: Plain, table, handlers: tuple[str, ...]) -> None:
    """Each call is told once, as what it was; in the order of the times."""
    assert (np.diff(table["ts"].astype(np.int64)) >= 0).all()
    kinds = {
        "function": [EventId.FUNCTION],
        "function_graph": [EventId.GRAPH_ENTRY, EventId.GRAPH_EXIT],
    }[plain.tracing.global_array.tracer]
    expected = Counter()
    for kind in kinds:
        for name in ("caller", "leaf"):
            expected[int(kind), name, 0] += 1
        for handler in handlers:
            for name in CALLS[handler]:
                flags = TraceFlag.IRQS_OFF
                flags |= TraceFlag.NMI if handler == NMI else 0
                flags |= TraceFlag.HARDIRQ if name == "tick_work" else 0
                expected[int(kind), name, int(flags)] += 1
    found = Counter()
    for row in table:
        # The need for another task comes with a tick, and stays until there is one.
        flags = int(row["flags"]) & ~TraceFlag.NEED_RESCHED
        found[int(row["type"]), plain.tracing.name(int(row["ip"])), flags] += 1
    if NMI in handlers and TICK in handlers:  # the NMI may have come inside the tick
        expected, found = (
            Counter(key[:2] for key in counter.elements()) for counter in (expected, found)
        )
    assert found == expected
    assert (table["pid"] == 1).all()
    stack = plain.tracing.ret_stacks
    assert stack.open_calls(0) == 0


def instructions(plain: Plain) -> list[int]:
    """Where the vCPU stands in one call, step by step."""
    plain.begin()
    places = []
    while plain.cpu.rip != plain.rest:
        places.append(plain.cpu.rip)
        plain.cpu.step()
    check(plain, plain.take(), ())
    return places


@pytest.fixture(params=["function", "function_graph"])
def plain(request) -> Plain:
    return Plain(request.param)


def test_the_plain_cases_are_taken(plain: Plain) -> None:
    places = instructions(plain)
    slow = {plain.image.address(name) for name in ("ftrace_caller_slow", "return_to_handler_slow")}
    assert not slow & set(places)
    ways = plain.kernel.restarts
    taken = [begin for begin, _ in ways if begin in places]
    assert len(taken) == (1 if plain.tracing.global_array.tracer == "function" else 4)


@pytest.mark.parametrize("entry", [TICK, NMI])
def test_an_interrupt_between_any_two_instructions(plain: Plain, entry: str) -> None:
    plain.pcpu["need_resched"] = entry == TICK  # which is one more thing to say of each event
    places = instructions(plain)
    restarted = 0
    for number in range(len(places)):
        plain.pcpu["need_resched"] = entry == TICK
        plain.begin()
        traced = plain.kernel.total("traced_calls")
        plain.advance(number)
        place = plain.cpu.rip
        assert place == places[number]
        plain.interrupt(entry)
        inside = plain.inside(place)
        restarted += inside
        assert (plain.cpu.rip != place) == inside
        if inside:
            assert plain.kernel.percpu("preempt_count")[0] >> 28 == 1
        plain.finish()
        check(plain, plain.take(), (entry,))
        assert plain.kernel.total("traced_calls") == traced + 2 + len(CALLS[entry])
        if entry == TICK:  # no other task runs before what was interrupted is told
            assert bool(plain.pcpu["need_resched"][0]) == inside
    assert restarted > 50


def test_an_nmi_after_a_tick_that_made_it_begin_anew(plain: Plain) -> None:
    numbers = [n for n, place in enumerate(instructions(plain)) if plain.inside(place)]
    came = 0
    for number in numbers[:: len(numbers) // 4]:
        for later in range(number % 7, 400, 7):
            plain.begin()
            plain.advance(number)
            plain.interrupt(TICK)
            plain.advance(later)
            handlers = (TICK,) if plain.cpu.rip == plain.rest + 1 else (TICK, NMI)
            if NMI in handlers:
                plain.interrupt(NMI)
            came += len(handlers) - 1
            plain.finish()
            check(plain, plain.take(), handlers)
            if NMI not in handlers:
                break
    assert came > 50


def test_an_nmi_inside_the_handler_that_makes_it_begin_anew(plain: Plain) -> None:
    numbers = [n for n, place in enumerate(instructions(plain)) if plain.inside(place)]
    came = 0
    for number in numbers[:: len(numbers) // 4]:
        for later in range(number % 7, 400, 7):
            plain.begin()
            plain.advance(number)
            nmi = plain.interrupt(TICK, nmi_after=later)
            came += nmi
            plain.finish()
            check(plain, plain.take(), (TICK, NMI) if nmi else (TICK,))
            if not nmi:
                break
    assert came > 50


def test_no_vcpu_is_stopped_inside(plain: Plain) -> None:
    """Who is there when the machine is to be stopped gets on first."""
    places = instructions(plain)
    for number in range(len(places)):
        plain.begin()
        plain.advance(number)
        seen = []
        plain.tracing.stop(lambda seen=seen: seen.append(plain.cpu.rip))
        assert not plain.inside(seen[0])
        plain.finish()
        check(plain, plain.take(), ())
