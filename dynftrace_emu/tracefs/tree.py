"""``TraceFs``: the tree of control files. Whoever controls tracing does it through here."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ControlFileError, ImageError
from dynftrace_emu.tracefs import (
    buffers,
    filters,
    help,
    options,
    output,
    statistics,
    tasks,
    tracers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.ftrace.trace_array import TraceArray
    from dynftrace_emu.ftrace.tracing import Tracing
    from dynftrace_emu.machine.engine import Kthread
    from dynftrace_emu.tracefs.control_file import ControlFile

__all__ = ["TraceFs"]

_OF_EVERY_ARRAY: tuple[type[ControlFile], ...] = (
    tracers.AvailableTracers, tracers.CurrentTracer, tracers.TracingOn, tracers.TracingCpumask,
    buffers.BufferSizeKb, buffers.BufferTotalSizeKb, buffers.BufferPercent, buffers.FreeBuffer,
    buffers.TraceClock, options.TraceOptions, output.Trace, output.TracePipe, output.Snapshot,
    output.TraceMarker, output.TraceMarkerRaw, help.ErrorLog,
)  # fmt: skip
_OF_EVERY_ARRAY_WITH_FTRACE: tuple[type[ControlFile], ...] = (
    tasks.SetFtracePid, tasks.SetFtraceNotracePid,
)  # fmt: skip
_OF_EVERY_ARRAY_WITH_DYNAMIC_FTRACE: tuple[type[ControlFile], ...] = (
    filters.SetFtraceFilter, filters.SetFtraceNotrace,
)  # fmt: skip
_GLOBAL: tuple[type[ControlFile], ...] = (
    help.Readme, help.PrintkFormats, tasks.SavedCmdlines, tasks.SavedCmdlinesSize,
    tasks.SavedTgids, tracers.TracingThresh,
)  # fmt: skip
_GLOBAL_WITH_FTRACE: tuple[type[ControlFile], ...] = (
    tracers.MaxGraphDepth, statistics.FunctionProfileEnabled, statistics.StackTrace,
    statistics.StackMaxSize, statistics.StackTracerEnabled,
)  # fmt: skip
_GLOBAL_WITH_DYNAMIC_FTRACE: tuple[type[ControlFile], ...] = (
    filters.AvailableFilterFunctions, filters.EnabledFunctions, filters.TouchedFunctions,
    filters.DynFtraceTotalInfo, filters.SetGraphFunction, filters.SetGraphNotrace,
    filters.StackTraceFilter, tracers.FtraceEnabled,
)  # fmt: skip
_PER_CPU: tuple[type[buffers.CpuFile], ...] = (
    output.CpuTrace, output.CpuSnapshot, buffers.Stats, buffers.CpuBufferSizeKb,
)  # fmt: skip

_INSTANCES = "instances"
_NAME_MAX = 255


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Where the guest's RAM is used up, say so as Linux does."""
    try:
        yield
    except ImageError as error:
        raise ControlFileError(errno.ENOMEM, str(error)) from None


