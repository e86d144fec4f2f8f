"""A protocol by its name, and one out of a user's file: ``file.py:function``.

A file's text is what counts: it goes to other processes, and into counterexamples. Code of a user
may raise anything and never come back; neither gets further than here.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dynftrace_emu.errors import OptionError, ProtocolError
from dynftrace_emu.explore.mutations import mutant, split_name
from dynftrace_emu.explore.protocols import PROTOCOLS
from dynftrace_emu.explore.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from dynftrace_emu.explore.poke import Poke
    from dynftrace_emu.explore.steps import Protocol, Step
    from dynftrace_emu.ftrace.protocols import TextChange

__all__ = ["protocol_of", "read_protocol_file"]

_MAX_OPCODES = 2_000_000
"""Bytecodes of a user's file between two steps: a second or two. (Lines will not do: a loop that is
one line long is one event.)"""
_MAX_BYTES = 1 << 20


def read_protocol_file(name: str) -> str:
    """The text of the file in ``FILE.py:FUNCTION``.

    :raises OptionError: it cannot be read.
    """
    path = Path(_split(name)[0])
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise OptionError(f"--protocol {name}: {path} is too big for a protocol")
        return data.decode()
    except OSError as error:
        raise OptionError(f"--protocol {name}: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise OptionError(f"--protocol {name}: {path} is no text in UTF-8") from None


def protocol_of(name: str, source: str | None = None, *, scenario: str = "") -> Protocol:
    """The protocol of that name.

    :param source: the text of the file that ``name`` is in; None: it is built in.
    :param scenario: may bring along one of its own.
    :raises OptionError: there is none, or the file cannot be executed.
    """
    base, mutation = split_name(name)
    if mutation is not None:
        return mutant(protocol_of(base, source, scenario=scenario), mutation)
    if source is not None:
        return _from_source(name, source)
    known = dict(PROTOCOLS)
    if scenario in SCENARIOS:
        known.update(SCENARIOS[scenario].protocols)
    try:
        return known[name]
    except KeyError:
        choices = ", ".join(sorted(known))
        raise OptionError(
            f"no protocol {name!r}: choose from {choices}, or FILE.py:FUNCTION"
        ) from None


def _split(name: str) -> tuple[str, str]:
    file, _, function = name.rpartition(":")
    return file, function


def _from_source(name: str, source: str) -> Protocol:
    file, function = _split(name)
    module = ModuleType(f"protocol_{hashlib.sha256(source.encode()).hexdigest()[:16]}")
    module.__file__ = file
    try:
        code = compile(source, file, "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise OptionError(f"{file}:{line}: {getattr(error, 'msg', error)}") from None
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        _guard(file, exec, code, vars(module))
    except ProtocolError as error:
        raise OptionError(str(error)) from None
    make = vars(module).get(function)
    if not callable(make):
        raise OptionError(f"{file} has no function {function!r}")

    def protocol(change: TextChange, poke: Poke) -> Iterator[Step]:
        steps = _guard(file, make, change, poke)
        if not hasattr(steps, "__next__"):
            what = f"returns {type(steps).__name__}, not a generator of steps"
            raise ProtocolError(f"{file}: {function} {what}: it has no yield")
        return _Guarded(file, steps)

    return protocol


class _Guarded:
    """A generator of a user's, each of whose steps is guarded."""

    def __init__(self, file: str, steps: Any) -> None:
        self._file, self._steps = file, steps

    def __iter__(self) -> _Guarded:
        return self

    def __next__(self) -> Step:
        step: Step = _guard(self._file, next, self._steps)
        return step

    def send(self, value: int) -> Step:
        """Answer a :class:`~.steps.Read`."""
        step: Step = _guard(self._file, self._steps.send, value)
        return step

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # it may not want to end
            _guard(self._file, self._steps.close)


class _TooLong(BaseException):
    """It takes too long; not for the user's code to catch."""


def _guard(file: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a user's code.

    :raises ProtocolError: it raised something, or did not come back in time. StopIteration passes.
    """
    left = _MAX_OPCODES

    def count(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != file:
            return None  # what it calls is not counted
        frame.f_trace_opcodes = True
        left -= event == "opcode"
        if left < 0:
            raise _TooLong(frame.f_lineno)
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # ours is for verdicts
            return function(*arguments)
    except (StopIteration, KeyboardInterrupt):
        raise
    except _TooLong as error:
        what = "it runs on and on, and no step comes"
        raise ProtocolError(f"{file}:{error.args[0]}: {what}") from None
    except BaseException as error:  # noqa: BLE001 - SystemExit, too: it is somebody else's code
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ProtocolError(f"{file}:{_line(file, error)}: {what}") from None
    finally:
        sys.settrace(before)


def _line(file: str, error: BaseException) -> int:
    """The last line of the user's file that ``error`` went through."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return next((line for line in reversed(lines) if line), 1)
