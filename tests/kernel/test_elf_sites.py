"""Call sites of images that gcc made, against what objdump and readelf say of them."""

from __future__ import annotations

import re

import pytest

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.elf.image import load_elf
from tests.elf_builds import BARE, START, STYLES, WITH_TABLE, compile_c, compile_object, run

PROGRAM = """
static volatile int g;
__attribute__((noinline)) int leaf(int x) { g += x; return g * 2; }
__attribute__((noinline)) int middle(int n, int by)
{ int s = 0; for (int i = 0; i < n; i++) s += leaf(i + by) * n; return s; }
int main(void) { return middle(3, 4) + leaf(1); }
"""


def load(path):
    return load_elf(path.read_bytes(), path.name)


def disassembly(path):
    """objdump's lines: function, address, bytes, text."""
    function = ""
    for line in run("objdump", "-d", "--insn-width=12", path).splitlines():
        if named := re.match(r"[0-9a-f]+ <(.+)>:", line):
            function = named[1]
        elif parts := re.match(r"\s+([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t?(.*)", line):
            yield function, int(parts[1], 16), bytes.fromhex(parts[2]), parts[3]


def calls_of_objdump(path):
    return {
        a for _, a, _, text in disassembly(path) if re.search(r"call.*<(mcount|__fentry__)>", text)
    }


def table_of(path, section):
    """A section's bytes, as objcopy takes it out."""
    raw = path.with_suffix(f".{section}")
    flags = ("-O", "binary", f"--only-section={section}", "--set-section-flags", f"{section}=alloc")
    run("objcopy", *flags, path, raw)
    return raw.read_bytes()


def functions_of(image, sites):
    return {image.function_at(site).name for site in sites}


@pytest.mark.parametrize("style", STYLES)
def test_each_style_is_told_and_its_sites_are_those_the_compiler_made(samples, style):
    path = samples / f"sample-{style}.elf"
    image = load(path)
    assert image.sites.style == STYLES[style]
    assert image.sites.before_frame is (style != "mcount")
    sites = set(image.call_sites.tolist())
    if style in WITH_TABLE:
        section = "__patchable_function_entries" if style == "patchable" else "__mcount_loc"
        words = table_of(path, section)
        listed = {int.from_bytes(words[at : at + 8], "little") for at in range(0, len(words), 8)}
        assert sites == listed - {0} == set(image.table_sites.tolist())
    else:
        assert sites == calls_of_objdump(path)
        assert not len(image.table_sites)
    assert len(sites) == 27
    traced = functions_of(image, sites)
    assert traced == {f.name for f in image.functions} - {"mcount", "__fentry__", "_start"}


@pytest.mark.parametrize("style", STYLES)
def test_every_site_calls_our_mcount_and_all_other_text_is_as_it_was(samples, style):
    path = samples / f"sample-{style}.elf"
    image = load(path)
    sites = image.call_sites.tolist()
    ours = {site + n for site in sites for n in range(5)}
    loaded = {s.address: s for s in image.segments}
    for _, address, raw, _ in disassembly(path):
        segment = next(s for s in loaded.values() if s.address <= address < s.address + s.size)
        offset = address - segment.address
        if not any(address + n in ours for n in range(len(raw))):
            assert segment.data[offset : offset + len(raw)] == raw
    for site in sites:
        assert (site, image.mcount) in image.scan.calls


def test_symbols_are_those_nm_shows(samples):
    path = samples / "sample-fentry.elf"
    shown = {}
    for line in run("nm", path).splitlines():
        address, kind, name = line.split()
        if kind in "tT":
            shown[name] = int(address, 16)
    image = load(path)
    assert {f.address for f in image.functions} == set(shown.values())
    for name, address in shown.items():
        assert image.symbols[name].address == address
    sizes = {}
    for line in run("readelf", "-sW", path).splitlines():
        parts = line.split()
        if len(parts) == 8 and parts[3] == "FUNC":
            sizes[parts[7]] = int(parts[2])
    for name, size in sizes.items():
        if size:
            assert image.symbols[name].size == size


