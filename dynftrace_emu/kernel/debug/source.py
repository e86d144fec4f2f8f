"""Places in source code: what an address of an image was compiled from."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SourceFrame", "SourceLine", "where_text"]


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of a source file, as the compiler was given it; line 0: not known."""

    file: str
    line: int
    directory: str = ""

    @property
    def path(self) -> str:
        """Where the file was when it was compiled."""
        return posixpath.join(self.directory, self.file)

    def __str__(self) -> str:
        return f"{self.file}:{self.line or '?'}"


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """A function, and the line in it; ``is_inlined`` into the function of the next frame."""

    function: str
    where: SourceLine | None
    is_inlined: bool = False


def where_text(frames: Sequence[SourceFrame]) -> str:
    """``file:line``, or what is inlined there and where; empty if nothing is known.

    :param frames: the innermost first.
    """
    if not frames:
        return ""
    *inlined, function = frames
    parts = [f"{frame.function} at {frame.where or '??'}, inlined" for frame in inlined]
    if not parts:
        return str(function.where or "")
    return " in ".join(parts) + f" at {function.where or '??'}"
