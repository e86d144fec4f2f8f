"""lib/crc32.S against zlib, and crc32_be against a division by hand."""

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.firmware.kernel_lib import SCRATCH, guest_fixture

built = guest_fixture()
ONES = 0xFFFF_FFFF


@pytest.fixture(scope="module")
def guest(built):
    built.call("crc32init_le")
    return built


def test_the_table_is_filled_at_boot(guest):
    table = guest.unit.symbols["crc32init_le"].address
    initcalls = next(s.data for s in guest.unit.sections if s.name == "initcalls")
    assert table.to_bytes(8, "little") in initcalls


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=70), align=st.integers(0, 7), seed=st.integers(0, ONES))
def test_crc32_le(guest, data, align, seed):
    at = guest.write(SCRATCH + align, data)
    expected = zlib.crc32(data, seed ^ ONES) ^ ONES
    assert guest.call("crc32_le", seed, at, len(data)) == expected
    assert guest.call("crc32_le_slice4", seed, at, len(data)) == expected


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=24), seed=st.integers(0, ONES))
def test_crc32_be(guest, data, seed):
    crc = seed
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & ONES
    guest.write(SCRATCH, data)
    assert guest.call("crc32_be", seed, SCRATCH, len(data)) == crc


def test_crc32_be_known_answer(guest):
    guest.write(SCRATCH, b"123456789")
    assert guest.call("crc32_be", ONES, SCRATCH, 9) ^ ONES == 0xFC891918  # CRC-32/BZIP2
