"""Exceptions: the error codes of SDM vol. 3A, 4.7 and 6.13, handed to the guest's own handlers."""

import pytest

from dynftrace_emu.errors import GuestFault
from tests.machine.guests import boot_guest, words

PF, GP, UD, DE, BP, DF = 14, 13, 6, 0, 3, 8
PROTECTION, WRITE, FETCH = 1, 2, 16
NOWHERE = 0x6000_0000_0000  # canonical, not mapped

# The handler keeps what the CPU gave it and ends. `site` is the instruction that faults.
KEEPER = """
VARIABLE fault_address
ENTRY fault
        KEEP_FAULT
        mov rax, cr2
        mov [rip + fault_address], rax
        OFFLINE
END fault
.data
        .p2align 4
target:
        .skip 64
.text
"""


def guest_of(setup, instruction):
    return f"""
    ENTRY startup_64
        LOAD_IDT
        {setup}
        jmp site
    END startup_64
    ENTRY site
        {instruction}
        OFFLINE
    END site
    """


def run_fault(setup, instruction, vector):
    """The faulting guest's kernel, behind its handler: (kernel, frame from the code or RIP on)."""
    kernel = boot_guest(guest_of(setup, instruction) + KEEPER, gates={vector: "fault"})
    kernel.machine.run(1.0)
    return kernel, words(kernel, "frame", 6)


NOT_MAPPED = f"mov rax, {NOWHERE:#x}; mov rdi, rax; mov rsi, rax; mov rcx, 1; mov rbx, 8"
READS = [
    "mov rcx, [rax]", "movzx ecx, byte ptr [rax]", "cmp qword ptr [rax], 0", "test [rax], ecx",
    "lodsb", "add rcx, [rax]", "push qword ptr [rax]", "movups xmm0, [rax]", "mul qword ptr [rax]",
    "bt qword ptr [rax], 3", "mov rcx, [rax + rbx * 8 + 0x40]",
]  # fmt: skip
WRITES = [
    "mov [rax], rcx", "mov byte ptr [rax], 1", "inc qword ptr [rax]", "add [rax], ecx", "stosq",
    "rep stosb", "xchg [rax], rcx", "lock xadd [rax], rcx", "lock cmpxchg [rax], rcx",
    "lock inc qword ptr [rax]", "movups [rax], xmm0", "pop qword ptr [rax]", "sete byte ptr [rax]",
    "bts qword ptr [rax], 3", "neg qword ptr [rax]", "shl qword ptr [rax], 1",
    "mov [rax + rbx * 8 - 4], ecx", "mov [rbx + rax], r9d", "movnti [rax], rcx",
]  # fmt: skip


@pytest.mark.parametrize(
    ("instruction", "code"), [*((r, 0) for r in READS), *((w, WRITE) for w in WRITES)]
)
def test_the_error_code_says_whether_an_unmapped_page_was_read_or_written(instruction, code):
    kernel, frame = run_fault(NOT_MAPPED, instruction, PF)
    assert frame[:3] == [code, kernel.image.address("site"), 0x10]
    assert kernel.read("fault_address") & ~0xFFF == NOWHERE


def test_a_string_copy_to_an_unmapped_page_is_a_write_at_the_target():
    setup = f"lea rsi, [rip + target]; mov rdi, {NOWHERE:#x}"
    kernel, frame = run_fault(setup, "movsq", PF)
    assert (frame[0], kernel.read("fault_address")) == (WRITE, NOWHERE)


def test_a_string_copy_from_an_unmapped_page_is_a_read_of_the_source():
    setup = f"lea rdi, [rip + target]; mov rsi, {NOWHERE + 8:#x}"
    kernel, frame = run_fault(setup, "movsq", PF)
    assert (frame[0], kernel.read("fault_address")) == (0, NOWHERE + 8)


def test_a_store_to_text_is_a_protection_fault_and_changes_nothing():
    kernel, frame = run_fault("lea rax, [rip + site]", "mov byte ptr [rax], 0x90", PF)
    site = kernel.image.address("site")
    assert frame[:2] == [PROTECTION | WRITE, site]
    assert kernel.read("fault_address") == site
    assert kernel.machine.memory.read(site, 3) == b"\xc6\x00\x90"


