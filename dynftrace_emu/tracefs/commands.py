"""Writes to control files as the command line says them: ``FILE=VALUE`` and ``FILE+=VALUE``.

``mkdir=DIR`` and ``rmdir=DIR`` make and remove instances, as the programs of these names would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ControlFileError, OptionError

if TYPE_CHECKING:
    from dynftrace_emu.tracefs.tree import TraceFs

__all__ = ["Command", "TimedCommand"]

_MKDIR, _RMDIR = "mkdir", "rmdir"


@dataclass(frozen=True, slots=True)
class Command:
    """One write."""

    file: str
    value: str
    append: bool

    @classmethod
    def parse(cls, option: str, text: str) -> Command:
        """Parse ``FILE=VALUE`` or ``FILE+=VALUE``; ``option`` is named in an error.

        :raises OptionError: it is neither.
        """
        file, equals, value = text.partition("=")
        append = file.endswith("+")
        file = file.removesuffix("+")
        if not equals or not file:
            raise OptionError(f"{option} {text!r}: FILE=VALUE or FILE+=VALUE is needed")
        return cls(file, value, append)

    def check(self, files: TraceFs) -> None:
        """See that the file is there and takes writes, before anything runs.

        A file of an instance may be made meanwhile.

        :raises OptionError: it is not, with the errno's name.
        """
        if self.file in (_MKDIR, _RMDIR) or self.file.strip("/").startswith("instances/"):
            return
        try:
            files.check_writable(self.file)
        except ControlFileError as error:
            raise OptionError(f"{self.file}: {error}") from None

    def run(self, files: TraceFs) -> None:
        """Do it.

        :raises ControlFileError: it is refused, with the file's name in the reason.
        """
        try:
            if self.file == _MKDIR:
                files.mkdir(self.value)
            elif self.file == _RMDIR:
                files.rmdir(self.value)
            else:
                files.write(self.file, self.value, append=self.append)
        except ControlFileError as error:
            raise error.at(self.file) from None


@dataclass(frozen=True, slots=True)
class TimedCommand:
    """A write at a time, in seconds."""

    time: float
    command: Command

    @classmethod
    def parse(cls, text: str) -> TimedCommand:
        """Parse ``T:FILE=VALUE``.

        :raises OptionError: it is not that.
        """
        time, colon, rest = text.partition(":")
        try:
            seconds = float(time) if colon else math.nan
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            raise OptionError(f"--at {text!r}: T:FILE=VALUE is needed, T in seconds, 0 or more")
        return cls(seconds, Command.parse("--at", rest))
