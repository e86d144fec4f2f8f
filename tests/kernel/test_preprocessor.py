"""What is expanded before Keystone sees the text: seen in the bytes that come out of it."""

import pytest

from dynftrace_emu.errors import AssemblyError
from dynftrace_emu.kernel.assembler import assemble

BASE = 0xFFFF_FFFF_8100_0000
FILES = {
    "nine.inc": ".byte 9\n",
    "data.inc": ".data\n.byte 7\n",
    "outer.inc": '.include "nine.inc"\n.byte 8\n',
    "bad.inc": "nop\n\nbogus\n",
    "macro.inc": ".macro NINE\n.byte 9\n.endm\n",
}


def read(name):
    if name not in FILES:
        raise FileNotFoundError(2, "No such file or directory")
    return FILES[name]


def unit(*texts, defines=(), constants=None, percpu_base=0):
    sources = [(f"{'abc'[n]}.S", text) for n, text in enumerate(texts)]
    return assemble(
        sources, BASE, constants=constants or {}, defines=defines, read=read,
        percpu_base=percpu_base,
    )  # fmt: skip


def section(assembled, name=".text"):
    return next(s.data for s in assembled.sections if s.name == name)


def text(*texts, **options):
    """The bytes of .text up to the filler."""
    return list(section(unit(*texts, **options)).rstrip(b"\xcc"))


# --- comments and statements ---


def test_comments_end_nowhere_but_where_they_should():
    assert text("""
    .byte 1         # .byte 2
    .byte 3         // .byte 4
    /* .byte 5 */ .byte 6 /* .byte 7
    .byte 8
    */ .byte 9
    # .byte 10 /* no comment begins here
    .byte 11
    """) == [1, 3, 6, 9, 11]  # fmt: skip


def test_quotes_hide_comments_and_separators():
    assert bytes(text(".ascii \"a#b//c/*d;e\\\"f\" ; .byte '#', ';'")) == b'a#b//c/*d;e"f#;'


def test_a_comment_of_several_lines_does_not_shift_line_numbers():
    with pytest.raises(AssemblyError, match=r"^a\.S:4: "):
        unit("nop /* one\ntwo\nthree */ nop\nbogus\n")


def test_semicolons_separate_statements():
    assert text(".byte 1; .byte 2 ;; .byte 3;") == [1, 2, 3]


# --- macros ---


def test_macro_arguments_and_defaults():
    assert text("""
    .macro M a, b=2, c=3
    .byte \\a, \\b, \\c
    .endm
    M 1
    M 4, 5
    M 6, 7, 8
    """) == [1, 2, 3, 4, 5, 3, 6, 7, 8]  # fmt: skip


def test_an_argument_may_hold_commas_in_brackets_and_quotes():
    assert bytes(text("""
    .macro M a, b
    .ascii \\a
    .byte \\b
    .endm
    M "x, y", (1 + 2)
    """)) == b"x, y\x03"  # fmt: skip


def test_unique_numbers_keep_the_labels_of_two_expansions_apart():
    """Each loop jumps to itself, two bytes long."""
    assert text("""
    .macro LOOP
    .Lloop\\@:
    jmp .Lloop\\@
    .endm
    LOOP
    LOOP
    """) == [0xEB, 0xFE, 0xEB, 0xFE]  # fmt: skip


def test_an_argument_is_joined_to_what_follows_it():
    found = unit("""
    .macro MAKE name
    \\name\\()_begin:
    .byte 1
    \\name\\()_end:
    .endm
    MAKE x
    """)
    assert {name: s.address - BASE for name, s in found.symbols.items()} == {
        "x_begin": 0,
        "x_end": 1,
    }


def test_macros_use_macros_and_sources_share_them():
    assert text(
        ".macro ONE n\n.byte \\n\n.endm\n.macro TWO n\nONE \\n\nONE \\n + 1\n.endm", "TWO 5"
    ) == [5, 6]


def test_a_macro_may_define_a_macro():
    assert text(".macro OUTER\n.macro INNER\n.byte 3\n.endm\n.endm\nOUTER\nINNER") == [3]


def test_functions_that_a_macro_declares_are_functions_at_the_place_of_its_use():
    found = unit("""
    .macro FUNC name
        .type \\name, @function
    \\name:
        nop
        nop
        .size \\name, . - \\name
    .endm
    FUNC first

    FUNC second
    """)
    first, second = found.symbols["first"], found.symbols["second"]
    assert (first.is_function, first.size, first.file, first.line) == (True, 2, "a.S", 9)
    assert (second.address - first.address, second.line) == (2, 11)


# --- repetition ---


def test_rept_counts_with_known_names():
    assert text(".set N, 2\n.rept N * 2 - K\n.byte 1\n.endr", constants={"K": 1}) == [1, 1, 1]
    assert text(".rept 0\n.byte 1\n.endr\n.byte 2") == [2]


