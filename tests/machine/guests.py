"""Small guests for the tests of the machine: assembly text in, a booted kernel out."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from dynftrace_emu.kernel.boot import boot
from dynftrace_emu.kernel.image import KernelImage
from dynftrace_emu.machine.deterministic import DeterministicEngine
from dynftrace_emu.machine.engine import Park
from dynftrace_emu.machine.threaded import ThreadedEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dynftrace_emu.kernel.guest import GuestKernel
    from dynftrace_emu.machine.engine import Engine
    from dynftrace_emu.machine.machine import Machine

KERNEL_CS, KERNEL_DS = 0x10, 0x18
IF = 1 << 9
VIRTUAL_HZ = 2_000_000
TIMER, NMI = 0xEF, 2

PRELUDE = """
.include "linkage.inc"
.include "percpu.inc"

.macro LOAD_IDT
        lidt [rip + idt_descr]
.endm

# This vCPU has finished.
.macro OFFLINE
.Loffline\\@:
        out PORT_CPU_OFFLINE, al
        hlt
        jmp .Loffline\\@
.endm

.macro SAFEPOINT
.Lpoll\\@:
        cmp qword ptr gs:[PCPU_REQUESTS], 0
        je .Lpolled\\@
        out PORT_SAFEPOINT, al
        hlt
        jmp .Lpoll\\@
.Lpolled\\@:
.endm

# A variable of 8 bytes.
.macro VARIABLE name, value=0
        .data
        .p2align 3
\\name:
        .quad \\value
        .text
.endm

# Keep the frame on top of the stack, and where it lies.
.macro KEEP_FRAME
        mov [rip + kept_rax], rax
.irp n, 0, 8, 16, 24, 32
        mov rax, [rsp + \\n]
        mov [rip + frame + \\n], rax
.endr
        mov [rip + frame + 48], rsp
        mov rax, [rip + kept_rax]
.endm

# The same for an exception: there may be an error code in front, so one word more.
.macro KEEP_FAULT
        mov [rip + kept_rax], rax
        mov rax, [rsp + 40]
        mov [rip + frame + 40], rax
        mov rax, [rip + kept_rax]
        KEEP_FRAME
.endm
"""

TABLES = """
.data
        .p2align 4
idt:
        .skip 256 * 16
idt_descr:
        .short 256 * 16 - 1
        .quad idt
frame:
        .skip 56
kept_rax:
        .quad 0
"""


def image_of(text: str, **options) -> KernelImage:
    return KernelImage.from_assembly(PRELUDE + text + TABLES, **options)


def deterministic(
    seed: int = 0, virtual_hz: int = VIRTUAL_HZ, park: Park = Park.PREEMPTIBLE
) -> Callable[[Machine], Engine]:
    return lambda machine: DeterministicEngine(machine, seed=seed, virtual_hz=virtual_hz, park=park)


def boot_guest(
    text: str,
    *,
    engine: Callable[[Machine], Engine] | None = None,
    gates: Mapping[int, str | tuple[str, int]] | None = None,
    vcpus: int = 1,
    hz: int = 0,
    nmi_rate: float = 0.0,
) -> GuestKernel:
    """Boot ``text``; ``gates`` are the handlers that its IDT names: a symbol, or (symbol, IST)."""
    image = image_of(text)
    kernel = boot(image, vcpus, engine or deterministic(), hz=hz, nmi_rate=nmi_rate)
    for vector, handler in (gates or {}).items():
        symbol, ist = handler if isinstance(handler, tuple) else (handler, 0)
        set_gate(kernel, vector, image.address(symbol), ist)
    return kernel


def boot_threaded(text: str, **options) -> GuestKernel:
    return boot_guest(text, engine=ThreadedEngine, **options)


def set_gate(kernel: GuestKernel, vector: int, handler: int, ist: int = 0) -> None:
    """Write an interrupt gate as SDM vol. 3A, figure 6-8 draws it."""
    gate = struct.pack(
        "<HHBBHII", handler & 0xFFFF, KERNEL_CS, ist, 0x8E, handler >> 16 & 0xFFFF, handler >> 32, 0
    )
    kernel.machine.memory.write(kernel.image.address("idt") + 16 * vector, gate)


def words(kernel: GuestKernel, symbol: str, count: int) -> list[int]:
    raw = kernel.machine.memory.read(kernel.image.address(symbol), 8 * count)
    return list(struct.unpack(f"<{count}Q", raw))


def page_table_entries(ram: bytes | memoryview, root: int) -> dict[int, int]:
    """Every present last-level entry, by virtual address: read off raw RAM by hand."""

    def entries(table: int) -> list[tuple[int, int]]:
        values = struct.unpack_from("<512Q", ram, table)
        return [(n, value) for n, value in enumerate(values) if value & 1]

    def inner(value: int) -> int:
        return value & 0x000F_FFFF_FFFF_F000

    found = {}
    for a, pml4e in entries(root):
        for b, pdpte in entries(inner(pml4e)):
            for c, pde in entries(inner(pdpte)):
                for d, pte in entries(inner(pde)):
                    address = a << 39 | b << 30 | c << 21 | d << 12
                    found[address | (0xFFFF << 48 if a >= 256 else 0)] = pte
    return found
