"""A running kernel, seen from the host: its per-CPU areas, tasks and stacks.

Reading is safe at any time (a value may be a moment old); what follows pointers (tasks, stacks) is
for when the machine is stopped.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.ret_stacks import saved_return
from dynftrace_emu.kernel.structs import (
    IMAGE_START,
    PCPU,
    STACK_SLOT,
    STACKS_PER_CPU,
    TASK,
    THREAD_SIZE,
)
from dynftrace_emu.machine.vcpu import Reg, VCpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dynftrace_emu.kernel.image import KernelImage
    from dynftrace_emu.machine.machine import Machine
    from dynftrace_emu.machine.memory import Region

__all__ = ["GuestKernel", "Task"]

GUARD_SIZE = STACK_SLOT - THREAD_SIZE
_MAX_FRAMES = 32
_MAX_STACK_WORDS = 1 << 17
_FRAME_RSP = 24  # of an interrupt frame: rip, cs, rflags, rsp, ss
_FRAME_SIZE = 40


@dataclass(frozen=True, slots=True)
class Task:
    """A task of a CPU; ``thread_sp`` is valid unless it is ``on_cpu``."""

    cpu: int
    pid: int
    comm: str
    on_cpu: bool
    thread_sp: int
    steps: tuple[int, int]  # counted in memory, counted in a register

    def __str__(self) -> str:
        return f"task {self.comm}-{self.pid} of CPU {self.cpu}"


class GuestKernel:
    """What is known of the kernel that runs in a machine."""

    def __init__(self, machine: Machine, image: KernelImage) -> None:
        self.machine, self.image = machine, image
        # A leaf: guards pcpu.trace_mask, which only the host writes, from several threads.
        self._mask_lock = threading.Lock()
        self._pcpu = [machine.memory.view(vcpu[Reg.GS_BASE], PCPU.dtype) for vcpu in machine.vcpus]

    # --- per-CPU ---

    def percpu(self, field: str) -> list[int]:
        """A field of ``struct pcpu``, of each CPU."""
        return [int(area[field][0]) for area in self._pcpu]

    def total(self, field: str) -> int:
        """A field of ``struct pcpu``, summed over the CPUs."""
        return sum(self.percpu(field))

    def enable_bits(self, bits: int, cpu: int | None = None) -> None:
        """Let the tracers of ``bits`` (:class:`~.structs.TraceBit`) listen, on a CPU or on all."""
        self._change_masks(cpu, lambda mask: mask | bits)

    def disable_bits(self, bits: int, cpu: int | None = None) -> None:
        """The opposite."""
        self._change_masks(cpu, lambda mask: mask & ~bits)

    def _change_masks(self, cpu: int | None, change: Callable[[int], int]) -> None:
        with self._mask_lock:
            for index, area in enumerate(self._pcpu):
                if cpu in (None, index):
                    area["trace_mask"][0] = change(int(area["trace_mask"][0]))

    def pcpu(self, cpu: int) -> NDArray[Any]:
        """The area of a CPU, as a writable view of one ``struct pcpu``."""
        return self._pcpu[cpu]

    def current(self, cpu: int) -> str:
        """The running task of a CPU, for people."""
        running = [task for task in self.tasks(cpu) if task.on_cpu]
        return str(running[0]) if running else "none"

    def describe(self, address: int) -> str:
        """What lies at an address, for people."""
        region = self.machine.memory.find(address)
        if region is not None:
            return f"in {region.name}"
        above = self.machine.memory.find(address + GUARD_SIZE)
        if above is not None and "stack" in above.name:
            return f"in the guard below {above.name}: a stack overflow"
        return "not mapped"

    # --- variables ---

    def read(self, symbol: str) -> int:
        """The 8-byte variable ``symbol``."""
        return self.machine.memory.read_u64(self.image.address(symbol))

    def write(self, symbol: str, value: int) -> None:
        """Store to the 8-byte variable ``symbol``, in one move."""
        self.machine.memory.write_u64(self.image.address(symbol), value)

    @cached_property
    def restarts(self) -> tuple[tuple[int, int], ...]:
        """Where the tracers begin anew if they are interrupted: from, and up to."""
        symbol = self.image.symbols.get("ftrace_restarts")
        if symbol is None:
            return ()
        rows = self.machine.memory.view(symbol.address, "<u8", symbol.size // 8).reshape(-1, 3)
        return tuple((begin, end) for begin, end, _ in rows.tolist())

    @property
    def returned(self) -> int | None:
        """What the entry of an ELF image returned, 64 bits; None: it has not."""
        start = self.machine.memory.view(self.image.address("image_start"), IMAGE_START.dtype)[0]
        return int(start["result"]) if start["returned"] else None

    # --- tasks and stacks ---

    def tasks(self, cpu: int) -> Iterator[Task]:
        """The tasks of a CPU, in the order they were made."""
        address = self.percpu("tasks")[cpu]
        for _ in range(STACKS_PER_CPU):
            if not address:
                return
            try:
                raw = self.machine.memory.view(address, TASK.dtype)[0]
            except ImageError:
                return  # the guest has overwritten its own list
            yield Task(
                cpu,
                int(raw["pid"]),
                bytes(raw["comm"]).decode("ascii", "replace"),
                bool(raw["on_cpu"]),
                int(raw["thread_sp"]),
                (int(raw["memory_steps"]), int(raw["register_steps"])),
            )
            address = int(raw["sibling"])

    def saved_ips(self) -> Iterator[tuple[str, NDArray[np.uint64]]]:
        """Every word on a live stack: return addresses, interrupt frames, saved contexts.

        A word that only looks like an ip costs another try of the stop, never a wrong one.
        """
        for vcpu in self.machine.vcpus:
            yield from self._running_stack(vcpu)
            for task in self.tasks(vcpu.index):
                if not task.on_cpu:
                    yield str(task), self._words(task.thread_sp)

    def _running_stack(self, vcpu: VCpu) -> Iterator[tuple[str, NDArray[np.uint64]]]:
        name, rsp = f"the stack of vCPU {vcpu.index}", vcpu[Reg.RSP]
        yield name, self._words(rsp)
        region = self._stack(rsp)
        if region is not None and region.name.startswith("nmi"):
            interrupted = self.machine.memory.read_u64(region.end - _FRAME_SIZE + _FRAME_RSP)
            yield f"{name}, below its NMI", self._words(interrupted)

    def _stack(self, rsp: int) -> Region | None:
        region = self.machine.memory.find(rsp)
        if region is None or (self.image.elf is None and "stack" not in region.name):
            return None
        return region  # an image's stacks are where it likes

    def _words(self, rsp: int) -> NDArray[np.uint64]:
        region = self._stack(rsp)
        if region is None:
            return np.zeros(0, dtype=np.uint64)
        start = (rsp + 7) & ~7
        words = min((region.end - start) // 8, _MAX_STACK_WORDS)
        return self.machine.memory.view(start, "<u8", words)

    def backtrace(self, vcpu: VCpu) -> list[int]:
        """RIP and the return addresses found along the frame pointers."""
        frames, rbp = [vcpu.rip], vcpu[Reg.RBP]
        top = self._words(vcpu[Reg.RSP])[:1]
        if self.image.function_at(vcpu.rip) is None and len(top):
            frames += [ip for ip in top.tolist() if self.image.function_at(ip)]  # call to nowhere
        while len(frames) < _MAX_FRAMES and self._stack(rbp) is not None:
            raw = self.machine.memory.read(rbp, 16)
            if raw is None:
                break
            saved, ip = (int.from_bytes(raw[at : at + 8], "little") for at in (0, 8))
            frames.append(self._real_return(ip, rbp + 8))
            if saved <= rbp and self._stack(saved) is self._stack(rbp):
                break  # frames only go up within a stack
            rbp = saved
        return frames

    def _real_return(self, ip: int, frame: int) -> int:
        """Where a function goes back to whose return address, at ``frame``, may be hooked."""
        hook = self.image.function_at(ip)
        if hook is None or hook.name != "return_to_handler" or hook.address != ip:
            return ip
        nodes = self.read("ftrace_ret_stacks") if self.image.elf is not None else 0
        return saved_return(self.machine.memory, nodes, frame) or ip
