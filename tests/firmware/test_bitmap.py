"""lib/bitmap.S against Python integers."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.firmware.kernel_lib import SCRATCH, U64, guest_fixture

guest = guest_fixture()
BITS = 192
MAPS = st.one_of(
    st.integers(0, (1 << BITS) - 1),
    st.sets(st.integers(0, BITS - 1), max_size=3).map(lambda s: sum(1 << b for b in s)),
    st.sets(st.integers(0, BITS - 1), max_size=3).map(
        lambda s: (1 << BITS) - 1 - sum(1 << b for b in s)
    ),
)


def store(guest, value):
    guest.write(SCRATCH, value.to_bytes(BITS // 8, "little"))


def load(guest):
    return int.from_bytes(guest.read(SCRATCH, BITS // 8), "little")


@settings(max_examples=60, deadline=None)
@given(value=MAPS, bit=st.integers(0, BITS - 1))
def test_single_bits(guest, value, bit):
    mask, was = 1 << bit, value >> bit & 1
    for name, expected, returns in [
        ("__set_bit", value | mask, None),
        ("__clear_bit", value & ~mask, None),
        ("__change_bit", value ^ mask, None),
        ("test_bit", value, was),
        ("__test_and_set_bit", value | mask, was),
        ("__test_and_clear_bit", value & ~mask, was),
    ]:
        store(guest, value)
        result = guest.call(name, bit, SCRATCH)
        assert load(guest) == expected, name
        assert returns is None or result == returns, name


@settings(max_examples=200, deadline=None)
@given(value=MAPS, size=st.integers(0, BITS), start=st.integers(0, BITS + 5))
def test_searches(guest, value, size, start):
    store(guest, value)

    def first(wanted, at):
        return next((b for b in range(at, size) if value >> b & 1 == wanted), size)

    assert guest.call("find_next_bit", SCRATCH, size, start) == first(1, start)
    assert guest.call("find_next_zero_bit", SCRATCH, size, start) == first(0, start)
    assert guest.call("find_first_bit", SCRATCH, size) == first(1, 0)
    assert guest.call("find_first_zero_bit", SCRATCH, size) == first(0, 0)


@settings(max_examples=100, deadline=None)
@given(value=MAPS, size=st.integers(0, BITS))
def test_weights(guest, value, size):
    store(guest, value)
    assert guest.call("bitmap_weight", SCRATCH, size) == (value & ((1 << size) - 1)).bit_count()
    assert guest.call("hweight64", value & U64) == (value & U64).bit_count()
    assert guest.call("hweight32", value & U64) == (value & 0xFFFF_FFFF).bit_count()


def test_fill_and_zero(guest):
    for bits, words in ((0, 0), (1, 1), (64, 1), (65, 2)):
        store(guest, 0)
        guest.call("bitmap_fill", SCRATCH, bits)
        assert load(guest) == (1 << 64 * words) - 1
        store(guest, (1 << BITS) - 1)
        guest.call("bitmap_zero", SCRATCH, bits)
        assert load(guest) == (1 << BITS) - (1 << 64 * words)
