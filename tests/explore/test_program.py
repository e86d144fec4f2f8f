"""Protocols taken apart: what they may yield, and what is refused in one line."""

import numpy as np
import pytest

from dynftrace_emu.errors import ProtocolError
from dynftrace_emu.explore import program as op
from dynftrace_emu.explore import steps
from dynftrace_emu.explore.program import Program
from dynftrace_emu.explore.text import Piece, Spot

SITE = 0x1000E  # the fifth byte is in another 16-byte chunk than the first
SPOTS = (Spot(SITE, 5, 0x2000),)
DATA = (0x8000, 0x9000)


def at(address=SITE):
    return np.array([address], dtype=np.uint64)


def row(*values):
    return np.array([values], dtype=np.uint8)


def program(*found):
    return Program("mine", lambda: iter(found), SPOTS, 16, DATA)


def test_a_store_is_as_few_stores_as_its_bytes_allow_each_cut_at_chunks():
    made = program(steps.Store(at(), row(1, 2, 3, 4, 5))).operations(())
    assert [o.piece for o in made] == [
        Piece(0, 0, b"\x01\x02"),  # the first of four bytes ends the chunk
        Piece(0, 2, b"\x03\x04"),
        Piece(0, 4, b"\x05"),
    ]


def test_a_store_by_bytes_is_one_store_a_byte():
    made = program(steps.Store(at(), row(1, 2, 3), width=1)).operations(())
    assert [o.piece for o in made] == [Piece(0, n, bytes([n + 1])) for n in range(3)]


def test_an_exchange_looks_first_and_leaves_its_stores_out_if_it_must():
    made = program(steps.CompareExchange(at(), row(1, 2), row(3, 4))).operations(())
    assert made == [op.Compare(0, 0, b"\x01\x02", 1, 0), op.StoreText(Piece(0, 0, b"\x03\x04"), 0)]


def test_a_sync_waits_unless_it_says_it_does_not():
    made = program(steps.Sync(), steps.Sync(wait=False)).operations(())
    assert made == [op.Send(None, 0), op.WaitForAcks(0), op.Send(None, 1)]


def test_a_protocol_is_run_again_with_what_it_has_read():
    def counting():
        first = yield steps.Read(DATA[0], "first")
        for _ in range(first):
            yield steps.Sync(wait=False)
        second = yield steps.Read(DATA[0] + 8, "second")
        yield steps.AddData(DATA[0], first + second)

    made = Program("mine", counting, SPOTS, 16, DATA)
    assert made.operations(()) == [op.Load(DATA[0], "first", 0)]
    assert made.operations((2,)) == [
        op.Send(None, 1),
        op.Send(None, 2),
        op.Load(DATA[0] + 8, "second", 3),
    ]
    assert made.operations((2, 40)) == [op.Add(DATA[0], 42, "", 4)]
    assert made.operations((0,)) == [op.Load(DATA[0] + 8, "second", 1)]


def raising():
    yield steps.Sync()
    raise ValueError("what now?")


def endless():
    while True:
        yield steps.Sync()


@pytest.mark.parametrize(
    ("make", "step", "said"),
    [
        (raising, 2, "ValueError: what now?"),
        (endless, None, "no end"),
        (lambda: iter([steps.Sync(), 42]), 2, "42 is not a step"),
        (lambda: iter([steps.Store(at(SITE + 1), row(1, 2, 3, 4, 5))]), 1, "outside every site"),
        (lambda: iter([steps.Store(at(), row(1), width=3)]), 1, "stores of 3 bytes"),
        (lambda: iter([steps.WriteData(DATA[1] - 4, bytes(8))]), 1, "outside the guest's data"),
        (lambda: iter([steps.Read(0)]), 1, "outside the guest's data"),
        (lambda: None, 1, "TypeError"),
    ],
)
def test_a_protocol_that_asks_for_what_cannot_be_is_refused_with_its_step(make, step, said):
    with pytest.raises(ProtocolError, match=said) as error:
        Program("mine", make, SPOTS, 16, DATA).operations(())
    assert "protocol mine" in str(error.value)
    if step is not None:
        assert f"step {step}:" in str(error.value)
