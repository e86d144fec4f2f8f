r"""Linux's patterns for function names (kernel/trace/trace_events_filter.c).

A pattern is a whole name, or ``*x*``, ``x*``, ``*x``; with ``*``, ``?`` or ``[]`` elsewhere it is a
glob (``glob_match``, lib/glob.c), where ``\\`` quotes and ``!`` negates a class. Nothing is special
in a name that looks like a regular expression otherwise.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["glob_match", "is_plain"]


@lru_cache(maxsize=256)
def glob_match(pattern: str) -> Callable[[str], bool]:
    """A predicate on names: whether ``pattern`` matches all of one."""
    compiled = re.compile("".join(_translate(pattern)), re.DOTALL)
    return lambda name: compiled.fullmatch(name) is not None


def is_plain(pattern: str) -> bool:
    """Whether it matches one name only: itself."""
    return not set(pattern) & set("*?[\\")


def _translate(pattern: str) -> list[str]:
    parts, at = [], 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            parts.append(".*")
        elif char == "?":
            parts.append(".")
        elif char == "\\" and at < len(pattern):
            parts.append(re.escape(pattern[at]))
            at += 1
        elif char == "[" and (found := _class(pattern, at)):
            text, at = found
            parts.append(text)
        else:
            parts.append(re.escape(char))
    return parts


def _class(pattern: str, at: int) -> tuple[str, int] | None:
    """The class that begins behind ``[``, as a regular expression, and where it ends.

    As in lib/glob.c a ``]`` that comes first belongs to the class, and one without end is no class.
    """
    negated = pattern[at : at + 1] == "!"
    first = at + negated
    end = pattern.find("]", first + 1)
    if end < 0:
        return None
    members = _members(pattern[first:end])
    if not members:
        return ("." if negated else "(?!)"), end + 1
    return f"[{'^' if negated else ''}{''.join(members)}]", end + 1


def _members(body: str) -> list[str]:
    """Characters and ranges; a range that runs backwards is empty."""
    members, at = [], 0
    while at < len(body):
        if body[at + 1 : at + 2] == "-" and at + 2 < len(body):
            low, high = body[at], body[at + 2]
            if low <= high:
                members.append(f"{re.escape(low)}-{re.escape(high)}")
            at += 3
        else:
            members.append(re.escape(body[at]))
            at += 1
    return members
