"""What the tests of tracers compare with: calls counted by hooks of their own, and a model of who
wants them.

A call is decided where ``ftrace_caller`` looks at this CPU's mask of listeners, and its return
where ``graph_return`` does: hooks on those instructions ask a model, which only knows what the test
has written to control files. What changes in a stop changes in the model inside the same stop.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.ftrace.trace_events import TraceFlag
from dynftrace_emu.kernel.structs import PCPU, STACK_SLOT, STACKS_PER_CPU, TASK, EventId, TraceBit
from dynftrace_emu.machine.vcpu import Reg
from dynftrace_emu.tracefs import TraceFs
from tests.ftrace.conftest import assembled

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynftrace_emu.ftrace.trace_array import TraceArray
    from dynftrace_emu.ftrace.trace_events import Events

HARDIRQ, NMI = 0x10000, 0x100000  # in preempt_count


def make_run(**options) -> Run:
    options.setdefault("engine", EngineName.DETERMINISTIC)
    if "iterations" in options:
        options.setdefault("seconds", None)
    chosen = RunOptions(**options)
    return Run(chosen, image=assembled(chosen.variant, chosen.image))


def untouched_checksums(iterations: int, vcpus: int = 2) -> list[int]:
    run = make_run(engine=EngineName.THREADED, variant="none", iterations=iterations, vcpus=vcpus)
    run.execute()
    return run.kernel.percpu("checksum")


def own_function(run: Run, site: int) -> str:
    """The function a call site is in, by the symbols: the call is behind push rbp; mov rbp, rsp."""
    return {f.address + 4: f.name for f in run.image.functions}[site]


def sites_by_name(run: Run) -> dict[str, int]:
    sites = set(run.image.call_sites.tolist())
    return {f.name: f.address + 4 for f in run.image.functions if f.address + 4 in sites}


@dataclass
class Model:
    """What the test has asked of one trace array."""

    array: TraceArray
    tracer: str = "nop"
    filter: frozenset[int] | None = None  # None: every site
    notrace: frozenset[int] = frozenset()
    on: bool = True
    epoch: int = 0
    read: Counter = field(default_factory=Counter)  # (cpu, type, ip, pid) of events consumed
    read_count: list[int] = field(default_factory=lambda: [0, 0])

    def wants(self, site: int) -> bool:
        if self.tracer == "nop" or not self.on or site in self.notrace:
            return False
        return self.filter is None or site in self.filter


@dataclass(slots=True, eq=False)
class Call:
    site: int
    pid: int
    flags: int
    wanted: tuple[Model, ...] = ()
    epochs: tuple[int, ...] = ()
    kind: EventId = EventId.FUNCTION


class Oracle:
    """Counts the calls of a run, and checks each trace array's buffers against them.

    :param models: of the trace arrays that are used; more may be added later.
    """

    def __init__(self, run: Run, *, returns: bool = False) -> None:
        self.run, self.files = run, TraceFs(run.tracing)
        self.models: dict[str, Model] = {"": Model(run.tracing.global_array)}
        vcpus = run.machine.vcpus
        self.calls: list[list[Call]] = [[] for _ in vcpus]
        self.exits: list[list[Call]] = [[] for _ in vcpus]
        self.contexts = Counter()
        self.checks = 0
        self._open: dict[tuple[int, int], Call | None] = {}
        self._shadow: dict[int, list[tuple[int, Call]]] = {}
        self._frames: dict[int, list[int]] = {}
        self._returning: dict[int, list[tuple[int, Call | None]]] = {}
        self._pending: Callable[[], None] | None = None
        self._areas = [run.kernel.pcpu(vcpu.index) for vcpu in vcpus]
        code, start = self._tracer_text()
        mask = struct.pack("<I", PCPU.offset("trace_mask"))
        decisions = _find(code, b"\x65\x48\x23\x04\x25" + mask)  # and rax, gs:[trace_mask]
        assert decisions
        for vcpu in vcpus:
            for name in ("ftrace_caller", "ftrace_caller_unknown"):
                vcpu.hook_instruction(run.image.address(name), self._on_entry)
            for at in decisions:
                vcpu.hook_instruction(start + at, self._on_decision)
        if returns:
            graph = struct.pack("<I", 1 << TraceBit.GRAPH)
            tests = _find(code, b"\x65\x48\xf7\x04\x25" + mask + graph)
            assert len(tests) == 1
            for vcpu in vcpus:
                vcpu.hook_instruction(run.image.address("return_to_handler"), self._on_return)
                section = run.image.address("__return_to_handler_section")
                vcpu.hook_instruction(section, self._on_return_section)
                vcpu.hook_instruction(start + tests[0], self._on_exit_decision)
        self._wrap_stops()

    def _tracer_text(self) -> tuple[bytes, int]:
        start = self.run.image.address("ftrace_caller")
        end = self.run.image.address("__ftrace_text_end")
        return self.run.machine.memory.read(start, end - start), start

    # --- hooks ---

    def _on_entry(self, vcpu) -> None:
        self._open[vcpu.index, vcpu[Reg.RBP]] = None

    def _on_decision(self, vcpu) -> None:
        """Also when the tracer begins anew because an interrupt wrote in between."""
        cpu, rbp, site = vcpu.index, vcpu[Reg.RBP], vcpu[Reg.RDI]
        call = self._open[cpu, rbp]
        if call is None:
            call = self._open[cpu, rbp] = self._new_call(vcpu, site)
            self.calls[cpu].append(call)
        call.wanted = tuple(model for model in self.models.values() if model.wants(site))
        call.epochs = tuple(model.epoch for model in call.wanted)
        if any(model.tracer == "function_graph" for model in call.wanted):
            call.kind = EventId.GRAPH_ENTRY
            stack = self._shadow.setdefault(rbp // STACK_SLOT, [])
            if not stack or stack[-1][1] is not call:
                stack.append((rbp + 8, call))

    def _new_call(self, vcpu, site: int) -> Call:
        area = self._areas[vcpu.index]
        preempt = int(area["preempt_count"][0])
        memory = self.run.machine.memory
        current = int(area["current"][0])
        pid = 1 + STACKS_PER_CPU * vcpu.index  # swapper's, before the guest has made it a task
        if current:
            pid = memory.read_u64(current + TASK.offset("pid"))
        flags = 0 if preempt < HARDIRQ else TraceFlag.HARDIRQ if preempt & 0xF0000 else 0
        if preempt & 0xF00000:
            flags |= TraceFlag.NMI
        self.contexts[int(flags)] += 1
        return Call(site, pid, int(flags))

    def _on_return(self, vcpu) -> None:
        frame = vcpu[Reg.RSP] - 8
        self._frames.setdefault(frame // STACK_SLOT, []).append(frame)

    def _on_return_section(self, vcpu) -> None:
        """From here on the machine is not stopped before the exit is told."""
        slot = vcpu[Reg.RSP] // STACK_SLOT
        frame = self._frames[slot].pop()
        stack = self._shadow[slot]
        while stack[-1][0] < frame:
            stack.pop()
        where, call = stack.pop()
        assert where == frame, "return_to_handler from a frame that was never hooked"
        model = self.models[""]
        exit_ = None
        if model.tracer == "function_graph" and call.epochs == (model.epoch,):
            exit_ = self._new_call(vcpu, call.site)
            exit_.wanted, exit_.epochs = call.wanted, call.epochs
            exit_.kind = EventId.GRAPH_EXIT
            self.exits[vcpu.index].append(exit_)
        self._returning.setdefault(slot, []).append((vcpu[Reg.RSP], exit_))

    def _on_exit_decision(self, vcpu) -> None:
        rsp = vcpu[Reg.RSP]
        returning = self._returning[rsp // STACK_SLOT]
        while returning[-1][0] < rsp:  # returns of interrupts, which are over
            returning.pop()
        exit_ = returning.pop()[1]
        if exit_ is not None and not self.models[""].on:
            exit_.wanted = exit_.epochs = ()

    # --- changes ---

    def _wrap_stops(self) -> None:
        machine = self.run.machine
        stop_machine = machine.stop_machine

        def stopping(fn, text=None):
            def both():
                # Nobody is in a tracer now: what was called is in the buffers, or was lost.
                self.check()
                result = fn()
                if self._pending is not None:
                    self._pending()
                return result

            return stop_machine(both, text)

        machine.stop_machine = stopping

    def before_write(self, commit: Callable[[], None] | None) -> None:
        """What changes in the model inside the next stop."""
        self._pending = commit

    def write(self, file: str, text: str, *, array: str = "", append: bool = False, **changes):
        """Write to a control file; the model changes in the stop that the write makes."""
        model = self.models[array]
        where = f"instances/{array}/{file}" if array else file

        def commit() -> None:
            for name, value in changes.items():
                setattr(model, name, value)
            if "tracer" in changes:
                model.epoch += 1
                model.read.clear()
                model.read_count = [0] * len(self.calls)

        if file == "tracing_on":
            self.files.write(where, text)
            commit()
            return
        if file == "current_tracer" and text == model.tracer:
            return
        self._pending = commit
        try:
            self.files.write(where, text, append=append)
        finally:
            self._pending = None

    def read(self, limit: int | None = None, array: str = "") -> Events:
        model = self.models[array]
        events, _ = model.array.buffer.read(limit)
        model.read += _identities(events)
        for cpu in events.table["cpu"].tolist():
            model.read_count[cpu] += 1
        return events

    # --- checks ---

    def expected(self, model: Model, cpu: int) -> list[Call]:
        """The events that there should have been since the tracer was set."""
        return [
            call
            for call in self.calls[cpu] + self.exits[cpu]
            if model in call.wanted and model.epoch == call.epochs[call.wanted.index(model)]
        ]

    def check(self) -> None:
        for model in self.models.values():
            self._check_array(model)

    def _check_array(self, model: Model) -> None:
        self.checks += 1
        in_buffer, _ = model.array.buffer.peek()
        found = _identities(in_buffer) + model.read
        for cpu, part in enumerate(model.array.buffer.cpus):
            calls = self.expected(model, cpu)
            stats = part.stats()
            assert stats.read == model.read_count[cpu]
            total = stats.entries + stats.overrun + stats.dropped + stats.read
            assert total == len(calls), f"CPU {cpu}: {stats} of {len(calls)} calls"
            wanted = Counter((cpu, c.kind, c.site, c.pid, c.flags) for c in calls)
            here = Counter({key: count for key, count in found.items() if key[0] == cpu})
            assert here <= wanted, f"CPU {cpu}: {here - wanted}"
            table = in_buffer.table[in_buffer.table["cpu"] == cpu]
            times, numbers = table["ts"].tolist(), table["number"].tolist()
            assert times == sorted(times)
            assert (
                numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
            )

    def check_traced_calls(self) -> None:
        traced = [sum(1 for call in calls if call.wanted) for calls in self.calls]
        assert traced == self.run.kernel.percpu("traced_calls")


def _identities(events: Events) -> Counter:
    table = events.table
    context = table["flags"] & (TraceFlag.HARDIRQ | TraceFlag.NMI)
    columns = (table["cpu"], table["type"], table["ip"], table["pid"], context)
    return Counter(zip(*(column.tolist() for column in columns), strict=True))


def _find(code: bytes, pattern: bytes) -> list[int]:
    found, at = [], code.find(pattern)
    while at >= 0:
        found.append(at)
        at = code.find(pattern, at + 1)
    return found


@dataclass(slots=True)
class Span:
    """A function's stay, from its events."""

    site: int
    entry: dict
    parent: Span | None
    exit: dict | None = None
    switched: bool = False  # another task ran meanwhile


