"""The report of a guest that cannot go on: made to be acted on (design, "What must hold", 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.kernel.disassembly import disassemble
from dynftrace_emu.machine.vcpu import Reg, VCpu

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dynftrace_emu.errors import GuestFault
    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["crash_report"]

_REGISTERS = (
    (Reg.RAX, Reg.RBX, Reg.RCX, Reg.RDX),
    (Reg.RSI, Reg.RDI, Reg.RBP, Reg.RSP),
    (Reg.R8, Reg.R9, Reg.R10, Reg.R11),
    (Reg.R12, Reg.R13, Reg.R14, Reg.R15),
)
_BEFORE, _AFTER = 24, 24  # bytes of text shown around RIP


def crash_report(kernel: GuestKernel, fault: GuestFault, patches: Iterable[str]) -> str:
    """All that is known, as text of several lines.

    :param patches: the last changes of text, one line each, oldest first.
    """
    return "\n".join(_lines(kernel, fault, list(patches)))


def _lines(kernel: GuestKernel, fault: GuestFault, patches: list[str]) -> Iterator[str]:
    vcpu = kernel.machine.vcpus[fault.vcpu]
    yield f"------------[ guest fault on vCPU {fault.vcpu} ]------------"
    yield fault.what
    if fault.vector is not None:
        code = "" if fault.error_code is None else f"  error code {fault.error_code:#06x}"
        code += _meaning(fault)
        yield f"vector {fault.vector}{code}"
    if fault.cr2 is not None:
        yield f"CR2 {fault.cr2:#018x}  {kernel.describe(fault.cr2)}"
    where = kernel.image.source_line(fault.rip)
    yield f"RIP {fault.rip:#018x}  {kernel.image.symbolize(fault.rip)}  {where}".rstrip()
    state = "on" if vcpu.interrupts_on else "off"
    yield f"RFLAGS {vcpu[Reg.RFLAGS]:#x} (interrupts {state})"
    yield f"t = {kernel.machine.engine.vcpu_time(vcpu):.6f} s  task: {kernel.current(fault.vcpu)}"
    for row in _REGISTERS:
        yield "  ".join(f"{register.name:>3} {vcpu[register]:016x}" for register in row)
    yield "Call trace:"
    first, *returns = kernel.backtrace(vcpu)
    yield from _frames(kernel, first, kernel.image.symbolize(first), first)
    for ip in returns:
        yield from _frames(kernel, ip, kernel.image.symbolize_return(ip), ip - 1)
    yield "Code:"
    yield from _code(kernel, vcpu, fault.rip)
    yield "Last patches:" if patches else "No text has been patched."
    for patch in patches[-8:]:
        yield f"  {patch}"


def _frames(kernel: GuestKernel, ip: int, symbol: str, call: int) -> Iterator[str]:
    """A line for each call inlined at ``call``, and one for the function that is there."""
    frames = kernel.image.source_frames(call)
    for frame in frames[:-1]:
        yield f"  [<{ip:016x}>] {frame.function}  {frame.where or '??'} (inlined)"
    where = frames[-1].where if frames else None
    yield f"  [<{ip:016x}>] {symbol}" + (f"  {where}" if where else "")


def _meaning(fault: GuestFault) -> str:
    if fault.vector != 14 or fault.error_code is None:
        return ""
    code = fault.error_code
    what = "fetch" if code & 16 else "write" if code & 2 else "read"
    why = "protection violation" if code & 1 else "page not present"
    return f" ({what}, {why})"


def _code(kernel: GuestKernel, vcpu: VCpu, rip: int) -> Iterator[str]:
    """Disassembly around RIP, within its function."""
    function = kernel.image.function_at(rip)
    begin = function.address if function else rip
    end = min(rip + _AFTER, function.address + function.size) if function else rip + _AFTER
    code = vcpu.read(begin, end - begin)
    if code is None:
        yield "  no memory there"
        return
    for at, raw, text in disassemble(code, begin):
        if at >= rip - _BEFORE:
            marker = "->" if at == rip else "  "
            yield f"{marker} {kernel.image.symbolize(at):<36} {raw.hex(' '):<30} {text}"
