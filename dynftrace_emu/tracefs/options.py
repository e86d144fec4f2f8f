"""``trace_options`` and ``options/`` (kernel/trace/trace.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ControlFileError
from dynftrace_emu.ftrace.tracing import OPTIONS
from dynftrace_emu.tracefs.control_file import ControlFile, parse_bool

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.trace_array import TraceArray

__all__ = ["OptionFile", "TraceOptions", "options_of"]


def options_of(array: TraceArray) -> list[str]:
    """The options a trace array has: an instance has none of function_graph's."""
    return [name for name in OPTIONS if array.is_global or not name.startswith("funcgraph-")]


def _set(array: TraceArray, name: str, *, on: bool) -> None:
    with array.tracing.changing(array.reconfigure):
        array.options = {**array.options, name: on}
        if name == "funcgraph-irqs":
            array.tracing.graph.skip_irqs = not on


class TraceOptions(ControlFile):
    """``trace_options``: every option by name, ``no`` in front of those that are off."""

    name = "trace_options"

    def read(self) -> str:
        return "".join(
            f"{name}\n" if self.array.option(name) else f"no{name}\n"
            for name in options_of(self.array)
        )

    def write(self, text: str, *, append: bool) -> None:
        words = text.split()
        known = options_of(self.array)
        for word in words:
            if word not in known and word.removeprefix("no") not in known:
                raise ControlFileError(errno.EINVAL, f"no option {word!r}")
        if not words:
            raise ControlFileError(errno.EINVAL, "an option's name is needed")
        for word in words:
            _set(self.array, word if word in known else word[2:], on=word in known)


class OptionFile(ControlFile):
    """``options/NAME``: 0 or 1."""

    def __init__(self, array: TraceArray, option: str) -> None:
        super().__init__(array)
        self._option = option

    def read(self) -> str:
        return f"{int(self.array.option(self._option))}\n"

    def write(self, text: str, *, append: bool) -> None:
        _set(self.array, self._option, on=parse_bool(text))
