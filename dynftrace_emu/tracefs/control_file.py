"""What a control file is, and how its values are parsed."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, ClassVar

from dynftrace_emu.errors import ControlFileError

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.trace_array import TraceArray
    from dynftrace_emu.ftrace.tracing import Tracing

__all__ = ["ControlFile", "parse_bool", "parse_number"]


_DIGITS, _HEX_DIGITS = re.compile(r"\+?[0-9]+"), re.compile(r"[0-9a-fA-F]+")
_LONGEST = 32  # digits, leading zeros included


class ControlFile:
    """A file of a trace array. Subclasses say what it reads, what it takes, and what it refuses.

    :meth:`read` and :meth:`write` are called with ``Tracing.lock`` held.
    """

    name: ClassVar[str]
    readable: ClassVar[bool] = True
    writable: ClassVar[bool] = True

    def __init__(self, array: TraceArray) -> None:
        self.array = array

    @property
    def tracing(self) -> Tracing:
        """The subsystem this file belongs to."""
        return self.array.tracing

    def read(self) -> str:
        """Its text, as of now."""
        raise ControlFileError(errno.EINVAL, "this file can only be written")

    def write(self, text: str, *, append: bool) -> None:
        """Take ``text``, which was written at once; a refused write changes nothing.

        :param append: as ``>>`` writes; else as ``>``, which truncates first.
        :raises ControlFileError: with the errno that Linux gives.
        """
        raise ControlFileError(errno.EINVAL, "this file can only be read")


def parse_number(text: str, *, base: int = 10) -> int:
    """A number of 0 or more, below 2^64 (``kstrtoul``).

    :raises ControlFileError: EINVAL, or ERANGE for one that is too large.
    """
    word = text.strip()
    digits = _HEX_DIGITS if base == 16 else _DIGITS
    if not digits.fullmatch(word):
        raise ControlFileError(errno.EINVAL, f"{word[:40]!r} is not a number of 0 or more")
    if len(word) > _LONGEST or (number := int(word, base)) >= 1 << 64:
        raise ControlFileError(errno.ERANGE, f"{word[:40]} is too large")
    return number


def parse_bool(text: str) -> bool:
    """0 or 1.

    :raises ControlFileError: EINVAL, or ERANGE for a number that is too large.
    """
    number = parse_number(text)
    if number > 1:
        raise ControlFileError(errno.EINVAL, f"{number}: 0 or 1 is needed")
    return bool(number)
