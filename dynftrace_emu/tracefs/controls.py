"""What a run asks of the control files: ``set`` before it, ``at`` during it, ``show`` after."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.errors import ControlFileError, OptionError
from dynftrace_emu.tracefs.commands import Command, TimedCommand
from dynftrace_emu.tracefs.tree import TraceFs

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.run import Run
    from dynftrace_emu.machine.engine import Kthread

__all__ = ["Controls"]


class Controls:
    """Drives a run's control files; made between the run and its execution.

    :raises OptionError: a write cannot be understood, or names a file that is not there.
    :raises ControlFileError: a write of ``set`` was refused.
    """

    def __init__(self, run: Run) -> None:
        options = run.options
        self.files = TraceFs(run.tracing)
        self._run = run
        before = [Command.parse("--set", text) for text in options.set]
        timed = sorted((TimedCommand.parse(text) for text in options.at), key=lambda at: at.time)
        for command in (*before, *(at.command for at in timed)):
            command.check(self.files)
        for path in options.show:
            self._check_shown(path)
        for command in before:
            command.run(self.files)
        if timed:
            run.machine.kthread("control", self._body(timed), daemon=True)
        run.has_controls = True

    def _check_shown(self, path: str) -> None:
        if path.strip("/").startswith("instances/"):
            return  # it may be made meanwhile
        try:
            self.files.check_readable(path)
        except ControlFileError as error:
            raise OptionError(f"--show {path}: {error}") from None

    def _body(self, timed: list[TimedCommand]) -> Kthread:
        """A kernel thread that does each write at its time."""
        for at in timed:
            left = at.time - self._run.machine.now()
            if left > 0:
                yield left
            at.command.run(self.files)

    def shown(self) -> tuple[dict[str, str], ControlFileError | None]:
        """What the files to be shown say, by path; and what is wrong with one that is not there."""
        texts: dict[str, str] = {}
        wrong = None
        for path in self._run.options.show:
            try:
                texts[path] = self.files.read(path)
            except ControlFileError as error:
                wrong = error.at(path)
        return texts, wrong
