"""A hook of a few machine instructions, for what is asked at every block a vCPU executes.

A callback in Python costs 5 us a block, this 1.4 ns: it looks at a word that other threads write,
and if that is not 0 asks the engine to stop, from the vCPU's own thread and in front of the block.
So nothing is executed twice, as it may be when another thread calls ``emu_stop``, and the guest
need not poll. It is assembled into memory of the host's that may be executed, which takes no
compiler but an x86-64 host that allows such memory.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
from functools import cache
from typing import TYPE_CHECKING

import keystone
import numpy as np

from dynftrace_emu.errors import NativeHookError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BlockGate", "why_no_native_hooks"]

_GATE = np.dtype(
    [
        # Written by any thread: not 0, something is wanted of this vCPU.
        ("requests", "<u8"),
        # The vCPU's thread alone writes these, before a run and in the hook.
        ("at_once", "<u8"),  # requests that do not wait for interrupts to be on
        ("grace", "<i8"),  # blocks to be executed before it stops
        ("stopped", "<u8"),
        ("flags", "<u8"),  # RFLAGS, as last read
        # Functions of the engine, and what one is asked for.
        ("emu_stop", "<u8"),
        ("reg_read", "<u8"),
        ("rflags", "<u8"),
    ]
)
_OFFSETS = {name.upper(): field[1] for name, field in (_GATE.fields or {}).items()}

# void hook(uc_engine *uc = rdi, uint64_t address = rsi, uint32_t size = edx, void *gate = rcx)
# Plain loads and stores do between host threads: x86 keeps their order.
_SOURCE = """
        cmp qword ptr [rcx + {REQUESTS}], 0
        jne requested
go_on:  ret
requested:
        mov rax, [rcx + {AT_ONCE}]
        test [rcx + {REQUESTS}], rax
        jnz wanted
        push rdi
        push rcx
        sub rsp, 8
        mov rsi, [rcx + {RFLAGS}]
        lea rdx, [rcx + {FLAGS}]
        call qword ptr [rcx + {REG_READ}]
        add rsp, 8
        pop rcx
        pop rdi
        test dword ptr [rcx + {FLAGS}], {INTERRUPTS_ON}
        jz go_on
wanted: dec qword ptr [rcx + {GRACE}]
        jns go_on
        mov qword ptr [rcx + {STOPPED}], 1
        jmp qword ptr [rcx + {EMU_STOP}]
"""
_INTERRUPTS_ON = 1 << 9


class BlockGate:
    """What a vCPU passes in front of each block it executes, while :attr:`requests` is 0.

    :param emu_stop: the address of ``uc_emu_stop``; ``reg_read`` that of ``uc_reg_read``.
    :param rflags: the number by which the latter knows RFLAGS.
    :raises NativeHookError: this host cannot have one.
    """

    def __init__(self, emu_stop: int, reg_read: int, rflags: int) -> None:
        self.code = _code_address()
        self._record = np.zeros(1, dtype=_GATE)
        self._record["emu_stop"], self._record["reg_read"] = emu_stop, reg_read
        self._record["rflags"] = rflags
        self.data = self._record.ctypes.data
        self.requests: NDArray[np.uint64] = self._record["requests"]
        """A word, as a view of one item: any thread writes it, by one store."""

    def arm(self, grace: int, at_once: int) -> None:
        """Before a run: how it stops once something is requested.

        :param grace: so many blocks are executed all the same.
        :param at_once: the bits of :attr:`requests` that stop it in any case; others do while
            interrupts are on.
        """
        record = self._record
        record["grace"], record["at_once"], record["stopped"] = grace, at_once, 0

    @property
    def has_stopped(self) -> bool:
        """Whether the last run ended here."""
        return bool(self._record["stopped"][0])


@cache
def why_no_native_hooks() -> str:
    """What keeps this host from having such hooks; empty if nothing does."""
    try:
        _code_address()
    except NativeHookError as error:
        return str(error)
    return ""


@cache
def _code_address() -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(_code()))


@cache
def _code() -> mmap.mmap:
    """The hook in a page of its own, which lives as long as the process.

    :raises NativeHookError: another kind of host, or one that forbids such a page.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        host = f"{sys.platform} on {platform.machine()}"
        raise NativeHookError(f"native hooks are for Linux on x86-64 hosts, this is {host}")
    source = _SOURCE.format(INTERRUPTS_ON=_INTERRUPTS_ON, **_OFFSETS)
    code, _ = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm(source)
    access = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE, prot=access)
    except OSError as error:
        why = os.strerror(error.errno or errno.EPERM)
        raise NativeHookError(
            f"this host allows no memory that is written and executed: {why}"
        ) from None
    page.write(bytes(code))
    return page