@pytest.mark.parametrize(
    ("flags", "style", "before"),
    [
        ("-pg -mrecord-mcount", "-pg -mrecord-mcount", False),
        ("-pg -mnop-mcount", "-pg -mnop-mcount", False),
        ("-pg -mfentry -mnop-mcount", "-pg -mfentry -mnop-mcount", True),
        ("-pg -mfentry -fcf-protection", "-pg -mfentry", True),
        ("-pg -mnop-mcount -fcf-protection", "-pg -mnop-mcount", False),
        ("-fpatchable-function-entry=7,2", "-fpatchable-function-entry=7,2", True),
        ("-fpatchable-function-entry=12", "-fpatchable-function-entry=12", True),
        ("-fpatchable-function-entry=6,1 -fcf-protection", "-fpatchable-function-entry=6,1", True),
        ("-pg -mcmodel=kernel -Wl,-Ttext=0xffffffff80000000", "-pg", False),
        ("-pg -mfentry -mcmodel=kernel -Wl,-Ttext=0xffffffff81000000", "-pg -mfentry", True),
        ("-pg -O2 -static-pie -fPIE", "-pg", False),
        ("-pg -mfentry -O2 -static-pie -fPIE", "-pg -mfentry", True),
        ("-fpatchable-function-entry=5 -static-pie -fPIE", "-fpatchable-function-entry=5", True),
    ],
)
@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
def test_other_ways_of_compiling_are_found_too(tmp_path, flags, style, before, stripped):
    bare = BARE.replace("-static", "") if "pie" in flags else BARE
    bare = bare.replace("-fno-pic -no-pie", "") if "pie" in flags else bare
    path = compile_c(tmp_path, PROGRAM, flags, bare=bare)
    whole = load(path)
    if stripped:
        run("strip", path)
    image = load(path)
    if stripped and style.endswith("-mnop-mcount"):
        # Only what something calls is known to be a function; main is entered by a jump.
        assert 2 <= len(image.call_sites) <= len(whole.call_sites)
        return
    assert image.sites.style == style
    assert image.sites.before_frame is before
    assert image.call_sites.tolist() == whole.call_sites.tolist()
    assert functions_of(whole, whole.call_sites.tolist()) == {"main", "middle", "leaf"}
    assert len(whole.call_sites) == 3
    if stripped:
        assert {f.name for f in image.functions} == {f"{f.address:#x}" for f in image.functions}
        assert len(image.functions) == 3


@pytest.mark.parametrize("flags", ["-pg", "-pg -mfentry", "-pg -mfentry -mrecord-mcount"])
def test_the_large_code_model_calls_through_a_register(tmp_path, flags):
    image = load(compile_object(tmp_path, PROGRAM, f"-mcmodel=large {flags}"))
    assert image.sites.style == flags
    assert functions_of(image, image.call_sites.tolist()) == {"main", "middle", "leaf"}
    assert {call.size for call in image.sites.calls} == {13}


def test_an_mcount_that_the_linker_left_undefined_is_ours(tmp_path):
    start = 'asm(".globl _start\\n_start: jmp main");'
    weak = "extern int nowhere(int) __attribute__((weak));"
    source = weak + PROGRAM.replace("+ leaf(1)", "+ leaf(1) + (nowhere ? nowhere(1) : 0)")
    flags = "-pg -Wl,--unresolved-symbols=ignore-all"
    image = load(compile_c(tmp_path, source, flags, start=start))
    assert image.sites.style == "-pg"
    assert functions_of(image, image.call_sites.tolist()) == {"main", "middle", "leaf"}
    assert len(image.call_sites) == 3


def test_too_few_nops_are_left_alone_and_told(tmp_path):
    image = load(compile_c(tmp_path, PROGRAM, "-fpatchable-function-entry=3"))
    assert not image.sites.calls
    assert {image.function_at(i.address).name for i in image.sites.ignored} == {
        "main",
        "middle",
        "leaf",
    }
    assert {i.reason for i in image.sites.ignored} == {
        "3 bytes of nops at its entry; a call takes 5"
    }


