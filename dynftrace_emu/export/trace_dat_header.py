"""The front of a trace.dat: made from a TraceInfo, and read back."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote

from dynftrace_emu._version import __version__
from dynftrace_emu.export import trace_dat_format as fmt
from dynftrace_emu.export.trace_file_error import TraceFileError
from dynftrace_emu.kernel.structs import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynftrace_emu.export.trace_source import SymbolTable, TraceInfo

__all__ = ["Header", "build_clocks", "build_header", "build_table", "cpu_stat_text", "read_header"]

_TABLE_ROW = struct.Struct("<QQ")
_SIZES = {2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}
_MOST_CPUS = 4096
_MOST_TEXT = 1 << 28  # bytes of any one part: kallsyms of a big kernel is 20 MB
_MOST_FORMATS = 1 << 16


@dataclass
class Header:
    """What the front of a file says."""

    formats: list[tuple[str, str]] = field(default_factory=list)  # system, text
    kallsyms: str = ""
    cmdlines: str = ""
    cpus: int = 0
    options: list[tuple[int, bytes]] = field(default_factory=list)
    table_at: int = 0  # where the table of the CPUs is
    table: list[tuple[int, int]] = field(default_factory=list)  # offset and size of each's data

    @property
    def end(self) -> int:
        """Where the header ends."""
        return self.table_at + _TABLE_ROW.size * self.cpus


def build_header(info: TraceInfo, streams: int, stats: Mapping[int, str]) -> bytes:
    """Everything in front of the table of the CPUs; ``stats`` are texts of CPUSTAT options."""
    parts = [
        fmt.MAGIC + fmt.VERSION + b"\0",
        struct.pack("<BBI", 0, 8, PAGE_SIZE),
        b"header_page\0" + _sized(fmt.HEADER_PAGE, 8),
        b"header_event\0" + _sized(fmt.HEADER_EVENT, 8),
        _formats(fmt.FTRACE_FORMATS),
        struct.pack("<I", 1) + fmt.HOST_SYSTEM.encode() + b"\0",
        _formats(fmt.host_formats()),
        _sized(_kallsyms(info), 4),
        _sized("", 4),  # printk formats
        _sized(_cmdlines(info), 8),
        struct.pack("<I", streams),
        b"options  \0",
    ]
    parts += [_option(fmt.Option.CPUSTAT, stats[cpu]) for cpu in sorted(stats)]
    parts += [
        _option(fmt.Option.TRACECLOCK, _clocks(info.clock)),
        _option(fmt.Option.UNAME, f"dynftrace-emu {__version__} x86_64"),
        struct.pack("<H", fmt.Option.DONE),
        b"flyrecord\0",
    ]
    return b"".join(parts)


def build_table(rows: list[tuple[int, int]]) -> bytes:
    """The offsets and sizes of the CPUs' data."""
    return b"".join(_TABLE_ROW.pack(*row) for row in rows)


def build_clocks(info: TraceInfo) -> bytes:
    """What stands behind the table, though trace-cmd.dat.v6(5) does not say so: the clocks again.

    Readers that know the option TRACECLOCK expect it; the oldest of them look only here.
    """
    return _sized(_clocks(info.clock), 8)


def cpu_stat_text(cpu: int, values: Mapping[str, object]) -> str:
    """One CPU's statistics, as trace-cmd keeps ``per_cpu/cpuN/stats``."""
    return f"CPU: {cpu}\n" + "".join(f"{name}: {value}\n" for name, value in values.items())


def _sized(text: str, bytes_of_size: int) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return _SIZES[bytes_of_size].pack(len(data)) + data


def _formats(texts: list[str] | tuple[str, ...]) -> bytes:
    return struct.pack("<I", len(texts)) + b"".join(_sized(text, 8) for text in texts)


def _option(number: int, text: str) -> bytes:
    return struct.pack("<H", number) + _sized(text + "\0", 4)


def _clocks(clock: str) -> str:
    known = fmt.CLOCKS if clock in fmt.CLOCKS else (*fmt.CLOCKS, clock)
    return " ".join(f"[{name}]" if name == clock else name for name in known) + "\n"


def _kallsyms(info: TraceInfo) -> str:
    lines = [f"{0:016x} A {fmt.NOTE_TRACER}{_word(info.tracer)}"]
    lines.append(f"{info.nr_cpus:016x} A {fmt.NOTE_CPUS}")
    if info.image is not None:
        lines.append(f"{0:016x} A {fmt.NOTE_IMAGE}{quote(info.image.argument)}")
        lines.append(f"{0:016x} A {fmt.NOTE_VARIANT}{_word(info.image.variant)}")
        lines.append(f"{0:016x} A {fmt.NOTE_SHA256}{_word(info.image.sha256)}")
    lines += _functions(info.symbols)
    return "\n".join(lines) + "\n"