def test_a_jump_to_data_is_a_fetch_that_protection_refuses():
    kernel, frame = run_fault("lea rax, [rip + target]", "jmp rax", PF)
    target = kernel.image.address("target")
    assert frame[:2] == [PROTECTION | FETCH, target]
    assert kernel.read("fault_address") == target


def test_a_jump_to_nowhere_is_a_fetch_of_a_page_that_is_not_there():
    kernel, frame = run_fault(NOT_MAPPED, "jmp rax", PF)
    assert frame[:2] == [FETCH, NOWHERE]
    assert kernel.read("fault_address") == NOWHERE


def test_a_handler_that_mends_the_cause_returns_to_the_same_instruction():
    """The handler loads a valid pointer; the store that faulted runs again, once."""
    kernel = boot_guest(
        """
    VARIABLE faults
    VARIABLE counter
    ENTRY startup_64
        LOAD_IDT
        mov rdx, rsp
        xor eax, eax
        add qword ptr [rax], 5
        cmp rdx, rsp
        jne 1f
        mov qword ptr [rip + kept_rax], 77
    1:  OFFLINE
    END startup_64
    ENTRY page_fault
        inc qword ptr [rip + faults]
        lea rax, [rip + counter]
        add rsp, 8
        iretq
    END page_fault
    """,
        gates={PF: "page_fault"},
    )
    kernel.machine.run(1.0)
    assert [kernel.read(name) for name in ("faults", "counter", "kept_rax")] == [1, 5, 77]


@pytest.mark.parametrize(
    ("vector", "cause", "drop"),
    [
        (PF, "xor eax, eax; mov rcx, [rax]", 8),
        (GP, "mov rax, 0x8000000000000000; mov rcx, [rax]", 8),
        (UD, "ud2", 0),
        (DE, "xor ecx, ecx; div ecx", 0),
    ],
)
def test_a_fault_after_one_that_was_handled_is_a_fault_of_its_own(vector, cause, drop):
    """The engine thinks that the first is still being delivered; a CPU would not."""
    kernel = boot_guest(
        f"""
    VARIABLE faults
    ENTRY startup_64
        LOAD_IDT
        lea rbx, [rip + 1f]
        {cause}
    1:  lea rbx, [rip + 1f]
        {cause}
    1:  lea rbx, [rip + 1f]
        {cause}
    1:  OFFLINE
    END startup_64
    # Goes on behind the instruction.
    ENTRY handler
        add rsp, {drop}
        inc qword ptr [rip + faults]
        mov [rsp], rbx
        iretq
    END handler
    """,
        gates={vector: "handler"},
    )
    kernel.machine.run(1.0)
    assert kernel.read("faults") == 3


REFUSED = 0x2B  # no such descriptor: index 5, RPL 3; the error code has no RPL


@pytest.mark.parametrize(
    ("setup", "instruction"),
    [
        (f"mov eax, {REFUSED}", "mov ds, eax"),
        (f"mov ecx, {REFUSED}", "mov ss, ecx"),
        (f"mov r9d, {REFUSED}", "mov es, r9d"),
        (f"mov ebx, {REFUSED}", "mov fs, bx"),
        (f"mov eax, {REFUSED}; mov [rip + target], eax", "mov ds, word ptr [rip + target]"),
        (f"mov r8d, 0x1230000 + {REFUSED}", "mov gs, r8w"),
    ],
)
def test_a_refused_selector_is_the_error_code_of_general_protection(setup, instruction):
    kernel, frame = run_fault(setup, instruction, GP)
    assert frame[:2] == [REFUSED & ~3, kernel.image.address("site")]


@pytest.mark.parametrize("instruction", ["mov rcx, [rax]", "mov [rax], ecx"])
def test_an_address_that_is_not_canonical_is_general_protection_with_error_code_0(instruction):
    kernel, frame = run_fault("mov rax, 0x8000000000000000", instruction, GP)
    assert frame[:2] == [0, kernel.image.address("site")]


