"""Opens a trace file, whatever of ours it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.export.trace_dat import read_trace_dat
from dynftrace_emu.export.trace_file_error import TraceFileError

if TYPE_CHECKING:
    from pathlib import Path

    from dynftrace_emu.export.trace_source import TraceSource

__all__ = ["open_trace"]

_JSON_START = (b"{", b"[")


def open_trace(path: Path) -> TraceSource:
    """Read a trace.dat, or the Chrome JSON that ``convert`` writes.

    :raises TraceFileError: it is neither, or damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(1)
    except OSError as error:
        raise TraceFileError(f"{path}: {error.strerror}") from None
    if start in _JSON_START:
        from dynftrace_emu.export.chrome_reader import read_chrome_json

        return read_chrome_json(path)
    return read_trace_dat(path)
