"""Source lines and inlined calls, against binutils' addr2line; and what becomes of damage."""

import random
import re
import struct
import subprocess
import time

import pytest
from elftools.elf.elffile import ELFFile

from dynftrace_emu.kernel.debug.demangle import demangle
from dynftrace_emu.kernel.debug.info import DebugInfo
from dynftrace_emu.kernel.debug.source import SourceFrame, SourceLine, where_text
from dynftrace_emu.kernel.elf.image import load_elf
from tests.kernel.compiled import FREESTANDING, build, need

C = {
    "a.c": """
#include "sub/h.h"
int table[64];
static inline int clamp(int x, int lo, int hi) { if (x < lo) return lo;
  return x > hi ? hi : x; }
static inline int mix(int a, int b)
{
    int r = clamp(a * 31 + b, -1000, 1000);
    return hash(r) ^ clamp(b, 0, 63);
}
int work(int n)
{
    int s = 0;
    for (int i = 0; i < n; i++) {
        s += mix(i, s);
        if (s > 100000)
            fail(s);
        table[clamp(s, 0, 63)] = s;
    }
    return s;
}
int sorter(int *v, int n)
{
    for (int i = 1; i < n; i++)
        for (int j = i; j > 0 && v[j - 1] > v[j]; j--)
            swap(&v[j], &v[j - 1]);
    return mix(v[0], v[n - 1]);
}
int _start(void) { return work(10) + sorter(table, 64) + other(3); }
""",
    "sub/h.h": """
static inline int hash(int x) { x ^= x >> 3;
  return x * 2654435; }
static inline void swap(int *a, int *b) { int t = *a; *a = *b; *b = t; }
void fail(int) __attribute__((noreturn, cold));
int other(int);
""",
    "b.c": """
#include "sub/h.h"
#define INLINE static inline __attribute__((always_inline))
INLINE int deep3(int x) { return hash(x) + 1; }
INLINE int deep2(int x) { return deep3(x) *
    deep3(x + 1); }
INLINE int deep1(int x) { return deep2(x) - 1; }
void fail(int x) { volatile int q = deep1(x); for (;;) q++; }
int other(int x)
{
    for (int i = 0; i < x; i++)
        x += deep1(i) & 3;
    return deep1(x);
}
""",
}

CXX = """
namespace shapes {
template <class T> struct Box {
    T v;
    explicit Box(T x) : v(x) {}
    T get() const { return v; }
    bool operator<(const Box &o) const { return v < o.v; }
};
inline int twice(const Box<int> &b) { return 2 * b.get(); }
}
int total(const shapes::Box<int> *v, int n)
{
    int s = 0;
    for (int i = 0; i < n; i++)
        s += v[i] < v[0] ? shapes::twice(v[i]) : v[i].get();
    return s;
}
namespace {
struct Twice { int operator()(int x) const { return x * 2; } };
}
extern "C" int _start()
{
    shapes::Box<int> boxes[] = {shapes::Box<int>(1), shapes::Box<int>(2)};
    return Twice()(total(boxes, 2));
}
"""


def compiled(folder, *flags):
    (folder / "sub").mkdir(exist_ok=True)
    return build(folder, C, "-O2", "-g", *FREESTANDING, *flags)


def text_addresses(path, step=1):
    with path.open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        return range(text["sh_addr"], text["sh_addr"] + text["sh_size"], step)


def addr2line(path, addresses, *options):
    """For each address, (function as the linker has it, path, line), the innermost first."""
    need("addr2line")
    command = ["addr2line", "-a", "-i", "-f", "-e", str(path), *options]
    text = "\n".join(map(hex, addresses))
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    answers = []
    for block in re.split("^0x[0-9a-f]{16}\n", done.stdout, flags=re.MULTILINE)[1:]:
        lines = block.splitlines()
        answers.append([_frame(*pair) for pair in zip(lines[::2], lines[1::2], strict=True)])
    assert len(answers) == len(addresses)
    return answers


def _frame(function, place):
    path, _, line = place.split(" (discriminator")[0].rpartition(":")
    return function, path, int(line) if line.isdigit() else 0


def between_functions(info, address, answer):
    """There addr2line goes by symbols: the file is that of a line, or no more than its name."""
    line, (_, path, number) = info.line(address), *answer
    if "/" in path:
        return line is not None and (line.path, line.line) == (path, number)
    return line is None or line.line == 0


def as_addr2line(frames):
    return [
        (frame.function, frame.where.path, frame.where.line) if frame.where else (frame.function,)
        for frame in frames
    ]


