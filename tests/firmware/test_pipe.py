"""Pipes and wait queues: alone, and between tasks that are switched anywhere."""

from __future__ import annotations

import random
from errno import EAGAIN, EBADF, EMFILE, ENOMEM, EPIPE

import pytest

from dynftrace_emu.kernel.structs import PCPU, TASK
from tests.firmware.guest import HEAP, PCPU_AT, TASK_AT
from tests.firmware.kernel_services import FS, O_NONBLOCK, Kernel, signed
from tests.firmware.tasks import SCHEDULE, Tasks

POLLIN, POLLOUT, POLLERR, POLLHUP = 1, 4, 8, 16
CAPACITY = 128
FLAGS_FIELD = 32


@pytest.fixture(params=[False, True], ids=["untraced", "traced"])
def kernel(request) -> Kernel:
    return Kernel(traced=request.param)


def make_pipe(kernel: Kernel) -> tuple[int, int]:
    at = HEAP + 0x100
    assert kernel.syscall("sys_pipe", at) == 0
    return kernel.read_u64(at), kernel.read_u64(at + 8)


def set_nonblocking(kernel: Kernel, *descriptors: int) -> None:
    for fd in descriptors:
        kernel.write_u64(kernel.call("fcheck", fd) + FLAGS_FIELD, O_NONBLOCK)


def test_bytes_come_out_in_order(kernel):
    reader, writer = make_pipe(kernel)
    set_nonblocking(kernel, reader, writer)
    rng, waiting = random.Random(1), bytearray()
    for _ in range(300):
        data = rng.randbytes(rng.randrange(60))
        written = kernel.syscall("sys_write", writer, kernel.buffer(data or b"\0"), len(data))
        room = CAPACITY - len(waiting)
        assert written == (min(len(data), room) or (-EAGAIN if data else 0))
        waiting += data[: max(written, 0)]
        wanted = rng.randrange(60)
        at = kernel.buffer(bytes(100))
        found = kernel.syscall("sys_read", reader, at, wanted)
        expected = bytes(waiting[:wanted])
        assert found == (len(expected) or (-EAGAIN if wanted else 0))
        if found > 0:
            assert kernel.read(at, found) == expected
            del waiting[:found]


def test_ends_are_one_way(kernel):
    reader, writer = make_pipe(kernel)
    assert kernel.syscall("sys_write", reader, HEAP, 1) == -EBADF
    assert kernel.syscall("sys_read", writer, HEAP, 1) == -EBADF
    assert kernel.syscall("sys_lseek", reader, 0, 0) == -29


def test_poll_tells_what_would_not_block(kernel):
    reader, writer = make_pipe(kernel)
    both = POLLIN | POLLOUT
    assert kernel.syscall("sys_poll", reader, both) == 0
    assert kernel.syscall("sys_poll", writer, both) == POLLOUT
    assert kernel.syscall("sys_write", writer, kernel.buffer(b"x" * CAPACITY), CAPACITY) == CAPACITY
    assert kernel.syscall("sys_poll", reader, both) == POLLIN
    assert kernel.syscall("sys_poll", writer, both) == 0
    kernel.syscall("sys_close", writer)
    assert kernel.syscall("sys_poll", reader, both) == POLLIN | POLLHUP
    reader, writer = make_pipe(kernel)
    kernel.syscall("sys_close", reader)
    assert kernel.syscall("sys_poll", writer, both) == POLLOUT | POLLERR


def test_ends_that_are_gone(kernel):
    before = len(kernel.live)
    reader, writer = make_pipe(kernel)
    assert kernel.syscall("sys_write", writer, kernel.buffer(b"last"), 4) == 4
    assert kernel.syscall("sys_close", writer) == 0
    at = kernel.buffer(bytes(8))
    assert kernel.syscall("sys_read", reader, at, 8) == 4
    assert kernel.read(at, 4) == b"last"
    assert kernel.syscall("sys_read", reader, at, 8) == 0, "end of file"
    assert kernel.syscall("sys_close", reader) == 0
    reader, writer = make_pipe(kernel)
    assert kernel.syscall("sys_close", reader) == 0
    assert kernel.syscall("sys_write", writer, at, 4) == -EPIPE
    assert kernel.syscall("sys_write", writer, at, 0) == -EPIPE
    assert kernel.syscall("sys_close", writer) == 0
    assert len(kernel.live) == before + 1, "the descriptor table"


@pytest.mark.parametrize("failing", range(4))
def test_no_memory_for_a_pipe(kernel, failing):
    kernel.call("current_files")
    before, left = dict(kernel.live), failing
    take, take_small = kernel.kmem_cache_alloc, kernel.kmalloc

    def limited(function):
        def allocate(size, *_):
            nonlocal left
            left -= 1
            return function(size) if left >= 0 else 0

        return allocate

    kernel.kmem_cache_alloc, kernel.kmalloc = limited(take), limited(take_small)
    result = kernel.syscall("sys_pipe", HEAP)
    assert result == (0 if failing == 3 else -ENOMEM)
    if result:
        assert kernel.live == before


