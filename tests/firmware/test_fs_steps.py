"""The workers' steps: their checksums, worked out again in Python, and that nothing leaks."""

from __future__ import annotations

import random
import struct
import zlib
from collections import Counter

import pytest

from dynftrace_emu.kernel.structs import TASK
from tests.firmware.guest import TASK_AT
from tests.firmware.kernel_services import DRIVERS, FS, U64, Kernel, fold, xorshift
from tests.firmware.tasks import FIRST_TASK, SCHEDULE, Tasks
from tests.firmware.test_drivers import bcd_round_trip

FILES = [*FS, *DRIVERS, "workloads/fs_steps.S", "workloads/late.S"]
SEED = 0x1234_5678_9ABC_DEF1


class Oracle:
    """A task's random numbers and checksum."""

    def __init__(self, seed: int) -> None:
        self.rng, self.checksum = seed, 0

    def fill(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self.rng, number = xorshift(self.rng)
            data += struct.pack("<Q", number)
        return data

    def fold(self, value: int) -> None:
        self.checksum = fold(self.checksum, value & U64)

    def fold_crc(self, data: bytes) -> None:
        self.fold(zlib.crc32(data) ^ 0xFFFF_FFFF)


class FsOracle(Oracle):
    """fs_step."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.files: dict[int, bytearray] = {}

    def step(self, number: int) -> None:
        out, turn, letter = self.fill(32), number // 4 % 4, number % 4
        file = self.files.setdefault(letter, bytearray())
        if turn == 2:
            file.clear()
        self.fold(0)  # the descriptor
        at = struct.unpack_from("<I", out)[0] & 0x1FF
        position = len(file) if turn == 1 else at
        file.extend(bytes(max(0, position + 32 - len(file))))
        file[position : position + 32] = out
        self.fold(32)
        data = bytes(file[at // 2 : at // 2 + 48])
        self.fold(len(data))
        self.fold_crc(data)
        if turn == 3:
            del self.files[letter]
        self.fold(0)  # close, or unlink


DEVICES = ("null", "zero", "random", "ttyS0", "eth0", "ram0", "rtc")


class DriverOracle(Oracle):
    """driver_step."""

    def step(self, number: int) -> None:
        out, device = self.fill(32), DEVICES[number % len(DEVICES)]
        written, poll, data = self.device(device, out)
        self.fold(0)  # the descriptor
        self.fold(written)
        self.fold(poll)
        self.fold(len(data))
        self.fold_crc(data.ljust(32, b"\0"))
        self.fold(0)

    @staticmethod
    def device(device: str, out: bytes) -> tuple[int, int, bytes]:
        """Bytes written, poll mask, what is read."""
        if device == "null":
            return 32, 5, b""
        if device == "zero":
            return 32, 5, bytes(32)
        if device == "random":
            pool = 0
            for octet in out:
                pool = (pool ^ octet) * 0x9E3779B97F4A7C15 & U64
                pool = (pool << 23 | pool >> 41) & U64
            oracle = Oracle(pool)
            return 32, 5, oracle.fill(32)
        if device == "rtc":
            values = [bcd_round_trip(value) for value in struct.unpack("<4Q", out)]
            return 32, 5, struct.pack("<4Q", *values)
        return 32, 5, out


ORACLES = {"fs": FsOracle, "driver": DriverOracle}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("worker", ORACLES)
def test_checksum(worker, traced):
    kernel, oracle = Kernel(FILES, traced=traced), ORACLES[worker](SEED)
    kernel.write_u64(TASK_AT + TASK.offset("rng"), SEED)
    kernel.write_u64(TASK_AT + TASK.offset("pid"), 0xABCD)
    kernel.call(f"{worker}_setup", TASK_AT)
    sizes = []
    for number in range(80):
        kernel.call(f"{worker}_step", TASK_AT)
        oracle.step(number)
        assert kernel.task_field("checksum") == oracle.checksum, f"step {number}"
        assert kernel.task_field("rng") == oracle.rng
        sizes.append(Counter(size for _, size in kernel.live.values()))
    assert sizes[15] == sizes[31] == sizes[79]
    if worker == "driver":
        assert all(each == sizes[0] for each in sizes)
    else:
        assert kernel.syscall("sys_rmdir", b"/tabcd") == 0


def steps(worker: str, task_number: int, count: int):
    address = FIRST_TASK + task_number * 0x1000
    yield f"{worker}_setup", address
    for _ in range(count):
        yield f"{worker}_step", address


def late_rounds(count: int):
    for _ in range(count):
        yield ("late_work",)


@pytest.mark.parametrize("seed", range(4))
def test_tasks_do_not_influence_each_other(seed):
    """All workers at once, some of them twice, with late_work() between, switched anywhere."""
    kernel = Kernel(FILES, SCHEDULE)
    tasks, seeds = Tasks(kernel, seed), random.Random(seed)
    count = 26
    workers = ["fs", "pipe_reader", "driver", "fs", "pipe_writer", "driver"]
    rngs = [seeds.getrandbits(64) | 1 for _ in workers]
    for number, (worker, rng) in enumerate(zip(workers, rngs, strict=True)):
        tasks.add(steps(worker, number, count), rng, pid=number + 1)
    tasks.add(late_rounds(20))
    tasks.run()
    found = [kernel.read_u64(task.address + TASK.offset("checksum")) for task in tasks.tasks]
    for number, worker in enumerate(workers):
        if worker in ORACLES:
            oracle = ORACLES[worker](rngs[number])
            for step in range(count):
                oracle.step(step)
            assert found[number] == oracle.checksum, f"{worker} {number}"
    pipe = Oracle(rngs[workers.index("pipe_writer")])
    for _ in range(count):
        crc = 0
        for _ in range(3):
            crc = zlib.crc32(pipe.fill(48), crc ^ 0xFFFF_FFFF) ^ 0xFFFF_FFFF
        pipe.fold(crc)
    assert found[workers.index("pipe_writer")] == pipe.checksum
    assert found[workers.index("pipe_reader")] == pipe.checksum
    assert found[-1] == 0, "late_work folds nothing"
    assert tasks.sleeps > count, "the pipe made its tasks sleep"