@pytest.mark.parametrize(
    "flags",
    [
        ["-gdwarf-4"],
        ["-gdwarf-4", "-gz"],
        ["-gdwarf-4", "-gz=zlib-gnu"],
        ["-gdwarf-4", "-O0"],
        ["-gdwarf-4", "-flto"],
        ["-gdwarf-4", "-ffunction-sections", "-Wl,--gc-sections"],
        ["-gdwarf-4", "-static-pie", "-fpie"],
    ],
    ids=" ".join,
)
def test_every_address_has_the_frames_that_addr2line_finds(tmp_path, flags):
    path = compiled(tmp_path, *flags)
    addresses = text_addresses(path)
    info = DebugInfo(path.read_bytes())
    answers = addr2line(path, addresses)
    for address, expected in zip(addresses, answers, strict=True):
        frames = info.frames(address)
        if not frames:
            assert between_functions(info, address, expected), hex(address)
            continue
        assert as_addr2line(frames) == expected, hex(address)
        assert [frame.is_inlined for frame in frames] == [True] * (len(frames) - 1) + [False]
        assert info.line(address) == frames[0].where
    assert info.complaint == ""
    if "-O0" not in flags:
        assert max(map(len, answers)) >= 3


@pytest.mark.parametrize("more", [[], ["-gz"], ["-O0"]], ids=" ".join)
def test_dwarf_5_says_the_same_of_the_same_code(tmp_path, more):
    """(The addr2line of binutils 2.40 names wrong files for it, but right functions and lines.)"""
    paths = [compiled(tmp_path, f"-gdwarf-{version}", *more) for version in (4, 5)]
    addresses = text_addresses(paths[0])
    assert text_addresses(paths[1]) == addresses
    old, new = (DebugInfo(path.read_bytes()) for path in paths)
    for address, answer in zip(addresses, addr2line(paths[1], addresses), strict=True):
        frames = new.frames(address)
        assert frames == old.frames(address), hex(address)
        assert new.line(address) == old.line(address)
        if frames:
            found = [frame[::2] for frame in as_addr2line(frames)]
            assert found == [frame[::2] for frame in answer]


def test_addresses_move_with_the_image(tmp_path):
    path = compiled(tmp_path)
    here, there = DebugInfo(path.read_bytes()), DebugInfo(path.read_bytes(), bias=0x1234_0000)
    for address in text_addresses(path, 7):
        assert there.frames(address + 0x1234_0000) == here.frames(address)
        assert there.frames(address) == ()
    assert here.frames(text_addresses(path)[0]) != ()


@pytest.mark.parametrize("version", [4, 5])
def test_an_object_that_we_link_has_the_frames_of_its_sections(tmp_path, version):
    """Its debug information is full of relocations, which are for us to apply."""
    (tmp_path / "sub").mkdir()
    flags = ("-O2", "-g", f"-gdwarf-{version}", "-c", *FREESTANDING, "-pg")
    path = build(tmp_path, {"b.c": C["b.c"], "sub/h.h": C["sub/h.h"]}, *flags)
    image = load_elf(path.read_bytes(), str(path))
    begin = image.symbols["other"].address
    with path.open("rb") as file:
        symbol = ELFFile(file).get_section_by_name(".symtab").get_symbol_by_name("other")[0]
    offset, size = symbol["st_value"], symbol["st_size"]
    answers = addr2line(path, range(offset, offset + size), "-j", ".text")
    for address, expected in zip(range(begin, begin + size), answers, strict=True):
        found = [(name, line) for name, *_, line in as_addr2line(image.source_frames(address))]
        assert found == [(name, line) for name, _, line in expected], hex(address)
    assert image.debug_complaint == ""


def test_names_of_cxx_are_what_cxxfilt_makes_of_them(tmp_path):
    need("c++filt")
    flags = ("-O2", "-g", "-gdwarf-4", "-fno-exceptions", "-fno-rtti", *FREESTANDING)
    path = build(tmp_path, {"c.cc": CXX}, *flags, compiler="g++")
    addresses = text_addresses(path)
    answers = addr2line(path, addresses)
    names = sorted({frame[0] for answer in answers for frame in answer})
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    readable = dict(zip(names, done.stdout.splitlines(), strict=True))
    assert "shapes::twice(shapes::Box<int> const&)" in readable.values()
    info = DebugInfo(path.read_bytes())
    for address, answer in zip(addresses, answers, strict=True):
        found = [frame.function.replace(" ", "") for frame in info.frames(address)]
        if not found:
            assert between_functions(info, address, answer)
            continue
        assert found == [readable[name].replace(" ", "") for name, _, _ in answer]


@pytest.mark.parametrize(
    ("mangled", "readable"),
    [
        ("_ZN4core3fmt9Formatter3pad17h9b2b3a0e5b4d1b31E", "core::fmt::Formatter::pad"),
        ("_RNvC6_123foo3bar", "123foo::bar"),
        ("_ZN2ns3BoxIiE3getEv", "ns::Box<int>::get()"),
        ("main", "main"),
        ("_Zilch", "_Zilch"),
        ("", ""),
    ],
)
def test_demangle(mangled, readable):
    assert demangle(mangled) == readable


# --- what is not there, or damaged ---


