"""Constants of trace.dat version 6 (trace-cmd.dat.v6(5)) and the texts that describe its events.

The texts are those of Linux 6.1 (events/header_page, events/ftrace/*/format); system ``ftraced``
is ours: what the host did to the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from dynftrace_emu.kernel.structs import BUFFER_PAGE, PAGE_SIZE

__all__ = [
    "FTRACE_FORMATS",
    "HEADER_EVENT",
    "HEADER_PAGE",
    "HOST_EVENTS",
    "MAGIC",
    "PAGE_SPACE",
    "HostFormat",
    "Option",
    "host_formats",
]

MAGIC = b"\x17\x08\x44tracing"
VERSION = b"6"
PAGE_SPACE = PAGE_SIZE - BUFFER_PAGE.size

# In a page's commit, above the length (kernel/trace/ring_buffer.c).
COMMIT_MASK = (1 << 27) - 1
RB_MISSED_EVENTS = 1 << 31
RB_MISSED_STORED = 1 << 30  # how many stands behind the data

# type_len of what is not data (include/linux/ring_buffer.h).
TYPE_LEN_MAX, PADDING, TIME_EXTEND, TIME_STAMP = 28, 29, 30, 31
MAX_DELTA = 1 << 27


class Option(IntEnum):
    """``TRACECMD_OPTION_*``."""

    DONE = 0
    CPUSTAT = 2
    TRACECLOCK = 4
    UNAME = 5


CLOCKS = ("local", "global", "counter", "uptime", "perf", "mono", "mono_raw", "boot", "tai")

# Lines of kallsyms with type A: trace-cmd takes no notice of them, and keeps them in conversions.
NOTE = ".dynftrace."
NOTE_TRACER = NOTE + "tracer."  # + its name
NOTE_CPUS = NOTE + "cpus"  # the address is the number
NOTE_IMAGE = NOTE + "image."  # + what load_image takes, percent-encoded
NOTE_VARIANT = NOTE + "variant."  # + the image's
NOTE_SHA256 = NOTE + "sha256."  # + of the image
NOTE_END = NOTE + "end"  # the address is where the function of the line before ends
LAST_SYMBOL = "__dynftrace_end"
"""Follows the last function: trace-cmd finds no name for an address behind the last symbol."""

HOST_PID = 4194304  # PID_MAX_LIMIT: no task has it
HOST_COMM = "ftraced"
HOST_SYSTEM = "ftraced"

HEADER_PAGE = """\
\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:16;\tsize:4080;\tsigned:1;
"""

HEADER_EVENT = """\
# compressed entry header
\ttype_len    :    5 bits
\ttime_delta  :   27 bits
\tarray       :   32 bits

\tpadding     : type == 29
\ttime_extend : type == 30
\ttime_stamp : type == 31
\tdata max type_len  == 28
"""

_COMMON = (
    ("unsigned short common_type", 2, 0),
    ("unsigned char common_flags", 1, 0),
    ("unsigned char common_preempt_count", 1, 0),
    ("int common_pid", 4, 1),
)
COMMON_SIZE = 8


def _format(name: str, number: int, fields: tuple[tuple[str, int, int, int], ...], fmt: str) -> str:
    """A format file; ``fields`` are (declaration, offset, size, signed)."""
    lines, offset = [f"name: {name}", f"ID: {number}", "format:"], 0
    for declaration, size, signed in _COMMON:
        lines.append(_field(declaration, offset, size, signed))
        offset += size
    lines.append("")
    lines += [_field(*field) for field in fields]
    return "\n".join([*lines, "", f"print fmt: {fmt}", ""])


def _field(declaration: str, offset: int, size: int, signed: int) -> str:
    return f"\tfield:{declaration};\toffset:{offset};\tsize:{size};\tsigned:{signed};"


_CALLERS = ", ".join(f"(void *)REC->caller[{index}]" for index in range(8))
_ARROWS = "\\t=> %ps\\n" * 8

FTRACE_FORMATS = (
    _format(
        "function",
        1,
        (("unsigned long ip", 8, 8, 0), ("unsigned long parent_ip", 16, 8, 0)),
        '" %ps <-- %ps", (void *)REC->ip, (void *)REC->parent_ip',
    ),
    _format(
        "funcgraph_entry",
        11,
        (("unsigned long func", 8, 8, 0), ("int depth", 16, 4, 1)),
        '"--> %ps (%d)", (void *)REC->func, REC->depth',
    ),
    _format(
        "funcgraph_exit",
        10,
        (
            ("unsigned long func", 8, 8, 0),
            ("int depth", 16, 4, 1),
            ("unsigned int overrun", 20, 4, 0),
            ("unsigned long long calltime", 24, 8, 0),
            ("unsigned long long rettime", 32, 8, 0),
        ),
        '"<-- %ps (%d) (start: %llx  end: %llx) over: %d", (void *)REC->func, REC->depth, '
        "REC->calltime, REC->rettime, REC->depth",
    ),
    _format(
        "kernel_stack",
        4,
        (("int size", 8, 4, 1), ("unsigned long caller[8]", 16, 64, 0)),
        f'"{_ARROWS}", {_CALLERS}',
    ),
    _format(
        "print",
        5,
        (("unsigned long ip", 8, 8, 0), ("char buf[]", 16, 0, 0)),
        '"%ps: %s", (void *)REC->ip, REC->buf',
    ),
    _format(
        "raw_data",
        18,
        (("unsigned int id", 8, 4, 0), ("char buf[]", 12, 0, 0)),
        '"id:%04x %08x", REC->id, (int)REC->buf[0]',
    ),
)


@dataclass(frozen=True, slots=True)
class HostFormat:
    """How a HostEvent lies in the file: these fields (u64 each), then text for any others.

    ``present`` has bit n set if the event has ``fields[n]``; ``shown`` is what print fmt says.
    """

    number: int
    fields: tuple[str, ...]
    shown: str
    arguments: tuple[str, ...]

    @property
    def extra(self) -> int:
        """Where the text begins."""
        return COMMON_SIZE + 8 * len(self.fields) + 4

    def text(self, name: str) -> str:
        """The format file."""
        fields = [(f"u64 {field}", 8 + 8 * at, 8, 0) for at, field in enumerate(self.fields)]
        fields.append(("u32 present", self.extra - 4, 4, 0))
        fields.append(("char extra[]", self.extra, 0, 0))
        arguments = ", ".join([*self.arguments, "REC->extra"])
        return _format(name, self.number, tuple(fields), f'"{self.shown}%s", {arguments}')


HOST_EVENTS = {
    "tick": HostFormat(2001, (), "the daemon woke up", ()),
    "stop": HostFormat(2002, ("duration_ns",), "stopped for %llu ns", ("REC->duration_ns",)),
    "patched": HostFormat(2003, ("ip",), "%pS", ("(void *)REC->ip",)),
    "failed": HostFormat(2004, ("ip",), "%pS", ("(void *)REC->ip",)),
    "page": HostFormat(2005, ("capacity",), "capacity=%llu", ("REC->capacity",)),
    "tracing": HostFormat(2006, ("enabled",), "enabled=%llu", ("REC->enabled",)),
}


def host_formats() -> list[str]:
    """The format files of system ``ftraced``."""
    return [kind.text(name) for name, kind in HOST_EVENTS.items()]
