"""What the texts in the front of a trace.dat say of the trace."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from dynftrace_emu.export import trace_dat_format as fmt
from dynftrace_emu.export.trace_dat_unpack import Layout
from dynftrace_emu.export.trace_file_error import TraceFileError
from dynftrace_emu.export.trace_source import ImageNote, SymbolTable, TraceInfo
from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from dynftrace_emu.export.trace_dat_header import Header

__all__ = ["has_host", "read_info", "read_layouts", "read_stats"]

_EVENTS = {
    "function": (EventId.FUNCTION, ("ip", "parent_ip")),
    "funcgraph_entry": (EventId.GRAPH_ENTRY, ("func", "depth")),
    "funcgraph_exit": (EventId.GRAPH_EXIT, ("func", "depth")),
    "kernel_stack": (EventId.KERNEL_STACK, ("caller",)),
    "print": (EventId.PRINT, ("buf",)),
    "raw_data": (EventId.RAW_DATA, ("id",)),
}
_NAME = re.compile(r"^name: (\S+)$", re.MULTILINE)
_ID = re.compile(r"^ID: (\d{1,5})$", re.MULTILINE)
_FIELD = re.compile(
    r"^\tfield:[^;\n]{0,200}?(\w{1,64})(\[\w{0,64}\])?;\s*offset:(\d{1,5});\s*size:(\d{1,5});",
    re.MULTILINE,
)
_KALLSYM = re.compile(r"^([0-9a-f]{1,16}) (\S) (\S+)", re.MULTILINE)
_CMDLINE = re.compile(r"^(\d{1,10}) (.*)$", re.MULTILINE)


def read_layouts(header: Header, name: str) -> dict[int, Layout]:
    """The event formats by number: those we know, and the host's.

    :raises TraceFileError: one of them lacks what it is read by.
    """
    layouts = {}
    for system, text in header.formats:
        title, number = _NAME.search(text), _ID.search(text)
        if not title or not number:
            raise TraceFileError(f"{name}: an event format is damaged")
        fields = {
            field: (int(offset), 0 if array else int(size))
            for field, array, offset, size in _FIELD.findall(text)
        }
        event = None
        if system == "ftrace" and title[1] in _EVENTS:
            event, needed = _EVENTS[title[1]]
            if not all(field in fields for field in needed):
                raise TraceFileError(f"{name}: the format of event {title[1]} is damaged")
        layouts[int(number[1])] = Layout(title[1], fields, event)
    return layouts


def has_host(header: Header) -> bool:
    """It was written by us."""
    return any(system == fmt.HOST_SYSTEM for system, _ in header.formats)


def read_info(header: Header) -> TraceInfo:
    """What it is a trace of; the tracer is "" if the file does not say."""
    notes: dict[str, int] = {}
    symbols = _symbols(header.kallsyms, notes)
    tracer = _note(notes, fmt.NOTE_TRACER) or ""
    cpus = min(notes.get(fmt.NOTE_CPUS, header.cpus), header.cpus)
    clock = "local"
    for number, data in header.options:
        if number == fmt.Option.TRACECLOCK and (found := re.search(rb"\[([\w-]+)\]", data)):
            clock = found[1].decode()
    comms = {int(pid): comm for pid, comm in _CMDLINE.findall(header.cmdlines)}
    comms.pop(fmt.HOST_PID, None)
    return TraceInfo(tracer, cpus, clock, symbols, comms, _image(notes))


def _note(notes: dict[str, int], prefix: str) -> str | None:
    found = (note.removeprefix(prefix) for note in notes if note.startswith(prefix))
    return next(found, None)


def _image(notes: dict[str, int]) -> ImageNote | None:
    texts = [_note(notes, kind) for kind in (fmt.NOTE_IMAGE, fmt.NOTE_VARIANT, fmt.NOTE_SHA256)]
    argument, variant, digest = texts
    if argument is None:
        return None
    return ImageNote(unquote(argument), variant or "dynamic", digest or "")


def _symbols(text: str, notes: dict[str, int]) -> SymbolTable:
    """The functions of kallsyms; what we noted there goes into ``notes``."""
    functions: dict[int, tuple[int, int, str]] = {}
    last = None
    for digits, kind, name in _KALLSYM.findall(text):
        address = int(digits, 16)
        if kind == "A" and name.startswith(fmt.NOTE):
            if name == fmt.NOTE_END and last is not None:
                start, _, function = last
                if functions[start][2] == function:
                    functions[start] = (start, max(0, address - start), function)
            notes[name] = address
        elif kind in "tTwW" and name != fmt.LAST_SYMBOL:
            last = (address, 0, name)
            functions.setdefault(address, last)
    return SymbolTable(tuple(sorted(functions.values())))


def read_stats(header: Header) -> dict[int, dict[str, str]]:
    """What each CPU's buffer counted, by the names that ``per_cpu/cpuN/stats`` has for it."""
    stats: dict[int, dict[str, str]] = {}
    for number, data in header.options:
        if number != fmt.Option.CPUSTAT:
            continue
        lines = [line.partition(": ") for line in data.decode("utf-8", "replace").splitlines()]
        values = {key.strip(): value.strip("\0 ") for key, _, value in lines if value}
        cpu = values.pop("CPU", "")
        if cpu.isdecimal() and len(cpu) < 6:
            stats[int(cpu)] = values
    return stats
