"""lib/sort.S against sorted() and bisect."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.firmware.kernel_lib import SCRATCH, guest_fixture, signed

KEY = SCRATCH + 0x8000
# Compares the first byte alone: what is behind it shows stability. The flags tell nothing.
EXTRA = """
cmp_first_byte:
        movzx eax, byte ptr [rdi]
        movzx ecx, byte ptr [rsi]
        sub eax, ecx
        test rsp, rsp
        ret
"""
guest = guest_fixture(extra=EXTRA)
PACK = {4: "I", 8: "Q"}


@st.composite
def arrays(draw):
    size = draw(st.sampled_from([4, 8]))
    top = draw(st.sampled_from([3, (1 << 8 * size) - 1]))
    return size, draw(st.lists(st.integers(0, top), max_size=30))


def pack(size, values):
    return struct.pack(f"<{len(values)}{PACK[size]}", *values)


@settings(max_examples=120, deadline=None)
@given(array=arrays(), name=st.sampled_from(["sort", "insertion_sort"]),
       swap=st.sampled_from([None, "generic_swap"]))  # fmt: skip
def test_sort(guest, array, name, swap):
    size, values = array
    guest.write(SCRATCH - 8, b"\xa5" * 8 + pack(size, values) + b"\xa5" * 8)
    cmp = guest.address("cmp_u32" if size == 4 else "cmp_u64")
    guest.call(name, SCRATCH, len(values), size, cmp, guest.address(swap) if swap else 0)
    expected = b"\xa5" * 8 + pack(size, sorted(values)) + b"\xa5" * 8
    assert guest.read(SCRATCH - 8, len(expected)) == expected


@settings(max_examples=60, deadline=None)
@given(records=st.lists(st.binary(min_size=7, max_size=7).map(lambda b: bytes([b[0] & 3]) + b[1:]),
                        max_size=20))  # fmt: skip
def test_records_of_odd_size(guest, records):
    cmp = guest.address("cmp_first_byte")
    by_key = sorted(records, key=lambda r: r[0])
    guest.write(SCRATCH, b"".join(records))
    guest.call("insertion_sort", SCRATCH, len(records), 7, cmp, 0)
    assert guest.read(SCRATCH, 7 * len(records)) == b"".join(by_key), "not stable"

    guest.write(SCRATCH, b"".join(records))
    guest.call("sort", SCRATCH, len(records), 7, cmp, 0)
    data = guest.read(SCRATCH, 7 * len(records))
    result = [data[i : i + 7] for i in range(0, len(data), 7)]
    assert [r[0] for r in result] == [r[0] for r in by_key]
    assert sorted(result) == sorted(records)


@settings(max_examples=150, deadline=None)
@given(array=arrays(), other=st.integers(0, 5), pick=st.integers(0, 100))
def test_bsearch(guest, array, other, pick):
    size, values = array
    values.sort()
    key = values[pick % len(values)] if values and pick & 1 else other
    guest.write(SCRATCH, pack(size, values))
    guest.write(KEY, pack(size, [key]))
    cmp = guest.address("cmp_u32" if size == 4 else "cmp_u64")
    found = guest.call("bsearch", KEY, SCRATCH, len(values), size, cmp)
    if key in values:
        index, rest = divmod(found - SCRATCH, size)
        assert rest == 0
        assert values[index] == key
    else:
        assert found == 0


def test_compare_at_the_edges(guest):
    for name, size in (("cmp_u32", 4), ("cmp_u64", 8)):
        top = (1 << 8 * size) - 1
        for a, b in [(0, top), (top, 0), (top, top), (top >> 1, (top >> 1) + 1)]:
            guest.write(SCRATCH, pack(size, [a, b]))
            result = signed(guest.call(name, SCRATCH, SCRATCH + size), 32)
            assert result == (a > b) - (a < b)
