"""ELF files that are damaged or ask for the impossible: one line, and nothing of it is believed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynftrace_emu.errors import DynftraceError, ImageError
from dynftrace_emu.kernel.elf.image import load_elf
from dynftrace_emu.kernel.elf.start import plan_start
from tests.elf_builds import STYLES, compile_c, run
from tests.kernel.elf_mutations import Damage, damages

E_TYPE, E_MACHINE, E_ENTRY, E_PHOFF, E_SHOFF = (16, "H"), (18, "H"), (24, "Q"), (32, "Q"), (40, "Q")
E_PHENTSIZE, E_PHNUM, E_SHENTSIZE, E_SHNUM, E_SHSTRNDX = (
    (54, "H"),
    (56, "H"),
    (58, "H"),
    (60, "H"),
    (62, "H"),
)
P_TYPE, P_FLAGS, P_OFFSET, P_VADDR, P_FILESZ, P_MEMSZ = (
    (0, "I"),
    (4, "I"),
    (8, "Q"),
    (16, "Q"),
    (32, "Q"),
    (40, "Q"),
)
SH_NAME, SH_TYPE, SH_FLAGS, SH_ADDR, SH_OFFSET, SH_SIZE, SH_LINK, SH_ALIGN = (
    (0, "I"), (4, "I"), (8, "Q"), (16, "Q"), (24, "Q"), (32, "Q"), (40, "I"), (48, "Q"),
)  # fmt: skip
PT_LOAD = 1


class Patched:
    """A file whose fields can be set by name."""

    def __init__(self, data):
        self.data = bytearray(data)

    def get(self, place, base=0):
        return struct.unpack_from(f"<{place[1]}", self.data, base + place[0])[0]

    def set(self, place, value, base=0):
        struct.pack_into(f"<{place[1]}", self.data, base + place[0], value)
        return self

    def loads(self):
        """Where the PT_LOAD headers are."""
        headers = (self.get(E_PHOFF) + 56 * n for n in range(self.get(E_PHNUM)))
        return [at for at in headers if self.get(P_TYPE, at) == PT_LOAD]

    def section(self, name):
        """Where the header of a section is."""
        first = self.get(E_SHOFF)
        strings = self.get(SH_OFFSET, first + 64 * self.get(E_SHSTRNDX))
        for number in range(self.get(E_SHNUM)):
            at = first + 64 * number
            start = strings + self.get(SH_NAME, at)
            if self.data[start : self.data.index(0, start)].decode() == name:
                return at
        raise AssertionError(name)

    def entry_of_table(self, name, number, value):
        """Change what a table of addresses lists."""
        offset = self.get(SH_OFFSET, self.section(name)) + 8 * number
        struct.pack_into("<Q", self.data, offset, value)
        return self


def refusal(data):
    """What is said of a file that cannot be used."""
    with pytest.raises(ImageError) as caught:
        load_elf(bytes(data), "fw.elf")
    text = str(caught.value)
    assert text.startswith("fw.elf: ")
    assert "\n" not in text
    assert caught.value.exit_code == 2
    return text.removeprefix("fw.elf: ")


@pytest.fixture
def good(samples):
    return Patched((samples / "sample-record.elf").read_bytes())


@pytest.fixture
def patchable(samples):
    return Patched((samples / "sample-patchable.elf").read_bytes())


@pytest.fixture
def linked(samples):
    return Patched((samples / "sample-mcount.o").read_bytes())


def test_what_is_cut_off_is_truncated_wherever(good):
    for kept in (4, 16, 63):
        assert refusal(good.data[:kept]).startswith("truncated: ")
    for kept in (64, 200, 0x1000, 0x1800, len(good.data) - 1):
        text = refusal(good.data[:kept])
        assert "truncated" in text
        assert "beyond" in text or "do not fit" in text


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((4, "B"), 1, "a 32-bit ELF; this is an x86-64 machine (compile with -m64)"),
        ((5, "B"), 2, "a big-endian ELF"),
        (E_MACHINE, 183, "an ELF for machine 183; only x86-64 (62) runs here"),
        (E_MACHINE, 3, "an ELF for machine 3"),
        (E_TYPE, 4, "an ELF of type ET_CORE; executables and relocatable objects run here"),
        (E_TYPE, 0x1234, "an ELF of type 4660"),
        (E_ENTRY, 0x1, "its entry 0x1 is not in executable memory"),
        (E_ENTRY, 1 << 63, "its entry 0x8000000000000000 is not in executable memory"),
        (E_PHNUM, 0, "nothing to load: it has no PT_LOAD segment"),
        (E_PHNUM, 0xFFFE, "truncated: 65534 program headers do not fit in the file"),
        (E_PHOFF, 1 << 62, "program headers do not fit in the file"),
        (E_PHENTSIZE, 32, "program headers of 32 bytes, which should be 56"),
        (E_SHNUM, 0xFE00, "truncated: 65024 section headers do not fit in the file"),
        (E_SHOFF, (1 << 64) - 64, "truncated: the section headers are beyond the end of the file"),
        (E_SHENTSIZE, 0, "section headers of 0 bytes, which should be 64"),
        (E_SHSTRNDX, 0xFFF0, "malformed ELF headers"),
    ],
)
def test_a_header_that_cannot_be_is_named(good, place, value, message):
    assert message in refusal(good.set(place, value).data)


def test_segments_that_overlap_are_named(good):
    one, other = good.loads()[:2]
    good.set(P_VADDR, good.get(P_VADDR, one), other)
    assert "segment 0 and segment 1 overlap at 0x400000" in refusal(good.data)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (P_MEMSZ, 1 << 50, "takes 0x4000000000000 bytes of memory; 1024 MiB at most"),
        (P_MEMSZ, (1 << 64) - 1, "bytes of memory; 1024 MiB at most"),
        (P_MEMSZ, 1, "bytes in the file and 0x1 in memory"),
        (P_FILESZ, 1 << 40, "bytes in the file and"),
        (P_OFFSET, 1 << 40, "truncated: segment"),
        (P_VADDR, 1 << 50, "is outside the 48-bit address space"),
        (P_VADDR, (1 << 64) - 16, "is outside the 48-bit address space"),
        (P_VADDR, 0x7FFF_FFFF_FF00, "is outside the 48-bit address space"),
    ],
)
def test_a_segment_that_cannot_be_is_named(good, place, value, message):
    assert message in refusal(good.set(place, value, good.loads()[1]).data)


def test_many_large_segments_are_too_much_together(good):
    for number, header in enumerate(good.loads()):
        good.set(P_MEMSZ, 600 << 20, header).set(P_VADDR, 0x1000_0000 + (number << 30), header)
    assert "1024 MiB at most" in refusal(good.set(E_ENTRY, 0).data)


def test_text_too_far_from_where_a_call_reaches_is_refused(good):
    for header in good.loads():
        good.set(P_VADDR, good.get(P_VADDR, header) + (1 << 40), header)
    good.set(E_ENTRY, 0).set(E_SHOFF, 0).set(E_SHNUM, 0)
    assert "is not within the lowest or the highest 2 GiB" in refusal(good.data)


def test_nothing_executable_is_no_program(good):
    for header in good.loads():
        good.set(P_FLAGS, 6, header)
    good.set(E_ENTRY, 0).set(E_SHOFF, 0).set(E_SHNUM, 0)
    assert "nothing in it can be executed" in refusal(good.data)


def test_a_table_that_points_outside_the_text_is_refused(good, patchable):
    for file, name in ((good, "__mcount_loc"), (patchable, "__patchable_function_entries")):
        file.entry_of_table(name, 2, 0xDEAD_0000)
        text = refusal(file.data)
        assert name in text
        assert "points to 0xdead0000, outside the text" in text


def test_a_table_that_points_into_an_instruction_is_refused(good, patchable):
    """Into the call itself, behind it, and into single nops is no instruction's middle."""
    image = load_elf(bytes(good.data), "fw.elf")
    site = int(image.call_sites[0])
    for offset in (1, 3):
        text = refusal(Patched(good.data).entry_of_table("__mcount_loc", 0, site + offset).data)
        assert "of __mcount_loc points into the middle of `call " in text
    text = refusal(Patched(good.data).entry_of_table("__mcount_loc", 0, site + 5).data)
    assert "it should be a call to mcount or a 5-byte nop" in text
    entry = load_elf(bytes(patchable.data), "fw.elf").symbols["main"].address
    text = refusal(patchable.entry_of_table("__patchable_function_entries", 0, entry + 7).data)
    assert "of __patchable_function_entries points" in text