def rebuild(run: Run, events: Events) -> tuple[list[Span], list[Span]]:
    """Who called whom, from function_graph events of which none is lost: the calls that have
    returned and those that are still open.

    A task stays on its CPU, an NMI has its own stack. An interrupt may come when a function is
    hooked and not told yet, or told no more and still hooked: so its first depth may be one off,
    and what it calls counts from there.
    """
    done: list[Span] = []
    open_: list[Span] = []
    names = events.table.dtype.names
    for cpu in range(len(run.machine.vcpus)):
        streams: dict[object, list[Span]] = {}
        bases: dict[object, int] = {}
        running = None
        for row in events.table[events.table["cpu"] == cpu].tolist():
            event = dict(zip(names, row, strict=True))
            pid = event["pid"]
            if event["flags"] & TraceFlag.NMI:
                key = "NMI"
            else:
                if running not in (None, pid):
                    for span in streams.get(running, []):
                        span.switched = True
                running = pid
                key = ("irq", pid) if ("irq", pid) in bases else pid
            is_irq = run.tracing.name(event["ip"]) == "smp_apic_timer_interrupt"
            if is_irq and event["type"] == EventId.GRAPH_ENTRY:
                of_task = len(streams.get(pid, []))
                key = "irq", pid
                assert abs(event["depth"] - of_task) <= 1
                bases[key] = event["depth"]
            stack = streams.setdefault(key, [])
            if event["type"] == EventId.GRAPH_ENTRY:
                depth = bases.get(key, 0) + len(stack)
                assert event["depth"] == depth, f"{event}: {depth} are open"
                stack.append(Span(event["ip"], event, stack[-1] if stack else None))
            elif event["type"] == EventId.GRAPH_EXIT:
                span = stack.pop()
                assert span.site == event["ip"], f"{event} ends {span}"
                span.exit = event
                _check_span(span)
                done.append(span)
                if is_irq:
                    assert not stack
                    del bases[key]
        open_ += [span for stack in streams.values() for span in stack]
    return done, open_


def _check_span(span: Span) -> None:
    entry, exit_ = span.entry, span.exit
    assert exit_["depth"] == entry["depth"]
    assert exit_["calltime"] <= entry["ts"] <= exit_["rettime"] <= exit_["ts"]
    if span.parent is not None:
        assert span.parent.entry["ts"] <= exit_["calltime"]
