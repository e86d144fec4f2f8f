"""The guest on the bench: an image whose whole state can be copied, put back and compared.

All that guest code writes lies between two labels of ``.data``; registers of tasks are bytes. So a
snapshot is a few kilobytes, and two states are the same if their bytes are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import capstone
from capstone import x86 as cs_x86

from dynftrace_emu.errors import OptionError
from dynftrace_emu.kernel.boot import enter_long_mode
from dynftrace_emu.kernel.image import KernelImage, firmware_path
from dynftrace_emu.machine.descriptors import (
    GDT_SIZE,
    TSS_LIMIT,
    TSS_SELECTOR,
    build_gdt,
    build_tss,
)
from dynftrace_emu.machine.memory import PAGE_SIZE, GuestMemory
from dynftrace_emu.machine.vcpu import REGISTER_FILE, Reg, VCpu

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dynftrace_emu.explore.guest_code import GuestCode

__all__ = ["BREAKPOINT", "NMI", "TIMER", "Instruction", "Lab", "LabImage", "Registers", "TaskSpec"]

NMI, BREAKPOINT, TIMER = 2, 3, 0x20
_GATES = {NMI: "nmi", BREAKPOINT: "int3", TIMER: "timer_interrupt"}
_NMI_IST = 1
_RAM = 4 << 20
_DESCRIPTORS = 0xFFFF_FE00_0000_0000
_AREA_SIZE = 0x40
_PLACES = 9
_STACK_SIZE = 512
_RFLAGS = 1 << 9 | 1 << 1  # IF, and the bit that is always set
_BRANCHES = (capstone.CS_GRP_JUMP, capstone.CS_GRP_CALL, capstone.CS_GRP_RET, capstone.CS_GRP_IRET)
_OWN_STACK = (cs_x86.X86_REG_RSP, cs_x86.X86_REG_RBP)
_QUIET_WITHOUT_OPERANDS = ("nop", "ret", "cld", "leave", "cdqe", "cqo", "cdq", "endbr64")


class Registers:
    """Where in the bytes of :attr:`VCpu.registers` something is."""

    SIZE = 8 * len(REGISTER_FILE)
    RIP = slice(8 * REGISTER_FILE.index(Reg.RIP), 8 * REGISTER_FILE.index(Reg.RIP) + 8)
    RSP = slice(8 * REGISTER_FILE.index(Reg.RSP), 8 * REGISTER_FILE.index(Reg.RSP) + 8)
    RFLAGS_HIGH = 8 * REGISTER_FILE.index(Reg.RFLAGS) + 1  # the byte that holds IF
    IF = 2  # ... as a mask of that byte

    @staticmethod
    def get(file: bytes, register: Reg) -> int:
        """One register of a saved file."""
        place = 8 * REGISTER_FILE.index(register)
        return int.from_bytes(file[place : place + 8], "little")

    @staticmethod
    def make(values: dict[Reg, int]) -> bytes:
        """A file with these registers, and 0 in the others."""
        return struct.pack(f"<{len(REGISTER_FILE)}Q", *(values.get(r, 0) for r in REGISTER_FILE))


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A task: the CPU it is bound to, how often it calls which functions."""

    cpu: int
    functions: tuple[str, ...] = ("work",)
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class Instruction:
    """One decoded instruction; ``quiet``: it touches registers and its own stack only."""

    size: int
    text: str
    quiet: bool
    branches: bool


@dataclass(frozen=True)
class LabImage:
    """An assembled lab guest.

    :param defines: which variants of its code (``LAB_NMI_TRACES``, ...).
    :param pad: bytes in front of ``work``, which begins a page otherwise.
    :param guest: what is linked in.
    :raises ImageError: the guest code was linked against another lab.
    """

    defines: tuple[str, ...] = ()
    pad: int = 0
    guest: GuestCode | None = None

    @cached_property
    def image(self) -> KernelImage:
        """:raises AssemblyError: it does not assemble."""
        if self.guest is None:
            return _assemble(self.defines, self.pad)
        return self.guest.link_into(_assemble((*self.defines, "LAB_GUEST"), self.pad))


