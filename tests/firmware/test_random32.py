"""lib/random32.S against the same generator in Python."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.firmware.kernel_lib import SCRATCH, U64, Prandom, guest_fixture

guest = guest_fixture()
SEEDS = st.integers(1, U64)
BUF = SCRATCH + 0x100


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, ceiling=st.integers(0, (1 << 32) - 1))
def test_numbers(guest, seed, ceiling):
    model = Prandom(seed)
    guest.write_u64(SCRATCH, seed)
    assert guest.call("prandom_u64", SCRATCH) == model.u64()
    assert guest.call("prandom_u32", SCRATCH) == model.u32()
    assert guest.call("prandom_u32_max", SCRATCH, ceiling) == model.below(ceiling)
    assert guest.read_u64(SCRATCH) == model.state


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, count=st.integers(0, 30))
def test_bytes(guest, seed, count):
    model = Prandom(seed)
    guest.write_u64(SCRATCH, seed)
    guest.write(BUF, b"\xa5" * 40)
    guest.call("prandom_bytes", SCRATCH, BUF, count)
    assert guest.read(BUF, 40) == model.random_bytes(count).ljust(40, b"\xa5")
    assert guest.read_u64(SCRATCH) == model.state
