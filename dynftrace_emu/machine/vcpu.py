"""One emulated CPU. The only module that knows Unicorn.

:meth:`VCpu.run` returns why it came back, the way ``KVM_RUN`` does. Unicorn does not tell: a
``hlt``, a stop and a used-up budget look alike. So every hook that ends a run says so here, the
count of instructions tells a ``hlt`` from a used-up budget, and where NMIs come each ``iret`` is
watched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import unicorn
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

from dynftrace_emu.errors import AddressSpaceError, DynftraceError
from dynftrace_emu.machine.exits import Exit, ExitReason
from dynftrace_emu.machine.native_hook import BlockGate
from dynftrace_emu.machine.nmi import NmiLatch
from dynftrace_emu.machine.paging import PAGE_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynftrace_emu.machine.memory import GuestMemory

__all__ = [
    "REGISTER_FILE",
    "Exit",
    "ExitReason",
    "InPort",
    "OutPort",
    "Reg",
    "VCpu",
    "error_text",
    "read_tsc",
    "require_unicorn",
]

_MINIMUM_UNICORN = (2, 1, 4)
_FLUSH_THRESHOLD = 1000
"""Sites from which all blocks are dropped instead of those that hold one.

A site takes 2.5 us; all blocks take 0.04 us each, that is 10 ms with the 250,000 of 50,000
functions. But what is dropped is translated anew as it runs, at 3 us a block or more, so few sites
are better dropped one by one.
"""
CODE_BUFFER_SIZE = 256 << 20
"""Address space for what a vCPU translates, in bytes; 50,000 functions take 140 MiB of it.

The engine's own choice, 1 GiB, puts all but the first vCPU further than 2 GiB from the engine's own
code: then what is translated reaches its helpers by far calls, and the guest runs 10 % slower.
"""
_SPARE_BUFFER_SIZE = 1 << 20

INVALID_OPCODE = 6
_BREAKPOINT, _GENERAL_PROTECTION, _NO_EXCEPTION = 3, 13, -1
_HLT = b"\xf4"
EFLAGS_IF = 1 << 9
_KILL = 1 << 63


def require_unicorn() -> None:
    """Refuse an engine older than the first whose hooks see the right PC.

    :raises DynftraceError: naming the version that is installed.
    """
    if unicorn.__version__ and _version(unicorn.__version__) < _MINIMUM_UNICORN:
        wanted = ".".join(map(str, _MINIMUM_UNICORN))
        raise DynftraceError(
            f"unicorn {unicorn.__version__} is too old: {wanted} or newer is needed "
            "(older ones report a wrong PC in hooks); pip install -U unicorn"
        )


def _new_engine(code_buffer_size: int = _SPARE_BUFFER_SIZE) -> unicorn.Uc:
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.ctl_set_tcg_buffer_size(code_buffer_size)  # type: ignore[attr-defined]
    return uc


def error_text(number: int) -> str:
    """What the engine says of one of its error numbers."""
    return str(unicorn.UcError(number))


@cache
def _old_exception_offset() -> int:
    """Where ``old_exception`` lies in a saved context, as seen by raising one in a spare engine.

    :raises DynftraceError: this engine's contexts are not as expected.
    """
    uc = _new_engine()
    uc.mem_map(0, 0x1000)
    uc.mem_write(16, b"\xb8\x28\x00\x00\x00\x8e\xd8")  # mov eax, 0x28; mov ds, eax
    uc.hook_add(unicorn.UC_HOOK_INTR, lambda uc, *_: uc.emu_stop())
    before = np.frombuffer(bytes(uc.context_save()), "<i4")
    uc.emu_start(16, 0)
    after = np.frombuffer(bytes(uc.context_save()), "<i4")
    places = np.flatnonzero((before == _NO_EXCEPTION) & (after == _GENERAL_PROTECTION))
    if len(places) != 1:
        raise DynftraceError(
            f"unicorn {unicorn.__version__}: its saved contexts are not understood"
        )
    return int(places[0]) * 4


@cache
def _instruction_counter_offset() -> int:
    """Where an engine counts the instructions of a run, as seen by letting a spare one count.

    ``emu_start(count=n)`` counts in a field of its own state, of which no function tells; so a run
    that ends early need not be guessed at, and guest code can be shown the count as it grows.

    :raises DynftraceError: this engine's state is not as expected.
    """
    uc = _new_engine()
    uc.mem_map(0, PAGE_SIZE)
    uc.mem_write(16, b"\xeb\xfe")  # jmp .
    libc = ctypes.CDLL(None)
    libc.malloc_usable_size.restype = ctypes.c_size_t
    words = libc.malloc_usable_size(ctypes.c_void_p(_handle(uc))) // 8
    state = np.ctypeslib.as_array((ctypes.c_uint64 * words).from_address(_handle(uc)))
    places = np.arange(words)
    for count in (1001, 777, 31):
        uc.emu_start(16, 0, count=count)
        places = places[state[places] == count + 1]  # the one in front of which it stopped
    if len(places) != 1:
        raise DynftraceError(f"unicorn {unicorn.__version__}: it does not count as expected")
    return int(places[0]) * 8


def _handle(uc: unicorn.Uc) -> int:
    """Where the engine's own state lies."""
    assert uc._uch is not None
    return int(uc._uch.value or 0)


