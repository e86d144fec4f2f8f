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

    from dynftrace_emu.export.call_repair import LaneState
    from dynftrace_emu.export.lanes import Lane
    from dynftrace_emu.export.trace_source import TraceSource

__all__ = ["write_uftrace"]

_PROGRAM = "kernel"
_SESSION = "0123456789abcdef"

_ADDRESS_BITS = (1 << 47) - 1
_PAGE = 0x1000
_ENTRY, _EXIT, _MAGIC = 0, 1, 5 << 3
_DEPTH_SHIFT, _ADDRESS_SHIFT = 6, 16
_MAX_DEPTH = 1 << 10
_RECORD = np.dtype([("time", "<u8"), ("word", "<u8")])

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
        raise OptionError("uftrace shows calls that end: this needs a function_graph trace")
    _make(directory)
    for lane in calls.lanes:
        _data(directory, lane).touch()
    addresses: set[int] = set()
    for batch in calls:
        addresses.update(np.unique(batch.calls["ip"]).tolist())
        for lane in calls.lanes:
            table = batch.calls[batch.calls["lane"] == lane.index]
            if len(table):
                with _data(directory, lane).open("ab") as out:
                    out.write(_records(table).tobytes())
"""to be replaced"""
