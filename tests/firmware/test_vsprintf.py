"""lib/vsprintf.S against Python's % operator and int()."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.firmware.kernel_lib import SCRATCH, U64, guest_fixture, signed

guest = guest_fixture()
FORMAT, ARGS, TEXT, BUF = (SCRATCH + 0x1000 * n for n in range(4))
NUMBERS = st.one_of(
    st.integers(0, U64),
    st.integers(0, 300),
    st.sampled_from([1 << 63, (1 << 63) - 1, U64, 1 << 31, (1 << 32) - 1, 0]),
)

# Conversion -> (what Python calls it, what it makes of a word)
CONVERSIONS = {
    "d": ("d", lambda n: signed(n, 32)),
    "ld": ("d", signed),
    "u": ("d", lambda n: n & 0xFFFF_FFFF),
    "lu": ("d", lambda n: n),
    "x": ("x", lambda n: n & 0xFFFF_FFFF),
    "lx": ("x", lambda n: n),
    "X": ("X", lambda n: n & 0xFFFF_FFFF),
    "lX": ("X", lambda n: n),
}


@st.composite
def formats(draw):
    """(format, argument words, strings at TEXT, expected)."""
    text, args, strings, expected = "", [], b"", ""
    for _ in range(draw(st.integers(0, 4))):
        literal = draw(st.sampled_from(["", "a", " = ", "0x", "%%"]))
        kind = draw(st.sampled_from([*CONVERSIONS, "s", "c"]))
        width = draw(st.sampled_from(["", "1", "8", "13", "20"]))
        text += literal
        expected += literal.replace("%%", "%")
        if kind == "s":
            word = draw(st.sampled_from(["", "eth0", "a longer one"]))
            text += f"%{width}s"
            args.append(TEXT + len(strings))
            strings += word.encode() + b"\0"
            expected += f"%{width}s" % word
        elif kind == "c":
            char = draw(st.sampled_from("aZ%"))
            text += "%c"
            args.append(ord(char) | 0x1200)
            expected += char
        else:
            zero = draw(st.sampled_from(["", "0"])) if width else ""
            number = draw(NUMBERS)
            name, meaning = CONVERSIONS[kind]
            text += f"%{zero}{width}{kind}"
            args.append(number)
            expected += f"%{zero}{width}{name}" % meaning(number)
    return text.encode(), args, strings, expected.encode()


def prepare(guest, text, args, strings):
    guest.write(FORMAT, text + b"\0")
    guest.write(ARGS, struct.pack(f"<{len(args)}Q", *args))
    guest.write(TEXT, strings)


@settings(max_examples=200, deadline=None)
@given(case=formats())
def test_vsnprintf(guest, case):
    text, args, strings, expected = case
    prepare(guest, text, args, strings)
    assert guest.call("vsnprintf", BUF, 4096, FORMAT, ARGS) == len(expected)
    assert guest.cstring(BUF) == expected


@settings(max_examples=150, deadline=None)
@given(case=formats(), room=st.integers(0, 30))
def test_vsnprintf_truncates(guest, case, room):
    text, args, strings, expected = case
    prepare(guest, text, args, strings)
    guest.write(BUF, b"\xa5" * 64)
    assert guest.call("vsnprintf", BUF, room, FORMAT, ARGS) == len(expected)
    kept = expected[: room - 1] + b"\0" if room else b""
    assert guest.read(BUF, 64) == kept.ljust(64, b"\xa5")


def test_vsnprintf_oddities(guest):
    for text, args, expected in [
        (b"50%", [], b"50"),  # ends in the middle of a conversion
        (b"%q!", [], b"q!"),
        (b"%8s", [0], b"  <NULL>"),
        (b"%05d", [-42 & U64], b"-0042"),
        (b"%5d", [-42 & U64], b"  -42"),
    ]:
        prepare(guest, text, args, b"")
        assert guest.call("vsnprintf", BUF, 64, FORMAT, ARGS) == len(expected)
        assert guest.cstring(BUF) == expected


def test_snprintf_and_scnprintf(guest):
    guest.write(FORMAT, b"%d %s %lx\0")
    guest.write(TEXT, b"two\0")
    expected = b"1 two 3000000000"
    arguments = (FORMAT, 1, TEXT, 0x3000000000)
    assert guest.call("snprintf", BUF, 64, *arguments) == len(expected)
    assert guest.cstring(BUF) == expected
    assert guest.call("snprintf", BUF, 4, *arguments) == len(expected)
    assert guest.call("scnprintf", BUF, 64, *arguments) == len(expected)
    assert guest.call("scnprintf", BUF, 4, *arguments) == 3
    assert guest.cstring(BUF) == b"1 t"


@settings(max_examples=60, deadline=None)
@given(number=NUMBERS)
def test_digits_lowest_first(guest, number):
    for name, flags, text in [
        ("put_dec", 0, f"{number:d}"),
        ("put_hex", 0, f"{number:X}"),
        ("put_hex", 0x20, f"{number:x}"),
    ]:
        guest.write(BUF, b"\xa5" * 32)
        assert guest.call(name, BUF, number, flags) == BUF + len(text)
        assert guest.read(BUF, 32) == text[::-1].encode().ljust(32, b"\xa5")


@settings(max_examples=60, deadline=None)
@given(
    word=st.sampled_from(["", "eth0", "wlan10"]), width=st.integers(0, 9), room=st.integers(0, 9)
)
def test_string_and_number_stop_at_the_end(guest, word, width, room):
    guest.write(TEXT, word.encode() + b"\0")
    for name, arguments, text in [
        ("string", (TEXT, width), word.rjust(width)),
        ("number", (1234, 10, width, 0), "1234".rjust(width)),
        (
            "number",
            (-12, 10, width, 1 | 2),
            "-12" if width < 4 else "-" + "12".rjust(width - 1, "0"),
        ),
    ]:
        guest.write(BUF, b"\xa5" * 32)
        assert guest.call(name, BUF, BUF + room, *arguments) == BUF + len(text)
        assert guest.read(BUF, 32) == text[:room].encode().ljust(32, b"\xa5")


def test_hex_to_bin(guest):
    for code in range(256):
        digit = "0123456789abcdef".find(chr(code).lower()) if code < 128 else -1
        assert signed(guest.call("hex_to_bin", code)) == digit, code


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=20))
def test_hex_dump(guest, data):
    guest.write(TEXT, data)
    expected = data.hex(" ").encode()
    assert guest.call("hex_dump_to_buffer", TEXT, len(data), BUF) == len(expected)
    assert guest.cstring(BUF) == expected


@settings(max_examples=150, deadline=None)
@given(number=NUMBERS, base=st.sampled_from([8, 10, 16]), guess=st.booleans(),
       rest=st.sampled_from([b"", b" 1", b"g", b"-"]))  # fmt: skip
def test_strtoul(guest, number, base, guess, rest):
    prefix, kind = {8: ("0", "o"), 10: ("", "d"), 16: ("0x", "x")}[base]
    if base == 10 and guess:
        number = max(number, 1)  # "0" alone is octal, which is as well
    digits = ((prefix if guess else "") + format(number, kind)).encode()
    guest.write(TEXT, digits + rest + b"\0")
    assert guest.call("simple_strtoul", TEXT, BUF, 0 if guess else base) == number
    assert guest.read_u64(BUF) == TEXT + len(digits)
    assert guest.call("simple_strtoul", TEXT, 0, 0 if guess else base) == number


def test_strtoul_oddities(guest):
    for text, base, value, used in [
        (b"", 10, 0, 0),
        (b"xyz", 10, 0, 0),
        (b"0", 0, 0, 1),
        (b"0x", 0, 0, 1),  # a zero and an x
        (b"0xg", 0, 0, 1),
        (b"129", 8, 0o12, 2),
        (b"18446744073709551617", 10, 1, 20),  # wraps
        (b"FfG", 16, 0xFF, 2),
    ]:
        guest.write(TEXT, text + b"\0")
        assert guest.call("simple_strtoul", TEXT, BUF, base) == value, text
        assert guest.read_u64(BUF) == TEXT + used, text


def test_strtol(guest):
    for text, value in [(b"-17", -17), (b"17", 17), (b"-0x10", -16), (b"-", 0)]:
        guest.write(TEXT, text + b"\0")
        assert signed(guest.call("simple_strtol", TEXT, BUF, 0)) == value
        assert guest.read_u64(BUF) == TEXT + len(text)