def read_tsc() -> int:
    """The time stamp counter, as ``rdtsc`` shows it to every vCPU: the host's."""
    uc = _tsc_reader()
    uc.emu_start(16, 19)
    return int(uc.reg_read(x86.UC_X86_REG_RDX)) << 32 | int(uc.reg_read(x86.UC_X86_REG_RAX))


@cache
def _tsc_reader() -> unicorn.Uc:
    uc = _new_engine()
    uc.mem_map(0, PAGE_SIZE)
    uc.mem_write(16, b"\x0f\x31\x90")  # rdtsc; nop
    return uc


def _version(text: str) -> tuple[int, ...]:
    digits = (part for part in text.replace("-", ".").split(".")[:3])
    return tuple(int(part) for part in digits if part.isdigit())


class Reg(IntEnum):
    """The registers this package uses, under the engine's numbers."""

    RAX = x86.UC_X86_REG_RAX
    RBX = x86.UC_X86_REG_RBX
    RCX = x86.UC_X86_REG_RCX
    RDX = x86.UC_X86_REG_RDX
    RSI = x86.UC_X86_REG_RSI
    RDI = x86.UC_X86_REG_RDI
    RBP = x86.UC_X86_REG_RBP
    RSP = x86.UC_X86_REG_RSP
    R8 = x86.UC_X86_REG_R8
    R9 = x86.UC_X86_REG_R9
    R10 = x86.UC_X86_REG_R10
    R11 = x86.UC_X86_REG_R11
    R12 = x86.UC_X86_REG_R12
    R13 = x86.UC_X86_REG_R13
    R14 = x86.UC_X86_REG_R14
    R15 = x86.UC_X86_REG_R15
    RIP = x86.UC_X86_REG_RIP
    RFLAGS = x86.UC_X86_REG_RFLAGS
    CS = x86.UC_X86_REG_CS
    SS = x86.UC_X86_REG_SS
    DS = x86.UC_X86_REG_DS
    ES = x86.UC_X86_REG_ES
    CR0 = x86.UC_X86_REG_CR0
    CR2 = x86.UC_X86_REG_CR2
    CR3 = x86.UC_X86_REG_CR3
    CR4 = x86.UC_X86_REG_CR4
    GS_BASE = x86.UC_X86_REG_GS_BASE
    FS_BASE = x86.UC_X86_REG_FS_BASE