def test_a_table_that_is_no_table_is_refused(good):
    header = good.section("__mcount_loc")
    size = good.get(SH_SIZE, header)
    assert "__mcount_loc is no table" in refusal(
        Patched(good.data).set(SH_SIZE, size - 3, header).data
    )
    assert "__mcount_loc is no table" in refusal(Patched(good.data).set(SH_ADDR, 0x10, header).data)


def test_sections_that_are_absurd_are_refused(good, linked):
    assert "truncated: section" in refusal(good.set(SH_SIZE, 1 << 60, good.section(".text")).data)
    header = linked.section(".bss")
    assert "1024 MiB at most" in refusal(Patched(linked.data).set(SH_SIZE, 1 << 40, header).data)
    assert "wants an alignment of 0x3" in refusal(
        Patched(linked.data).set(SH_ALIGN, 3, header).data
    )
    assert "wants an alignment" in refusal(Patched(linked.data).set(SH_ALIGN, 1 << 63, header).data)


def test_sections_that_refer_to_each_other_in_a_circle_are_refused(good):
    table = good.section(".symtab")
    number = (table - good.get(E_SHOFF)) // 64
    text = refusal(good.set(SH_LINK, number, table).data)
    assert "string table" in text


def test_text_sections_that_overlap_are_refused(good):
    header = good.section(".rodata")
    good.set(SH_FLAGS, 6, header).set(SH_ADDR, good.get(SH_ADDR, good.section(".text")), header)
    assert "overlap" in refusal(good.data)