@pytest.mark.parametrize(
    ("vector", "setup", "instruction", "behind"),
    [
        (UD, "nop", "ud2", 0),
        (DE, "xor ecx, ecx; mov eax, 1; xor edx, edx", "div ecx", 0),
        (BP, "nop", "int3", 1),
    ],
)
def test_exceptions_without_an_error_code_push_none(vector, setup, instruction, behind):
    kernel, frame = run_fault(setup, instruction, vector)
    stack = kernel.machine.memory.region("stack 0/0")
    assert frame[:2] == [kernel.image.address("site") + behind, 0x10]
    assert frame[3:5] == [stack.end - 8, 0x18]


def test_an_error_code_lies_below_the_frame_on_an_aligned_stack():
    kernel, frame = run_fault("xor eax, eax; sub rsp, 4", "mov [rax], eax", PF)
    stack = kernel.machine.memory.region("stack 0/0")
    at_entry = words(kernel, "frame", 7)[6]
    assert frame[4] == stack.end - 12
    assert at_entry == (frame[4] & ~15) - 48
    assert frame[5] == 0x18


@pytest.mark.parametrize(
    ("setup", "instruction", "vector", "code", "what"),
    [
        (NOT_MAPPED, "mov [rax], ecx", PF, WRITE, "page fault"),
        ("mov eax, 0x28", "mov ds, eax", GP, 0x28, "general protection"),
        ("nop", "ud2", UD, None, "invalid opcode"),
        ("xor ecx, ecx", "div ecx", DE, None, "divide error"),
    ],
)
@pytest.mark.parametrize("idt", ["LOAD_IDT", "nop"])
def test_a_fault_without_a_handler_ends_the_run(idt, setup, instruction, vector, code, what):
    kernel = boot_guest(guest_of(setup, instruction).replace("LOAD_IDT", idt) + KEEPER)
    with pytest.raises(GuestFault, match=what) as caught:
        kernel.machine.run(1.0)
    fault = caught.value
    assert (fault.vcpu, fault.vector, fault.error_code) == (0, vector, code)
    assert fault.rip == kernel.image.address("site") == kernel.machine.vcpus[0].rip
    assert fault.cr2 == (NOWHERE if vector == PF else None)
    assert fault.exit_code == 1


def test_a_software_interrupt_pushes_no_error_code_and_returns_behind_itself():
    """Not even for a vector whose exception has one (SDM vol. 3A, 6.4.4)."""
    kernel, frame = run_fault("nop", "int 14", PF)
    assert frame[:2] == [kernel.image.address("site") + 2, 0x10]


def test_a_software_interrupt_without_a_gate_is_general_protection_with_its_vector():
    kernel, frame = run_fault("nop", "int 0x80", GP)
    assert frame[:2] == [0x80 * 8 + 2, kernel.image.address("site")]


def test_a_gate_that_is_not_present_is_no_handler():
    kernel = boot_guest(guest_of("nop", "ud2") + KEEPER, gates={UD: "fault"})
    at = kernel.image.address("idt") + 16 * UD + 5
    kernel.machine.memory.write(at, b"\x0e")
    with pytest.raises(GuestFault, match="no handler for vector 6"):
        kernel.machine.run(1.0)


def test_a_fault_that_cannot_be_delivered_becomes_a_double_fault():
    """The stack has run over: no frame can be pushed on it, and #DF has a stack of its own."""
    text = guest_of("nop", "push rax; jmp site") + KEEPER
    kernel = boot_guest(text, gates={PF: "fault", DF: ("fault", 1)})
    kernel.machine.run(1.0)
    stack = kernel.machine.memory.region("stack 0/0")
    nmi_stack = kernel.machine.memory.region("nmi stack 0")
    code, rip, cs, _, rsp, ss = words(kernel, "frame", 6)
    assert (code, rip, cs, rsp, ss) == (
        0, kernel.image.address("site"), 0x10, stack.address, 0x18,
    )  # fmt: skip
    assert words(kernel, "frame", 7)[6] == nmi_stack.end - 48


def test_a_double_fault_that_cannot_be_delivered_ends_the_run_with_the_first_fault():
    text = guest_of("nop", "push rax; jmp site") + KEEPER
    kernel = boot_guest(text, gates={PF: "fault", DF: "fault"})
    with pytest.raises(GuestFault, match=r"stack at .* not writable") as caught:
        kernel.machine.run(1.0)
    assert (caught.value.vector, caught.value.error_code) == (PF, WRITE)