REGISTER_FILE = (
    Reg.RAX, Reg.RBX, Reg.RCX, Reg.RDX, Reg.RSI, Reg.RDI, Reg.RBP, Reg.RSP,
    Reg.R8, Reg.R9, Reg.R10, Reg.R11, Reg.R12, Reg.R13, Reg.R14, Reg.R15, Reg.RIP, Reg.RFLAGS,
)  # fmt: skip
"""The order of :attr:`VCpu.registers`, 8 bytes each."""
_FILE_IDS = (ctypes.c_int * len(REGISTER_FILE))(*REGISTER_FILE)

OutPort = Callable[["VCpu", int], Exit | None]
"""Answers ``out``: gets the vCPU and the value; an :class:`Exit` ends the run."""
InPort = Callable[["VCpu"], int]
"""Answers ``in``: the value the guest reads."""
CodeHook = Callable[[Any, int, int, object], None]
"""Gets the engine, the address, the size in bytes and nothing of interest."""

_HALT_BEHIND = (ExitReason.SAFEPOINT, ExitReason.OFFLINE)
"""Traps that are ``out`` with ``hlt`` behind it: the hlt ends the run, at a definite place."""

_RUN_THROUGH = Exit(ExitReason.BUDGET)
_HALT = Exit(ExitReason.HALTED)
_STOPPED_BY_GATE = Exit(ExitReason.GATE)


