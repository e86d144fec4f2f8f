"""The report of a guest fault: every fact in it is one found another way."""

import re

import pytest

from dynftrace_emu.errors import GuestFault
from dynftrace_emu.kernel.boot import boot
from dynftrace_emu.kernel.crash import crash_report
from dynftrace_emu.kernel.mini_kernel import mini_kernel, workloads
from dynftrace_emu.machine.vcpu import Reg
from tests.machine.guests import boot_guest, deterministic

NESTED = """
ENTRY startup_64
        xor ebp, ebp
        mov eax, 1
        mov edx, PORT_CPU_START
        out dx, eax
        OFFLINE
END startup_64
ENTRY secondary_startup_64
        xor ebp, ebp
        call outer
END secondary_startup_64
FUNC_NOTRACE outer
        mov r15, 0x1234567890abcdef
        call inner
        RETURN
END outer
FUNC_NOTRACE inner
        xor eax, eax
        nop
bad:
        mov [rax + 0x18], ecx
        nop
        RETURN
END inner
"""


def crash(kernel, patches=()):
    with pytest.raises(GuestFault) as caught:
        kernel.machine.run(1.0)
    return crash_report(kernel, caught.value, patches)


@pytest.fixture(scope="module")
def kernel():
    return boot_guest(NESTED, vcpus=2)


@pytest.fixture(scope="module")
def report(kernel):
    return crash(kernel, [f"patch {n}" for n in range(12)])


def test_it_names_the_vcpu_the_vector_and_what_it_means(report):
    assert "guest fault on vCPU 1" in report
    assert "page fault" in report
    assert re.search(r"vector 14 +error code 0x0002 \(write, page not present\)", report)
    assert re.search(r"CR2 0x0000000000000018 +not mapped", report)
    assert "interrupts off" in report


def test_it_names_the_place(kernel, report):
    bad, inner = kernel.image.address("bad"), kernel.image.symbols["inner"]
    where = f"inner+{bad - inner.address:#x}/{inner.size:#x}"
    assert re.search(rf"RIP {bad:#018x} +{re.escape(where)}", report)


def test_the_call_trace_goes_from_the_fault_to_the_entry(kernel, report):
    trace = re.findall(r"\[<([0-9a-f]{16})>\] (\w+)", report)
    assert [name for _, name in trace] == ["inner", "outer", "secondary_startup_64"]
    memory = kernel.machine.memory
    for address, _ in trace[1:]:
        assert memory.read(int(address, 16) - 5, 1) == b"\xe8"  # behind a call


def test_all_registers_are_there_with_their_values(kernel, report):
    vcpu = kernel.machine.vcpus[1]
    names = [f"R{n}" for n in range(8, 16)]
    names += ["RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP"]
    shown = dict(re.findall(r"\b(R[A-Z0-9]{1,2}) ([0-9a-f]{16})\b", report))
    assert {name: int(value, 16) for name, value in shown.items()} == {
        name: vcpu[Reg[name]] for name in names
    }
    assert shown["R15"] == "1234567890abcdef"


def test_the_code_around_it_is_disassembled_and_the_fault_marked(kernel, report):
    code = report.split("Code:\n")[1].splitlines()
    marked = [line for line in code if line.startswith("->")]
    assert len(marked) == 1
    assert "mov dword ptr [rax + 0x18], ecx" in marked[0]
    assert "89 48 18" in marked[0]
    texts = "\n".join(code)
    assert "push rbp" in texts  # in front of it
    assert "ret" in texts  # behind it
    assert "int3" not in texts  # not the filler behind the function


def test_the_last_patches_are_told_oldest_first(report):
    assert re.findall(r"patch \d+", report) == [f"patch {n}" for n in range(4, 12)]


def test_it_says_that_nothing_was_patched():
    assert "No text has been patched." in crash(boot_guest(NESTED, vcpus=2))


def test_a_jump_to_nowhere_still_gets_a_report():
    kernel = boot_guest("""
    ENTRY startup_64
        xor ebp, ebp
        mov eax, 0x1000
        call go
    END startup_64
    FUNC_NOTRACE go
        call rax
        RETURN
    END go
    """)
    report = crash(kernel)
    assert re.search(r"RIP 0x0000000000001000 +0x1000", report)
    assert "(fetch, page not present)" in report
    assert "no memory there" in report
    trace = re.findall(r"\[<[0-9a-f]{16}>\] (\w+)", report)
    assert trace[1:] == ["go", "startup_64"]


def test_a_stack_overflow_is_called_one():
    report = crash(
        boot_guest("""
    ENTRY startup_64
        xor ebp, ebp
    1:  call 1b
    END startup_64
    """)
    )
    assert re.search(r"CR2 0x\w+ +in the guard below stack 0/0: a stack overflow", report)
    assert "(write, page not present)" in report


def test_a_fault_in_a_task_of_the_mini_kernel_names_the_task():
    """A function of the workload is made to fault before the first run."""
    image = mini_kernel()
    kernel = boot(image, 1, deterministic(), workload=workloads(image)["default"])
    kernel.machine.memory.write(image.address("late_work") + 9, b"\x0f\x0b")  # ud2
    with pytest.raises(GuestFault) as caught:
        kernel.machine.run(3.0)
    report = crash_report(kernel, caught.value, [])
    assert re.search(r"task: task workload-\d+ of CPU 0", report)
    assert "late_work+0x9/" in report
    trace = re.findall(r"\[<[0-9a-f]{16}>\] (\w+)", report)
    assert trace[:2] == ["late_work", "workload_main"]
    assert re.search(r"t = 1\.[5-9]\d+ s", report)
