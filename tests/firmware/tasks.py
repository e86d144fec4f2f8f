"""Several tasks on one CPU, switched between any two instructions where preemption is on.

A task is a generator: it yields ``(function, *arguments)`` and is sent the result, signed. The
firmware's ``schedule`` is a stub that comes back to :meth:`Tasks.run`.
"""

from __future__ import annotations

import random
from collections.abc import Generator

import unicorn
from unicorn import x86_const as x86

from dynftrace_emu.kernel.structs import PCPU, TASK
from tests.firmware.guest import ARGUMENTS, HEAP, PCPU_AT, RETURN_TO
from tests.firmware.kernel_services import Kernel, signed

SCHEDULE = "schedule:\nout 0xE1, al\nhlt\nret"
FIRST_TASK, FIRST_STACK, STACK = HEAP + 0x40_0000, HEAP + 0x50_0000, 0x4000
Program = Generator[tuple, int, None]


class Task:
    """One of them: its registers while it does not run, and the program it runs."""

    def __init__(self, number: int, program: Program) -> None:
        self.address = FIRST_TASK + number * 0x1000
        self.stack = FIRST_STACK + (number + 1) * STACK
        self.program = program
        self.context = None
        self.called_schedule = False
        self.done = False


class Tasks:
    """The scheduler: picks at random, for a random number of instructions."""

    def __init__(self, kernel: Kernel, seed: int, longest_slice: int = 60) -> None:
        self.kernel, self.uc = kernel, kernel.uc
        self.random = random.Random(seed)
        self.longest_slice = longest_slice
        self.tasks: list[Task] = []
        self.sleeps = 0
        self.uc.mem_write(RETURN_TO, b"\xf4")
        self.uc.hook_add(unicorn.UC_HOOK_INSN, self._schedule, None, 1, 0, x86.UC_X86_INS_OUT)

    def add(self, program: Program, rng: int = 1, pid: int = 1) -> Task:
        task = Task(len(self.tasks), program)
        self.kernel.write(task.address, bytes(TASK.size))
        self.kernel.write_u64(task.address + TASK.offset("rng"), rng)
        self.kernel.write_u64(task.address + TASK.offset("pid"), pid)
        self.tasks.append(task)
        self._begin(task, None)
        return task

    def run(self, limit: int = 3_000_000) -> None:
        """Until all are done. Fails if all sleep, or after ``limit`` slices."""
        for _ in range(limit):
            runnable = [t for t in self.tasks if not t.done and not self._asleep(t)]
            if not runnable:
                assert all(t.done for t in self.tasks), "deadlock: every task sleeps"
                return
            self._slice(self.random.choice(runnable))
        raise AssertionError("the tasks do not come to an end")

    def _asleep(self, task: Task) -> bool:
        return (
            task.called_schedule and self.kernel.read_u64(task.address + TASK.offset("state")) != 0
        )

    def _slice(self, task: Task) -> None:
        self.kernel.write_u64(PCPU_AT + PCPU.offset("current"), task.address)
        self.uc.context_restore(task.context)
        task.called_schedule = False
        self.current = task
        count = self.random.randint(1, self.longest_slice)
        while True:
            self.uc.emu_start(self.uc.reg_read(x86.UC_X86_REG_RIP), 0, count=count)
            if self.uc.reg_read(x86.UC_X86_REG_RIP) == RETURN_TO + 1:
                self._begin(task, signed(self.uc.reg_read(x86.UC_X86_REG_RAX)))
                return
            preempt_count = self.kernel.read_u64(PCPU_AT + PCPU.offset("preempt_count"))
            assert not (task.called_schedule and preempt_count), "schedule() with preemption off"
            if not preempt_count:
                break
            count = 1
        task.context = self.uc.context_save()

    def _begin(self, task: Task, result: int | None) -> None:
        try:
            name, *arguments = task.program.send(result)
        except StopIteration:
            task.done = True
            return
        sp = task.stack - 0x108
        self.kernel.write_u64(sp, RETURN_TO)
        self.uc.reg_write(x86.UC_X86_REG_RSP, sp)
        self.uc.reg_write(x86.UC_X86_REG_RIP, self.kernel.address(name))
        for register, value in zip(ARGUMENTS, arguments, strict=False):
            self.uc.reg_write(getattr(x86, f"UC_X86_REG_{register}"), value & (1 << 64) - 1)
        task.context = self.uc.context_save()

    def _schedule(self, uc, port, size, value, data) -> None:
        if port == 0xE1:
            self.current.called_schedule = True
            self.sleeps += 1
