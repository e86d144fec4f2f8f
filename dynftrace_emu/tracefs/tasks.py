"""Tasks: which are traced, and what they are called (kernel/trace/trace_sched_switch.c)."""

from __future__ import annotations

import errno
from dataclasses import replace

from dynftrace_emu.errors import ControlFileError
from dynftrace_emu.kernel.structs import PID_MAX
from dynftrace_emu.tracefs.control_file import ControlFile, parse_number

__all__ = [
    "SavedCmdlines", "SavedCmdlinesSize", "SavedTgids", "SetFtraceNotracePid", "SetFtracePid",
]  # fmt: skip

_NO_PID = "no pid\n"
_PID_MAX_DEFAULT = 32768


def _parse_pids(text: str) -> frozenset[int]:
    try:
        pids = frozenset(parse_number(word) for word in text.split())
    except ControlFileError as error:
        raise ControlFileError(errno.EINVAL, error.reason) from None
    for pid in pids:
        if pid >= PID_MAX:
            raise ControlFileError(errno.EINVAL, f"{pid}: pids are below {PID_MAX}")
    return pids


class SetFtracePid(ControlFile):
    """``set_ftrace_pid``: only these guest tasks are traced; none named: all."""

    name = "set_ftrace_pid"

    def read(self) -> str:
        pids = self.array.pid_filter.pids
        return "".join(f"{pid}\n" for pid in sorted(pids)) if pids else _NO_PID

    def write(self, text: str, *, append: bool) -> None:
        pids = _parse_pids(text)
        if append:
            pids |= self.array.pid_filter.pids or frozenset()
        self.tracing.set_pid_filter(self.array, replace(self.array.pid_filter, pids=pids or None))


class SetFtraceNotracePid(ControlFile):
    """``set_ftrace_notrace_pid``: these guest tasks are not."""

    name = "set_ftrace_notrace_pid"

    def read(self) -> str:
        pids = self.array.pid_filter.notrace
        return "".join(f"{pid}\n" for pid in sorted(pids)) if pids else _NO_PID

    def write(self, text: str, *, append: bool) -> None:
        pids = _parse_pids(text)
        if append:
            pids |= self.array.pid_filter.notrace
        self.tracing.set_pid_filter(self.array, replace(self.array.pid_filter, notrace=pids))


class SavedCmdlines(ControlFile):
    """``saved_cmdlines``: pid and name of each task that is known."""

    name = "saved_cmdlines"
    writable = False

    def read(self) -> str:
        return "".join(f"{pid} {comm}\n" for pid, comm in sorted(self.tracing.comms().items()))


class SavedCmdlinesSize(ControlFile):
    """``saved_cmdlines_size``: how many names are kept at most."""

    name = "saved_cmdlines_size"

    def read(self) -> str:
        return f"{self.tracing.saved_cmdlines_size}\n"

    def write(self, text: str, *, append: bool) -> None:
        size = parse_number(text)
        if not 1 <= size <= _PID_MAX_DEFAULT:
            raise ControlFileError(errno.EINVAL, f"{size}: 1 to {_PID_MAX_DEFAULT} are possible")
        self.tracing.saved_cmdlines_size = size


class SavedTgids(ControlFile):
    """``saved_tgids``: pid and thread group of each task, once option record-tgid is on."""

    name = "saved_tgids"
    writable = False

    def read(self) -> str:
        if not self.array.option("record-tgid"):
            return ""
        return "".join(f"{pid} {pid}\n" for pid in sorted(self.tracing.comms()))