def test_nops_that_are_all_in_front_of_the_function_hold_no_call(tmp_path):
    image = load(compile_c(tmp_path, PROGRAM, "-fpatchable-function-entry=5,5"))
    assert not image.sites.calls
    assert len(image.sites.ignored) == 3


def test_calls_that_the_table_does_not_list_are_sites_too(tmp_path):
    listed = compile_object(
        tmp_path, "int main(void); int a(void) { return main(); }", "-pg -mrecord-mcount"
    )
    other = compile_object(tmp_path, "int a(void); int main(void) { return (int)(long)a; }", "-pg")
    run("ld", "-r", "-o", tmp_path / "both.o", listed, other)
    image = load(tmp_path / "both.o")
    assert functions_of(image, image.table_sites.tolist()) == {"a"}
    assert functions_of(image, image.sites.unlisted) == {"main"}
    assert functions_of(image, image.call_sites.tolist()) == {"a", "main"}


def test_two_kinds_of_calls_in_one_image_are_refused(tmp_path):
    one = compile_object(tmp_path, "int main(void) { return 1; }", "-pg")
    other = compile_object(tmp_path, "int a(void) { return 2; }", "-pg -mfentry")
    run("ld", "-r", "-o", tmp_path / "both.o", one, other)
    with pytest.raises(
        ImageError, match=r"calls both mcount \(at main\+0x4\) and __fentry__ \(at a\)"
    ):
        load(tmp_path / "both.o")


def test_an_image_without_call_sites_can_be_looked_at(tmp_path):
    image = load(compile_c(tmp_path, PROGRAM, "-O1"))
    assert image.mcount is None
    assert not image.sites.style
    assert {"main", "middle", "leaf"} <= {f.name for f in image.functions}
    assert not len(image.call_sites)


DELAY = """
int delay(int n)
{ do { __asm__ volatile("nop\\nnop\\nnop\\nnop\\nnop"); } while (--n); return 7; }
"""


@pytest.mark.parametrize("rest", ["", "int main(void) { return delay(3); }"])
@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
def test_nops_of_the_programs_own_are_no_part_of_a_site(tmp_path, rest, stripped):
    """The loop goes back to behind the two nops that gcc was told to make."""
    start = START if rest else START.replace("jmp main", "jmp delay")
    flags = "-Os -fpatchable-function-entry=2"
    path = compile_c(tmp_path, DELAY + rest, flags, start=start)
    if stripped:
        run("strip", path)
    image = load(path)
    assert not len(image.call_sites)
    assert {ignored.reason.split()[0] for ignored in image.sites.ignored} == {"2"}


def test_own_nops_behind_enough_of_the_compilers_are_kept(tmp_path):
    path = compile_c(
        tmp_path, DELAY + "int main(void) { return delay(3); }", "-Os -fpatchable-function-entry=6"
    )
    image = load(path)
    assert image.sites.style == "-fpatchable-function-entry=6"
    assert functions_of(image, image.call_sites.tolist()) == {"main", "delay"}
    assert {call.size for call in image.sites.calls} == {5}


@pytest.mark.parametrize("flags", ["-pg -mrecord-mcount", "-pg -mfentry -mrecord-mcount"])
def test_a_stripped_images_table_says_which_calls_to_0_are_sites(tmp_path, flags):
    """ld was told that mcount is 0; nothing calls ``far``, which is not aligned either."""
    source = (
        PROGRAM
        + "__attribute__((aligned(1))) int far(int x) { return x + g; } int (*p)(int) = far;"
    )
    start = START.replace(".globl mcount, __fentry__, _start", ".globl _start").replace(
        "mcount: __fentry__: ret\\n", ""
    )
    zero = "-Wl,--defsym=mcount=0 -Wl,--defsym=__fentry__=0 -O2"
    path = compile_c(tmp_path, source, f"{flags} {zero}", start=start)
    run("strip", path)
    image = load(path)
    words = table_of(path, "__mcount_loc")
    listed = {int.from_bytes(words[at : at + 8], "little") for at in range(0, len(words), 8)} - {0}
    assert len(listed) == 4
    assert set(image.call_sites.tolist()) == listed
    assert image.sites.before_frame is ("-mfentry" in flags)
