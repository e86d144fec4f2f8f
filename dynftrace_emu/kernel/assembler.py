"""Assembles sources with Keystone into sections and symbols.

All sources become one Keystone unit, since Keystone neither links nor returns symbols: the sections
follow each other page by page, and a table of ``.quad`` behind the last one tells the addresses.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import keystone

from dynftrace_emu.errors import AssemblyError
from dynftrace_emu.kernel.preprocessor import Line, Preprocessed, Preprocessor, Read

__all__ = ["TEXT_SECTIONS", "Assembled", "AssembledSection", "AssembledSymbol", "assemble", "assemble_bytes"]

TEXT_SECTIONS = (".text", ".init.text")
PAGE_SHIFT = 12
INT3 = 0xCC
_WORD = re.compile(r"[A-Za-z_.$][\w.$]*")


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
    preprocessor = Preprocessor(read, defines, percpu_base)
    for file, text in sources:
        preprocessor.add(text, file)
    unit = preprocessor.out
    prelude = [
        Line(f".set {name}, {value:#x}", "<asm-offsets>", 0)
        for name, value in {**constants, **unit.percpu}.items()
    ]
    order = sorted(unit.sections, key=_section_rank)
    names = [*unit.labels, *map(_end, sorted(unit.sized)), *map(_start, range(len(order)))]
    table = [_made(f".quad {name}") for name in names]
    code = _keystone([*prelude, *_lay_out(unit, order), *table], address)
    return _parse(unit, order, names, code, address)


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
        if not name.startswith(".L")
    }
    return Assembled(sections, symbols, unit.percpu, unit.percpu_size)


def assemble_bytes(text: str, address: int) -> bytes:
    """Assemble a few instructions, as they are, at ``address``."""
    return _keystone(
        [Line(one, "<text>", number) for number, one in enumerate(text.splitlines(), 1)], address
    )


def _keystone(lines: list[Line], address: int) -> bytes:
    engine = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
    try:
        code, _ = engine.asm("\n".join(line.text for line in lines), address, as_bytes=True)
    except keystone.KsError as error:
        raise _diagnose(lines, str(error)) from None
    if code is None:
        raise _diagnose(lines, "not understood")
    return bytes(code)


def _diagnose(lines: list[Line], message: str) -> AssemblyError:
    """Keystone does not say where: find the statement that fails by itself, or an unknown name."""
    constants = [line for line in lines if line.text.startswith(".set ")]
    prelude = "\n".join(line.text for line in constants)
    known = {line.text.split()[1].rstrip(",") for line in constants}
    known |= {line.text[:-1] for line in lines if line.text.endswith(":")}
    engine = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)
    for line in lines:
        if line in constants or line.text.endswith(":"):
            continue
        try:
            engine.asm(f"{prelude}\n{line.text}", 0)
        except keystone.KsError as error:
            if error.errno != keystone.KS_ERR_ASM_SYMBOL_MISSING:
                return line.error(f"{error}: {line.text!r}")
            unknown = [w for w in _WORD.findall(line.text)[1:] if w not in known]
            missing = [w for w in unknown if not _assembles(engine, f"{prelude}\nmov eax, {w}")]
            if missing:
                return line.error(f"undefined symbol {missing[0]}: {line.text!r}")
    return AssemblyError(f"{lines[-1].file if lines else '<text>'}: {message}")


def _assembles(engine: keystone.Ks, text: str) -> bool:
    try:
        engine.asm(text, 0)
    except keystone.KsError:
        return False
    return True
