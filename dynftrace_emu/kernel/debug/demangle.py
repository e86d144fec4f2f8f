"""Names of C++ and Rust as people wrote them (pydemumble: LLVM's demanglers)."""

from __future__ import annotations

import re
from functools import lru_cache

import pydemumble

__all__ = ["demangle", "spellings"]

_MANGLED = ("_Z", "_R", "__Z")
# Of a demangled name, what is one piece though it has brackets or spaces in it.
_PIECE = re.compile(
    r"operator(?:\(\)|<=>|<<=?|>>=?|->\*?|<=?|>=?| new| delete| \w+)|\(anonymous namespace\)|.",
    re.DOTALL,
)


@lru_cache(maxsize=1 << 16)
def demangle(name: str) -> str:
    """What ``name`` stands for; itself if it is not mangled.

    Of Rust's older scheme the hash at the end is left out.
    """
    if not name.startswith(_MANGLED):
        return name
    return pydemumble.demangle(name) or name


@lru_cache(maxsize=1 << 16)
def spellings(name: str) -> tuple[str, ...]:
    """What a person may call a function: its name, and that demangled, also without parameters."""
    readable = demangle(name)
    return (name,) if readable == name else (name, readable, _without_parameters(readable))


def _without_parameters(readable: str) -> str:
    """Nor with what a template's instance returns: ``int ns::f<int>(int)`` is ``ns::f<int>``."""
    depth, begin = 0, 0
    for piece in _PIECE.finditer(readable):
        text = piece[0]
        if text in ("<", "{", "["):
            depth += 1
        elif text in (">", "}", "]"):
            depth -= 1
        elif depth == 0 and text == " ":
            begin = piece.end()
        elif text == "(":
            if depth == 0:
                return readable[begin : piece.start()]
            depth += 1
        elif text == ")":
            depth -= 1
    return readable
