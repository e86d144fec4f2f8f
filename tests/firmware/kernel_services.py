"""What fs/ and drivers/ need from the rest of the kernel, made to find mistakes.

The allocators are Python: they poison what they give and what they take back, know what is still
allocated, and refuse what they never gave. All stand-ins destroy every register a callee may.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import unicorn
from unicorn import x86_const as x86

from dynftrace_emu.kernel.structs import PCPU, TASK
from tests.firmware.guest import FIRMWARE, HEAP, PCPU_AT, TASK_AT, Guest

if TYPE_CHECKING:
    from collections.abc import Iterable

PORT = 0xE0
POISON, FREED = b"\x5a", b"\x6b"
SERVICES = (
    "kmalloc", "kfree", "alloc_page", "free_page", "kmem_cache_create", "kmem_cache_alloc",
    "kmem_cache_free", "memcpy", "memset", "memcmp", "strcpy", "strcmp", "prandom_u64",
    "crc32_le", "checksum_fold", "wake_up_process", "cond_resched", "panic",
)  # fmt: skip
FS = ["lib/kfifo.S", *sorted(f"fs/{path.name}" for path in (FIRMWARE / "fs").glob("*.S"))]
DRIVERS = sorted(f"drivers/{path.name}" for path in (FIRMWARE / "drivers").glob("*.S"))
O_RDONLY, O_WRONLY, O_RDWR = 0, 1, 2
O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_NONBLOCK = 0x40, 0x80, 0x200, 0x400, 0x800
U64 = (1 << 64) - 1
WRECK = "\n".join(
    f"mov {r}, 0x0dead00000000bad" for r in ("rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
)


def xorshift(state: int) -> tuple[int, int]:
    """prandom_u64: the next state and the number."""
    state ^= state >> 12
    state = (state ^ (state << 25)) & U64
    state ^= state >> 27
    return state, state * 0x2545F4914F6CDD1D & U64


def fold(checksum: int, value: int) -> int:
    """checksum_fold."""
    rotated = (checksum << 5 | checksum >> 59) & U64
    return rotated ^ (value * 0x9E3779B97F4A7C15 & U64)


def signed(value: int) -> int:
    """A register as the C type long."""
    return value - (1 << 64) if value >> 63 else value


def _stubs() -> str:
    lines = []
    for number, name in enumerate(SERVICES):
        # The number goes out in AL; the result comes back through memory: a port has 32 bits.
        lines.append(
            f"{name}:\nPREEMPT_DISABLE\nmov eax, {number}\nout {PORT:#x}, al\n{WRECK}\n"
            "mov rax, gs:[service_result]\nPREEMPT_ENABLE\nret"
        )
    return ".percpu service_result, 8\n" + "\n".join(lines)


class Kernel(Guest):
    """A guest with the file system up, unless ``boot`` is False."""

    def __init__(
        self, files: Iterable[str] = FS, stubs: str = "schedule: ret", *, traced: bool = False,
        boot: bool = True,
    ) -> None:  # fmt: skip
        if traced:
            stubs += "\nmcount:\nmov r11, 0x0dead00000000bad\ncmp rsp, 0\nret"
        super().__init__(files, stubs + "\n" + _stubs(), traced=traced)
        self.live: dict[int, tuple[str, int]] = {}
        self.free_memory: dict[int, list[int]] = {}
        self.next_address = HEAP + 0x10_0000
        self.objects: dict[int, int] = {}  # cache -> object size
        self.pages_left = 10_000
        self.woken: list[int] = []
        self.preempted = 0
        self.uc.hook_add(unicorn.UC_HOOK_INSN, self._service, None, 1, 0, x86.UC_X86_INS_OUT)
        if boot:
            self.boot()

    def boot(self) -> None:
        """What cpu_initcalls do for these files."""
        section = next(s for s in self.unit.sections if s.name == "cpu_initcalls")
        by_address = {s.address: name for name, s in self.unit.symbols.items()}
        for (function,) in struct.iter_unpack("<Q", section.data):
            if function:
                self.call(by_address[function])

    def call(self, name: str, *arguments: int, limit: int = 5_000_000) -> int:
        result = super().call(name, *arguments, limit=limit)
        assert self.read_u64(PCPU_AT + PCPU.offset("preempt_count")) == 0, f"{name}: preempt_count"
        return result

    def syscall(self, name: str, *arguments: int | bytes) -> int:
        """Call with a signed result; bytes are copied in as a C string."""
        at, values = HEAP, []
        for argument in arguments:
            if isinstance(argument, bytes):
                self.write(at, argument + b"\0")
                values.append(at)
                at += len(argument) + 16
            else:
                values.append(argument)
        return signed(self.call(name, *values))

    def buffer(self, data: bytes) -> int:
        """A buffer of its own, away from the strings of syscall()."""
        return self.write(HEAP + 0x8_0000, data)

    def task_field(self, field: str) -> int:
        return self.read_u64(TASK_AT + TASK.offset(field))

    # The services.

    def _service(self, uc, port, size, number, data) -> None:
        if port == PORT:
            args = [
                uc.reg_read(r) for r in (x86.UC_X86_REG_RDI, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDX)
            ]
            result = getattr(self, SERVICES[number & 0xFF])(*args)
            self.write_u64(self.address("service_result"), result or 0)

    def _take(self, kind: str, size: int, fill: bytes) -> int:
        pool = self.free_memory.setdefault(size, [])
        if pool:
            address = pool.pop()
        else:
            address, self.next_address = self.next_address, self.next_address + (size + 63 & ~63)
        self.live[address] = (kind, size)
        self.write(address, fill * size)
        return address

    def _give(self, kind: str, address: int) -> None:
        assert address in self.live, f"{kind}: {address:#x} is not allocated"
        owner, size = self.live.pop(address)
        assert owner == kind, f"{address:#x} came from {owner}, not {kind}"
        self.write(address, FREED * size)
        self.free_memory[size].append(address)

    def kmalloc(self, size, *_):
        return self._take("kmalloc", size, POISON)

    def kfree(self, address, *_):
        self._give("kmalloc", address)

    def alloc_page(self, *_):
        if not self.pages_left:
            return 0
        self.pages_left -= 1
        return self._take("page", 4096, b"\0")

    def free_page(self, address, *_):
        self.pages_left += 1
        self._give("page", address)

    def kmem_cache_create(self, name, size, *_):
        cache = 0x7000_0000 + len(self.objects)
        self.objects[cache] = size
        assert self.cstring(name)
        return cache

    def kmem_cache_alloc(self, cache, *_):
        return self._take(f"cache {cache:#x}", self.objects[cache], POISON)

    def kmem_cache_free(self, cache, address, *_):
        self._give(f"cache {cache:#x}", address)

    def memcpy(self, to, source, size):
        assert size < 1 << 20
        if size:
            self.write(to, self.read(source, size))
        return to

    def memset(self, to, value, size):
        assert size < 1 << 20
        if size:
            self.write(to, bytes([value & 0xFF]) * size)
        return to

    def memcmp(self, one, other, size):
        a, b = self.read(one, size), self.read(other, size)
        return 0 if a == b else (5 if a > b else U64 - 4)

    def strcpy(self, to, source, *_):
        return self.write(to, self.cstring(source) + b"\0")

    def strcmp(self, one, other, *_):
        a, b = self.cstring(one), self.cstring(other)
        return 0 if a == b else (1 if a > b else U64)

    def prandom_u64(self, state, *_):
        value, result = xorshift(self.read_u64(state))
        self.write_u64(state, value)
        return result

    def crc32_le(self, crc, at, size):
        value = crc & 0xFFFF_FFFF
        for octet in self.read(at, size):
            value ^= octet
            for _ in range(8):
                value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
        return value

    def checksum_fold(self, task, value, *_):
        at = task + TASK.offset("checksum")
        self.write_u64(at, fold(self.read_u64(at), value))

    def wake_up_process(self, task, *_):
        self.woken.append(task)
        self.write_u64(task + TASK.offset("state"), 0)

    def cond_resched(self, *_):
        return 0

    def panic(self, message, *_):
        raise AssertionError(f"panic: {self.cstring(message)!r}")
