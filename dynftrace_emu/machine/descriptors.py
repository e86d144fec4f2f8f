"""The descriptor tables the loader leaves behind: a flat GDT, and a TSS a vCPU with IST stacks.

Selectors are Linux's (arch/x86/include/asm/segment.h).
"""

from __future__ import annotations

import struct

__all__ = [
    "GDT_SIZE",
    "KERNEL_CS",
    "KERNEL_DS",
    "NMI_IST",
    "TSS_LIMIT",
    "TSS_SELECTOR",
    "TSS_SIZE",
    "build_gdt",
    "build_tss",
    "ist_stack",
]

KERNEL_CS = 0x10
KERNEL_DS = 0x18
TSS_SELECTOR = 0x40
GDT_SIZE = TSS_SELECTOR + 16
TSS_SIZE = 104
TSS_LIMIT = TSS_SIZE - 1
NMI_IST = 1

_CODE64 = 0x00AF_9B00_0000_FFFF
_DATA = 0x00CF_9300_0000_FFFF
_TSS_RSP0, _TSS_IST1 = 4, 36


def build_gdt(tss: int) -> bytes:
    """A GDT with 64-bit code, data, and the TSS at virtual address ``tss``."""
    gdt = bytearray(GDT_SIZE)
    struct.pack_into("<Q", gdt, KERNEL_CS, _CODE64)
    struct.pack_into("<Q", gdt, KERNEL_DS, _DATA)
    low = TSS_LIMIT | (tss & 0xFF_FFFF) << 16 | 0x89 << 40 | (tss >> 24 & 0xFF) << 56
    struct.pack_into("<QQ", gdt, TSS_SELECTOR, low, tss >> 32)
    return bytes(gdt)


def build_tss(rsp0: int, nmi_stack: int) -> bytes:
    """A 64-bit TSS whose IST 1 is the NMI stack (its highest address)."""
    tss = bytearray(TSS_SIZE)
    struct.pack_into("<Q", tss, _TSS_RSP0, rsp0)
    struct.pack_into("<Q", tss, _TSS_IST1, nmi_stack)
    struct.pack_into("<H", tss, TSS_SIZE - 2, TSS_SIZE)
    return bytes(tss)


def ist_stack(index: int) -> int:
    """Offset in the TSS of the stack pointer for IST ``index``; 0 is RSP0's."""
    return _TSS_IST1 + 8 * (index - 1) if index else _TSS_RSP0
