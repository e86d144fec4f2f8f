"""lib/checksum.S against RFC 1071 and the definition of the fold."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from dynftrace_emu.kernel.structs import TASK
from tests.firmware.guest import TASK_AT
from tests.firmware.kernel_lib import SCRATCH, U64, guest_fixture

guest = guest_fixture()
WORD = st.integers(0, 0xFFFF_FFFF)


def rfc1071(data, total=0):
    data += b"\0" * (len(data) % 2)
    total += sum(struct.unpack(f"<{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, U64), max_size=5))
def test_checksum_fold(guest, values):
    at = TASK_AT + TASK.offset("checksum")
    guest.write_u64(at, expected := 0x123456789ABCDEF0)
    for value in values:
        guest.call("checksum_fold", TASK_AT, value)
        rotated = (expected << 5 | expected >> 59) & U64
        expected = rotated ^ (value * 0x9E3779B97F4A7C15 & U64)
    assert guest.read_u64(at) == expected


@settings(max_examples=100, deadline=None)
@given(data=st.one_of(st.binary(max_size=40), st.integers(0, 40).map(lambda n: b"\xff" * n)),
       start=WORD)  # fmt: skip
def test_csum(guest, data, start):
    guest.write(SCRATCH, data + b"\xa5" * 4)
    total = guest.call("csum_partial", SCRATCH, len(data), start)
    assert guest.call("csum_fold", total) == rfc1071(data, start) ^ 0xFFFF
    assert guest.call("from32to16", total) == rfc1071(data, start)
    assert guest.call("ip_compute_csum", SCRATCH, len(data)) == rfc1071(data) ^ 0xFFFF


def test_ip_header(guest):
    header = bytes.fromhex("450000730000400040110000c0a80001c0a800c7")
    guest.write(SCRATCH, header)
    assert guest.call("ip_fast_csum", SCRATCH, 5) == int.from_bytes(b"\xb8\x61", "little")


@settings(max_examples=60, deadline=None)
@given(saddr=WORD, daddr=WORD, length=st.integers(0, 0xFFFF), proto=st.integers(0, 255), start=WORD)
def test_pseudo_header(guest, saddr, daddr, length, proto, start):
    pseudo = struct.pack("<II", saddr, daddr) + struct.pack(">BBH", 0, proto, length)
    expected = rfc1071(pseudo, start) ^ 0xFFFF
    dirty = 0x5555 << 48  # the ABI leaves what is above an argument's type open
    arguments = (saddr | dirty, daddr | dirty, length | dirty, proto | dirty, start | dirty)
    assert guest.call("csum_tcpudp_magic", *arguments) == expected
