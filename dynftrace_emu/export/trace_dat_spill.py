"""The data of each CPU while a trace runs, and the file they are put together to at the end.

In a trace.dat the data of a CPU lie in one piece, but they come by turns; so each CPU has a file
of its own, beside the target: ``trace.dat.cpu0.part``. ``trace.dat`` itself is only the header
until then. At the end the target's table is written first, then the data are moved from the back
to the front, each part cut off its source when it is there. So a disk that is full is enough, and
whoever finds an interrupted move can go on with it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dynftrace_emu.export.trace_dat_header import Header, build_table, read_header
from dynftrace_emu.export.trace_file_error import TraceFileError
from dynftrace_emu.kernel.structs import BUFFER_PAGE, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Spill",
    "assemble",
    "find_spills",
    "lock",
    "recover",
    "spill_path",
    "write_at",
]

_MOVE = 1 << 20  # bytes; whole pages


def spill_path(target: Path, cpu: int) -> Path:
    """Where the data of ``cpu`` are kept while the trace is written."""
    return target.with_name(f"{target.name}.cpu{cpu}.part")


def find_spills(target: Path) -> dict[int, Path]:
    """The files of this kind that lie beside ``target``, by CPU."""
    found = {}
    for path in target.parent.glob("*.part"):
        front, _, number = path.name.removesuffix(".part").rpartition(".cpu")
        if front == target.name and number.isdecimal():
            found[int(number)] = path
    return found


class Spill:
    """The data of one CPU: whole pages, at any time."""

    def __init__(self, file: BinaryIO, path: Path | None = None) -> None:
        self._file, self._path = file, path
        self.size = 0

    @classmethod
    def open(cls, path: Path) -> Spill:
        """Take over one that an earlier process left."""
        spill = cls(path.open("r+b", buffering=0), path)
        spill.size = path.stat().st_size // PAGE_SIZE * PAGE_SIZE
        return spill

    def write(self, data: memoryview, *, replaces: bool = False) -> None:
        """Append pages; the first one may take the place of the last there is.

        :raises OSError: there is no room. Pages that were written whole stay.
        """
        if replaces:
            # The header last: until it is there, the page is as it was.
            page, data = data[:PAGE_SIZE], data[PAGE_SIZE:]
            self._put(self.size - PAGE_SIZE + BUFFER_PAGE.size, page[BUFFER_PAGE.size :])
            self._put(self.size - PAGE_SIZE, page[: BUFFER_PAGE.size])
        self._put(self.size, data)

    def _put(self, at: int, data: memoryview) -> None:
        self._file.seek(at)
        try:
            while data:
                done = self._file.write(data)
                at, data = at + done, data[done:]
        finally:
            self.size = max(self.size, at // PAGE_SIZE * PAGE_SIZE)

    def read(self, at: int, count: int) -> bytes:
        """So many bytes from ``at``."""
        self._file.seek(at)
        parts = []
        while count and (data := self._file.read(count)):
            parts.append(data)
            count -= len(data)
        return b"".join(parts)

    def cut(self, size: int) -> None:
        """Forget what is behind ``size``, and give its room back."""
        self._file.truncate(size)
        self.size = size

    def remove(self) -> None:
        """Close it and delete its file."""
        self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close it; its file stays."""
        self._file.close()


def assemble(target: BinaryIO, table_at: int, header_end: int, spills: Sequence[Spill]) -> None:
    """Put the data behind the header that ``target`` holds, and empty the spills."""
    rows, at = [], header_end
    for spill in spills:
        at = -(-at // PAGE_SIZE) * PAGE_SIZE
        rows.append((at, spill.size))
        at += spill.size
    write_at(target, table_at, build_table(rows))
    for (offset, _), spill in zip(rows, spills, strict=True):
        _move(target, offset, spill)
    # A file without events, too, goes up to where its data would be.
    if rows and not any(size for _, size in rows):
        write_at(target, rows[-1][0] - 1, b"\0")


def _move(target: BinaryIO, offset: int, spill: Spill) -> None:
    while spill.size:
        at = max(0, (spill.size - 1) // _MOVE * _MOVE)
        data = spill.read(at, spill.size - at)
        try:
            write_at(target, offset + at, data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            spill.cut(at)  # its own room is what there is
            write_at(target, offset + at, data)
        spill.cut(at)


def write_at(target: BinaryIO, at: int, data: bytes) -> None:
    """Write all of it."""
    target.seek(at)
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]


def lock(file: BinaryIO, path: Path) -> None:
    """Keep others from writing or recovering this file until it is closed.

    :raises TraceFileError: another is doing so.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TraceFileError(f"{path}: it is still being recorded") from None
    except OSError:
        return  # a file system without locks


def recover(path: str | Path) -> bool:
    """Put together a file whose writer did not get to its end; False: there is nothing to do.

    :raises TraceFileError: it is still being written, or its header is not whole.
    """
    path = Path(path)
    found = find_spills(path)
    if not found:
        return False
    with path.open("r+b", buffering=0) as target:
        lock(target, path)
        size = os.fstat(target.fileno()).st_size
        header = read_header(target, size, str(path))
        _finish(target, size, header, found)
    return True


def _finish(target: BinaryIO, size: int, header: Header, found: dict[int, Path]) -> None:
    table = header.table
    ours = {cpu: Spill.open(path) for cpu, path in found.items() if cpu < len(table)}
    if any(offset for offset, _ in table):  # it was interrupted while moving
        for cpu, spill in ours.items():
            spill.cut(min(spill.size, table[cpu][1]))
            _move(target, table[cpu][0], spill)
    else:
        nothing = open(os.devnull, "r+b", buffering=0)  # noqa: PTH123, SIM115
        spills = [ours.get(cpu) or Spill(nothing) for cpu in range(len(table))]
        assemble(target, header.table_at, size, spills)  # so far there is the header alone
        nothing.close()
    for spill in ours.values():
        spill.close()
    for path in found.values():
        path.unlink()
