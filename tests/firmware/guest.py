"""Runs single functions of the firmware in a bare engine, apart from the machine under test.

The image lies where the kernel links, so that instructions are encoded as there; its sections have
the protection they have there. What a test hands over lies below, mapped one to one.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import unicorn
from unicorn import x86_const as x86

from dynftrace_emu.kernel.assembler import TEXT_SECTIONS, Assembled, assemble
from dynftrace_emu.kernel.structs import PCPU, TASK, asm_offsets

if TYPE_CHECKING:
    from collections.abc import Iterable

FIRMWARE = Path(__file__).parents[2] / "firmware"
BASE = 0xFFFF_FFFF_8100_0000
TABLES = 0x1_0000  # page tables, physical
IMAGE, IMAGE_SIZE = 0x20_0000, 0x40_0000  # the image, physical
PCPU_AT = 0x80_0000
TASK_AT = 0x81_0000
HEAP, HEAP_SIZE = 0x100_0000, 0x80_0000
STACK_TOP = 0x200_0000
RETURN_TO = 0x60_0000

STUBS = """
.include "linkage.inc"
.include "percpu.inc"
"""
ARGUMENTS = ("RDI", "RSI", "RDX", "RCX", "R8", "R9")
PRESERVED = ("RBX", "RBP", "R12", "R13", "R14", "R15")


class GuestFault(Exception):
    """The code under test faulted, or did not return."""


@functools.lru_cache(maxsize=32)
def assembled(files: tuple[str, ...], stubs: str, traced: bool) -> Assembled:
    """Firmware sources and stubs as one unit. Tests that use the same ones share it."""
    sources = [(name, (FIRMWARE / name).read_text()) for name in files]
    return assemble(
        [*sources, ("stubs.S", STUBS + stubs)],
        BASE,
        constants=asm_offsets(),
        defines={"CONFIG_FTRACE"} if traced else set(),
        read=lambda name: (FIRMWARE / "include" / name).read_text(),
        percpu_base=PCPU.size,
    )


class Guest:
    """Firmware sources, loaded; ``call`` runs one function by the C calling convention.

    :param files: names below firmware/, such as ``lib/crc32.S``.
    :param stubs: assembly for what those files need and the test does not want, e.g.
        ``"schedule: ret"``. ``preempt_schedule`` is stubbed unless given.
    """

    def __init__(self, files: Iterable[str], stubs: str = "", *, traced: bool = False) -> None:
        if "preempt_schedule:" not in stubs:
            stubs += "\npreempt_schedule: ret\n"
        if traced and "mcount:" not in stubs:
            stubs += "\nmcount: ret\n"
        self.unit = assembled(tuple(files), stubs, traced)
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.uc.mem_map(0, 0x200_0000 + 0x1_0000)
        for section in self.unit.sections:
            self.write(section.address, section.data)
        self._turn_paging_on()
        self.uc.reg_write(x86.UC_X86_REG_GS_BASE, PCPU_AT)
        self.write_u64(PCPU_AT + PCPU.offset("self"), PCPU_AT)
        self.write_u64(PCPU_AT + PCPU.offset("current"), TASK_AT)
        self.write_u64(PCPU_AT + PCPU.offset("zone_start"), HEAP)
        self.write_u64(PCPU_AT + PCPU.offset("zone_end"), HEAP + HEAP_SIZE)
        self.write_u64(TASK_AT + TASK.offset("rng"), 0x9E3779B97F4A7C15)
        self.console = bytearray()
        self.uc.hook_add(unicorn.UC_HOOK_INSN, self._out, None, 1, 0, x86.UC_X86_INS_OUT)

    def _out(self, uc, port, size, value, data) -> None:
        if port == 0xE9:
            self.console.append(value & 0xFF)

    def _turn_paging_on(self) -> None:
        present, writable, large, no_execute = 1, 2, 0x80, 1 << 63
        pml4, low, high, low_pd, high_pd, pts = (TABLES + 0x1000 * n for n in range(6))
        link = present | writable
        self.write_u64(pml4, low | link)
        self.write_u64(pml4 + 511 * 8, high | link)
        self.write_u64(low, low_pd | link)
        self.write_u64(high + 510 * 8, high_pd | link)
        for n in range(1, (STACK_TOP >> 21) + 1):  # what follows NULL faults
            flags = link | large | (0 if n == RETURN_TO >> 21 else no_execute)
            self.write_u64(low_pd + n * 8, n << 21 | flags)
        for n in range(IMAGE_SIZE >> 21):
            self.write_u64(high_pd + (8 + n) * 8, pts + n * 0x1000 | link)
        for section in self.unit.sections:
            flags = present | (writable if section.name in (".data", ".bss") else 0)
            flags |= 0 if section.name in TEXT_SECTIONS else no_execute
            for page in range(
                section.address - BASE, section.address - BASE + len(section.data), 0x1000
            ):
                self.write_u64(pts + (page >> 12) * 8, IMAGE + page | flags)
        self.uc.reg_write(x86.UC_X86_REG_CR3, pml4)
        self.uc.reg_write(x86.UC_X86_REG_CR4, 1 << 5)  # PAE
        self.uc.msr_write(0xC000_0080, 1 << 8 | 1 << 10 | 1 << 11)  # EFER: LME, LMA, NXE
        self.uc.reg_write(x86.UC_X86_REG_CR0, 1 << 31 | 1 << 16 | 1)  # PG, WP, PE

    def address(self, name: str) -> int:
        """Where a symbol is; for a per-CPU variable, where this CPU's copy is."""
        if name in self.unit.percpu:
            return PCPU_AT + self.unit.percpu[name]
        return self.unit.symbols[name].address

    def call(self, name: str, *arguments: int, limit: int = 5_000_000) -> int:
        """Call a function; returns RAX. Checks that callee-saved registers and RSP came back."""
        sp = STACK_TOP - 0x100 - 8
        self.write_u64(sp, RETURN_TO)
        for register in (*ARGUMENTS, "RAX", "R10", "R11"):
            self._set(register, 0x0DEAD000_00000BAD)
        for register, value in zip(ARGUMENTS, arguments, strict=False):
            self._set(register, value & 0xFFFF_FFFF_FFFF_FFFF)
        self.uc.mem_write(RETURN_TO, b"\xf4")
        self._set("RSP", sp)
        for index, register in enumerate(PRESERVED):
            self._set(register, 0xC0FFEE00 + index)
        try:
            self.uc.emu_start(self.address(name), 0, count=limit)
        except unicorn.UcError as error:
            raise GuestFault(f"{name}: {error} at {self.where()}") from None
        if self._get("RIP") != RETURN_TO + 1:  # behind its hlt
            raise GuestFault(f"{name} did not return; it is at {self.where()}")
        for index, register in enumerate(PRESERVED):
            assert self._get(register) == 0xC0FFEE00 + index, f"{name} clobbers {register}"
        assert self._get("RSP") == sp + 8, f"{name} leaves the stack uneven"
        return self._get("RAX")

    def where(self) -> str:
        ip = self._get("RIP")
        below = [s for s in self.unit.symbols.values() if s.address <= ip]
        if not below:
            return f"{ip:#x}"
        symbol = max(below, key=lambda s: s.address)
        return f"{symbol.name}+{ip - symbol.address:#x}"

    def write(self, address: int, data: bytes) -> int:
        self.uc.mem_write(self._physical(address), data)
        return address

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.uc.mem_read(self._physical(address), size))

    @staticmethod
    def _physical(address: int) -> int:
        return address - BASE + IMAGE if address >= BASE else address

    def write_u64(self, address: int, value: int) -> None:
        self.write(address, struct.pack("<Q", value & 0xFFFF_FFFF_FFFF_FFFF))

    def read_u64(self, address: int) -> int:
        return struct.unpack("<Q", self.read(address, 8))[0]

    def cstring(self, address: int) -> bytes:
        return self.read(address, 256).split(b"\0")[0]

    def _get(self, register: str) -> int:
        return self.uc.reg_read(getattr(x86, f"UC_X86_REG_{register}"))

    def _set(self, register: str, value: int) -> None:
        self.uc.reg_write(getattr(x86, f"UC_X86_REG_{register}"), value)