def test_without_debug_information_nothing_is_known_and_nothing_is_wrong(tmp_path):
    path = compiled(tmp_path, "-g0")
    info = DebugInfo(path.read_bytes())
    assert info.frames(text_addresses(path)[0]) == ()
    assert info.line(text_addresses(path)[0]) is None
    assert info.complaint == ""


def test_nothing_is_read_before_it_is_asked_for():
    info = DebugInfo(b"no ELF file")
    assert info.complaint == ""
    assert info.frames(0x1000) == ()
    assert "malformed" in info.complaint


def sections(path):
    with path.open("rb") as file:
        return {
            section.name: (section["sh_offset"], section["sh_size"])
            for section in ELFFile(file).iter_sections()
        }


def damaged(path, name, at, data):
    raw = bytearray(path.read_bytes())
    start = sections(path)[name][0] + at
    raw[start : start + len(data)] = data
    return bytes(raw)


def ask_everything(info, addresses):
    for address in addresses:
        for frame in info.frames(address):
            assert isinstance(frame.function, str)
        info.line(address)


@pytest.mark.parametrize("version", [4, 5])
def test_damage_is_told_in_one_line_and_never_a_traceback(tmp_path, version):
    path = compiled(tmp_path, f"-gdwarf-{version}")
    addresses = text_addresses(path, 63)
    places = [
        (name, size)
        for name, (_, size) in sections(path).items()
        if re.fullmatch(r"\.debug_(info|abbrev|line|ranges|rnglists|str_offsets|addr)", name)
    ]
    draw = random.Random(version)
    complaints = 0
    for _ in range(60):
        name, size = draw.choice(places)
        junk = bytes(draw.choice((0, 1, 0x7F, 0x80, 0xFF)) for _ in range(draw.choice((1, 1, 8))))
        at = draw.randrange(min(size, draw.choice((64, size))))
        info = DebugInfo(damaged(path, name, at, junk))
        began = time.perf_counter()
        ask_everything(info, addresses)
        assert time.perf_counter() - began < 20
        assert "\n" not in info.complaint
        complaints += bool(info.complaint)
    assert complaints > 10


def test_a_file_cut_anywhere_still_has_no_traceback(tmp_path):
    path = compiled(tmp_path)
    raw = path.read_bytes()
    for size in range(0, len(raw), len(raw) // 60):
        ask_everything(DebugInfo(raw[:size]), text_addresses(path, 63))


def test_names_without_number_do_not_keep_the_reader_for_ever(tmp_path):
    """DWARF 5: 2^63 names, each encoded in no byte."""
    path = compiled(tmp_path, "-gdwarf-5")
    # Behind the header's length: six bytes, twelve lengths of opcodes; then no format, many names.
    bad = damaged(path, ".debug_line", 12 + 6 + 12, b"\x00" + b"\x80" * 8 + b"\x7f")
    info = DebugInfo(bad)
    ask_everything(info, text_addresses(path, 31))
    assert "names" in info.complaint


def test_a_section_that_unpacks_to_a_gigabyte_is_not_unpacked(tmp_path):
    path = compiled(tmp_path, "-gz")
    # Elf64_Chdr: type, reserved, size, alignment.
    bad = damaged(path, ".debug_info", 8, struct.pack("<Q", 1 << 30))
    info = DebugInfo(bad)
    ask_everything(info, text_addresses(path, 31))
    assert ".debug_info is said to be 1073741824 bytes" in info.complaint


def test_an_origin_that_is_itself_leads_nowhere(tmp_path):
    path = compiled(tmp_path, "-gdwarf-4")
    with path.open("rb") as file:
        unit = next(ELFFile(file).get_dwarf_info().iter_CUs())
        origins = [
            (die.attributes["DW_AT_abstract_origin"].offset, die.offset - unit.cu_offset)
            for die in unit.iter_DIEs()
            if "DW_AT_abstract_origin" in die.attributes
        ]
    raw = bytearray(path.read_bytes())
    start = sections(path)[".debug_info"][0]
    for at, itself in origins:
        struct.pack_into("<I", raw, start + at, itself)
    info = DebugInfo(bytes(raw))
    ask_everything(info, text_addresses(path))
    assert any(len(info.frames(address)) > 1 for address in text_addresses(path))


# --- as text ---


def test_a_place_is_told_from_the_inside_out():
    def frame(name, line, *, inlined=False):
        return SourceFrame(name, SourceLine("f.c", line, "/src") if line else None, inlined)

    assert where_text(()) == ""
    assert where_text((frame("f", 3),)) == "f.c:3"
    assert where_text((frame("f", 0),)) == ""
    inlined = (frame("a", 1, inlined=True), frame("b", 2, inlined=True), frame("f", 3))
    assert where_text(inlined) == "a at f.c:1, inlined in b at f.c:2, inlined at f.c:3"
    assert str(SourceLine("f.c", 0)) == "f.c:?"
    assert SourceLine("/usr/include/x.h", 1, "/src").path == "/usr/include/x.h"
