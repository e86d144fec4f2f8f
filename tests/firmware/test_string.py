"""lib/string.S and lib/ctype.S against Python's bytes."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.firmware.guest import GuestFault
from tests.firmware.kernel_lib import SCRATCH, guest_fixture, signed

guest = guest_fixture()
A, B = SCRATCH + 3, SCRATCH + 0x1005
TEXT = st.binary(max_size=24).map(lambda b: b.replace(b"\0", b"a"))
FEW = st.lists(st.sampled_from(b"abA\xff"), max_size=12).map(bytes)  # many equal prefixes
CHAR = st.sampled_from(b"ab\0\xffz")
GUARD = b"\xa5" * 8


def fenced(guest, at, data):
    guest.write(at - 8, GUARD + data + GUARD)
    return at


def fenced_result(guest, at, size):
    data = guest.read(at - 8, size + 16)
    assert data[:8] == GUARD, "wrote in front of the buffer"
    assert data[-8:] == GUARD, "wrote behind the buffer"
    return data[8:-8]


def sign(value):
    return (value > 0) - (value < 0)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=40))
def test_memcpy(guest, data):
    fenced(guest, A, bytes(len(data)))
    guest.write(B, data)
    assert guest.call("memcpy", A, B, len(data)) == A
    assert fenced_result(guest, A, len(data)) == data


@settings(max_examples=100, deadline=None)
@given(data=st.binary(min_size=40, max_size=40), dest=st.integers(0, 20), src=st.integers(0, 20),
       count=st.integers(0, 20))  # fmt: skip
def test_memmove_overlapping(guest, data, dest, src, count):
    expected = bytearray(data)
    expected[dest : dest + count] = data[src : src + count]
    fenced(guest, A, data)
    assert guest.call("memmove", A + dest, A + src, count) == A + dest
    assert fenced_result(guest, A, 40) == expected


@settings(max_examples=60, deadline=None)
@given(value=st.integers(0, 0x1FF), count=st.integers(0, 40))
def test_memset(guest, value, count):
    fenced(guest, A, bytes(count))
    assert guest.call("memset", A, value, count) == A
    assert fenced_result(guest, A, count) == bytes([value & 0xFF]) * count


@settings(max_examples=100, deadline=None)
@given(a=FEW, b=FEW)
def test_memcmp(guest, a, b):
    count = min(len(a), len(b))
    guest.write(A, a + b"x")
    guest.write(B, b + b"y")
    result = signed(guest.call("memcmp", A, B, count))
    assert sign(result) == sign((a[:count] > b[:count]) - (a[:count] < b[:count]))


@settings(max_examples=100, deadline=None)
@given(data=FEW, char=CHAR, count=st.integers(0, 12))
def test_memchr_and_memscan(guest, data, char, count):
    guest.write(A, data.ljust(12, b"b"))
    found = data.ljust(12, b"b")[:count].find(char)
    assert guest.call("memchr", A, char, count) == (A + found if found >= 0 else 0)
    assert guest.call("memscan", A, char, count) == A + (found if found >= 0 else count)


@settings(max_examples=60, deadline=None)
@given(text=TEXT, count=st.integers(0, 30))
def test_strlen(guest, text, count):
    guest.write(A, text + b"\0junk")
    assert guest.call("strlen", A) == len(text)
    assert guest.call("strnlen", A, count) == min(len(text), count)


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_strcpy(guest, text):
    fenced(guest, A, bytes(len(text)) + b"x")
    guest.write(B, text + b"\0junk")
    assert guest.call("strcpy", A, B) == A
    assert fenced_result(guest, A, len(text) + 1) == text + b"\0"


@settings(max_examples=60, deadline=None)
@given(text=TEXT, count=st.integers(0, 30))
def test_strncpy_pads(guest, text, count):
    fenced(guest, A, b"x" * count)
    guest.write(B, text + b"\0junk")
    assert guest.call("strncpy", A, B, count) == A
    assert fenced_result(guest, A, count) == text[:count].ljust(count, b"\0")


@settings(max_examples=60, deadline=None)
@given(text=TEXT, count=st.integers(0, 30))
def test_strlcpy_terminates(guest, text, count):
    fenced(guest, A, b"x" * count)
    guest.write(B, text + b"\0junk")
    assert guest.call("strlcpy", A, B, count) == len(text)
    expected = (text[: count - 1] + b"\0").ljust(count, b"x") if count else b""
    assert fenced_result(guest, A, count) == expected[:count]


@settings(max_examples=60, deadline=None)
@given(text=TEXT, more=TEXT, room=st.integers(1, 30))
def test_strcat_and_strlcat(guest, text, more, room):
    both = text + more + b"\0"
    fenced(guest, A, (text + b"\0").ljust(len(both), b"x"))
    guest.write(B, more + b"\0junk")
    assert guest.call("strcat", A, B) == A
    assert fenced_result(guest, A, len(both)) == both

    size = len(text) + room
    fenced(guest, A, (text + b"\0").ljust(size, b"x"))
    assert guest.call("strlcat", A, B, size) == len(text) + len(more)
    expected = (text + more)[: size - 1] + b"\0"
    assert fenced_result(guest, A, size) == expected.ljust(size, b"x")


def test_strlcat_without_a_terminator_is_a_bug(guest):
    guest.write(A, b"abcdef\0")
    guest.write(B, b"x\0")
    with pytest.raises(GuestFault):
        guest.call("strlcat", A, B, 3)


@settings(max_examples=150, deadline=None)
@given(a=FEW, b=FEW, count=st.integers(0, 14))
def test_comparisons(guest, a, b, count):
    guest.write(A, a + b"\0x")
    guest.write(B, b + b"\0y")
    compare = lambda x, y: (x > y) - (x < y)  # noqa: E731
    assert sign(signed(guest.call("strcmp", A, B))) == compare(a, b)
    assert sign(signed(guest.call("strncmp", A, B, count))) == compare(a[:count], b[:count])
    assert sign(signed(guest.call("strcasecmp", A, B))) == compare(a.lower(), b.lower())


@settings(max_examples=100, deadline=None)
@given(text=FEW, char=CHAR)
def test_strchr_and_strrchr(guest, text, char):
    guest.write(A, text + b"\0ab")
    whole = text + b"\0"
    first, last = whole.find(char), whole.rfind(char)
    assert guest.call("strchr", A, char) == (A + first if first >= 0 else 0)
    assert guest.call("strrchr", A, char) == (A + last if last >= 0 else 0)


@settings(max_examples=100, deadline=None)
@given(text=FEW, accept=FEW)
def test_strspn(guest, text, accept):
    guest.write(A, text + b"\0aaa")
    guest.write(B, accept + b"\0")
    assert guest.call("strspn", A, B) == len(text) - len(text.lstrip(accept or b"\0"))


@settings(max_examples=100, deadline=None)
@given(text=FEW, part=st.lists(st.sampled_from(b"abA"), max_size=3).map(bytes))
def test_strstr(guest, text, part):
    guest.write(A, text + b"\0" + part)
    guest.write(B, part + b"\0")
    found = text.find(part)
    assert guest.call("strstr", A, B) == (A + found if found >= 0 else 0)


def test_ctype(guest):
    classes = {
        "isalpha": string.ascii_letters,
        "isdigit": string.digits,
        "isspace": string.whitespace,
        "isxdigit": string.hexdigits,
        "isprint": string.digits + string.ascii_letters + string.punctuation + " ",
    }
    for code in range(256):
        for name, members in classes.items():
            assert bool(guest.call(name, code | 0x100)) == (chr(code) in members), (name, code)
        one = bytes([code])
        assert guest.call("tolower", code) == one.lower()[0]
        assert guest.call("toupper", code) == one.upper()[0]
