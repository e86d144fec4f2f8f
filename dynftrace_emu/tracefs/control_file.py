"""What a control file is, and how its values are parsed."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from dynftrace_emu.errors import ControlFileError

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.trace_array import TraceArray
    from dynftrace_emu.ftrace.tracing import Tracing

__all__ = ["ControlFile", "parse_bool", "parse_number"]


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
    """A number of 0 or more (``kstrtoul``).

    :raises ControlFileError: EINVAL.
    """
    word = text.strip()
    try:
        number = int(word, base)
    except ValueError:
        number = -1
    if number < 0 or "_" in word or word.startswith("+"):
        raise ControlFileError(errno.EINVAL, f"{word!r} is not a number of 0 or more")
    return number


def parse_bool(text: str) -> bool:
    """0 or 1.

    :raises ControlFileError: EINVAL.
    """
    number = parse_number(text)
    if number > 1:
        raise ControlFileError(errno.EINVAL, f"{number}: 0 or 1 is needed")
    return bool(number)
