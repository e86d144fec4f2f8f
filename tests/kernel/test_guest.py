"""The running kernel as the host sees it: tasks, stacks, per-CPU areas."""

import numpy as np
import pytest

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.boot import boot
from dynftrace_emu.kernel.mini_kernel import workloads
from dynftrace_emu.machine.vcpu import Reg
from tests.machine.guests import VIRTUAL_HZ, boot_guest, deterministic

CALLEE_SAVED = 6 * 8  # what __switch_to leaves below the return address


@pytest.fixture(scope="module")
def kernel(dynamic):
    kernel = boot(dynamic, 2, deterministic(seed=4), workload=workloads(dynamic)["default"])
    kernel.machine.run(0.3)
    return kernel


def test_each_cpu_runs_one_of_its_tasks(kernel):
    for cpu in range(2):
        tasks = list(kernel.tasks(cpu))
        running = [task for task in tasks if task.on_cpu]
        assert len(tasks) > 4
        assert len({task.pid for task in tasks}) == len(tasks)
        assert {"swapper", "workload"} <= {task.comm for task in tasks}
        assert len(running) == 1
        assert kernel.current(cpu) == f"task {running[0].comm}-{running[0].pid} of CPU {cpu}"


def test_a_task_that_is_switched_out_returns_into_the_scheduler_from_its_own_stack(kernel):
    memory, stacks = kernel.machine.memory, []
    for cpu in range(2):
        for task in kernel.tasks(cpu):
            if task.on_cpu:
                continue
            stack = memory.find(task.thread_sp)
            assert stack.name.startswith(f"stack {cpu}/")
            stacks.append(stack.name)
            back = kernel.image.function_at(memory.read_u64(task.thread_sp + CALLEE_SAVED))
            assert back.name in ("context_switch", "ret_from_fork")
    assert len(set(stacks)) == len(stacks) > 8


def test_saved_ips_are_every_word_of_every_live_stack(kernel):
    memory = kernel.machine.memory
    expected = []
    for vcpu in kernel.machine.vcpus:
        tops = [vcpu[Reg.RSP]]
        tops += [task.thread_sp for task in kernel.tasks(vcpu.index) if not task.on_cpu]
        for top in tops:
            stack = memory.find(top)
            expected.append(memory.read(top, stack.end - top))
    found = [words.tobytes() for _, words in kernel.saved_ips()]
    assert found == expected


def test_sums_over_the_cpus(kernel):
    per_cpu = kernel.percpu("mcount_calls")
    assert len(per_cpu) == 2
    assert min(per_cpu) > 0
    assert kernel.total("mcount_calls") == sum(per_cpu)
    jiffies = kernel.percpu("jiffies")
    ticks = kernel.percpu("timer_interrupts")
    now = kernel.machine.now()
    for cpu in range(2):
        assert now * 100 - 2 <= jiffies[cpu] <= now * 100 + 1
        assert 20 < ticks[cpu] <= jiffies[cpu]  # ticks that came while one was pending are lost


def test_words_are_read_and_written_by_name(kernel):
    kernel.write("ftrace_disabled_insn", 0x1122)
    assert kernel.read("ftrace_disabled_insn") == 0x1122
    raw = kernel.machine.memory.view(kernel.image.address("ftrace_disabled_insn"), "<u8")
    assert raw[0] == 0x1122
    with pytest.raises(ImageError, match="no symbol nowhere"):
        kernel.read("nowhere")


def test_what_lies_at_an_address_is_said_in_words(kernel):
    memory = kernel.machine.memory
    stack = memory.region("stack 1/3")
    assert kernel.describe(stack.address) == "in stack 1/3"
    assert kernel.describe(stack.address - 1) == (
        "in the guard below stack 1/3: a stack overflow"
    )  # fmt: skip
    assert kernel.describe(0x10) == "not mapped"


def test_a_backtrace_follows_frame_pointers_and_survives_a_broken_chain():
    kernel = boot_guest("""
    ENTRY startup_64
        xor ebp, ebp
        call one
    END startup_64
    FUNC_NOTRACE one
        call two
    END one
    FUNC_NOTRACE two
        OFFLINE
    END two
    """)
    kernel.machine.run(10_000 / VIRTUAL_HZ)
    vcpu = kernel.machine.vcpus[0]
    names = [kernel.image.function_at(ip - 1).name for ip in kernel.backtrace(vcpu)]
    assert names == ["two", "one", "startup_64"]
    frame = kernel.machine.memory.view(vcpu[Reg.RBP], "<u8", 1)
    for broken in (vcpu[Reg.RBP], vcpu[Reg.RBP] - 8, 0xDEAD, 2**63):
        frame[0] = np.uint64(broken)
        back = kernel.backtrace(vcpu)
        assert [kernel.image.function_at(ip - 1).name for ip in back[:2]] == ["two", "one"]
        assert len(back) <= 3
