"""What the tests of lib/, mm/ and their workload steps share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dynftrace_emu.kernel.structs import PCPU
from tests.firmware.guest import PCPU_AT, Guest

if TYPE_CHECKING:
    from collections.abc import Iterable

LIB = tuple(
    f"lib/{name}.S"
    for name in (
        "string", "ctype", "vsprintf", "crc32", "sort", "hash", "hashtable", "list", "bitmap",
        "rbtree", "random32", "checksum",
    )
)  # fmt: skip
MM = ("mm/page_alloc.S", "mm/slab.S")
SCRATCH = 0x90_0000
U64 = (1 << 64) - 1

# As harsh as the contract allows: r11 and the flags are lost, a reschedule is always due, and it
# must not come while preemption is off.
STUBS = """
mcount:
        xor r11d, r11d
        dec r11
        ret
preempt_schedule:
        cmp qword ptr gs:[PCPU_PREEMPT_COUNT], 0
        jne 1f
        ret
1:      ud2
"""


def load(files: Iterable[str] = LIB, extra: str = "", *, traced: bool) -> Guest:
    guest = Guest(files, STUBS + extra, traced=traced)
    guest.write(PCPU_AT + PCPU.offset("need_resched"), b"\1")
    return guest


def guest_fixture(files: Iterable[str] = LIB, extra: str = ""):
    """A module's ``guest``: built without the calls to mcount, then with them."""

    @pytest.fixture(scope="module", params=[False, True], ids=["plain", "traced"])
    def guest(request):
        return load(files, extra, traced=request.param)

    return guest


def signed(value: int, bits: int = 64) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def preempt_count(guest: Guest) -> int:
    return guest.read_u64(PCPU_AT + PCPU.offset("preempt_count"))


class Prandom:
    """xorshift64*, the guest's own generator."""

    def __init__(self, state: int) -> None:
        self.state = state

    def u64(self) -> int:
        x = self.state
        x ^= x >> 12
        x = (x ^ x << 25) & U64
        x ^= x >> 27
        self.state = x
        return x * 0x2545F4914F6CDD1D & U64

    def u32(self) -> int:
        return self.u64() >> 32

    def below(self, ceiling: int) -> int:
        return self.u32() * ceiling >> 32

    def random_bytes(self, count: int) -> bytes:
        words = (self.u64().to_bytes(8, "little") for _ in range((count + 7) // 8))
        return b"".join(words)[:count]
