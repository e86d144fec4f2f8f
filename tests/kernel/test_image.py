"""What is known of an image, against its raw bytes and its sources."""

import itertools
import re

import numpy as np
import pytest

from dynftrace_emu.errors import ImageError, OptionError
from dynftrace_emu.kernel.image import FIRMWARE, LINK_ADDRESS, KernelImage
from dynftrace_emu.kernel.mini_kernel import load_image, mini_kernel, workloads
from tests.machine.guests import image_of

PROLOGUE = bytes.fromhex("55 48 89 e5")  # push rbp; mov rbp, rsp

TRACED = """
.include "arch/mcount.S"
FUNC traced
        nop
        RETURN
END traced
FUNC_NOTRACE untraced
        call traced
        RETURN
END untraced
ENTRY startup_64
        call traced
        mov rax, 0x00e8000000e8
        hlt
END startup_64
FUNC decoy
        mov eax, 0xfffffbe8     # holds the byte of a call
        iretq
        lock inc qword ptr [rip + ftrace_ready]
        out PORT_SAFEPOINT, al
        hlt
        RETURN
END decoy
"""


def text_of(image):
    return next(s for s in image.segments if s.name == ".text")


def every_call_to_mcount(image):
    """By the bytes alone: each e8 whose displacement leads to mcount."""
    text, found = text_of(image), []
    for match in re.finditer(rb"(?=\xe8(.{4}))", text.data, re.DOTALL):
        at = text.address + match.start()
        if at + 5 + int.from_bytes(match[1], "little", signed=True) == image.mcount:
            found.append(at)
    return found


def every_prologue(image):
    text = text_of(image)
    return {
        text.address + at
        for at in range(0, len(text.data), 16)
        if text.data.startswith(PROLOGUE, at)
    }


def code_at(image, address, size):
    text = text_of(image)
    return text.data[address - text.address : address - text.address + size]


def test_call_sites_are_all_calls_to_mcount_there_are(dynamic):
    assert dynamic.call_sites.dtype == np.uint64
    assert dynamic.call_sites.tolist() == every_call_to_mcount(dynamic)


def test_each_call_site_stands_behind_the_prologue_of_a_function_of_its_own(dynamic):
    starts = {function.address for function in dynamic.functions}
    begins = [site - 4 for site in dynamic.call_sites.tolist()]
    assert set(begins) <= starts & every_prologue(dynamic)
    assert len(set(begins)) == len(begins) >= 200


def test_functions_are_what_the_sources_declare(dynamic):
    """FUNC, FUNC_NOTRACE and ENTRY at a line's start declare one; macros declare the others."""
    kinds = {}
    others = {
        path for name in ("synthetic", "explore", "runtime") for path in FIRMWARE.glob(f"{name}/*")
    }
    for path in set(FIRMWARE.glob("*/*.S")) - others:
        for kind, name in re.findall(r"^(FUNC_NOTRACE|FUNC|ENTRY) (\w+)$", path.read_text(), re.M):
            kinds.setdefault(kind, set()).add(name)
    functions = {function.name for function in dynamic.functions}
    untraced = {function.name for function in dynamic.notrace}
    frameless = kinds["FUNC_NOTRACE"] | kinds["ENTRY"]
    assert kinds["FUNC"] | frameless <= functions
    assert len(kinds["FUNC"]) >= 80  # written by hand
    assert untraced == frameless
    assert len(functions) == len(dynamic.functions) == len(untraced) + len(dynamic.call_sites)
    framed = {dynamic.address(name) for name in functions - kinds["ENTRY"]}
    assert framed <= every_prologue(dynamic)


def test_functions_are_in_order_and_do_not_overlap(dynamic):
    ends = [(f.address, f.address + f.size) for f in dynamic.functions]
    for (_, end), (start, _) in itertools.pairwise(ends):
        assert end <= start
    assert all(start < end for start, end in ends)


def test_what_an_nmi_may_reach_is_notrace(dynamic):
    untraced = {function.name for function in dynamic.notrace}
    assert {"nmi", "do_nmi", "default_do_nmi", "nmi_watchdog_tick", "mcount"} <= untraced


def test_the_variants_differ_by_their_calls_alone(images):
    assert len(images["none"].call_sites) == 0
    assert not every_call_to_mcount(images["none"])
    assert images["dynamic"].call_sites.tolist() == images["static"].call_sites.tolist()
    assert text_of(images["dynamic"]) == text_of(images["static"])
    names = [[f.name for f in image.functions] for image in images.values()]
    assert names[0] == names[1] == names[2]
    assert len({image.sha256 for image in images.values()}) == 3
    sizes = {f.name: f.size for f in images["none"].functions}
    traced = {images["dynamic"].function_at(s).name for s in images["dynamic"].call_sites.tolist()}
    shrunk = {f.name for f in images["dynamic"].functions if f.size > sizes[f.name]}
    assert traced <= shrunk


def test_the_recorder_is_configured_in_the_dynamic_variant_alone(images):
    for variant, image in images.items():
        data = next(s for s in image.segments if s.name == ".data")
        at = image.address("ftrace_initial_function") - data.address
        first = int.from_bytes(data.data[at : at + 8], "little")
        recorder = "ftrace_record_ip" if variant == "dynamic" else "ftrace_stub"
        assert first == image.address(recorder)