def test_irp_takes_each_value():
    assert text(".irp n, 1, 2, 3\n.byte \\n, \\n * 10\n.endr") == [1, 10, 2, 20, 3, 30]


def test_repetitions_nest():
    assert text("""
    .irp a, 1, 2
    .rept 2
    .irp b, 10, 20
    .byte \\a + \\b
    .endr
    .endr
    .endr
    """) == [11, 21, 11, 21, 12, 22, 12, 22]  # fmt: skip


# --- conditions ---


@pytest.mark.parametrize("a", [False, True])
@pytest.mark.parametrize("b", [False, True])
def test_conditions_nest(a, b):
    defines = [name for name, there in (("A", a), ("B", b)) if there]
    expected = [1, 2 if b else 3, 4] if a else [5] + ([6] if not b else [])
    assert text("""
    .ifdef A
    .byte 1
    .ifdef B
    .byte 2
    .else
    .byte 3
    .endif
    .byte 4
    .else
    .byte 5
    .ifndef B
    .byte 6
    .endif
    .endif
    """, defines=defines) == expected  # fmt: skip


def test_what_a_condition_leaves_out_is_not_even_looked_at():
    assert text('.ifdef NO\nbogus\n.include "missing.inc"\n.endif\n.byte 1') == [1]


def test_a_macro_looks_at_the_condition_when_it_is_used():
    macro = ".macro M\n.ifdef A\n.byte 1\n.else\n.byte 2\n.endif\n.endm\nM"
    assert text(macro, defines=["A"]) == [1]
    assert text(macro) == [2]


# --- labels ---


def test_a_numeric_label_is_the_nearest_of_its_name():
    assert text("""
    1:  jmp 1f
    1:  jmp 1b
        jmp 2f
    1:  jmp 1b
    2:
    """) == [0xEB, 0, 0xEB, 0xFE, 0xEB, 2, 0xEB, 0xFE]  # fmt: skip


def test_numbers_that_look_like_label_references_are_numbers():
    assert text(".byte 0x1f, 0x2b\nmov eax, 0x1f\n1: nop") == [
        0x1F, 0x2B, 0xB8, 0x1F, 0, 0, 0, 0x90,
    ]  # fmt: skip


def test_local_labels_are_no_symbols():
    found = unit("one: nop\n.Ltwo: jmp .Ltwo\n3: lea rax, [rip + .Ltwo]")
    assert set(found.symbols) == {"one"}


def test_labels_may_stand_in_front_of_statements_and_of_each_other():
    found = unit("a: b: .byte 1\nc: .byte 2")
    assert {n: s.address - BASE for n, s in found.symbols.items()} == {"a": 0, "b": 0, "c": 1}


# --- sections ---


def test_sections_collect_what_all_sources_put_there():
    found = unit(
        ".byte 1\n.data\n.byte 2\n.section .rodata\n.byte 3\n.text\n.byte 4",
        '.byte 5\n.section table, "aw"\n.byte 6\n.data\n.byte 7',
    )
    assert section(found).rstrip(b"\xcc") == bytes([1, 4, 5])
    assert section(found, ".data").rstrip(b"\0") == bytes([2, 7])
    assert section(found, ".rodata").rstrip(b"\0") == bytes([3])
    assert section(found, "table").rstrip(b"\0") == bytes([6])


def test_sections_follow_each_other_in_whole_pages():
    found = unit(
        ".data\n.byte 1\n.section .rodata\n.skip 5000\n.text\nnop\n.section .init.text\nnop"
    )
    assert [s.name for s in found.sections] == [".text", ".init.text", ".rodata", ".data"]
    address = BASE
    for one in found.sections:
        assert (one.address, len(one.data) % 4096) == (address, 0)
        address += len(one.data)
    assert section(found)[1:] == b"\xcc" * 4095
    assert len(section(found, ".rodata")) == 8192


def test_a_table_knows_where_it_begins_and_ends():
    found = unit("""
    .section table
    .quad 1, 2, 3
    .data
    bounds: .quad __start_table, __stop_table
    """)
    table = next(s for s in found.sections if s.name == "table")
    start, stop = (int.from_bytes(section(found, ".data")[n : n + 8], "little") for n in (0, 8))
    assert (start, stop) == (table.address, table.address + 24)


def test_an_include_is_read_once_and_leaves_the_section_alone():
    assert text('.include "nine.inc"\n.include "nine.inc"\n.byte 1', '.include "nine.inc"') == [
        9,
        1,
    ]
    assert text('.include "data.inc"\n.byte 1') == [1]
    assert text('.include "outer.inc"') == [9, 8]


# --- per-CPU variables and constants ---


def test_per_cpu_variables_lie_behind_what_the_host_shares():
    found = unit(
        ".percpu a, 8\n.percpu b, 3\n.percpu c, N * 2\nmov rcx, gs:[c]",
        constants={"N": 12},
        percpu_base=0xB0,
    )
    assert found.percpu == {"a": 0xB0, "b": 0xB8, "c": 0xC0}
    assert found.percpu_size == 0xB0 + 8 + 8 + 24
    load = bytes([0x65, 0x48, 0x8B, 0x0C, 0x25, 0xC0, 0, 0, 0])
    assert section(found).startswith(load)


