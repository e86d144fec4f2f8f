"""The journal and writeback: what the log says, replayed in Python, is what the disk gets."""

from __future__ import annotations

import random
import struct
import zlib
from errno import ENOMEM, ENOSPC

import pytest

from dynftrace_emu.kernel.structs import TASK
from tests.firmware.guest import TASK_AT
from tests.firmware.kernel_services import DRIVERS, FS, Kernel

MAGIC, METADATA, COMMIT = 0xC03B3998, 1, 2
LOG_BLOCKS = 64
LATE = [*FS, *DRIVERS, "workloads/late.S"]


def journal(kernel: Kernel) -> tuple[int, ...]:
    """next tid, last committed tid, running transaction, head, tail, log page."""
    return struct.unpack("<6Q", kernel.read(kernel.address("journal"), 48))


def log_block(kernel: Kernel, position: int) -> tuple[int, int, int, int, int, bytes]:
    """magic, type, tid, block number, checksum, data."""
    at = journal(kernel)[5] + position % LOG_BLOCKS * 64
    return struct.unpack("<IIQQQ32s", kernel.read(at, 64))


def disk(kernel: Kernel) -> list[bytes]:
    at = kernel.address("meta_disk")
    return [kernel.read(at + 32 * n, 32) for n in range(4)]


def inode(kernel: Kernel, index: int) -> int:
    return kernel.read_u64(kernel.address("meta_inodes") + 8 * index)


def crc32_le(crc: int, data: bytes) -> int:
    return zlib.crc32(data, crc ^ 0xFFFF_FFFF) ^ 0xFFFF_FFFF


@pytest.fixture(params=[False, True], ids=["untraced", "traced"])
def kernel(request) -> Kernel:
    return Kernel(traced=request.param)


def dirty(kernel: Kernel, index: int, length: int) -> None:
    kernel.write_u64(inode(kernel, index) + 32, length)  # i_size
    kernel.call("__mark_inode_dirty", inode(kernel, index))


def test_the_log_replays_to_what_was_written(kernel):
    rng, at_boot = random.Random(1), dict(kernel.live)
    lengths, generations, replayed = [0] * 4, [0] * 4, [bytes(32)] * 4
    position = tid = 0
    for _ in range(60):
        chosen = rng.sample(range(4), rng.randrange(4))
        for index in chosen:
            lengths[index] = rng.getrandbits(40)
            generations[index] += 1
            dirty(kernel, index, lengths[index])
            dirty(kernel, index, lengths[index])  # dirty already: queued once
        assert kernel.read_u64(kernel.address("nr_dirty")) == len(chosen)
        assert kernel.call("wb_kupdate") == len(chosen)
        assert kernel.read_u64(kernel.address("nr_dirty")) == 0
        assert disk(kernel) == replayed or position, "nothing reaches the disk before its commit"
        kernel.call("kjournald")
        if not chosen:
            continue
        tid += 1
        checksum = 0
        for number in range(len(chosen)):
            magic, kind, in_tid, block, found, data = log_block(kernel, position + number)
            assert (magic, kind, in_tid, found) == (MAGIC, METADATA, tid, 0)
            assert data == struct.pack("<4Q", block + 1, lengths[block], 1, generations[block])
            checksum = crc32_le(checksum, data)
            replayed[block] = data
        magic, kind, in_tid, count, found, _ = log_block(kernel, position + len(chosen))
        assert (magic, kind, in_tid, count, found) == (MAGIC, COMMIT, tid, len(chosen), checksum)
        position += len(chosen) + 1
        next_tid, committed, running, head, tail, _ = journal(kernel)
        assert (next_tid, committed, running, head) == (tid + 1, tid, 0, position)
        assert head - tail <= 8, "a checkpoint came in time"
        if head == tail:
            assert disk(kernel) == replayed
    assert position > 2 * LOG_BLOCKS, "the log went round"
    kernel.call("log_do_checkpoint")
    assert disk(kernel) == replayed
    assert kernel.live == at_boot


def test_handles_share_a_transaction(kernel):
    head = kernel.read_u64(kernel.address("meta_heads"))
    one, other = kernel.call("journal_start", 1), kernel.call("journal_start", 0)
    assert kernel.read_u64(one) == kernel.read_u64(other) == journal(kernel)[2]
    assert kernel.syscall("journal_get_write_access", other, head) == -ENOSPC, "no credits"
    assert kernel.syscall("journal_get_write_access", one, head) == 0
    assert kernel.syscall("journal_get_write_access", other, head) == 0, "filed already"
    assert kernel.read_u64(journal(kernel)[2] + 24) == 1, "T_NR_BUFFERS"
    kernel.call("journal_stop", one)
    kernel.call("journal_stop", other)
    # Nothing was changed: the commit has no block but its own.
    assert kernel.call("journal_commit_transaction") == 0
    assert log_block(kernel, 0)[:4] == (MAGIC, COMMIT, 1, 0)
    assert kernel.call("journal_commit_transaction") == 0
    assert journal(kernel)[3] == 1, "no transaction, no commit block"


@pytest.mark.parametrize("failing", [0, 1])
def test_no_memory_to_write_back(kernel, failing):
    before, take, left = dict(kernel.live), kernel.kmalloc, failing

    def limited(size, *_):
        nonlocal left
        left -= 1
        return take(size) if left >= 0 else 0

    dirty(kernel, 2, 77)
    dirty(kernel, 1, 78)
    kernel.kmalloc = limited
    assert kernel.call("wb_kupdate") == 0
    assert kernel.syscall("journal_start", 1) == -ENOMEM
    kernel.kmalloc = take
    assert kernel.live == before
    assert kernel.read_u64(kernel.address("nr_dirty")) == 2, "still to be done"
    kernel.call("background_writeout")
    kernel.call("kjournald")
    kernel.call("log_do_checkpoint")
    assert [struct.unpack_from("<Q", block, 8)[0] for block in disk(kernel)] == [0, 78, 77, 0]


@pytest.mark.parametrize("traced", [False, True])
def test_late_work_leaves_nothing_but_its_own_traces(traced):
    kernel = Kernel(LATE, traced=traced)
    task, live = kernel.read(TASK_AT, TASK.size), dict(kernel.live)
    lengths = [0] * 4
    for number in range(1, 40):
        kernel.call("late_work")
        assert kernel.read_u64(kernel.address("late_rounds")) == number
        for index in (number % 4, (3 * number + 1) % 4):
            lengths[index] += 5 * number + 64
        assert [kernel.read_u64(inode(kernel, n) + 32) for n in range(4)] == lengths
        assert kernel.read_u64(kernel.address("nr_dirty")) == 0
    assert journal(kernel)[1] == 39, "one transaction a round"
    assert kernel.read_u64(kernel.address("dpm_cursor")) == 39 % 13 or 13
    assert kernel.read(TASK_AT, TASK.size) == task
    assert kernel.live == live
