"""Objects linked by us: what they compute is what the same C computes when gcc and ld make it."""

from __future__ import annotations

import subprocess

import pytest

from dynftrace_emu.errors import ImageError
from dynftrace_emu.ftrace.options import RunOptions
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.kernel.elf.image import load_elf
from tests.elf_builds import BARE, compile_c, compile_object, run

# Pointers in data, tables of functions, strings, COMMON, sections of their own, constructors, weak
# and absolute symbols, sizes, 64-bit and 32-bit relocations.
PROGRAM = r"""
typedef unsigned long u64;
int common_array[40];
long common_word;
extern int nowhere(void) __attribute__((weak));
static int numbers[] = { 3, 1, 4, 1, 5, 9, 2, 6 };
static int *const pointers[] = { numbers + 2, &numbers[7], numbers };
static const char *const words[] = { "fold", "spindle", "mutilate" };
struct entry { const char *name; int (*function)(int); };
static int twice(int x) { return 2 * x; }
int __attribute__((section(".text.square"), noinline)) square(int x) { return x * x; }
int __attribute__((section(".text.unlikely"), noinline)) odd(int x) { return x ^ 0x55; }
static const struct entry table[] = { { "twice", twice }, { "square", square }, { "odd", odd } };
int __attribute__((section("settings"))) setting_a = 11;
int __attribute__((section("settings"))) setting_b = 31;
extern int __start_settings[], __stop_settings[];
static int constructed;
static void __attribute__((constructor(200))) second(void) { constructed = constructed * 10 + 2; }
static void __attribute__((constructor(100))) first(void) { constructed = constructed * 10 + 1; }
static void __attribute__((constructor)) last(void) { constructed = constructed * 10 + 3; }
static u64 mix(u64 h, u64 x) { return (h ^ x) * 1099511628211ul; }
int main(void)
{
	u64 h = 14695981039346656037ul;
	for (int i = 0; i < 3; i++) {
		h = mix(h, (u64)*pointers[i]);
		for (const char *c = words[i]; *c; c++)
			h = mix(h, (u64)*c);
		for (const char *c = table[i].name; *c; c++)
			h = mix(h, (u64)*c);
		h = mix(h, (u64)table[i].function(i + 7));
	}
	for (int i = 0; i < 40; i++)
		common_array[i] += i * numbers[i & 7];
	common_word += common_array[39];
	h = mix(h, (u64)common_word);
	int sum = 0; /* in any order */
	for (int *setting = __start_settings; setting < __stop_settings; setting++)
		sum += *setting;
	h = mix(h, (u64)sum);
	h = mix(h, (u64)constructed);
	h = mix(h, nowhere ? 1 : 2);
	return (int)(h % 251);
}
"""


def returned(path, **options):
    machine = Run(RunOptions(str(path), **options))
    machine.execute()
    return machine.kernel.returned


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What Linux makes of the program: its exit code."""
    folder = tmp_path_factory.mktemp("linux")
    path = compile_c(folder, PROGRAM, "", bare="-O1", start="")
    return subprocess.run([path], check=False, timeout=10).returncode


@pytest.mark.parametrize(
    "flags",
    [
        "-pg",
        "-O2 -pg -mfentry",
        "-O0 -pg -fcommon",
        "-fPIC -pg",  # GOTPCREL, PLT32
        "-fPIC -O2 -pg -mfentry -fno-plt -fcommon",
        "-fPIE -O1 -pg",
        "-mcmodel=large -O2 -fpatchable-function-entry=5",  # 64-bit addresses
        "-mcmodel=kernel -pg -mfentry -mrecord-mcount -mnop-mcount",  # 32S
        "-ffunction-sections -fdata-sections -pg",
    ],
)
def test_an_object_computes_what_linux_computes(tmp_path, flags, expected):
    assert returned(compile_object(tmp_path, PROGRAM, flags)) == expected


@pytest.mark.parametrize("flags", ["-static-pie -fPIE -pg", "-static-pie -fPIE -O2 -pg -mfentry"])
def test_a_static_pie_is_relocated(tmp_path, flags, expected):
    bare = BARE.replace("-static ", "").replace("-fno-pic -no-pie", "")
    path = compile_c(tmp_path, PROGRAM, f"{flags} -DPIE", bare=bare)
    assert b"R_X86_64_RELATIVE" in run("readelf", "-rW", path).encode()
    assert returned(path) == expected
    run("strip", "--strip-section-headers", path) if "--strip-section-headers" in run(
        "strip", "--help"
    ) else run("strip", path)
    assert returned(path) == expected


def test_packed_relative_relocations_are_carried_out(tmp_path, expected):
    bare = BARE.replace("-static ", "").replace("-fno-pic -no-pie", "")
    flags = "-static-pie -fPIE -pg -Wl,-z,pack-relative-relocs"
    path = compile_c(tmp_path, PROGRAM, flags, bare=bare)
    if ".relr.dyn" not in run("readelf", "-SW", path):
        pytest.skip("this ld does not pack relative relocations")
    assert returned(path) == expected


def test_several_objects_in_one_are_linked_with_gaps_between_their_sections(tmp_path):
    user = "int g(int); int table[3] = {1, 2, 3}; int main(void) { return g(table[2]); }"
    aligned = """
    __attribute__((aligned(64))) char pad[65];
    int g(int x) { pad[64] = 7; return x + pad[64] + (int)((unsigned long)pad % 64); }
    """
    objects = [compile_object(tmp_path, source, "-pg") for source in (user, aligned)]
    run("ld", "-r", "-o", tmp_path / "both.o", *objects)
    assert returned(tmp_path / "both.o") == 10


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "int f(void); int main(void) { return f(); }",
            "undefined symbol f: link what defines it in",
        ),
        (
            "int a(void), b(void), c(void), d(void), e(void), f(void);"
            "int main(void) { return a() + b() + c() + d() + e() + f(); }",
            "undefined symbols a, b, c, d, e and 1 more: link what defines them in",
        ),
        ("__thread int t = 1; int main(void) { return t; }", r"\.tdata is thread-local"),
        (
            'int w __attribute__((section(".wx,\\"awx\\"#"))); int main(void) { return w; }',
            r"\.wx is both writable and executable",
        ),
    ],
)
def test_what_cannot_be_linked_is_one_line(tmp_path, source, message):
    path = compile_object(tmp_path, source)
    with pytest.raises(ImageError, match=message) as caught:
        load_elf(path.read_bytes(), path.name)
    assert "\n" not in str(caught.value)


def test_a_relocation_that_does_not_fit_names_the_symbol(tmp_path):
    user = "extern char far[]; int main(void) { return (int)(long)&far; }"
    definition = 'asm(".globl far\\n.set far, 0x123456789abc");'
    objects = [compile_object(tmp_path, source) for source in (user, definition)]
    run("ld", "-r", "-o", tmp_path / "both.o", *objects)
    with pytest.raises(ImageError, match="truncated to fit: far is out of reach"):
        load_elf((tmp_path / "both.o").read_bytes(), "both.o")


def test_what_is_linked_looks_linked(tmp_path):
    """Sections and symbols of ``image.elf`` have their addresses, as DWARF readers need them."""
    image = load_elf(compile_object(tmp_path, PROGRAM, "-pg").read_bytes(), "x.o")
    text = image.elf.section(".text.square")
    assert text.address == image.symbols["square"].address
    by_name = {symbol.name: symbol.value for symbol in image.elf.symbols if symbol.name}
    assert by_name["square"] == image.symbols["square"].address
    assert image.elf.bias == 0