def test_no_descriptors_for_a_pipe(kernel):
    for _ in range(7):
        make_pipe(kernel)
    assert kernel.syscall("sys_open", b"/x", 0x42, 0) == 14
    before = dict(kernel.live)
    assert kernel.syscall("sys_pipe", HEAP) == -EMFILE
    assert kernel.live == before
    assert kernel.syscall("sys_open", b"/x", 0, 0) == 15, "the one it had reserved is free again"


@pytest.mark.parametrize("seed", range(8))
def test_writers_and_readers_sleep_and_wake(seed):
    """More goes through than the pipe holds, in pieces that do not match."""
    kernel = Kernel(FS, SCHEDULE)
    tasks, rng = Tasks(kernel, seed), random.Random(seed)
    sent, received = rng.randbytes(1500), bytearray()
    pipe_at = HEAP + 0x100
    assert kernel.syscall("do_pipe", pipe_at) == 0
    in_at, out_at = HEAP + 0x1000, HEAP + 0x2000

    def writer():
        fd = yield ("get_unused_fd",)
        yield "fd_install", fd, kernel.read_u64(pipe_at + 8)
        position = 0
        while position < len(sent):
            size = min(rng.randrange(1, 400), len(sent) - position)
            kernel.write(out_at, sent[position : position + size])
            assert (yield "sys_write", fd, out_at, size) == size, "a blocking write takes all"
            position += size
        assert (yield "sys_close", fd) == 0

    def reader():
        fd = yield ("get_unused_fd",)
        yield "fd_install", fd, kernel.read_u64(pipe_at)
        while True:
            size = rng.randrange(1, 200)
            found = yield "sys_read", fd, in_at, size
            assert 0 <= found <= size
            if found == 0:
                break
            received.extend(kernel.read(in_at, found))
        assert (yield "sys_close", fd) == 0

    for program in rng.sample([writer(), reader()], 2):
        tasks.add(program)
    tasks.run()
    assert bytes(received) == sent
    assert tasks.sleeps > 5
    for task in tasks.tasks:
        assert kernel.read_u64(task.address + TASK.offset("waiting_on")) == 0
        assert kernel.read_u64(task.address + TASK.offset("state")) == 0


def test_a_writer_learns_that_its_reader_went():
    kernel = Kernel(FS, SCHEDULE)
    tasks = Tasks(kernel, 5)
    assert kernel.syscall("do_pipe", HEAP) == 0

    def writer():
        fd = yield ("get_unused_fd",)
        yield "fd_install", fd, kernel.read_u64(HEAP + 8)
        assert (yield "sys_write", fd, HEAP, 1000) in (0, -EPIPE, 10 + CAPACITY, CAPACITY)
        assert (yield "sys_write", fd, HEAP, 1000) == -EPIPE
        yield "sys_close", fd

    def reader():
        fd = yield ("get_unused_fd",)
        yield "fd_install", fd, kernel.read_u64(HEAP)
        assert (yield "sys_read", fd, HEAP + 0x1000, 10) == 10
        yield "sys_close", fd

    tasks.add(writer())
    tasks.add(reader())
    tasks.run()


def test_wait_queue_wakes_all_in_order(kernel):
    queue, waiters = HEAP, [HEAP + 0x100 * n for n in range(1, 5)]
    tasks = [HEAP + 0x1000 * n for n in range(1, 5)]
    current = PCPU_AT + PCPU.offset("current")
    kernel.call("init_waitqueue_head", queue)
    assert kernel.call("waitqueue_active", queue) == 0
    for wait, task in zip(waiters, tasks, strict=True):
        kernel.write(wait, bytes(24))
        kernel.write_u64(current, task)
        kernel.call("prepare_to_wait", queue, wait)
        kernel.call("prepare_to_wait", queue, wait)  # again: stays queued once
        assert kernel.read_u64(task + TASK.offset("state")) == 1
        assert kernel.read_u64(task + TASK.offset("waiting_on")) == queue
    assert kernel.call("waitqueue_active", queue) == 1
    # The second changes its mind.
    kernel.write_u64(current, tasks[1])
    kernel.call("finish_wait", queue, waiters[1])
    assert kernel.read_u64(tasks[1] + TASK.offset("state")) == 0
    kernel.write_u64(current, TASK_AT)
    kernel.call("wake_up", queue)
    assert kernel.woken == [tasks[0], tasks[2], tasks[3]]
    assert kernel.call("waitqueue_active", queue) == 0
    kernel.call("wake_up", queue)
    assert len(kernel.woken) == 3
    kernel.write_u64(current, tasks[0])
    kernel.call("finish_wait", queue, waiters[0])
    assert kernel.read_u64(tasks[0] + TASK.offset("waiting_on")) == 0
    assert signed(kernel.read_u64(queue)) == queue
