"""What is said when a package is missing that only one trace format needs."""

from __future__ import annotations

from dynftrace_emu.errors import DynftraceError

__all__ = ["MissingExtraError"]


class MissingExtraError(DynftraceError):
    """An optional dependency is not installed; nothing was written.

    :param what: what needs it.
    :param extra: the name of the extra that brings it.
    """

    exit_code = 2

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra [{extra}]: pip install 'dynftrace-emu[{extra}]'")
        self.extra = extra
        self.hint = f"pip install 'dynftrace-emu[{extra}]'"
