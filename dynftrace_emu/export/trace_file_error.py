"""What is wrong with a trace file, for people."""

from __future__ import annotations

from dynftrace_emu.errors import DynftraceError

__all__ = ["TraceFileError"]


class TraceFileError(DynftraceError):
    """A file is not a trace we can read: cut short, damaged, another version, or something else."""

    exit_code = 2