def _functions(symbols: SymbolTable) -> list[str]:
    lines, end = [], 0
    for address, size, name in symbols.functions:
        lines.append(f"{address:016x} T {_word(name)}")
        if size:
            lines.append(f"{address + size:016x} A {fmt.NOTE_END}")
        end = max(end, address + (size or PAGE_SIZE))
    if symbols.functions:
        lines.append(f"{min(end, 2**64 - 1):016x} T {fmt.LAST_SYMBOL}")
    return lines


def _word(text: str) -> str:
    return re.sub(r"\s", "_", text) or "_"


def _cmdlines(info: TraceInfo) -> str:
    comms = {**info.comms, fmt.HOST_PID: fmt.HOST_COMM}
    lines = [f"{pid} {comm}".replace("\n", " ") for pid, comm in sorted(comms.items())]
    return "\n".join(lines) + "\n"


def read_header(file: BinaryIO, size: int, name: str) -> Header:
    """Read and check the front of a file of ``size`` bytes, which begins where ``file`` is.

    :raises TraceFileError: it is none of ours, or does not fit the file.
    """
    reader = _Reader(file, size, name)
    header = Header()
    _read_start(reader)
    for text in (b"header_page\0", b"header_event\0"):
        reader.expect(text)
        reader.blob(8)
    header.formats = [("ftrace", text) for text in _read_formats(reader)]
    for _ in range(reader.count(_MOST_FORMATS, "event systems")):
        system = reader.word()
        header.formats += [(system, text) for text in _read_formats(reader)]
    header.kallsyms = _text(reader.blob(4))
    reader.blob(4)
    header.cmdlines = _text(reader.blob(8))
    header.cpus = reader.count(_MOST_CPUS, "CPUs")
    kind = reader.take(10)
    if kind == b"options  \0":
        while option := reader.number(2):
            header.options.append((option, reader.blob(4)))
        kind = reader.take(10)
    if kind == b"latency  \0":
        raise reader.error("it holds the text of a latency tracer, no events")
    if kind != b"flyrecord\0":
        raise reader.error("its header is damaged in front of the data")
    header.table_at = reader.at
    for _ in range(header.cpus):
        header.table.append((reader.number(8), reader.number(8)))
    return header


def _read_start(reader: _Reader) -> None:
    if reader.take(len(fmt.MAGIC), "it is no trace.dat") != fmt.MAGIC:
        raise reader.error("it is no trace.dat")
    version = reader.word()
    if version != fmt.VERSION.decode():
        raise reader.error(
            f"it is a trace.dat of version {version!r}; only 6 can be read "
            "(try: trace-cmd convert --file-version 6)"
        )
    big_endian, long_size = reader.take(2)
    if big_endian or long_size != 8:
        raise reader.error("it comes from a machine that is not 64-bit little-endian")
    if reader.number(4) != PAGE_SIZE:
        raise reader.error(f"its pages are not {PAGE_SIZE} bytes long")


def _read_formats(reader: _Reader) -> list[str]:
    return [_text(reader.blob(8)) for _ in range(reader.count(_MOST_FORMATS, "formats"))]


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "surrogateescape")


class _Reader:
    """Takes a file apart; its sizes are believed as far as the file goes."""

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        self._file, self._size, self._name = file, size, name
        self.at = 0

    def error(self, why: str) -> TraceFileError:
        return TraceFileError(f"{self._name}: {why}")

    def take(self, count: int, why: str = "the file is cut short") -> bytes:
        if count > self._size - self.at:
            raise self.error(why)
        if count > _MOST_TEXT:
            raise self.error("its header is damaged: a part of it is too long")
        data = self._file.read(count)
        if len(data) != count:
            raise self.error(why)
        self.at += count
        return data

    def expect(self, text: bytes) -> None:
        if self.take(len(text)) != text:
            raise self.error(f"its header is damaged: no {text[:-1].decode()}")

    def number(self, size: int) -> int:
        return int(_SIZES[size].unpack(self.take(size))[0])

    def count(self, most: int, what: str) -> int:
        found = self.number(4)
        if found > most:
            raise self.error(f"its header is damaged: {found} {what}")
        return found

    def blob(self, bytes_of_size: int) -> bytes:
        return self.take(self.number(bytes_of_size))

    def word(self) -> str:
        data = bytearray()
        while (byte := self.take(1)) != b"\0":
            data += byte
            if len(data) > 256:
                raise self.error("its header is damaged: a name is too long")
        return data.decode("utf-8", "replace")