class VCpu:
    """One CPU: an engine of its own over the shared memory.

    Only one thread at a time may use it: the one that runs it, or, while it is parked, the one
    that stopped the machine.

    :param index: its number, from 0.
    :raises AddressSpaceError: the engine cannot be made.
    """

    def __init__(self, index: int, memory: GuestMemory) -> None:
        self.index = index
        self.memory = memory
        self.nmi = NmiLatch()
        self.out_ports: dict[int, OutPort] = {}
        self.in_ports: dict[int, InPort] = {}
        self._file = (ctypes.c_uint64 * len(REGISTER_FILE))()
        self._file_pointers = (ctypes.c_void_p * len(REGISTER_FILE))(
            *(ctypes.addressof(self._file) + 8 * place for place in range(len(REGISTER_FILE)))
        )
        self._exit: Exit | None = None
        self._stale: list[tuple[NDArray[np.uint64], int]] = []  # addresses, bytes at each
        self._gate: BlockGate | None = None
        self._hooks_code = False
        self._iret_at: int | None = None
        self._stop_at_iret = False
        self._began_at: int | None = None
        self.has_run = False
        self.executed = 0
        """Instructions begun in the last run that had a budget."""
        self.instructions = 0
        """Instructions begun in all of those runs."""
        try:
            self._uc = _new_engine(CODE_BUFFER_SIZE)
            self._uc.mem_map_ptr(0, memory.size, unicorn.UC_PROT_ALL, memory.host_address)
            # The count of instructions appears as a page of its own, behind the RAM.
            counter = _handle(self._uc) + _instruction_counter_offset()
            self._uc.mem_map_ptr(memory.size, PAGE_SIZE, unicorn.UC_PROT_READ, counter)
            self._counter = ctypes.c_uint64.from_address(counter)
        except unicorn.UcError as error:
            raise AddressSpaceError(f"vCPU {index} cannot be made: {error}") from None
        self._hook(unicorn.UC_HOOK_INTR, self._on_interrupt)
        self._hook_instruction(x86.UC_X86_INS_OUT, self._on_out)
        self._hook_instruction(x86.UC_X86_INS_IN, self._on_in)

    # --- state ---

    def __getitem__(self, register: Reg) -> int:
        # The binding's reg_read takes four times as long, and this is done several times a slice.
        value = ctypes.c_uint64()
        uclib.uc_reg_read(self._uc._uch, register, ctypes.byref(value))
        return value.value

    def __setitem__(self, register: Reg, value: int) -> None:
        self._uc.reg_write(register, value & 0xFFFF_FFFF_FFFF_FFFF)

    @property
    def rip(self) -> int:
        """Where it stands: the next instruction."""
        return self[Reg.RIP]

    @rip.setter
    def rip(self, value: int) -> None:
        self[Reg.RIP] = value

    @property
    def interrupts_on(self) -> bool:
        """RFLAGS.IF."""
        return bool(self[Reg.RFLAGS] & EFLAGS_IF)

    @property
    def in_nmi(self) -> bool:
        """Whether it handles an NMI; also right inside a port's handler, in the middle of a run."""
        return self.nmi.blocked and self._iret_at is None

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self[Reg.CS] & 3

    @property
    def idt(self) -> tuple[int, int]:
        """IDTR: base and limit."""
        _, base, limit, _ = self._table_register(x86.UC_X86_REG_IDTR)
        return base, limit

    @property
    def tss(self) -> int:
        """Base address of the task state segment."""
        return self._table_register(x86.UC_X86_REG_TR)[1]

    def _table_register(self, register: int) -> tuple[int, int, int, int]:
        selector, base, limit, flags = self._uc.reg_read(register)
        return int(selector), int(base), int(limit), int(flags)

    @property
    def registers(self) -> bytes:
        """The general registers, RIP and RFLAGS, as they are in :data:`REGISTER_FILE`; one call."""
        uclib.uc_reg_read_batch(self._uc._uch, _FILE_IDS, self._file_pointers, len(_FILE_IDS))
        return bytes(self._file)

    @registers.setter
    def registers(self, value: bytes) -> None:
        ctypes.memmove(self._file, value, len(value))
        uclib.uc_reg_write_batch(self._uc._uch, _FILE_IDS, self._file_pointers, len(_FILE_IDS))

    def load_tables(self, gdt: tuple[int, int], tss: tuple[int, int, int]) -> None:
        """Load GDTR (base, limit) and TR (selector, base, limit)."""
        self._uc.reg_write(x86.UC_X86_REG_GDTR, (0, gdt[0], gdt[1], 0))
        self._uc.reg_write(x86.UC_X86_REG_TR, (tss[0], tss[1], tss[2], 0x8B00))

    def load_idt(self, base: int, limit: int) -> None:
        """Load IDTR; a guest that boots does so itself."""
        self._uc.reg_write(x86.UC_X86_REG_IDTR, (0, base, limit, 0))

    def write_msr(self, number: int, value: int) -> None:
        """Set a model-specific register."""
        self._uc.msr_write(number, value)

    def read(self, address: int, size: int) -> bytes | None:
        """Memory as this CPU's page tables show it, or None where nothing is mapped."""
        return self.memory.read(address, size, self[Reg.CR3])

    # --- running ---

    def run(
        self, budget: int = 0, *, stop_at_iret: bool = False, grace: int = 0, at_once: int = 0
    ) -> Exit:
        """Run from RIP until something ends it.

        :param budget: instructions at most; 0: no limit. An engine uses limits always or never:
            changing over drops every translated block.
        :param stop_at_iret: come back in front of the next watched ``iret``.
        :param grace: with ``at_once``, how its gate stops it, if it has one
            (:meth:`.BlockGate.arm`).
        """
        self.has_run = True
        self._exit = None
        self._stop_at_iret = stop_at_iret
        self._began_at = begin = self.rip
        if self._gate is not None:
            self._gate.arm(grace, at_once | _KILL)
        try:
            self._uc.emu_start(begin, 0, count=budget)
        except unicorn.UcError as error:
            self._exit = self._engine_error(error)
        if budget:
            self.executed = min(self._counter.value - self._stopped_in_front(), budget)
            self.instructions += self.executed
        self._note_iret()
        if self._exit is not None:
            if self._exit.reason is ExitReason.EXCEPTION:
                self._forget_exception()
            if self._exit.reason in _HALT_BEHIND and self.read(self.rip, 1) == _HLT:
                self.rip += 1  # the budget ended between the two
            return self._exit
        if self._gate is not None and self._gate.has_stopped:
            return _STOPPED_BY_GATE
        return _HALT if self._has_halted(budget) else _RUN_THROUGH

    def _stopped_in_front(self) -> bool:
        """Whether the last instruction that was counted is one in front of which a hook stopped.

        After an ``out`` that stops, the engine still asks its own counter, unless that is one hook
        of several.
        """
        if self._exit is None:
            return False
        if self._exit.reason is ExitReason.SHUTDOWN:
            return not self._hooks_code
        return self._exit.reason is ExitReason.IRET

    def step(self) -> Exit:
        """Run one instruction (in an engine that counts)."""
        return self.run(1)

    def advance(self, count: int) -> Exit | None:
        """Run ``count`` instructions; an exit if something else ended it.

        The lean form of :meth:`run`, for who single-steps millions of instructions and keeps the
        NMI latch itself.
        """
        self.has_run = True
        self._exit = None
        try:
            self._uc.emu_start(self.rip, 0, count=count)
        except unicorn.UcError as error:
            self._exit = self._engine_error(error)
        exit_ = self._exit
        if exit_ and exit_.reason is ExitReason.EXCEPTION and exit_.value != _BREAKPOINT:
            self._forget_exception()  # an int3 makes no double fault of what follows
        return exit_

    def kill(self) -> None:
        """End a run from another thread, to be called until it has ended.

        Without a gate the state is lost: an instruction may have run twice.
        """
        if self._gate is not None:
            self._gate.requests[0] = _KILL
        else:
            self._uc.emu_stop()

    def add_gate(self) -> NDArray[np.uint64]:
        """Before the first run: make it stop in front of a block once a word is not 0.

        :returns: the word, a view of one item, which any thread may write (but not its bit 63).
        :raises NativeHookError: this host cannot have such a hook.
        """
        stop, read = (
            ctypes.cast(function, ctypes.c_void_p).value or 0
            for function in (uclib.uc_emu_stop, uclib.uc_reg_read)
        )
        gate = BlockGate(stop, read, Reg.RFLAGS)
        # The binding passes on Python functions only.
        status = ctypes.CDLL(uclib._name).uc_hook_add(
            self._uc._uch,
            ctypes.byref(ctypes.c_size_t()),
            ctypes.c_int(unicorn.UC_HOOK_BLOCK),
            ctypes.c_void_p(gate.code),
            ctypes.c_void_p(gate.data),
            ctypes.c_uint64(1),
            ctypes.c_uint64(0),
        )
        if status != unicorn.UC_ERR_OK:
            raise DynftraceError(f"vCPU {self.index} cannot have a gate: {error_text(status)}")
        self._gate = gate
        return gate.requests

    def _has_halted(self, budget: int) -> bool:
        """Whether a run that no hook ended was ended by ``hlt``.

        Who uses up its budget is stopped in front of the next instruction, which is counted.
        """
        if budget == 0:
            return True
        return self._counter.value <= budget and self.read(self.rip - 1, 1) == _HLT

    def _forget_exception(self) -> None:
        """Tell the engine that the exception has been delivered.

        It waits for a delivery of its own that never comes, and would make the next page fault,
        divide error or protection fault a double fault. Only its saved context can be changed.
        """
        saved = self._uc.context_save()
        where = saved.context.value + _old_exception_offset()
        ctypes.c_int32.from_address(where).value = _NO_EXCEPTION
        self._uc.context_restore(saved)

    @staticmethod
    def _engine_error(error: unicorn.UcError) -> Exit:
        if error.errno == unicorn.UC_ERR_INSN_INVALID:
            return Exit(ExitReason.EXCEPTION, INVALID_OPCODE)
        return Exit(ExitReason.BUS_ERROR, error.errno)

    # --- text ---

    def watch_irets(self, addresses: Iterable[int]) -> None:
        """Say where ``iret`` instructions are, so that NMIs can come; before the first run.

        With one hook that fires nowhere near, an engine that counts takes 11 ns an instruction
        instead of 9, with eight 17: so this is for machines that have a source of NMIs.
        """
        for address in addresses:
            self._hook(unicorn.UC_HOOK_CODE, self._on_iret, address)

    def mark_stale(self, addresses: NDArray[np.uint64], size: int) -> None:
        """Text changed: ``size`` bytes at each of the virtual ``addresses``."""
        if len(addresses):
            self._stale.append((addresses, size))

    @property
    def is_stale(self) -> bool:
        """Whether text changed that this CPU has not been synced with."""
        return bool(self._stale)

    @property
    def flushes(self) -> bool:
        """Whether so much text changed that the next :meth:`sync` drops everything."""
        return sum(len(addresses) for addresses, _ in self._stale) >= _FLUSH_THRESHOLD

    def sync(self) -> None:
        """Drop what was translated from text that changed since (``sync_core``)."""
        if self.flushes:
            self._uc.ctl_flush_tb()  # type: ignore[attr-defined]
        else:
            for addresses, size in self._stale:
                for address in addresses.tolist():
                    self._uc.ctl_remove_cache(address, address + size)
        self._stale.clear()

    def drop_text(self, begin: int, end: int) -> None:
        """Drop what was translated from ``begin`` up to ``end``, whether it is stale or not."""
        self._uc.ctl_remove_cache(begin, end)

    def flush_text(self) -> None:
        """Drop all that was translated; gives back the memory of blocks dropped before."""
        self._uc.ctl_flush_tb()  # type: ignore[attr-defined]

    def hook_instruction(self, address: int, callback: Callable[[VCpu], None]) -> None:
        """Call back in front of each execution of the instruction at ``address``.

        For tests and slow paths; installed before the first run.
        """
        self._hook(unicorn.UC_HOOK_CODE, lambda *_: callback(self), address)

    def hook_code(self, callback: CodeHook, begin: int = 1, end: int = 0) -> None:
        """Call back in front of each instruction from ``begin`` to ``end``, by default of all.

        What the engine itself offers, with nothing of ours in between; before the first run.
        """
        self._hooks_code = True
        self._uc.hook_add(unicorn.UC_HOOK_CODE, callback, None, begin, end)

    def hook_blocks(self, callback: CodeHook) -> None:
        """Likewise in front of each translated block."""
        self._uc.hook_add(unicorn.UC_HOOK_BLOCK, callback, None, 1, 0)

    # --- hooks: each says what happened and decides nothing ---

    def _hook(self, kind: int, callback: Callable[..., Any], address: int | None = None) -> None:
        begin, end = (1, 0) if address is None else (address, address)
        self._hooks_code |= kind == unicorn.UC_HOOK_CODE
        self._uc.hook_add(kind, callback, None, begin, end)

    def _hook_instruction(self, instruction: int, callback: Callable[..., Any]) -> None:
        self._uc.hook_add(unicorn.UC_HOOK_INSN, callback, None, 1, 0, instruction)

    def _on_interrupt(self, uc: unicorn.Uc, vector: int, _data: object) -> None:
        self._exit = Exit(ExitReason.EXCEPTION, vector)
        uc.emu_stop()

    def _on_out(self, uc: unicorn.Uc, port: int, _size: int, value: int, _data: object) -> None:
        handler = self.out_ports.get(port)
        if handler is not None and (wanted := handler(self, value)) is not None:
            self._exit = wanted
            if wanted.reason not in _HALT_BEHIND:
                uc.emu_stop()

    def _on_in(self, _uc: unicorn.Uc, port: int, size: int, _data: object) -> int:
        handler = self.in_ports.get(port)
        return (1 << 8 * size) - 1 if handler is None else handler(self)

    def _on_iret(self, uc: unicorn.Uc, address: int, _size: int, _data: object) -> None:
        if self._iret_at is not None:  # the one before this has been executed
            self.nmi.iret()
        self._iret_at = address
        # An NMI that waits for this iret comes directly after it; who stopped here steps over it.
        waits = self.nmi.pending and address != self._began_at
        if self._stop_at_iret or waits:
            self._exit = Exit(ExitReason.IRET, address)
            uc.emu_stop()
        self._began_at = None

    def _note_iret(self) -> None:
        if self._iret_at is not None and self.rip != self._iret_at:
            self.nmi.iret()
        self._iret_at = None
