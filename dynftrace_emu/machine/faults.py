"""Works out what the engine leaves out of an exception: its error code (SDM vol. 3A, 6.13, 4.7)."""

from __future__ import annotations

import re

import capstone
from capstone import x86 as cs_x86

from dynftrace_emu.machine.vcpu import Reg, VCpu

__all__ = ["GENERAL_PROTECTION", "NAMES", "PAGE_FAULT", "error_code", "has_error_code"]

DOUBLE_FAULT, GENERAL_PROTECTION, PAGE_FAULT = 8, 13, 14
_WITH_ERROR_CODE = {8, 10, 11, 12, 13, 14, 17, 21}
_PRESENT, _WRITE, _USER, _FETCH = 1, 2, 4, 16

NAMES = {
    0: "divide error",
    1: "debug",
    2: "NMI",
    3: "breakpoint",
    4: "overflow",
    5: "bound range exceeded",
    6: "invalid opcode",
    7: "device not available",
    8: "double fault",
    10: "invalid TSS",
    11: "segment not present",
    12: "stack segment fault",
    13: "general protection fault",
    14: "page fault",
    16: "x87 floating-point error",
    17: "alignment check",
    18: "machine check",
    19: "SIMD floating-point error",
}

_disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
_disassembler.detail = True
_SEGMENTS = {
    cs_x86.X86_REG_DS, cs_x86.X86_REG_ES, cs_x86.X86_REG_FS, cs_x86.X86_REG_GS, cs_x86.X86_REG_SS,
}  # fmt: skip
_PUSHING = {
    cs_x86.X86_INS_PUSH, cs_x86.X86_INS_CALL, cs_x86.X86_INS_PUSHFQ, cs_x86.X86_INS_ENTER,
}  # fmt: skip

# Capstone calls their memory operand read-only; the CPU writes it back even where nothing changes.
_ALWAYS_WRITING = {
    cs_x86.X86_INS_CMPXCHG, cs_x86.X86_INS_CMPXCHG8B, cs_x86.X86_INS_CMPXCHG16B,
    cs_x86.X86_INS_XADD, cs_x86.X86_INS_XCHG,
}  # fmt: skip


def has_error_code(vector: int) -> bool:
    """Whether the CPU pushes an error code for this exception."""
    return vector in _WITH_ERROR_CODE


def error_code(vcpu: VCpu, vector: int) -> int | None:
    """The error code of the exception ``vcpu`` has just raised, or None if it has none."""
    if vector == PAGE_FAULT:
        return _page_fault(vcpu)
    if vector == GENERAL_PROTECTION:
        return _general_protection(vcpu)
    return 0 if has_error_code(vector) else None


def _page_fault(vcpu: VCpu) -> int:
    address, rip = vcpu[Reg.CR2], vcpu.rip
    walk = vcpu.memory.walk(address, vcpu[Reg.CR3])
    code = _USER if vcpu.cpl == 3 else 0
    code |= 0 if walk.physical is None else _PRESENT
    if rip <= address < rip + 15 and not (walk.physical and walk.executable):
        return code | _FETCH
    return code | (_WRITE if _writes(vcpu, address) else 0)


def _current(vcpu: VCpu) -> capstone.CsInsn | None:
    code = vcpu.read(vcpu.rip, 15) or vcpu.read(vcpu.rip, 1)
    return next(_disassembler.disasm(code, vcpu.rip, 1), None) if code else None


def _writes(vcpu: VCpu, address: int) -> bool:
    """Whether the instruction at RIP writes to ``address`` (a read-modify-write counts)."""
    insn = _current(vcpu)
    if insn is None:
        return False
    if insn.id in _PUSHING and vcpu[Reg.RSP] - 8 <= address < vcpu[Reg.RSP]:
        return True
    for position, operand in enumerate(insn.operands):
        if operand.type != cs_x86.X86_OP_MEM:
            continue
        if _is_written(insn, position, operand.access):
            start = _effective_address(vcpu, insn, operand.mem)
            if start <= address < start + max(operand.size, 1):
                return True
    return False


def _is_written(insn: capstone.CsInsn, position: int, access: int) -> bool:
    """Whether an operand in memory is stored to: Capstone takes some stores for loads."""
    if access & capstone.CS_AC_WRITE or insn.id in _ALWAYS_WRITING:
        return True
    return position == 0 and bool(insn.mnemonic.startswith("mov"))


def _effective_address(vcpu: VCpu, insn: capstone.CsInsn, mem: cs_x86.X86OpMem) -> int:
    total = mem.disp
    if mem.base == cs_x86.X86_REG_RIP:
        total += insn.address + insn.size
    elif mem.base:
        total += _value(vcpu, insn.reg_name(mem.base))
    if mem.index:
        total += _value(vcpu, insn.reg_name(mem.index)) * mem.scale
    if mem.segment == cs_x86.X86_REG_GS:
        total += vcpu[Reg.GS_BASE]
    elif mem.segment == cs_x86.X86_REG_FS:
        total += vcpu[Reg.FS_BASE]
    return int(total) & 0xFFFF_FFFF_FFFF_FFFF


def _value(vcpu: VCpu, name: str) -> int:
    """A general register under any of its names (eax, r8w, si), whole; 0 for another."""
    match = re.fullmatch(r"r?(\d+)[bwd]?|[re]?([a-ds][ixp]|[bs]p)", name)
    if match is None:
        return 0
    number, letters = match.groups()
    return vcpu[Reg[f"R{number or letters.upper()}"]]


def _general_protection(vcpu: VCpu) -> int:
    """A selector that was refused, if the instruction loads a segment register; else 0."""
    insn = _current(vcpu)
    if insn is None or insn.id != cs_x86.X86_INS_MOV:
        return 0
    target, source = insn.operands
    if target.type != cs_x86.X86_OP_REG or target.reg not in _SEGMENTS:
        return 0
    if source.type == cs_x86.X86_OP_REG:
        return _value(vcpu, insn.reg_name(source.reg)) & 0xFFFC
    raw = vcpu.read(_effective_address(vcpu, insn, source.mem), 2)
    return int.from_bytes(raw, "little") & 0xFFFC if raw else 0
