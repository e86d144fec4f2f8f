"""Which exporter makes which file: by the extension."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dynftrace_emu.errors import OptionError
from dynftrace_emu.export.open_trace import open_trace

if TYPE_CHECKING:
    from dynftrace_emu.export.trace_source import TraceSource

__all__ = [
    "EXTENSIONS",
    "Converter",
    "convert",
    "convert_recording",
    "convert_source",
    "converter",
]

Converter = Callable[["TraceSource", Path], None]


def _text(source: TraceSource, path: Path) -> None:
    from dynftrace_emu.export.text_file import write_text

    write_text(source, path)


def _dat(source: TraceSource, path: Path) -> None:
    from dynftrace_emu.export.trace_dat_copy import write_trace_dat

    write_trace_dat(source, path)


def _perfetto(source: TraceSource, path: Path) -> None:
    from dynftrace_emu.export.perfetto import write_perfetto

    write_perfetto(source, path)


def _chrome(source: TraceSource, path: Path) -> None:
    from dynftrace_emu.export.chrome import write_chrome

    write_chrome(source, path)


def _speedscope(source: TraceSource, path: Path) -> None:
    from dynftrace_emu.export.speedscope import write_speedscope

    write_speedscope(source, path)


def _folded(source: TraceSource, path: Path) -> None:
    from dynftrace_emu.export.folded import write_folded

    write_folded(source, path)


def _svg(source: TraceSource, path: Path) -> None:
    from dynftrace_emu.export.flamegraph_svg import write_flamegraph_svg

    write_flamegraph_svg(source, path)


def _uftrace(source: TraceSource, path: Path) -> None:
    from dynftrace_emu.export.uftrace import write_uftrace

    write_uftrace(source, path)


_BY_EXTENSION: tuple[tuple[str, Converter], ...] = (
    (".speedscope.json", _speedscope),
    (".json", _chrome),
    (".txt", _text),
    (".dat", _dat),
    (".pftrace", _perfetto),
    (".folded", _folded),
    (".svg", _svg),
    (".uftrace", _uftrace),
)
EXTENSIONS = tuple(extension for extension, _ in _BY_EXTENSION)


def converter(path: Path) -> Converter | None:
    """What makes a file of this name; None for a trace.dat, which ``record`` itself makes.

    :raises OptionError: nothing does.
    """
    made = _by_extension(path)
    return None if made is _dat else made


def _by_extension(path: Path) -> Converter:
    for extension, made in _BY_EXTENSION:
        if path.name.endswith(extension):
            return made
    raise OptionError(f"{path}: no format of this extension; there are {', '.join(EXTENSIONS)}")


def convert_source(source: TraceSource, target: Path) -> None:
    """Write a trace as what the target's extension says.

    :raises OptionError: nothing makes such a file.
    """
    _by_extension(target)(source, target)


def convert(source: Path, target: Path) -> None:
    """Convert a trace file to what the target's extension says.

    :raises OptionError: nothing makes such a file.
    :raises TraceFileError: the source cannot be read.
    """
    made = _by_extension(target)
    made(open_trace(source), target)


def convert_recording(recorded: Path, target: Path, made: Converter) -> None:
    """Convert what has just been recorded, and remove it."""
    made(open_trace(recorded), target)
    recorded.unlink()
