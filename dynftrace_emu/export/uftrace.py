"""A uftrace data directory (its format 4): what ``uftrace record`` would have left.

- ``info``: a header, and what the program was.
- ``task.txt``: the tasks, and one session that they all belong to.
- ``TID.dat``: of each task, records of 16 bytes: the time, and 64 bits: type:2 more:1 magic:3
  depth:10 address:48.
- ``sid-ID.map``: which program lies where; ``PROGRAM.sym``: its symbols.

Addresses have 48 bits, and the upper half of them is uftrace's own kernel's, so of ours the low 47
are kept. Only calls have a place here: neither other events nor what the host did.
"""

from __future__ import annotations

import re
import shutil
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu._version import __version__
from dynftrace_emu.errors import OptionError
from dynftrace_emu.export.calls import Calls

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dynftrace_emu.export.lanes import Lane
    from dynftrace_emu.export.trace_source import SymbolTable, TraceSource

__all__ = ["write_uftrace"]

_NAME = "kernel"
_PROGRAM = f"/{_NAME}"  # names in maps that are no absolute paths count for nothing
_SESSION = "0123456789abcdef"

_STACK = "7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0    [stack]\n"
"""By this mapping uftrace knows where user space ends; without it, it takes all for its kernel."""

_ADDRESS_BITS = (1 << 47) - 1
_PAGE = 0x1000
_ENTRY, _EXIT, _MAGIC = 0, 1, 5 << 3
_DEPTH_SHIFT, _ADDRESS_SHIFT = 6, 16
_MAX_DEPTH = 1 << 10
_WORD = re.compile(r"\s")  # not in a symbol's name
_RECORD = np.dtype([("time", "<u8"), ("word", "<u8")])

_SIGNATURE = b"Ftrace!\0"
_HEADER = struct.Struct("<8sIHBBQQHHI")
_VERSION, _LITTLE_ENDIAN, _64_BITS = 4, 1, 2
_TASK_SESSION, _SYM_REL_ADDR, _MAX_STACK = 1 << 1, 1 << 5, 1 << 6  # features
_EXE_NAME, _CMDLINE, _TASKINFO = 1 << 0, 1 << 3, 1 << 7  # info


def write_uftrace(source: TraceSource, directory: Path) -> None:
    """Write the calls of a function_graph trace; a data directory that is there already goes.

    :raises OptionError: a trace without function_graph, or a directory that is something else.
    """
    calls = Calls(source)
    if calls.outline.calls and not calls.outline.graph:
        raise OptionError("uftrace shows how long calls take: this needs a function_graph trace")
    _make(directory)
    (directory / "info").write_bytes(_info(source, calls.lanes))
    (directory / "task.txt").write_text(_tasks(calls.lanes))
    for lane in calls.lanes:
        _data(directory, lane).touch()
    functions = _Functions(source.info.symbols)
    for batch in calls:
        for lane in calls.lanes:
            table = batch.calls[batch.calls["lane"] == lane.index]
            if len(table):
                with _data(directory, lane).open("ab") as out:
                    out.write(_records(table, functions.starts(table["ip"])).tobytes())
    functions.write(directory)


def _make(directory: Path) -> None:
    """Make the directory, in place of one of the same kind."""
    if directory.exists():
        if not directory.is_dir() or not _replaceable(directory):
            raise OptionError(f"{directory} is there, and no uftrace data directory")
        shutil.rmtree(directory)
    directory.mkdir(parents=True)


def _replaceable(directory: Path) -> bool:
    info = directory / "info"
    if info.is_file():
        with info.open("rb") as file:
            return file.read(len(_SIGNATURE)) == _SIGNATURE
    return not any(directory.iterdir())


def _data(directory: Path, lane: Lane) -> Path:
    return directory / f"{lane.tid}.dat"


def _records(table: NDArray[Any], addresses: NDArray[np.uint64]) -> NDArray[Any]:
    records = np.empty(len(table), _RECORD)
    records["time"] = table["ts"]
    depth = np.minimum(table["level"], _MAX_DEPTH - 1).astype(np.uint64)
    kind = np.where(table["begin"], np.uint64(_ENTRY), np.uint64(_EXIT))
    word = kind | np.uint64(_MAGIC) | depth << np.uint64(_DEPTH_SHIFT)
    records["word"] = word | addresses << np.uint64(_ADDRESS_SHIFT)
    return records


def _info(source: TraceSource, lanes: list[Lane]) -> bytes:
    """The header, and texts whose presence ``info_mask`` declares."""
    tids = ",".join(str(lane.tid) for lane in lanes)
    lines = (
        f"exename:{_PROGRAM}",
        f"cmdline:dynftrace-emu {__version__}, {source.info.tracer}",
        "taskinfo:lines=2",
        f"taskinfo:nr_tid={len(lanes)}",
        f"taskinfo:tids={tids}",
    )
    features = _TASK_SESSION | _SYM_REL_ADDR | _MAX_STACK
    header = _HEADER.pack(
        _SIGNATURE, _VERSION, _HEADER.size, _LITTLE_ENDIAN, _64_BITS, features,
        _EXE_NAME | _CMDLINE | _TASKINFO, _MAX_DEPTH, 0, 0,
    )  # fmt: skip
    return header + "".join(f"{line}\n" for line in lines).encode()


def _tasks(lanes: list[Lane]) -> str:
    """Every lane is a thread of one process, since one program's symbols are for all."""
    process = min((lane.tid for lane in lanes), default=1)
    start = "timestamp=0.000000000"
    lines = [f'SESS {start} pid={process} sid={_SESSION} exename="{_PROGRAM}"']
    lines += [f"TASK {start} tid={lane.tid} pid={process}" for lane in lanes]
    return "".join(f"{line}\n" for line in lines)


class _Functions:
    """The program: functions where they are, by the addresses that records have."""

    def __init__(self, symbols: SymbolTable) -> None:
        self._symbols = symbols
        self._starts: dict[int, int] = {}
        self._names = {start & _ADDRESS_BITS: name for start, _, name in symbols.functions}

    def starts(self, ips: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The beginnings of the functions that are called."""
        starts = self._starts
        column = ips.tolist()
        for ip in set(column) - starts.keys():
            found = self._symbols.find(ip)
            start = starts[ip] = (ip - found[1] if found else ip) & _ADDRESS_BITS
            if found is None:
                self._names[start] = self._symbols.name(ip)
        return np.array([starts[ip] for ip in column], np.uint64)

    def write(self, directory: Path) -> None:
        """Write the map, and the symbols; each reaches to the next."""
        addresses = sorted(self._names)
        base = addresses[0] // _PAGE * _PAGE if addresses else 0
        end = (addresses[-1] // _PAGE + 2) * _PAGE if addresses else _PAGE
        mapped = f"{base:012x}-{end:012x} r-xp 00000000 00:00 0    {_PROGRAM}\n"
        (directory / f"sid-{_SESSION}.map").write_text(mapped + _STACK)
        lines = [f"# symbols: {len(addresses) + 1}", f"# path name: {_PROGRAM}", "# build-id: "]
        names = ((address, self._names[address]) for address in addresses)
        lines += [f"{address - base:016x} T {_WORD.sub('_', name)}" for address, name in names]
        lines.append(f"{end - base:016x} ? __sym_end")
        (directory / f"{_NAME}.sym").write_text("".join(f"{line}\n" for line in lines))
