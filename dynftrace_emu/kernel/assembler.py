"""Assembles sources with Keystone into sections and symbols.

All sources become one Keystone unit, since Keystone neither links nor returns symbols: the sections
follow each other page by page, and a table of ``.quad`` behind the last one tells the addresses.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import keystone

from dynftrace_emu.errors import AssemblyError
from dynftrace_emu.kernel.preprocessor import Preprocessed, Preprocessor, Read
from dynftrace_emu.kernel.statements import LOCAL_PREFIX, Line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "TEXT_SECTIONS",
    "Assembled",
    "AssembledSection",
    "AssembledSymbol",
    "assemble",
    "assemble_bytes",
]

TEXT_SECTIONS = (".text", ".init.text")
PAGE_SHIFT = 12
INT3 = 0xCC
_PREFIXES = {"rep", "repe", "repz", "repne", "repnz", "lock"}
_KEYWORDS = {"ptr", "byte", "word", "dword", "qword", "short"}
_WORD = re.compile(r"(?<![\w.$])[A-Za-z_.$][\w.$]*")


@dataclass(frozen=True, slots=True)
class AssembledSection:
    """A section's bytes at its virtual address."""

    name: str
    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class AssembledSymbol:
    """A label: ``size`` in bytes is 0 unless ``.size`` was given."""

    name: str
    address: int
    size: int
    is_function: bool
    section: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Assembled:
    """One assembled unit."""

    sections: list[AssembledSection]
    symbols: dict[str, AssembledSymbol]
    percpu: dict[str, int]
    percpu_size: int


def assemble(
    sources: Iterable[tuple[str, str]],
    address: int,
    *,
    constants: Mapping[str, int],
    defines: Iterable[str],
    read: Read,
    percpu_base: int = 0,
) -> Assembled:
    """Assemble ``sources`` (pairs of file name and text) at virtual ``address``.

    :raises AssemblyError: ``file:line: what``.
    """
    preprocessor = Preprocessor(read, defines, constants, percpu_base)
    for file, text in sources:
        preprocessor.add(text, file)
    unit = preprocessor.out
    order = sorted(unit.sections, key=_section_rank)
    names = [*unit.labels, *map(_end, sorted(unit.sized)), *map(_start, range(len(order)))]
    table = [_made(f".quad {name}") for name in names]
    numbers = {**constants, **unit.constants, **unit.percpu}
    body = [_substitute(line, numbers) for line in _lay_out(unit, order)]
    code = _keystone([*body, *table], address)
    return _parse(unit, order, names, code, address)


def _substitute(line: Line, numbers: Mapping[str, int]) -> Line:
    """Put numbers in for their names, as cpp does: Keystone wants them known where they stand."""

    def number(match: re.Match[str]) -> str:
        word = match.group()
        return f"{numbers[word]:#x}" if word in numbers else word

    if '"' in line.text or line.text.endswith(":"):
        return line
    return Line(_WORD.sub(number, line.text), line.file, line.number)


def _made(text: str) -> Line:
    return Line(text, "<assembler>", 0)


def _end(function: str) -> str:
    return f"__end_{function}"


def _start(section: int) -> str:
    return f"__section_{section}"


def _section_rank(name: str) -> tuple[int, str]:
    known = (".text", ".init.text", ".rodata", ".data", ".bss")
    return (known.index(name) if name in known else len(known), name)


def _lay_out(unit: Preprocessed, order: list[str]) -> Iterator[Line]:
    for index, section in enumerate(order):
        yield _made(f"{_start(index)}:")
        # As ld does for sections whose name is a C identifier: tables find their own bounds.
        yield _made(f"__start_{section.lstrip('.')}:")
        yield from unit.sections[section]
        yield _made(f"__stop_{section.lstrip('.')}:")
        filler = INT3 if section in TEXT_SECTIONS else 0
        yield _made(f".p2align {PAGE_SHIFT}, {filler:#x}")


def _parse(
    unit: Preprocessed, order: list[str], names: list[str], code: bytes, address: int
) -> Assembled:
    table_at = len(code) - 8 * len(names)
    values = struct.unpack_from(f"<{len(names)}Q", code, table_at)
    where = dict(zip(names, values, strict=True))
    bounds = [*(where[_start(index)] for index in range(len(order))), address + table_at]
    sections = [
        AssembledSection(name, start, code[start - address : end - address])
        for name, start, end in zip(order, bounds, bounds[1:], strict=False)
    ]
    symbols = {
        name: AssembledSymbol(
            name,
            where[name],
            where.get(_end(name), where[name]) - where[name],
            name in unit.functions,
            section,
            line.file,
            line.number,
        )
        for name, (section, line) in unit.labels.items()
        if not name.startswith(LOCAL_PREFIX)
    }
    return Assembled(sections, symbols, unit.percpu, unit.percpu_size)


def assemble_bytes(text: str, address: int) -> bytes:
    """Assemble a few instructions, as they are, at ``address``."""
    return _keystone(
        [Line(one, "<text>", number) for number, one in enumerate(text.splitlines(), 1)], address
    )


def _keystone(lines: list[Line], address: int) -> bytes:
    if not lines:
        return b""
    engine = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
    try:
        code, count = engine.asm("\n".join(line.text for line in lines), address, as_bytes=True)
    except keystone.KsError as error:
        raise _diagnose(lines, str(error)) from None
    # Some statements that it does not understand it drops, without an error.
    if code is None or count != sum(_counts_as(line) for line in lines):
        raise _diagnose(lines, "Keystone has dropped a statement")
    return bytes(code)


def _counts_as(line: Line) -> int:
    """How many statements Keystone counts: a prefix is one of its own."""
    return 2 if line.text.split(None, 1)[0] in _PREFIXES else 1


def _diagnose(lines: list[Line], message: str) -> AssemblyError:
    """Keystone does not say where: find the statement that fails by itself, or an unknown name."""
    known = {line.text[:-1] for line in lines if line.text.endswith(":")} | _KEYWORDS
    known |= {line.text.split()[1].rstrip(",") for line in lines if line.text.startswith(".set ")}
    engine = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
    for line in lines:
        if line.text.endswith(":"):
            continue
        try:
            if engine.asm(line.text, 0)[1] != _counts_as(line):
                return line.error(f"not understood: {line.text!r}")
        except keystone.KsError as error:
            if error.errno != keystone.KS_ERR_ASM_SYMBOL_MISSING:
                return line.error(f"{error}: {line.text!r}")
            unknown = [w for w in _WORD.findall(line.text)[1:] if w not in known]
            missing = [w for w in unknown if _is_missing(engine, w)]
            if missing:
                return line.error(f"undefined symbol {missing[0]}: {line.text!r}")
    return AssemblyError(f"{lines[-1].file if lines else '<text>'}: {message}")


def _is_missing(engine: keystone.Ks, word: str) -> bool:
    """Whether Keystone takes ``word`` for a symbol, and not for a register or keyword."""
    try:
        engine.asm(f"jmp {word}", 0)
    except keystone.KsError as error:
        return bool(error.errno == keystone.KS_ERR_ASM_SYMBOL_MISSING)
    return False
