"""What guest and host share: assembled loads must reach the fields that NumPy reads."""

import capstone
import pytest
from capstone import x86

from dynftrace_emu.kernel import structs
from dynftrace_emu.kernel.image import KernelImage
from dynftrace_emu.kernel.structs import (
    BOOT_PARAMS,
    BUFFER_PAGE,
    DYN_FTRACE,
    ENTRIES_PER_PAGE,
    FTRACE_PAGE,
    PCPU,
    PROBE,
    PROFILE,
    PVCLOCK,
    RB,
    RB_PAGE,
    RET_ENTRY,
    RET_STACK,
    TASK,
    EventId,
    ProbeKind,
    RetFlag,
    TraceBit,
    asm_offsets,
)
from dynftrace_emu.machine.hypercalls import Port, Request

STRUCTS = (
    BOOT_PARAMS, BUFFER_PAGE, DYN_FTRACE, FTRACE_PAGE, PCPU, PROBE, PROFILE, PVCLOCK, RB, RB_PAGE,
    RET_ENTRY, RET_STACK, TASK,
)  # fmt: skip


def displacements(body):
    """The displacement of each instruction's memory operand."""
    image = KernelImage.from_assembly(
        f'.include "linkage.inc"\nENTRY startup_64\n{body}\nEND startup_64\n'
    )
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.detail = True
    function = image.symbols["startup_64"]
    code = image.segments[0].data[: function.size]
    return [
        operand.mem.disp
        for insn in disassembler.disasm(code, function.address)
        for operand in insn.operands
        if operand.type == x86.X86_OP_MEM
    ]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.name)
def test_an_assembled_load_reaches_the_field_that_numpy_reads(struct):
    prefix = struct.name.upper()
    names = struct.dtype.names
    loads = "\n".join(f"mov rcx, [rbx + {prefix}_{name.upper()}]" for name in names)
    assert displacements(loads) == [struct.dtype.fields[name][1] for name in names]


def test_per_cpu_loads_reach_their_field_through_gs():
    """They lie one behind the other; each of 8 bytes or more where a word can be read in one go."""
    names = PCPU.dtype.names
    loads = "\n".join(f"mov rcx, gs:[PCPU_{name.upper()}]" for name in names)
    expected, end = [], 0
    for name in names:
        size = PCPU.dtype.fields[name][0].itemsize
        assert size % 8 or name in ("preempt_count", "unused") or end % 8 == 0
        expected.append(end)
        end += size
    assert displacements(loads) == expected


def test_what_lies_in_several_words_of_a_per_cpu_area_has_the_length_that_assembly_knows():
    known = asm_offsets()
    fields = PCPU.dtype.fields
    assert fields["pvclock"][0] == PVCLOCK.dtype
    assert fields["trace_buffers"][0].shape == (structs.TRACE_BITS,)
    assert fields["stack_ips"][0].shape == fields["stack_sizes"][0].shape
    assert fields["stack_ips"][0].shape == (known["STACK_TRACE_ENTRIES"],)


def test_bits_and_kinds_have_their_names_in_assembly():
    known = asm_offsets()
    for prefix, enum in (
        ("TRACE_BIT", TraceBit), ("RET", RetFlag), ("PROBE", ProbeKind), ("EVENT", EventId),
    ):  # fmt: skip
        for member in enum:
            assert known[f"{prefix}_{member.name}"] == member
    assert len({bit.value for bit in TraceBit}) == len(TraceBit)
    assert max(TraceBit) == TraceBit.INSTANCE < structs.TRACE_BITS
    assert TraceBit.KNOWN == 7  # in the byte that the recorder tests


def test_a_shadow_stack_holds_what_assembly_thinks_it_does():
    known = asm_offsets()
    room = known["RET_STACK_BYTES"] - RET_STACK.size
    assert known["RET_STACK_ENTRIES"] == room // RET_ENTRY.size > 100
    assert structs.STACK_SLOT == 2 * structs.RET_STACK_BYTES  # a shift by one leads there


def test_fields_follow_each_other_without_holes():
    for struct in STRUCTS:
        fields = [struct.dtype.fields[name] for name in struct.dtype.names]
        end = 0
        for kind, offset in fields:
            assert offset == end
            end += kind.itemsize
        assert struct.size == end == asm_offsets()[f"{struct.name.upper()}_SIZE"]


def test_records_have_the_size_that_the_seed_says():
    assert (DYN_FTRACE.size, FTRACE_PAGE.size, ENTRIES_PER_PAGE) == (28, 12, 145)
    assert structs.FTRACE_HASHSIZE == 2**10
    assert [DYN_FTRACE.offset(name) for name in ("next", "pprev", "ip", "failed")] == [0, 8, 16, 24]


def test_ports_and_request_bits_have_their_names_in_assembly():
    known = asm_offsets()
    for port in Port:
        assert known[f"PORT_{port.name}"] == port
    for request in Request:
        assert known[f"REQUEST_{request.name}"] == request
    assert (known["PORT_DEBUG_CONSOLE"], known["PORT_EXIT"]) == (0xE9, 0xF4)