def test_a_dynamic_executable_is_refused(tmp_path):
    path = compile_c(tmp_path, "int main(void) { return 0; }", "", bare="-O1", start="")
    assert "dynamically linked" in refusal(path.read_bytes())


def test_an_object_without_text_is_refused(tmp_path):
    (tmp_path / "data.c").write_text("int x = 1;")
    run("gcc", "-c", "-o", tmp_path / "data.o", tmp_path / "data.c")
    assert "without a text section" in refusal((tmp_path / "data.o").read_bytes())


def test_one_writable_and_executable_segment_is_loaded_part_by_part(tmp_path):
    """What ld -N and many linker scripts make."""
    source = "int x = 5; int main(void) { x++; return x; }"
    image = load_elf(compile_c(tmp_path, source, "-pg -Wl,-N").read_bytes(), "fw.elf")
    assert len(image.call_sites) == 1
    kinds = {(s.writable, s.executable) for s in image.segments if s.name.startswith("image ")}
    assert (True, True) in kinds or (False, True) in kinds


# --- fuzzing ---


def fuzz_bases(samples):
    return [
        path.read_bytes()
        for style in STYLES
        for path in (samples / f"sample-{style}.elf", samples / f"sample-{style}.o")
    ]


def load_damaged(data):
    """Load and look at it, as ``run`` would: that works, or it is refused in one line."""
    try:
        image = load_elf(data, "fw.elf")
        plan_start(image)
        image.scan.halts.sort()
    except DynftraceError as error:
        refused = str(error), error.exit_code
    else:
        return
    assert "\n" not in refused[0]
    assert refused[1] == 2


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(which=st.integers(0, 9), damage=damages())
def test_damage_is_refused_in_one_line_or_does_not_matter(samples, which, damage):
    load_damaged(damage.apply(fuzz_bases(samples)[which]))


@pytest.mark.parametrize(
    ("which", "damage"),
    [
        # A symbol's value so large that with the bias it is beyond 64 bits.
        (10, Damage(((47709, 7431199088019823554), (14184, 162), (14043, (1 << 64) - 8)))),
    ],
)
def test_what_fuzzing_found_stays_fixed(samples, tmp_path, which, damage):
    bases = fuzz_bases(samples)
    if which == 10:
        pie = compile_c(
            tmp_path,
            "int f(int x) { return x; } int main(void) { return f(1); }",
            "-static-pie -fPIE -pg",
            bare="-O1 -ffreestanding -nostdlib",
        )
        bases.append(pie.read_bytes())
    load_damaged(damage.apply(bases[which]))


def test_a_constructor_outside_the_text_is_refused(tmp_path):
    source = """
    __attribute__((section(".init_array"), used)) static void *made[] = {(void *)0x10};
    int main(void) { return 1; }
    """
    path = compile_c(tmp_path, source, "-pg")
    with pytest.raises(
        ImageError, match=r"entry 0 of \.init_array points to 0x10, outside the text"
    ):
        load_elf(path.read_bytes(), path.name)
