"""The guest on the bench: an image whose whole state can be copied, put back and compared.

All that guest code writes lies between two labels of ``.data``; registers of tasks are bytes. So a
snapshot is a few kilobytes, and two states are the same if their bytes are.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING

import capstone
from capstone import x86 as cs_x86

from dynftrace_emu.errors import ImageError, OptionError
from dynftrace_emu.kernel.boot import enter_long_mode
from dynftrace_emu.kernel.image import LINK_ADDRESS, KernelImage, firmware_path
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

    from dynftrace_emu.explore.foreign import Foreign
    from dynftrace_emu.explore.guest_code import GuestCode

__all__ = ["BREAKPOINT", "NMI", "TIMER", "Instruction", "Lab", "LabImage", "Registers", "TaskSpec"]

NMI, BREAKPOINT, TIMER = 2, 3, 0x20
_GATES = {NMI: "nmi", BREAKPOINT: "int3", TIMER: "timer_interrupt"}
_NMI_IST = 1
_RAM = 4 << 20
_DESCRIPTORS = 0xFFFF_FE00_0000_0000
_AREA_SIZE = 0x40
_PLACES = 9
_ARGUMENTS, _TEXTS = 6, 1024
_RFLAGS = 1 << 9 | 1 << 1  # IF, and the bit that is always set
_BRANCHES = (capstone.CS_GRP_JUMP, capstone.CS_GRP_CALL, capstone.CS_GRP_RET, capstone.CS_GRP_IRET)
_STACK = (cs_x86.X86_REG_RSP,)
_FRAME = (cs_x86.X86_REG_RSP, cs_x86.X86_REG_RBP)  # compiled code may use RBP for anything
_VECTOR = re.compile(r"\b([xyz]?mm\d|st\(|f[a-z]+ |fxsave|fxrstor)")
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
    """A task: the CPU it is bound to, how often it calls which functions.

    :param arguments: of a function of an ELF image: numbers, and texts (by address, NUL-ended).
    """

    cpu: int
    functions: tuple[str, ...] = ("work",)
    rounds: int = 1
    arguments: tuple[int | str, ...] = ()


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
    :param foreign: an image whose functions are called.
    :raises ImageError: the guest code was linked against another lab.
    """

    defines: tuple[str, ...] = ()
    pad: int = 0
    guest: GuestCode | None = None
    foreign: Foreign | None = None

    @cached_property
    def image(self) -> KernelImage:
        """:raises AssemblyError: it does not assemble."""
        defines = self.defines
        if self.guest is not None:
            defines = (*defines, "LAB_GUEST")
        if self.foreign is not None:
            defines = (*defines, "LAB_FOREIGN")
            lab = self.foreign.link(partial(_assemble, defines, self.pad))
        else:
            lab = _assemble(defines, self.pad, LINK_ADDRESS)
        return lab if self.guest is None else self.guest.link_into(lab)