class TraceFs:
    """The files below /sys/kernel/tracing, by path.

    :meth:`read` and :meth:`write` are whole: what is written is written at once, as ``echo`` does.
    """

    def __init__(self, tracing: Tracing) -> None:
        self.tracing = tracing
        self._files: dict[str, ControlFile] = self._make(tracing.global_array)
        tracing.on_dump = self._start_dump

    # --- files ---

    def read(self, path: str) -> str:
        """What the file says now.

        :raises ControlFileError: ENOENT, EISDIR, or EINVAL for one that can only be written.
        """
        with self.tracing.lock:
            return self._file(path).read()

    def write(self, path: str, text: str, *, append: bool = False) -> None:
        """Write ``text``, as ``echo text > path`` does, or ``>>`` with ``append``.

        :raises ControlFileError: with the errno that Linux gives; nothing was changed.
        """
        with self.tracing.lock:
            file = self._file(path)
            try:
                with _memory_errors():
                    file.write(text, append=append)
            except ControlFileError as error:
                self._log(path, text, error)
                raise

    def check_readable(self, path: str) -> None:
        """See that a file is there and can be read.

        :raises ControlFileError: as :meth:`read`.
        """
        if not self._file(path).readable:
            raise ControlFileError(errno.EINVAL, "this file can only be written")

    def check_writable(self, path: str) -> None:
        """See that a file is there and can be written.

        :raises ControlFileError: ENOENT, EISDIR or EINVAL.
        """
        if not self._file(path).writable:
            raise ControlFileError(errno.EINVAL, "this file can only be read")

    def _file(self, path: str) -> ControlFile:
        name = self._clean(path)
        file = self._files.get(name)
        if file is not None:
            return file
        if self._is_directory(name):
            raise ControlFileError(errno.EISDIR, f"{path!r} is a directory")
        raise ControlFileError(errno.ENOENT, f"there is no control file {path!r}{self._why(name)}")

    def _why(self, name: str) -> str:
        tracing_files = (
            *_GLOBAL_WITH_FTRACE, *_GLOBAL_WITH_DYNAMIC_FTRACE, *_OF_EVERY_ARRAY_WITH_FTRACE,
            *_OF_EVERY_ARRAY_WITH_DYNAMIC_FTRACE,
        )  # fmt: skip
        is_known = name.startswith("trace_stat/") or name in {file.name for file in tracing_files}
        return self.tracing.why_nothing if is_known else ""

    @staticmethod
    def _clean(path: str) -> str:
        return "/".join(part for part in path.split("/") if part not in ("", "."))

    def _log(self, path: str, text: str, error: ControlFileError) -> None:
        name = self._clean(path)
        parts = name.split("/")
        log = f"{_INSTANCES}/{parts[1]}/error_log" if parts[0] == _INSTANCES else "error_log"
        file = self._files[log]
        assert isinstance(file, help.ErrorLog)
        file.add(parts[-1], text, error.reason)

    # --- directories ---

    def listdir(self, path: str = "") -> list[str]:
        """The names in a directory.

        :raises ControlFileError: ENOENT or ENOTDIR.
        """
        with self.tracing.lock:
            name = self._clean(path)
            if name in self._files:
                raise ControlFileError(errno.ENOTDIR, f"{path!r} is a file")
            if not self._is_directory(name):
                raise ControlFileError(errno.ENOENT, f"there is no directory {path!r}")
            prefix = f"{name}/" if name else ""
            names = {
                key[len(prefix) :].split("/")[0] for key in self._files if key.startswith(prefix)
            }
            if not name:
                names.add(_INSTANCES)
            return sorted(names)

    def is_directory(self, path: str) -> bool:
        """Whether there is a directory of this path."""
        with self.tracing.lock:
            return self._is_directory(self._clean(path))

    def _is_directory(self, name: str) -> bool:
        if name in ("", _INSTANCES):
            return True
        return any(key.startswith(f"{name}/") for key in self._files)

    def mkdir(self, path: str) -> None:
        """Make an instance.

        :raises ControlFileError: EEXIST, ENOMEM, or EPERM anywhere but in ``instances/``.
        """
        with self.tracing.lock:
            name = self._instance(path)
            if name in self.tracing.instances:
                raise ControlFileError(errno.EEXIST, f"there is an instance {name!r} already")
            if name in (".", ".."):
                raise ControlFileError(errno.EEXIST, f"there is a directory {name!r} already")
            if len(name.encode()) > _NAME_MAX:
                raise ControlFileError(errno.ENAMETOOLONG, f"names have {_NAME_MAX} bytes at most")
            with _memory_errors():
                array = self.tracing.make_instance(name)
            if array is None:
                raise ControlFileError(errno.ENOMEM, "there is no room for another instance")
            files = self._make(array)
            self._files |= {f"{_INSTANCES}/{name}/{key}": file for key, file in files.items()}

    def rmdir(self, path: str) -> None:
        """Remove an instance, with its tracer, its triggers and its buffers.

        :raises ControlFileError: ENOENT, or EPERM anywhere but in ``instances/``.
        """
        with self.tracing.lock:
            name = self._instance(path)
            if name not in self.tracing.instances:
                raise ControlFileError(errno.ENOENT, f"there is no instance {name!r}")
            self.tracing.remove_instance(name)
            prefix = f"{_INSTANCES}/{name}/"
            self._files = {k: file for k, file in self._files.items() if not k.startswith(prefix)}

    def _instance(self, path: str) -> str:
        parts = self._clean(path).split("/")
        if len(parts) != 2 or parts[0] != _INSTANCES:
            raise ControlFileError(errno.EPERM, f"{path!r}: instances are made in {_INSTANCES}/")
        return parts[1]

    # --- what there is ---

    def _make(self, array: TraceArray) -> dict[str, ControlFile]:
        has_ftrace = self.tracing.ftrace is not None
        has_dynamic = self.tracing.dynamic is not None
        kinds = [
            *_OF_EVERY_ARRAY,
            *(_OF_EVERY_ARRAY_WITH_FTRACE if has_ftrace else ()),
            *(_OF_EVERY_ARRAY_WITH_DYNAMIC_FTRACE if has_dynamic else ()),
        ]
        if array.is_global:
            kinds += _GLOBAL
            kinds += _GLOBAL_WITH_FTRACE if has_ftrace else ()
            kinds += _GLOBAL_WITH_DYNAMIC_FTRACE if has_dynamic else ()
        files = {kind.name: kind(array) for kind in kinds}
        for option in options.options_of(array):
            files[f"options/{option}"] = options.OptionFile(array, option)
        for cpu in range(self.tracing.nr_cpus):
            files |= self._make_of_cpu(array, cpu, with_stat=array.is_global and has_ftrace)
        return files

    @staticmethod
    def _make_of_cpu(array: TraceArray, cpu: int, *, with_stat: bool) -> dict[str, ControlFile]:
        folder = f"per_cpu/cpu{cpu}"
        files: dict[str, ControlFile] = {f"{folder}/{k.name}": k(array, cpu) for k in _PER_CPU}
        files[f"{folder}/trace_pipe"] = output.CpuTracePipe(array, cpu)
        if with_stat:
            files[f"trace_stat/function{cpu}"] = statistics.FunctionStat(array, cpu)
        return files

    def _start_dump(self, array: TraceArray, cpu: int | None) -> None:
        """From a vCPU's thread, in the middle of a call: somebody else has to do it."""

        def body() -> Kthread:
            self._dump(array, cpu)
            yield from ()

        self.tracing.kernel.machine.kthread("dump", body())

    def _dump(self, array: TraceArray, cpu: int | None) -> None:
        """A trigger ``dump`` or ``cpudump``: the trace goes to the guest's console."""
        console = self.tracing.kernel.machine.console
        cpus = None if cpu is None else [cpu]
        for line in ("Dumping ftrace buffer:", *output.trace_text(array, array.buffer, cpus)):
            console.line(cpu or 0, line)
