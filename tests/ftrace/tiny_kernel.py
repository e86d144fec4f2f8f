"""A kernel of a few traced functions whose vCPUs a test moves by hand, instruction by instruction.

It has the firmware's own mcount and recorder and nothing else: no tasks, no timer. The machine may
park a vCPU wherever it stands, so a test can stop it between any two instructions of mcount.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.ftrace.dynamic import DynamicFtrace
from dynftrace_emu.kernel.boot import boot
from dynftrace_emu.kernel.image import KernelImage
from dynftrace_emu.machine.deterministic import DeterministicEngine
from dynftrace_emu.machine.engine import Park
from dynftrace_emu.machine.vcpu import Reg, VCpu

if TYPE_CHECKING:
    from collections.abc import Iterable

RECORD_PORT = 0xF5
FTRACE_MAP_OFFSET = 0x2008_0000
TRACER = 1 << 28  # in preempt_count
NOP5 = bytes.fromhex("0f1f440000")
PROLOGUE = 4  # push rbp; mov rbp, rsp
HEADER = struct.Struct("<QI")  # struct ftrace_page: next, index
RECORD = struct.Struct("<QQQI")  # struct dyn_ftrace: node.next, node.pprev, ip, failed
GENERAL = tuple(register for register in Reg if register.name.startswith("R"))


def own_hash_long(ip: int) -> int:
    """hash_long(ip, 10) as include/linux/hash.h of 2.6.25 computes it on 64 bits: by shifts."""
    mask = (1 << 64) - 1
    n = ip
    value = ip
    n = n << 18 & mask
    value = value - n & mask
    n = n << 33 & mask
    value = value - n & mask
    n = n << 3 & mask
    value = value + n & mask
    n = n << 3 & mask
    value = value - n & mask
    n = n << 4 & mask
    value = value + n & mask
    n = n << 2 & mask
    value = value + n & mask
    return value >> 54


@dataclass(frozen=True)
class Record:
    """One ``struct dyn_ftrace``, read from raw memory."""

    address: int
    next: int
    pprev: int
    ip: int
    failed: int

    @property
    def site(self) -> int:
        return self.ip - 5


@lru_cache(maxsize=4)
def tiny_image(functions: int) -> KernelImage:
    # Of odd lengths, so that hash_long does not spread the sites evenly: some share a bucket.
    body = "".join(
        f"FUNC f{number}\n .skip {number * number % 97}, 0x90\n RETURN\nEND f{number}\n"
        for number in range(functions)
    )
    text = (
        '.include "arch/mcount.S"\n'
        "ENTRY startup_64\n        jmp startup_64\nEND startup_64\n"
        "FUNC lone\n        nop\n        RETURN\nEND lone\n"
    )
    return KernelImage.from_assembly(text + body, name="tiny")


class TinyKernel:
    """The kernel, its ftrace, and vCPUs that stand still unless a test moves them.

    :param initcall: whether the recorder's initcall has run already, on vCPU 0.
    """

    def __init__(
        self, functions: int = 8, vcpus: int = 1, *, initcall: bool = True, **ftrace_options
    ) -> None:
        self.image = tiny_image(functions)
        self.kernel = boot(
            self.image,
            vcpus,
            lambda machine: DeterministicEngine(machine, park=Park.ANYWHERE),
            hz=0,
        )
        self.machine = self.kernel.machine
        self.memory = self.machine.memory
        for number in range(1, vcpus):
            self.machine.engine.start_vcpu(number, None)
        self.ftrace = DynamicFtrace(self.kernel, **ftrace_options)
        self.traps = 0  # how often guest code asked the host's hook
        for vcpu in self.machine.vcpus:
            self._count_traps(vcpu)
        self._rest = self.address("startup_64")
        if initcall:
            self.call("ftrace_dynamic_init")

    def _count_traps(self, vcpu: VCpu) -> None:
        hook = vcpu.in_ports[RECORD_PORT]

        def counting(vcpu: VCpu) -> int:
            self.traps += 1
            return hook(vcpu)

        vcpu.in_ports[RECORD_PORT] = counting

    # --- moving a vCPU ---

    def begin(self, function: str, vcpu: int = 0) -> VCpu:
        """Put a vCPU in front of a function, as if it had been called from nowhere."""
        cpu = self.machine.vcpus[vcpu]
        cpu[Reg.RSP] -= 8
        self.memory.write_u64(cpu[Reg.RSP], self._rest)
        cpu.rip = self.address(function)
        return cpu

    def run_to(self, cpu: VCpu, address: int) -> None:
        """Step until RIP is ``address``."""
        for _ in range(200):
            if cpu.rip == address:
                return
            cpu.step()
        raise AssertionError(f"{self.image.symbolize(cpu.rip)}: never came to {address:#x}")

    def finish(self, cpu: VCpu) -> None:
        """Run on until the function has returned to where vCPUs rest, in a loop."""
        for _ in range(20):
            cpu.run(100)
            if cpu.rip == self._rest:
                return
        raise AssertionError(f"{self.image.symbolize(cpu.rip)}: it does not return")

    def call(self, function: str, vcpu: int = 0) -> None:
        self.finish(self.begin(function, vcpu))

    def call_all(self, functions: Iterable[str]) -> None:
        for function in functions:
            self.call(function)

    def interrupt_with(self, cpu: VCpu, function: str) -> None:
        """Call a function on top of whatever the vCPU is doing, as an interrupt handler would."""
        saved = {register: cpu[register] for register in GENERAL}
        cpu[Reg.RSP] -= 0x80
        self.call(function, cpu.index)
        for register, value in saved.items():
            cpu[register] = value

    @property
    def trap_at(self) -> int:
        """The ``in eax, dx`` of the recorder."""
        recorder = self.image.symbols["ftrace_record_ip"]
        code = self.memory.read(recorder.address, recorder.size)
        return recorder.address + code.index(b"\xba\xf5\x00\x00\x00\xed") + 5

    @property
    def mcount_asks(self) -> int:
        """The instruction of mcount that looks whether a tracer wants unknown sites."""
        mcount = self.image.symbols["mcount"]
        code = self.memory.read(mcount.address, mcount.size)
        return mcount.address + code.rindex(b"\x48\x83\x3d")  # cmp qword ptr [rip + ...], 0

    def in_tracer(self) -> list[bool]:
        """Of each vCPU, whether it has asked who wants a call, and has not told them all yet."""
        return [count >= TRACER for count in self.kernel.percpu("preempt_count")]

    # --- looking ---

    def address(self, symbol: str) -> int:
        return self.image.symbols[symbol].address

    def site(self, function: str) -> int:
        """A traced function's call site: directly behind its prologue."""
        return self.address(function) + PROLOGUE

    def call_bytes(self, function: str, target: str = "mcount") -> bytes:
        """The call as the assembler should have made it, or one that leads elsewhere."""
        site = self.site(function)
        return b"\xe8" + struct.pack("<i", self.address(target) - (site + 5))

    def kind(self, function: str) -> str:
        """What a function's call site reads as, by all its five bytes."""
        call = self.call_bytes(function)
        kinds = {
            call: "call",
            self.call_bytes(function, "ftrace_caller"): "traced",
            b"\xeb\x03" + call[2:]: "jmp",
            NOP5: "nop",
        }
        return kinds[self.bytes_at(function)]

    def map_word(self, function: str) -> int:
        """The word of the site map that guest code finds for a function's call site."""
        site = self.site(function)
        address = (site & ~3) + FTRACE_MAP_OFFSET
        return struct.unpack("<I", self.memory.read(address, 4))[0]

    def bytes_at(self, function: str) -> bytes:
        return self.memory.read(self.site(function), 5)

    def poke(self, function: str, code: bytes) -> None:
        """Overwrite a call site behind ftrace's back."""
        where = np.array([self.site(function)], dtype=np.uint64)
        self.machine.poke_text(where, np.frombuffer(code, np.uint8).reshape(1, -1))
        self.machine.sync_text()

    def pointer(self) -> str:
        """Whom mcount follows now, by name."""
        value = self.kernel.read("ftrace_trace_function")
        return self.image.function_at(value).name

    def pages(self) -> list[tuple[int, int]]:
        """(address, index) of the record pages that guest code can see, by their links."""
        found = []
        page = self.kernel.read("ftrace_pages")
        while page:
            following, index = HEADER.unpack(self.memory.read(page, HEADER.size))
            found.append((page, index))
            page = following
        return found

    def record(self, address: int) -> Record:
        return Record(address, *RECORD.unpack(self.memory.read(address, RECORD.size)))

    def records(self) -> list[Record]:
        """Every record made, from the pages' raw bytes, in order."""
        return [
            self.record(page + HEADER.size + slot * RECORD.size)
            for page in self.ftrace.arch.records.pages
            for slot in range(HEADER.unpack(self.memory.read(page, HEADER.size))[1])
        ]

    def chain(self, bucket: int) -> list[Record]:
        """The nodes of a hash bucket, from raw memory."""
        nodes = []
        address = self.memory.read_u64(self.address("ftrace_hash") + 8 * bucket)
        while address:
            nodes.append(self.record(address))
            address = nodes[-1].next
        return nodes

    def hashed(self) -> set[str]:
        """The functions whose sites are in the hash."""
        nodes = [node for bucket in range(1024) for node in self.chain(bucket)]
        return {self.image.function_at(node.site).name for node in nodes}

    def recorded(self) -> list[str]:
        """The functions whose sites have a record, in order."""
        return [self.image.function_at(record.site).name for record in self.records()]

    def skipped(self) -> dict[str, int]:
        """The guest's own counts of skipped calls that are not 0."""
        reasons = ("no_slot", "nested", "suspended", "patched")
        counts = {reason: self.kernel.total(f"skipped_{reason}") for reason in reasons}
        return {reason: count for reason, count in counts.items() if count}

    def mcount_calls(self, vcpu: int = 0) -> int:
        return self.kernel.percpu("mcount_calls")[vcpu]