def test_set_names_a_number_for_expressions_and_operands():
    assert text(".set A, 3\n.set B, A * 4 - 1\n.byte A, B, B + 1") == [3, 11, 12]


def test_a_name_is_not_replaced_inside_another():
    found = unit(".set A, 3\nxA: nop\nA.b: nop\n.quad xA\n.byte A")
    assert section(found)[2:11] == BASE.to_bytes(8, "little") + b"\x03"


# --- errors ---

BAD = {
    "unknown mnemonic": ("nop\nbogus rax", "a.S:2: .*bogus rax"),
    "undefined in a call": ("nop\n\ncall nowhere", "a.S:3: undefined symbol nowhere"),
    "undefined in memory": ("mov rax, [rip + nowhere + 8]", "a.S:1: undefined symbol nowhere"),
    "undefined in data": (".data\n.quad nowhere", "a.S:2: undefined symbol nowhere"),
    "undefined at GS": ("mov rax, gs:[nowhere]", "a.S:1: undefined symbol nowhere"),
    "unbalanced bracket": ("nop\nmov rax, [rbx", "a.S:2: unbalanced brackets"),
    "unbalanced the other way": ("mov rax, rbx]", "a.S:1: unbalanced brackets"),
    "missing operand": ("mov rax,", "a.S:1: .*missing operand"),
    "label twice": ("x: nop\nnop\nx: nop", "a.S:3: x is defined already, at a.S:1"),
    "macro without end": ("nop\n.macro M\nnop", "a.S:2: .macro without .endm"),
    "rept without end": (".rept 3\nnop", "a.S:1: .rept without .endr"),
    "if without end": ("nop\n.ifdef A\nnop", "a.S:2: .ifdef without .endif"),
    "end without macro": ("nop\n.endm", "a.S:2: .endm without"),
    "else without if": (".else", "a.S:1: .else without"),
    "recursion": (".macro M\nM\n.endm\nnop\nM", "a.S:5: .*nest too deeply"),
    "mutual recursion": (".macro A\nB\n.endm\n.macro B\nA\n.endm\nB", "a.S:7: .*nest too deeply"),
    "too many arguments": (".macro M a\nnop\n.endm\nM 1, 2", "a.S:4: too many arguments"),
    "inside a macro": (".macro M\nnop\nbogus\n.endm\n\nM", "a.S:6: .*bogus"),
    "inside an include": ('nop\n.include "bad.inc"', "bad.inc:3: .*bogus"),
    "no such include": (
        'nop\n.include "missing.inc"',
        "a.S:2: cannot include missing.inc: No such",
    ),
    "repetition of no number": (".rept x\nnop\n.endr", "a.S:1: not a number: 'x'"),
    "two values": (".set A, 1\n.set A, 2", "a.S:2: A is 0x1 already"),
    "per-CPU twice": (".percpu a, 8\n.percpu a, 8", "a.S:2: .*a is declared twice"),
    "per-CPU without size": (".percpu a", "a.S:1: .percpu NAME, SIZE expected"),
    "no such numeric label": ("nop\njmp 1f", "a.S:2: undefined symbol"),
    "operand sizes differ": ("nop\nmov eax, rbx", "a.S:2: .*mov eax, rbx"),
    "unknown directive": ("nop\n.foo 1", "a.S:2: .*.foo 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_error_says_where_and_what(case):
    source, message = BAD[case]
    with pytest.raises(AssemblyError, match="^" + message):
        unit(source)


def test_an_error_names_the_source_it_is_in():
    with pytest.raises(AssemblyError, match=r"^b\.S:2: .*bogus"):
        unit("nop", "nop\nbogus")


SWALLOWED = ["mov rax, 0x1ffffffffffffffff", "add rax, $5", "mov rax, qword ptr", ".skip nowhere"]


@pytest.mark.parametrize("statement", SWALLOWED)
def test_a_statement_that_keystone_drops_without_a_word_is_an_error(statement):
    with pytest.raises(AssemblyError, match=r"^a\.S:2: "):
        unit(f"nop\n{statement}\nnop")


def test_a_symbol_named_like_a_register_is_an_error_where_it_would_be_lost():
    """Keystone writes the displacement 0 for it."""
    with pytest.raises(AssemblyError, match=r"^a\.S:\d: .*cr2"):
        unit("nop\nmov [rip + cr2], rax\n.data\ncr2: .quad 0")


def test_a_statement_only_keystone_knows_to_be_wrong_still_has_its_line():
    with pytest.raises(AssemblyError, match=r"^a\.S:2: "):
        unit("nop\nmov eax, dword [rbx]\nnop")