def test_a_small_image_is_counted_by_hand():
    image = KernelImage.from_assembly('.include "linkage.inc"\n' + TRACED)
    mine = {"traced", "decoy", "ftrace_dynamic_init"}
    sites = {image.function_at(site).name for site in image.call_sites.tolist()}
    assert sites == mine
    assert mine.isdisjoint(function.name for function in image.notrace)
    assert {"untraced", "startup_64", "mcount"} <= {f.name for f in image.notrace}
    decoy = image.address("decoy")
    assert code_at(image, image.scan.irets[0], 2) == b"\x48\xcf"
    assert code_at(image, image.scan.locked[0], 1) == b"\xf0"
    assert code_at(image, image.scan.safepoints[0], 2) == b"\xe6\xf1"
    assert [image.function_at(at).name for at in image.scan.halts] == ["startup_64", "decoy"]
    assert decoy + 9 + 5 == image.scan.irets[0]


def test_the_scan_finds_what_the_machine_must_know_of(dynamic):
    """Every byte pattern of the text that is such an instruction stands in the lists."""
    scan, text = dynamic.scan, text_of(dynamic)
    irets = {text.address + m.start() for m in re.finditer(rb"\x48\xcf", text.data)}
    halts = {text.address + m.start() for m in re.finditer(rb"\xf4", text.data)}
    assert set(scan.irets) == irets
    assert set(scan.halts) <= halts
    assert {dynamic.function_at(at).name for at in scan.irets} == {"ret_from_intr", "nmi"}
    assert {"default_idle", "cond_resched"} <= {dynamic.function_at(at).name for at in scan.halts}
    assert [dynamic.function_at(at).name for at in scan.safepoints] == ["cond_resched"]
    assert {dynamic.function_at(at).name for at in scan.locked} == {"shared_step", "spin_lock"}


def test_symbols_are_written_as_linux_writes_them():
    image = image_of("ENTRY startup_64\nnop\nnop\nnop\nEND startup_64")
    assert image.entry == LINK_ADDRESS
    assert image.symbolize(LINK_ADDRESS) == "startup_64+0x0/0x3"
    assert image.symbolize(LINK_ADDRESS + 2) == "startup_64+0x2/0x3"
    assert image.symbolize(LINK_ADDRESS + 3) == f"{LINK_ADDRESS + 3:#x}"
    assert image.symbolize(5) == "0x5"
    assert image.function_at(LINK_ADDRESS - 1) is None


def test_a_return_address_is_named_by_its_call_at_the_very_end_of_a_function():
    image = image_of("""
    ENTRY startup_64
        call next
    END startup_64
        .type next, @function
    next:
        ret
        .size next, . - next
    """)
    behind = image.address("next")
    assert behind == LINK_ADDRESS + 5
    assert image.symbolize_return(behind) == "startup_64+0x5/0x5"
    assert image.symbolize(behind) == "next+0x0/0x1"


def test_an_image_needs_an_entry_point():
    with pytest.raises(ImageError, match="no symbol startup_64"):
        image_of("ENTRY somewhere\nnop\nEND somewhere")


def test_an_unknown_symbol_is_an_error(dynamic):
    with pytest.raises(ImageError, match="no symbol nowhere"):
        dynamic.address("nowhere")


def test_the_digest_is_of_what_is_loaded():
    one, same, other = (
        image_of(f"ENTRY startup_64\nmov eax, {n}\nEND startup_64") for n in (1, 1, 2)
    )
    assert one.sha256 == same.sha256 != other.sha256


def test_the_mini_kernel_has_its_workloads(dynamic):
    known = workloads(dynamic)
    assert {"default", "shared", "leaf", "compute"} <= set(known)
    data = {s.name: range(s.address, s.address + len(s.data)) for s in dynamic.segments}
    assert all(address in data[".rodata"] for address in known.values())


def test_functions_of_many_addresses_are_those_of_each(dynamic):
    begin, end = dynamic.text_range
    addresses = np.arange(begin - 16, end + 16, 7, dtype=np.uint64)
    found = dynamic.functions_at(addresses).tolist()
    functions = [None if number < 0 else dynamic.functions[number] for number in found]
    assert functions == [dynamic.function_at(address) for address in addresses.tolist()]
    assert None in functions


# --- finding images ---


def test_a_name_is_a_built_in_image_and_a_path_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini-kernel").write_text(
        '.include "linkage.inc"\nENTRY startup_64\nhlt\nEND startup_64\n'
    )
    assert load_image("mini-kernel").mcount is not None
    assert load_image("./mini-kernel").mcount is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere.S", "no image 'nowhere.S': built in are mini-kernel, mini-kernel-nmi-broken"),
        (".", "is a directory"),
        ("binary", "is not assembly text"),
        ("torn.elf", "torn.elf: truncated: 7 bytes are less than an ELF header"),
    ],
)
def test_an_image_that_cannot_be_had_is_one_clear_line(tmp_path, monkeypatch, argument, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"\x80\xff\xfe\x00")
    (tmp_path / "torn.elf").write_bytes(b"\x7fELF\xff\xfe\x00")
    with pytest.raises(ImageError, match=message) as caught:
        load_image(argument)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_unknown_variant_or_name_is_refused():
    with pytest.raises(OptionError, match="choose from dynamic, static, none"):
        mini_kernel("fast")
    with pytest.raises(ImageError, match="unknown image 'other'"):
        mini_kernel(name="other")