@lru_cache(maxsize=64)
def _assemble(defines: tuple[str, ...], pad: int) -> KernelImage:
    skip = f".skip {pad}, 0xcc" if pad else ""
    prelude = f".macro LAB_PAD_WORK\n{skip}\n.endm\n"
    source = (firmware_path() / "explore" / "lab.S").read_text()
    return KernelImage.from_assembly(
        [("<pad>", prelude), ("explore/lab.S", source)], name="lab", defines=defines
    )


class Lab:
    """A machine with a lab guest in it: vCPUs, memory, the tasks' first registers.

    :param tasks: the first of each CPU is on it, the others are switched out.
    :param nr_cpus: the last one is the patcher's.
    :param poker: the guest function that patches, if one does.
    :raises OptionError: there are more tasks or CPUs than the lab has room for.
    """

    def __init__(
        self,
        image: KernelImage,
        nr_cpus: int,
        tasks: Iterable[TaskSpec],
        poker: str | None = None,
    ) -> None:
        self.image = image
        self.memory = GuestMemory(_RAM)
        for segment in image.segments:
            self.memory.map(
                segment.name, segment.address, max(len(segment.data), PAGE_SIZE),
                writable=segment.writable, executable=segment.executable,
            )  # fmt: skip
            self.memory.write(segment.address, segment.data)
        tasks = tuple(tasks)
        places = max(nr_cpus, len(tasks) + 1)
        if places > _PLACES:
            raise OptionError(f"{places - 1} CPUs or tasks: the lab has room for {_PLACES - 1}")
        self.start = image.address("lab_data")
        self.end = image.address("lab_stacks") + places * 2 * _STACK_SIZE
        self._ram = self.memory.ram_view
        self._at = self._physical(self.start)
        self._size = self.end - self.start
        self._set_up_idt()
        self.vcpus = [self._vcpu(cpu) for cpu in range(nr_cpus)]
        self.tasks = [self._first_registers(n, task) for n, task in enumerate(tasks)]
        self.idle = self._idle_registers(poker)
        self._decoded: dict[int, Instruction] = {}

    # --- memory ---

    @property
    def data(self) -> bytes:
        """All that guest code may have written."""
        return bytes(self._ram[self._at : self._at + self._size])

    @data.setter
    def data(self, value: bytes) -> None:
        self._ram[self._at : self._at + self._size] = value

    def write_data(self, address: int, value: bytes) -> None:
        """Store to guest data."""
        at = self._at + address - self.start
        self._ram[at : at + len(value)] = value

    def read_word(self, address: int) -> int:
        """8 bytes of guest data."""
        at = self._at + address - self.start
        return int.from_bytes(self._ram[at : at + 8], "little")

    def write_text(self, physical: int, value: bytes) -> None:
        """Store to text, unknown to any CPU."""
        self._ram[physical : physical + len(value)] = value

    def physical(self, address: int, size: int) -> int:
        """Where ``size`` bytes of text lie in RAM; they are in one region."""
        return self._physical(address)

    def _physical(self, address: int) -> int:
        region = self.memory.find(address)
        assert region is not None
        return region.physical + address - region.address

    def erase_dead_stack(self, task: int, rsp: int) -> None:
        """Zero what lies below RSP on a task's stack: it says nothing, and differs."""
        top = self.stack_top(task)
        if top - _STACK_SIZE <= rsp <= top:
            begin = self._at + top - _STACK_SIZE - self.start
            count = rsp - (top - _STACK_SIZE)
            self._ram[begin : begin + count] = bytes(count)

    def erase_nmi_stack(self, cpu: int) -> None:
        """The same for the whole NMI stack of a CPU that is in none."""
        begin = self._at + self._nmi_stack_top(cpu) - _STACK_SIZE - self.start
        self._ram[begin : begin + _STACK_SIZE] = bytes(_STACK_SIZE)

    # --- code ---

    def decode(self, address: int) -> Instruction:
        """The instruction at ``address``, as memory has it now; remembered.

        Not for text that is patched.
        """
        found = self._decoded.get(address)
        if found is None:
            code = self.memory.read(address, 15) or self.memory.read(address, 1) or b""
            found = self._decoded[address] = decode(code, address)
        return found

    # --- setting up ---

    def _area(self, cpu: int) -> int:
        return self.image.address("lab_areas") + cpu * _AREA_SIZE

    def area_word(self, cpu: int, offset: int) -> int:
        """A word of a CPU's area."""
        return self.read_word(self._area(cpu) + offset)

    def stack_top(self, task: int) -> int:
        """Where a task's stack begins: its highest address."""
        return self.image.address("lab_stacks") + (2 * task + 1) * _STACK_SIZE

    def _nmi_stack_top(self, cpu: int) -> int:
        return self.image.address("lab_stacks") + (2 * cpu + 2) * _STACK_SIZE

    def _set_up_idt(self) -> None:
        self._idt = self.image.address("lab_idt")
        for vector, symbol in _GATES.items():
            offset = self.image.address(symbol)
            ist = _NMI_IST if vector == NMI else 0
            gate = struct.pack(
                "<HHBBHII", offset & 0xFFFF, 0x10, ist, 0x8E, offset >> 16 & 0xFFFF, offset >> 32, 0
            )
            self.memory.write(self._idt + 16 * vector, gate)

    def _vcpu(self, cpu: int) -> VCpu:
        vcpu = VCpu(cpu, self.memory)
        tables = _DESCRIPTORS + cpu * PAGE_SIZE
        self.memory.map(f"descriptors{cpu}", tables, PAGE_SIZE, writable=True)
        tss = tables + GDT_SIZE
        self.memory.write(tables, build_gdt(tss))
        self.memory.write(tss, build_tss(self._nmi_stack_top(cpu), self._nmi_stack_top(cpu)))
        enter_long_mode(vcpu, self.memory.root)
        vcpu.load_tables((tables, GDT_SIZE - 1), (TSS_SELECTOR, tss, TSS_LIMIT))
        vcpu.load_idt(self._idt, 0x40 * 16 - 1)
        vcpu[Reg.GS_BASE] = self._area(cpu)
        return vcpu

    def _first_registers(self, number: int, task: TaskSpec) -> bytes:
        first, second = (*task.functions, None)[:2]
        assert first is not None
        return Registers.make(
            {
                Reg.RIP: self.image.address("lab_task"),
                Reg.RSP: self.stack_top(number),
                Reg.RFLAGS: _RFLAGS,
                Reg.RBX: number + 1,
                Reg.R12: task.rounds,
                Reg.R13: self.image.address(first),
                Reg.R14: self.image.address(second) if second else 0,
            }
        )

    def _idle_registers(self, poker: str | None) -> bytes:
        """The patcher's CPU: it runs the poker, or nothing but the NMIs that come to it."""
        return Registers.make(
            {
                Reg.RIP: self.image.address("lab_poker" if poker else "lab_task_done"),
                Reg.RSP: self.stack_top(len(self.tasks)),
                Reg.RFLAGS: _RFLAGS,
                Reg.R13: self.image.address(poker) if poker else 0,
            }
        )


_disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
_disassembler.detail = True


def decode(code: bytes, address: int) -> Instruction:
    """Decode one instruction; bytes that are none are one byte long and not quiet."""
    for insn in _disassembler.disasm(code, address, 1):
        branches = any(insn.group(group) for group in _BRANCHES)
        text = f"{insn.mnemonic} {insn.op_str}".strip()
        return Instruction(insn.size, text, _is_quiet(insn), branches)
    return Instruction(1, "(bad)", quiet=False, branches=True)


def _is_quiet(insn: capstone.CsInsn) -> bool:
    if not insn.operands:
        return insn.mnemonic in _QUIET_WITHOUT_OPERANDS
    if insn.mnemonic.startswith(("int", "in", "out", "lock", "rep", "hlt", "popf", "pushf")):
        return insn.mnemonic == "inc" and all(o.type == cs_x86.X86_OP_REG for o in insn.operands)
    for operand in insn.operands:
        if operand.type == cs_x86.X86_OP_REG and operand.reg in _SPECIAL:
            return False
        if operand.type != cs_x86.X86_OP_MEM or insn.mnemonic in ("lea", "nop"):
            continue
        if operand.mem.segment or operand.mem.base not in _OWN_STACK or operand.mem.index:
            return False
    return True


_SPECIAL = frozenset(
    getattr(cs_x86, f"X86_REG_{name}")
    for name in ("CR0", "CR2", "CR3", "CR4", "CR8", "SS", "DS", "ES", "FS", "GS")
)
