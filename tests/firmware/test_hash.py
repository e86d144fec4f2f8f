"""lib/hash.S against the definitions in <linux/hash.h> and Bob Jenkins's lookup2."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from dynftrace_emu.kernel.structs import GOLDEN_RATIO_PRIME_64
from tests.firmware.kernel_lib import SCRATCH, U64, guest_fixture

guest = guest_fixture()
U32 = 0xFFFF_FFFF
WORD = st.integers(0, U32)


def mix(a, b, c):
    for first, second, third in ((13, 8, 13), (12, 16, 5), (3, 10, 15)):
        a = ((a - b - c) ^ c >> first) & U32
        b = ((b - c - a) ^ a << second) & U32
        c = ((c - a - b) ^ b >> third) & U32
    return [a, b, c]


def jhash(data, initval):
    state = [0x9E3779B9, 0x9E3779B9, initval]
    whole = len(data) // 12 * 12
    for at in range(0, whole, 12):
        words = struct.unpack_from("<3I", data, at)
        state = mix(*[(s + w) & U32 for s, w in zip(state, words, strict=True)])
    tail = data[whole:].ljust(11, b"\0")
    words = struct.unpack("<3I", tail[:8] + b"\0" + tail[8:])
    a, b, c = (s + w for s, w in zip(state, words, strict=True))
    return mix(a & U32, b & U32, (c + len(data)) & U32)[2]


@settings(max_examples=80, deadline=None)
@given(value=st.integers(0, U64), bits=st.integers(1, 64))
def test_hash_long(guest, value, bits):
    expected = (value * GOLDEN_RATIO_PRIME_64 & U64) >> (64 - bits)
    assert guest.call("hash_long", value, bits) == expected


@settings(max_examples=80, deadline=None)
@given(value=WORD, bits=st.integers(1, 32))
def test_hash_32(guest, value, bits):
    assert guest.call("hash_32", value, bits) == (value * 0x9E370001 & U32) >> (32 - bits)


@settings(max_examples=120, deadline=None)
@given(data=st.binary(max_size=40), initval=WORD)
def test_jhash(guest, data, initval):
    guest.write(SCRATCH, data + b"\xff" * 12)
    assert guest.call("jhash", SCRATCH, len(data), initval) == jhash(data, initval)


@settings(max_examples=60, deadline=None)
@given(a=WORD, b=WORD, c=WORD, initval=WORD)
def test_jhash_words(guest, a, b, c, initval):
    golden = 0x9E3779B9

    def words(a, b, c):
        return mix((a + golden) & U32, (b + golden) & U32, (c + initval) & U32)[2]

    assert guest.call("jhash_3words", a, b, c, initval) == words(a, b, c)
    assert guest.call("jhash_2words", a, b, initval) == words(a, b, 0)