@lru_cache(maxsize=64)
def _assemble(defines: tuple[str, ...], pad: int, address: int) -> KernelImage:
    skip = f".skip {pad}, 0xcc" if pad else ""
    prelude = f".macro LAB_PAD_WORK\n{skip}\n.endm\n"
    source = (firmware_path() / "explore" / "lab.S").read_text()
    return KernelImage.from_assembly(
        [("<pad>", prelude), ("explore/lab.S", source)],
        name="lab",
        defines=defines,
        link_address=address,
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
        self.memory = GuestMemory(_RAM + sum(segment.size for segment in image.segments))
        for segment in image.segments:
            self.memory.map(
                segment.name, segment.address, max(segment.size, PAGE_SIZE),
                writable=segment.writable, executable=segment.executable,
            )  # fmt: skip
            self.memory.write(segment.address, segment.data)
        tasks = tuple(tasks)
        places = max(nr_cpus, len(tasks) + 1)
        if places > _PLACES:
            raise OptionError(f"{places - 1} CPUs or tasks: the lab has room for {_PLACES - 1}")
        self.start = image.address("lab_data")
        stacks = image.address("lab_stacks")
        self._stack_size = (image.address("lab_stacks_end") - stacks) // (2 * _PLACES)
        self.end = stacks + places * 2 * self._stack_size
        self._ram = self.memory.ram_view
        self._at = self._physical(self.start)
        self._size = self.end - self.start
        self._others = [
            slice(at := self._physical(segment.address), at + segment.size)
            for segment in image.segments
            if segment.writable
            and not segment.address <= self.start < segment.address + segment.size
        ]
        text = image.address("lab_task")
        self._own_text = next(
            (s.address, s.address + s.size) for s in image.segments
            if s.address <= text < s.address + s.size
        )  # fmt: skip
        self._set_up_idt()
        self.vcpus = [self._vcpu(cpu) for cpu in range(nr_cpus)]
        self._texts = 0
        self.tasks = [self._first_registers(n, task) for n, task in enumerate(tasks)]
        self.idle = self._idle_registers(poker)
        self._decoded: dict[int, Instruction] = {}

    # --- memory ---

    @property
    def data(self) -> bytes:
        """All that guest code may have written."""
        own = bytes(self._ram[self._at : self._at + self._size])
        if not self._others:
            return own
        return b"".join((own, *(self._ram[where] for where in self._others)))

    @data.setter
    def data(self, value: bytes) -> None:
        self._ram[self._at : self._at + self._size] = value[: self._size]
        done = self._size
        for where in self._others:
            size = where.stop - where.start
            self._ram[where] = value[done : done + size]
            done += size

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

    def stack_words(self, task: int) -> tuple[int, ...]:
        """What is on a task's stack; zeros below its RSP."""
        return self._words(self.stack_top(task))

    def nmi_stack_words(self, cpu: int) -> tuple[int, ...]:
        """What is on a CPU's NMI stack."""
        return self._words(self._nmi_stack_top(cpu))

    def _words(self, top: int) -> tuple[int, ...]:
        begin = self._at + top - self._stack_size - self.start
        return struct.unpack(
            f"<{self._stack_size // 8}Q", self._ram[begin : begin + self._stack_size]
        )

    def on_nmi_stack(self, cpu: int, rsp: int) -> bool:
        """Whether a stack pointer points into a CPU's NMI stack."""
        return (
            0 < self._nmi_stack_top(cpu) - rsp < self._stack_size
        )  # its lowest byte tops a task's

    def erase_dead_stack(self, task: int, rsp: int) -> None:
        """Zero what lies below RSP on a task's stack: it says nothing, and differs."""
        top = self.stack_top(task)
        begin = self._at + top - self._stack_size - self.start
        count = rsp - (top - self._stack_size)
        self._ram[begin : begin + count] = bytes(count)

    def is_on_stack(self, task: int, rsp: int) -> bool:
        """Whether a stack pointer is in a task's own stack."""
        return 0 <= self.stack_top(task) - rsp < self._stack_size

    def erase_nmi_stack(self, cpu: int) -> None:
        """The same for the whole NMI stack of a CPU that is in none."""
        begin = self._at + self._nmi_stack_top(cpu) - self._stack_size - self.start
        self._ram[begin : begin + self._stack_size] = bytes(self._stack_size)

    # --- code ---

    def decode(self, address: int) -> Instruction:
        """The instruction at ``address``, as memory has it now; remembered.

        Not for text that is patched.

        :raises ImageError: it uses registers that a snapshot does not have.
        """
        found = self._decoded.get(address)
        if found is None:
            code = self.memory.read(address, 15) or self.memory.read(address, 1) or b""
            begin, end = self._own_text
            bases = _FRAME if begin <= address < end else _STACK
            found = self._decoded[address] = decode(code, address, bases)
            if _VECTOR.search(found.text):
                where = self.image.symbolize(address)
                raise ImageError(
                    f"{where}: {found.text}: vector and x87 registers are no part of a snapshot; "
                    "compile with -mgeneral-regs-only"
                )
        return found

    # --- setting up ---

    def _area(self, cpu: int) -> int:
        return self.image.address("lab_areas") + cpu * _AREA_SIZE

    def area_word(self, cpu: int, offset: int) -> int:
        """A word of a CPU's area."""
        return self.read_word(self._area(cpu) + offset)

    def stack_top(self, task: int) -> int:
        """Where a task's stack begins: its highest address."""
        return self.image.address("lab_stacks") + (2 * task + 1) * self._stack_size

    def _nmi_stack_top(self, cpu: int) -> int:
        return self.image.address("lab_stacks") + (2 * cpu + 2) * self._stack_size

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
        table = self._write_arguments(number, task) if self._is_foreign else 0
        return Registers.make(
            {
                Reg.RIP: self.image.address("lab_task"),
                Reg.RSP: self.stack_top(number),
                Reg.RFLAGS: _RFLAGS,
                Reg.RBX: number + 1,
                Reg.R12: task.rounds,
                Reg.R13: self.image.address(first),
                Reg.R14: self.image.address(second) if second else 0,
                Reg.R15: table,
            }
        )

    @property
    def _is_foreign(self) -> bool:
        return "lab_arguments" in self.image.symbols

    def _write_arguments(self, number: int, task: TaskSpec) -> int:
        """What a task's calls are given; the address of its six words."""
        table = self.image.address("lab_arguments") + number * 8 * _ARGUMENTS
        if len(task.arguments) > _ARGUMENTS:
            raise OptionError(f"{len(task.arguments)} arguments: {_ARGUMENTS} at most")
        for place, argument in enumerate(task.arguments):
            value = self._place_text(argument) if isinstance(argument, str) else argument
            self.write_data(table + 8 * place, (value % (1 << 64)).to_bytes(8, "little"))
        return table

    def _place_text(self, text: str) -> int:
        """A NUL-ended text in guest data; its address."""
        at = self.image.address("lab_texts") + self._texts
        data = text.encode("latin-1") + b"\0"
        self._texts += len(data)
        if self._texts > _TEXTS:
            raise OptionError(f"the arguments' texts are longer than {_TEXTS} bytes")
        self.write_data(at, data)
        return at

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


def decode(code: bytes, address: int, bases: tuple[int, ...] = _STACK) -> Instruction:
    """Decode one instruction; bytes that are none are one byte long and not quiet.

    :param bases: registers that point to the task's own stack and nowhere else.
    """
    for insn in _disassembler.disasm(code, address, 1):
        branches = any(insn.group(group) for group in _BRANCHES)
        text = f"{insn.mnemonic} {insn.op_str}".strip()
        return Instruction(insn.size, text, _is_quiet(insn, bases), branches)
    return Instruction(1, "(bad)", quiet=False, branches=True)


def _is_quiet(insn: capstone.CsInsn, bases: tuple[int, ...]) -> bool:
    if not insn.operands:
        return insn.mnemonic in _QUIET_WITHOUT_OPERANDS
    if insn.mnemonic.startswith(("int", "in", "out", "lock", "rep", "hlt", "popf", "pushf")):
        return insn.mnemonic == "inc" and all(o.type == cs_x86.X86_OP_REG for o in insn.operands)
    for operand in insn.operands:
        if operand.type == cs_x86.X86_OP_REG and operand.reg in _SPECIAL:
            return False
        if operand.type != cs_x86.X86_OP_MEM or insn.mnemonic in ("lea", "nop"):
            continue
        if operand.mem.segment or operand.mem.base not in bases or operand.mem.index:
            return False
    return True


_SPECIAL = frozenset(
    getattr(cs_x86, f"X86_REG_{name}")
    for name in ("CR0", "CR2", "CR3", "CR4", "CR8", "SS", "DS", "ES", "FS", "GS")
)
