r"""What GNU as has and Keystone lacks, expanded before Keystone sees the text.

Handled here: comments anywhere, ``;``, ``.include``, ``.macro``/``.endm`` (with ``\arg``, ``\@``,
``\()`` and defaults), ``.irp``, ``.rept``, ``.ifdef``/``.ifndef``/``.else``/``.endif``, numeric
labels (``1:``, ``1b``, ``1f``), ``.Lname`` labels, sections, ``.type``/``.size`` of functions,
``.set`` of numbers and ``.percpu NAME, SIZE``. Everything else goes through. Macros are expanded
here, not by Keystone, because functions that a macro declares are functions too.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from dynftrace_emu.errors import AssemblyError
from dynftrace_emu.kernel.statements import (
    LOCAL_PREFIX,
    Line,
    directive,
    evaluate,
    split_outside,
    statements,
)

__all__ = ["Preprocessed", "Preprocessor", "Read"]

_LABEL = re.compile(r"\s*([A-Za-z_.$][\w.$]*|\d+):")
_NUMERIC_REFERENCE = re.compile(r"\b(\d+)([bf])\b")
_MAX_DEPTH = 32

Read = Callable[[str], str]
"""Returns the text of a file that ``.include`` names; raises OSError if there is none."""


@dataclass(slots=True)
class _Macro:
    parameters: list[tuple[str, str]]
    body: list[Line]


@dataclass(slots=True)
class Preprocessed:
    """Plain statements by section, and what was declared on the way."""

    sections: dict[str, list[Line]] = field(default_factory=dict)
    labels: dict[str, tuple[str, Line]] = field(default_factory=dict)  # name -> (section, line)
    functions: set[str] = field(default_factory=set)
    sized: set[str] = field(default_factory=set)  # labels whose end is __end_NAME
    percpu: dict[str, int] = field(default_factory=dict)  # name -> offset from GS
    percpu_size: int = 0
    constants: dict[str, int] = field(default_factory=dict)  # numbers by .set


class Preprocessor:
    """Turns assembly sources into plain statements sorted by section.

    :param read: how ``.include`` finds a file.
    :param defines: names that ``.ifdef`` finds defined.
    :param constants: names that sizes may use.
    :param percpu_base: where ``.percpu`` variables begin, behind the part the host shares.
    """

    def __init__(
        self,
        read: Read,
        defines: Iterable[str] = (),
        constants: Mapping[str, int] | None = None,
        percpu_base: int = 0,
    ) -> None:
        self._read = read
        self._constants = dict(constants or {})
        self._defines = set(defines)
        self._macros: dict[str, _Macro] = {}
        self._unique = itertools.count()
        self._numeric: dict[str, int] = {}
        self._included: set[str] = set()
        self._section = ".text"
        self.out = Preprocessed(percpu_size=percpu_base)

    def add(self, text: str, file: str) -> None:
        """Take in one source; sources share macros, labels and sections.

        :raises AssemblyError: naming the file and line.
        """
        self._section = ".text"
        self._run(list(statements(text, file)), 0)

    def _run(self, lines: list[Line], depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise lines[0].error("macros or includes nest too deeply")
        position = 0
        while position < len(lines):
            line = lines[position]
            word, rest = directive(line)
            block = _BLOCKS.get(word)
            if block is None:
                self._statement(line, word, rest, depth)
                position += 1
            else:
                end = self._find_end(lines, position, word, block)
                self._block(line, word, rest, lines[position + 1 : end], depth)
                position = end + 1

    @staticmethod
    def _find_end(lines: list[Line], start: int, word: str, end_word: str) -> int:
        depth = 0
        for position in range(start, len(lines)):
            other = directive(lines[position])[0]
            if _BLOCKS.get(other) == end_word:
                depth += 1
            elif other == end_word:
                depth -= 1
                if depth == 0:
                    return position
        raise lines[start].error(f"{word} without {end_word}")

    def _block(self, line: Line, word: str, rest: str, body: list[Line], depth: int) -> None:
        if word == ".macro":
            name, _, parameters = rest.partition(" ")
            spaced = re.sub(r"\s*=\s*", "=", parameters).replace(" ", ",")
            pairs = [p.partition("=") for p in split_outside(spaced, ",") if p]
            self._macros[name] = _Macro([(p[0].strip(), p[2].strip()) for p in pairs], body)
        elif word == ".rept":
            for _ in range(self._number(line, rest)):
                self._run(body, depth + 1)
        elif word == ".irp":
            variable, *values = split_outside(rest, ",")
            for value in values:
                self._run(self._substitute(body, {variable: value}), depth + 1)
        else:
            wanted = (rest in self._defines) == (word == ".ifdef")
            self._run(self._branch(body, wanted), depth + 1)

    @staticmethod
    def _branch(body: list[Line], wanted: bool) -> list[Line]:
        depth = 0
        for position, line in enumerate(body):
            word = directive(line)[0]
            if _BLOCKS.get(word) == ".endif":
                depth += 1
            elif word == ".endif":
                depth -= 1
            elif word == ".else" and depth == 0:
                return body[:position] if wanted else body[position + 1 :]
        return body if wanted else []

    def _substitute(self, body: list[Line], values: Mapping[str, str]) -> list[Line]:
        unique = str(next(self._unique))

        def replace(match: re.Match[str]) -> str:
            name = match.group(1)
            if name == "@":
                return unique
            if name == "()":
                return ""
            return values.get(name, match.group())

        pattern = re.compile(r"\\(@|\(\)|[A-Za-z_]\w*)")
        return [Line(pattern.sub(replace, one.text), one.file, one.number) for one in body]

    def _statement(self, line: Line, word: str, rest: str, depth: int) -> None:
        if word in self._macros:
            self._run(self._expand(line, self._macros[word], rest), depth + 1)
        elif word == ".include":
            self._include(line, rest.strip('"'), depth)
        elif word == ".section" or word in _SECTION_DIRECTIVES:
            self._section = split_outside(rest, ",")[0] if word == ".section" else word
        elif word == ".type":
            name, kind = split_outside(rest, ",")
            if kind.lstrip("@%") == "function":
                self.out.functions.add(name)
        elif word == ".percpu":
            self._percpu(line, rest)
        elif word == ".set":
            name, value = split_outside(rest, ",")
            self._set(line, name, value)
        elif word == ".size":
            name = split_outside(rest, ",")[0]
            self.out.sized.add(name)
            self._emit(Line(f"__end_{name}:", line.file, line.number))
        elif word in _SPACE:
            self._space(line, word, rest)
        elif word in _IGNORED:
            pass
        elif word in _STRAY:
            raise line.error(f"{word} without its beginning")
        else:
            self._labels_and_rest(line, depth)

    def _expand(self, line: Line, macro: _Macro, rest: str) -> list[Line]:
        given = split_outside(rest, ",") if rest else []
        if len(given) > len(macro.parameters):
            raise line.error(f"too many arguments: {line.text!r}")
        values = dict(macro.parameters)
        for (name, _), value in zip(macro.parameters, given, strict=False):
            values[name] = value
        body = self._substitute(macro.body, values)
        # What a macro makes belongs to the place that used it.
        return [Line(one.text, line.file, line.number) for one in body]

    def _include(self, line: Line, name: str, depth: int) -> None:
        if name in self._included:
            return
        self._included.add(name)
        try:
            text = self._read(name)
        except OSError as error:
            raise line.error(f"cannot include {name}: {error.strerror}") from error
        outer = self._section
        self._run(list(statements(text, name)), depth + 1)
        self._section = outer

    def _percpu(self, line: Line, rest: str) -> None:
        name, *sizes = split_outside(rest, ",")
        if len(sizes) != 1:
            raise line.error(".percpu NAME, SIZE expected")
        count = (self._number(line, sizes[0]) + 7) & ~7
        if name in self.out.percpu:
            raise line.error(f"per-CPU variable {name} is declared twice")
        self.out.percpu[name] = self.out.percpu_size
        self.out.percpu_size += count

    def _space(self, line: Line, word: str, rest: str) -> None:
        """Emit space of a known size: Keystone drops what it cannot count, and knows no 0."""
        size, *fill = split_outside(rest, ",")
        if count := self._number(line, size):
            self._emit(Line(", ".join([f"{word} {count}", *fill]), line.file, line.number))

    def _set(self, line: Line, name: str, value: str) -> None:
        try:
            number = self._number(line, value)
        except AssemblyError:
            self._emit(line)  # an expression of labels is Keystone's
            return
        if self.out.constants.setdefault(name, number) != number:
            raise line.error(f"{name} is {self.out.constants[name]:#x} already")
        self._constants[name] = number

    def _number(self, line: Line, text: str) -> int:
        """The value of a product or sum of numbers and known names."""
        try:
            return evaluate(ast.parse(text, mode="eval").body, self._constants)
        except (SyntaxError, KeyError, ValueError):
            raise line.error(f"not a number: {text!r}") from None

    def _labels_and_rest(self, line: Line, depth: int) -> None:
        text = line.text
        while match := _LABEL.match(text):
            self._label(line, match.group(1))
            text = text[match.end() :].strip()
        if not text:
            return
        rest = Line(text, line.file, line.number)
        if text != line.text:
            self._run([rest], depth + 1)
        elif '"' in text:
            self._emit(rest)
        else:
            resolved = _NUMERIC_REFERENCE.sub(self._resolve_numeric, text)
            self._emit(Line(resolved, line.file, line.number))

    def _label(self, line: Line, name: str) -> None:
        if name.isdigit():
            self._numeric[name] = self._numeric.get(name, 0) + 1
            name = f"{LOCAL_PREFIX}{name}_{self._numeric[name]}"
        elif name.lower() in _REGISTERS:
            raise line.error(f"{name} is a register's name and cannot be a label")
        elif name in self.out.labels:
            other = self.out.labels[name][1]
            raise line.error(f"{name} is defined already, at {other.file}:{other.number}")
        else:
            self.out.labels[name] = (self._section, line)
        self._emit(Line(f"{name}:", line.file, line.number))

    def _resolve_numeric(self, match: re.Match[str]) -> str:
        digits, direction = match.groups()
        count = self._numeric.get(digits, 0) + (direction == "f")
        return f"{LOCAL_PREFIX}{digits}_{count}"

    def _emit(self, line: Line) -> None:
        # Keystone takes an unclosed bracket, or an operand that is not there, without a word.
        if '"' not in line.text and (
            line.text.count("[") != line.text.count("]")
            or line.text.count("(") != line.text.count(")")
            or line.text.endswith(",")
        ):
            raise line.error(f"unbalanced brackets or a missing operand: {line.text!r}")
        self.out.sections.setdefault(self._section, []).append(line)


_BLOCKS = {
    ".macro": ".endm",
    ".rept": ".endr",
    ".irp": ".endr",
    ".ifdef": ".endif",
    ".ifndef": ".endif",
}
_SPACE = {".skip", ".space", ".zero"}
_REGISTERS = {
    *(f"{prefix}{letter}x" for prefix in ("", "e", "r") for letter in "abcd"),
    *(f"{letter}{half}" for letter in "abcd" for half in "lh"),
    *(f"{prefix}{name}" for prefix in ("", "e", "r") for name in ("si", "di", "bp", "sp", "ip")),
    *(f"{name}l" for name in ("si", "di", "bp", "sp")),
    *(f"r{number}{size}" for number in range(8, 16) for size in ("", "d", "w", "b")),
    *(f"{name}{n}" for name in ("cr", "dr", "xmm", "ymm", "mm", "st") for n in range(16)),
    *("cs", "ds", "es", "fs", "gs", "ss", "st"),
}
_STRAY = {".endm", ".endr", ".endif", ".else"}
_SECTION_DIRECTIVES = {".text", ".rodata", ".data", ".bss"}
_IGNORED = {".globl", ".global", ".extern", ".intel_syntax", ".code64"}
