"""Delivers interrupts, exceptions and NMIs through the guest's own IDT, as the CPU would.

The engine never does: it reports a vector and stops. What happens here is SDM vol. 3A, 6.14: read
the gate, choose the stack, push SS, RSP, RFLAGS, CS, RIP and the error code, load CS:RIP.
"""

from __future__ import annotations

import struct

import capstone
from capstone import x86 as cs_x86

from dynftrace_emu.machine.descriptors import ist_stack
from dynftrace_emu.machine.paging import PAGE_SIZE
from dynftrace_emu.machine.vcpu import EFLAGS_IF, Reg, VCpu

__all__ = ["BREAKPOINT", "DeliveryError", "deliver", "has_handler", "in_interrupt_shadow"]

BREAKPOINT = 3
_CLEARED_FLAGS = 1 << 8 | 1 << 14 | 1 << 16 | 1 << 17  # TF, NT, RF, VM
_INTERRUPT_GATE, _TRAP_GATE = 0xE, 0xF
_GATE_SIZE = 16
_LONGEST_INSTRUCTION = 15


class DeliveryError(Exception):
    """The CPU could not enter the handler; says why. What follows is a double fault."""


def deliver(vcpu: VCpu, vector: int, error_code: int | None = None) -> None:
    """Make ``vcpu`` enter its handler for ``vector``.

    :raises DeliveryError: there is no handler, or no stack to push the frame on.
    """
    offset, selector, ist, is_interrupt_gate = _gate(vcpu, vector)
    rsp, rflags = vcpu[Reg.RSP], vcpu[Reg.RFLAGS]
    frame = [vcpu.rip, vcpu[Reg.CS], rflags, rsp, vcpu[Reg.SS]]
    if error_code is not None:
        frame.insert(0, error_code)
    top = _stack(vcpu, ist) & ~0xF
    new_rsp = top - 8 * len(frame)
    _push(vcpu, new_rsp, struct.pack(f"<{len(frame)}Q", *frame))
    vcpu[Reg.RSP] = new_rsp
    mask = _CLEARED_FLAGS | (EFLAGS_IF if is_interrupt_gate else 0)
    vcpu[Reg.RFLAGS] = rflags & ~mask
    vcpu[Reg.CS] = selector
    vcpu.rip = offset


def has_handler(vcpu: VCpu, vector: int) -> bool:
    """Whether the guest's IDT has a gate for ``vector``."""
    try:
        _gate(vcpu, vector)
    except DeliveryError:
        return False
    return True


def _gate(vcpu: VCpu, vector: int) -> tuple[int, int, int, bool]:
    base, limit = vcpu.idt
    if _GATE_SIZE * vector + _GATE_SIZE - 1 > limit:
        raise DeliveryError(f"vector {vector} is beyond the IDT's limit {limit:#x}")
    raw = vcpu.read(base + _GATE_SIZE * vector, _GATE_SIZE)
    if raw is None:
        raise DeliveryError(f"the IDT at {base:#x} is not mapped")
    low, selector, ist, kind, middle, high = struct.unpack_from("<HHBBHI", raw)
    if not kind & 0x80:
        raise DeliveryError(f"the IDT has no handler for vector {vector}")
    if kind & 0xF not in (_INTERRUPT_GATE, _TRAP_GATE):
        raise DeliveryError(f"the IDT's entry for vector {vector} is no gate: type {kind & 0xF:#x}")
    offset = low | middle << 16 | high << 32
    return offset, selector, ist & 7, kind & 0xF == _INTERRUPT_GATE


def _stack(vcpu: VCpu, ist: int) -> int:
    if not ist and vcpu.cpl == 0:
        return vcpu[Reg.RSP]
    raw = vcpu.read(vcpu.tss + ist_stack(ist), 8)
    if raw is None:
        raise DeliveryError(f"the TSS at {vcpu.tss:#x} is not mapped")
    return int.from_bytes(raw, "little")


def _push(vcpu: VCpu, address: int, data: bytes) -> None:
    root = vcpu[Reg.CR3]
    for probe in (address, address + len(data) - 1):
        walk = vcpu.memory.walk(probe, root)
        if walk.physical is None or not walk.writable:
            raise DeliveryError(f"the stack at {probe:#x} is not writable")
    vcpu.memory.write(address, data, root)


def in_interrupt_shadow(vcpu: VCpu) -> bool:
    """Whether the last instruction may have been ``sti`` or a load of SS.

    No interrupt comes directly after those (SDM vol. 3A, 6.8.3). The engine does not say what it
    executed last, so this reads the bytes in front of RIP; who gets True runs one instruction and
    then delivers, which is right either way.
    """
    before = _code_before(vcpu)
    if before.endswith(b"\xfb"):
        return True
    if b"\x8e" not in before and b"\x0f\xb2" not in before:
        return False
    return any(_loads_ss(before[start:]) for start in range(len(before) - 1))


def _code_before(vcpu: VCpu) -> bytes:
    """Up to 15 bytes in front of RIP; fewer where the page before it is not mapped."""
    rip = vcpu.rip
    in_page = rip % PAGE_SIZE
    for size in (_LONGEST_INSTRUCTION, min(in_page, _LONGEST_INSTRUCTION)):
        code = vcpu.read(rip - size, size)
        if code is not None:
            return code
    return b""


_disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
_disassembler.detail = True


def _loads_ss(code: bytes) -> bool:
    for insn in _disassembler.disasm(code, 0, 1):
        if insn.size != len(code):
            return False
        if insn.id == cs_x86.X86_INS_LSS:
            return True
        first = insn.operands[0] if insn.operands else None
        return (
            insn.id == cs_x86.X86_INS_MOV
            and first is not None
            and first.type == cs_x86.X86_OP_REG
            and first.reg == cs_x86.X86_REG_SS
        )
    return False
