"""Units of several sections and their symbols, against bytes encoded by hand."""

import subprocess
import sys

import pytest

from dynftrace_emu.errors import AssemblyError
from dynftrace_emu.kernel.assembler import assemble, assemble_bytes

BASE = 0xFFFF_FFFF_8100_0000


def unit(text):
    return assemble([("t.S", text)], BASE, constants={}, defines=(), read=lambda name: "")


def test_symbols_say_where_how_large_and_what_they_are():
    found = unit("""
        nop
    .type f, %function
    f:  nop
        ret
    .size f, . - f
    plain:
        ret
    .data
        .skip 24
    variable:
        .quad f, plain, variable
    """)
    f, plain, variable = (found.symbols[name] for name in ("f", "plain", "variable"))
    assert (f.address, f.size, f.is_function, f.section) == (BASE + 1, 2, True, ".text")
    assert (plain.address, plain.size, plain.is_function) == (BASE + 3, 0, False)
    data = next(s for s in found.sections if s.name == ".data")
    assert (variable.address, variable.section) == (data.address + 24, ".data")
    assert data.data[24:48] == b"".join(
        s.address.to_bytes(8, "little") for s in (f, plain, variable)
    )
    assert (f.file, f.line, variable.line) == ("t.S", 4, 11)


def test_calls_and_references_reach_across_sections():
    found = unit("""
        call init
        mov rax, [rip + word]
    .section .init.text
    init: ret
    .data
    word: .quad 0
    """)
    code = found.sections[0].data
    assert code[0] == 0xE8
    assert int.from_bytes(code[1:5], "little") == found.symbols["init"].address - (BASE + 5)
    assert code[5:8] == b"\x48\x8b\x05"
    assert int.from_bytes(code[8:12], "little") == found.symbols["word"].address - (BASE + 12)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("push rbp\nmov rbp, rsp", "55 48 89 e5"),
        (f"call {BASE + 0x100:#x}", "e8 fb 00 00 00"),
        (f"jmp {BASE + 5:#x}", "eb 03"),
    ],
)
def test_a_few_instructions_as_they_are(text, code):
    assert assemble_bytes(text, BASE) == bytes.fromhex(code)


def test_a_few_wrong_instructions_are_an_error_with_their_line():
    with pytest.raises(AssemblyError, match=r"^<text>:2: .*bogus"):
        assemble_bytes("nop\nbogus", BASE)


def test_a_string_that_does_not_end_is_an_error_and_no_hang():
    """In a process of its own: the assembler would never come back."""
    code = (
        "from dynftrace_emu.kernel.assembler import assemble\n"
        "from dynftrace_emu.errors import AssemblyError\n"
        "try:\n"
        "    assemble([('t.S', 'nop\\n.ascii \"abc\\nnop\\n')], 0x1000, constants={}, defines=(),"
        " read=lambda name: '')\n"
        "except AssemblyError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=4, check=True
    )
    assert done.stdout.startswith("t.S:2: ")
