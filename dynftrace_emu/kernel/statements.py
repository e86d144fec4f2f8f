"""The text of assembly: statements without comments, their parts, and the value of a number."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.errors import AssemblyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["LOCAL_PREFIX", "Line", "directive", "evaluate", "split_outside", "statements"]

_QUOTED_OR_COMMENT = re.compile(
    r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])'|#[^\n]*|//[^\n]*|/\*.*?\*/", re.DOTALL
)
_STRING = re.compile(r"\"(?:\\.|[^\"\\])*\"")
_LOCAL_LABEL = re.compile(r"(?<![\w.])\.L(?=\w)")
LOCAL_PREFIX = "__local_"
"""What the names of local labels begin with once they are expanded."""


@dataclass(frozen=True, slots=True)
class Line:
    """One statement, and where it was written."""

    text: str
    file: str
    number: int

    def error(self, message: str) -> AssemblyError:
        """An error that points here."""
        return AssemblyError(f"{self.file}:{self.number}: {message}")


def _strip_comments(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        token: str = match.group()
        if token[0] in "\"'":
            return token
        return "\n" * token.count("\n")

    return _QUOTED_OR_COMMENT.sub(replace, text)


def split_outside(text: str, separator: str) -> list[str]:
    """Split at ``separator`` outside quotes, parentheses and brackets."""
    parts, depth, quote, start, i = [], 0, "", 0, 0
    while i < len(text):
        char = text[i]
        if quote:
            if char == "\\":
                i += 1
            elif char == quote:
                quote = ""
        elif char == '"' or (char == "'" and text[i + 2 : i + 3] == "'"):
            quote = char
        elif char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif char == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
        i += 1
    parts.append(text[start:])
    return [part.strip() for part in parts]


def _hide_local_labels(statement: str) -> str:
    """``.Lname`` as Keystone can take it: in a memory operand it thinks the dot selects a field."""
    parts = re.split(r"(\"(?:\\.|[^\"\\])*\")", statement)
    parts[::2] = [_LOCAL_LABEL.sub(LOCAL_PREFIX, part) for part in parts[::2]]
    return "".join(parts)


def statements(text: str, file: str) -> Iterator[Line]:
    """The statements of a source, without comments."""
    for number, raw in enumerate(_strip_comments(text).split("\n"), 1):
        if not raw.replace("\t", "").isprintable() or "/*" in _STRING.sub("", raw):
            raise AssemblyError(f"{file}:{number}: not assembly text, or a comment does not end")
        for statement in split_outside(raw, ";"):
            if len(_QUOTED_OR_COMMENT.sub("", statement).split('"')) > 1:
                raise AssemblyError(f"{file}:{number}: a string does not end: {statement!r}")
            if statement:
                yield Line(_hide_local_labels(statement), file, number)


def evaluate(node: ast.expr, names: Mapping[str, int]) -> int:
    """The value of sums and products of numbers and names.

    :raises ValueError: it is something else.
    :raises KeyError: a name is not known.
    """
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return names[name]
        case ast.BinOp(left, ast.Add(), right):
            return evaluate(left, names) + evaluate(right, names)
        case ast.BinOp(left, ast.Sub(), right):
            return evaluate(left, names) - evaluate(right, names)
        case ast.BinOp(left, ast.Mult(), right):
            return evaluate(left, names) * evaluate(right, names)
    raise ValueError


def directive(line: Line) -> tuple[str, str]:
    """The first word of a statement, and the rest."""
    word, _, rest = line.text.partition(" ")
    if "\t" in word:
        word, _, rest = line.text.partition("\t")
    return word, rest.strip()
