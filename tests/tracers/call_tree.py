"""A kernel of functions that call each other as a dict says, so every call is known beforehand.

It has the firmware's mcount and tracers and nothing else: no tasks, no timer. A test calls a
function on a vCPU by hand; it runs to its end in one go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from dynftrace_emu.ftrace.dynamic import DynamicFtrace
from dynftrace_emu.ftrace.tracing import Tracing
from dynftrace_emu.kernel.boot import boot
from dynftrace_emu.kernel.image import KernelImage
from dynftrace_emu.kernel.structs import EventId
from dynftrace_emu.machine.deterministic import DEFAULT_VIRTUAL_HZ, DeterministicEngine
from dynftrace_emu.machine.engine import Park
from dynftrace_emu.machine.exits import ExitReason
from dynftrace_emu.machine.vcpu import Reg
from dynftrace_emu.tracefs import TraceFs

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.trace_events import Events

CALLS: Mapping[str, tuple[str, ...]] = {
    "sys_read": ("vfs_read", "fput"),
    "sys_write": ("vfs_write", "fput", "fput"),
    "vfs_read": ("do_sync_read", "copy_to_user"),
    "vfs_write": ("lock", "copy_from_user"),
    "do_sync_read": ("copy_to_user", "lock"),
    "copy_to_user": ("lock",),
    "copy_from_user": (),
    "fput": ("lock",),
    "lock": (),
}
ROOTS = ("sys_read", "sys_write")


@lru_cache(maxsize=8)
def tree_image(calls: tuple[tuple[str, tuple[str, ...]], ...], nops: tuple[tuple[str, int], ...]):
    skipped = dict(nops)
    body = "".join(
        f"FUNC {name}\n .skip {skipped.get(name, 3 + 7 * index)}, 0x90\n"
        + "".join(f" call {callee}\n" for callee in callees)
        + f" RETURN\nEND {name}\n"
        for index, (name, callees) in enumerate(calls)
    )
    text = (
        '.include "arch/mcount.S"\n'
        "ENTRY startup_64\n        nop\nrest:\n        hlt\n        jmp rest\nEND startup_64\n"
    )
    return KernelImage.from_assembly(text + body, name="tree")


class CallTree:
    """:param nops: bytes of nop at the beginning of a function."""

    def __init__(
        self,
        calls: Mapping[str, tuple[str, ...]] = CALLS,
        *,
        vcpus: int = 1,
        virtual_hz: int = DEFAULT_VIRTUAL_HZ,
        nops: Mapping[str, int] | None = None,
    ) -> None:
        self.calls = dict(calls)
        self.image = tree_image(tuple(self.calls.items()), tuple((nops or {}).items()))
        self.kernel = boot(
            self.image,
            vcpus,
            lambda machine: DeterministicEngine(machine, park=Park.ANYWHERE, virtual_hz=virtual_hz),
            hz=0,
        )
        self.machine = self.kernel.machine
        for number in range(1, vcpus):
            self.machine.engine.start_vcpu(number, None)
        self.ftrace = DynamicFtrace(self.kernel, known=self.kernel.image.call_sites)
        self.tracing = Tracing(self.kernel, self.ftrace)
        self.files = TraceFs(self.tracing)
        self.rest = self.image.address("startup_64") + 1
        self.call("ftrace_dynamic_init")

    def site(self, name: str) -> int:
        return self.image.address(name) + 4  # behind push rbp; mov rbp, rsp

    def call(self, name: str, cpu: int = 0) -> None:
        vcpu = self.machine.vcpus[cpu]
        vcpu[Reg.RSP] -= 8
        self.machine.memory.write_u64(vcpu[Reg.RSP], self.rest)
        vcpu.rip = self.image.address(name)
        engine = self.machine.engine
        exit_ = engine._run_vcpu(engine._slots[cpu], 10_000_000)  # its clock goes on, too
        assert exit_.reason is ExitReason.HALTED
        assert vcpu.rip == self.rest + 1

    def set_context(self, cpu: int = 0, **fields: int) -> None:
        """Words of the per-CPU area: ``pid``, ``preempt_count``."""
        for field, value in fields.items():
            self.kernel.pcpu(cpu)[field] = value

    def events(self, array=None) -> Events:
        array = array or self.tracing.global_array
        events, lost = array.buffer.read()
        assert not lost
        return events

    def names(self, events: Events) -> list[str]:
        return [self.tracing.name(ip) for ip in events.table["ip"].tolist()]

    def graph(self, events: Events) -> list[tuple[int, str, int]]:
        """Type, function and depth of function_graph events."""
        table = events.table
        assert set(table["type"].tolist()) <= {EventId.GRAPH_ENTRY, EventId.GRAPH_EXIT}
        return list(
            zip(table["type"].tolist(), self.names(events), table["depth"].tolist(), strict=True)
        )

    # --- the oracle ---

    def walk(self, name: str) -> Iterator[str]:
        """Every function that a call of this one calls, itself first, in order."""
        yield name
        for callee in self.calls[name]:
            yield from self.walk(callee)

    def chains(self, name: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        """Likewise with those it is called by, innermost first."""
        chain = (name, *above)
        yield chain
        for callee in self.calls[name]:
            yield from self.chains(callee, chain)
