"""kfifo against a Python deque of bytes."""

from __future__ import annotations

import random

import pytest

from tests.firmware.guest import HEAP
from tests.firmware.kernel_services import Kernel


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("capacity", [1, 8, 64, 256])
def test_bytes_in_bytes_out(capacity, traced):
    kernel = Kernel(["lib/kfifo.S"], traced=traced, boot=False)
    rng, waiting = random.Random(capacity), bytearray()
    fifo, guard = HEAP, b"\xaa" * 64
    kernel.write(fifo, b"\x55" * (24 + capacity) + guard)
    kernel.call("kfifo_init", fifo, capacity)
    for _ in range(150):
        data = rng.randbytes(rng.randrange(capacity + 10))
        put = kernel.call("__kfifo_put", fifo, kernel.buffer(data or b"\0"), len(data))
        assert put == min(len(data), capacity - len(waiting))
        waiting += data[:put]
        assert kernel.call("__kfifo_len", fifo) == len(waiting)
        wanted, at = rng.randrange(capacity + 10), kernel.buffer(b"\xee" * 300)
        got = kernel.call("__kfifo_get", fifo, at, wanted)
        assert got == min(wanted, len(waiting))
        assert kernel.read(at, 300) == bytes(waiting[:got]) + b"\xee" * (300 - got)
        del waiting[:got]
    assert kernel.read(fifo + 24 + capacity, len(guard)) == guard
    kernel.call("__kfifo_put", fifo, kernel.buffer(b"z"), 1)
    kernel.call("__kfifo_reset", fifo)
    assert kernel.call("__kfifo_len", fifo) == 0
