"""What is written to ``set_ftrace_filter`` and its like: patterns, removals, triggers.

(``ftrace_process_regex``, ``match_records`` and the commands of kernel/trace/ftrace.c.)
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.errors import ControlFileError
from dynftrace_emu.ftrace.glob import glob_match, is_plain
from dynftrace_emu.ftrace.probes import UNLIMITED, FunctionProbe
from dynftrace_emu.kernel.debug.demangle import spellings
from dynftrace_emu.kernel.structs import ProbeKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dynftrace_emu.ftrace.trace_array import TraceArray
    from dynftrace_emu.ftrace.tracing import Tracing

__all__ = ["choose", "matching_sites", "parse_filter"]

_LONGEST_NUMBER = 20
_ONCE = (ProbeKind.DUMP, ProbeKind.CPUDUMP)
_COLON = re.compile("(?<!:):(?!:)")  # not one of the two in a name of C++
_COMMANDS = {kind.name.lower(): kind for kind in ProbeKind}


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a write asks for: the sites chosen now, and the triggers there are now."""

    sites: NDArray[np.uint64]
    probes: list[FunctionProbe]


def matching_sites(tracing: Tracing, pattern: str) -> NDArray[np.uint64]:
    """The available sites whose function a pattern names; a number counts them from 1.

    :raises ControlFileError: EINVAL, there is none.
    """
    available = tracing.available_sites()
    if pattern.isascii() and pattern.isdigit():
        index = int(pattern) if len(pattern) < _LONGEST_NUMBER else len(available) + 1
        if not 1 <= index <= len(available):
            raise _nothing(tracing, pattern, f"there are {len(available)} available functions")
        return available[index - 1 : index]
    if is_plain(pattern):
        available = _near(tracing, available, pattern)
    match = _matcher(pattern)
    mask = np.fromiter(
        (match(tracing.name(site)) for site in available.tolist()), np.bool_, len(available)
    )
    if not mask.any():
        raise _nothing(tracing, pattern, _why_nothing(tracing, pattern))
    return available[mask]


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a pattern matches a function's name, or that demangled."""
    match = glob_match(pattern)
    return lambda name: any(map(match, spellings(name)))


def _near(tracing: Tracing, available: NDArray[np.uint64], name: str) -> NDArray[np.uint64]:
    """Those of the sites that lie in the function called ``name``: a list may have thousands."""
    near = [available[:0]]
    for symbol in tracing.kernel.image.named(name):
        bounds = np.array([symbol.address, symbol.address + symbol.size], dtype=np.uint64)
        begin, end = np.searchsorted(available, bounds)
        near.append(available[begin:end])
    return np.concatenate(near)


def _nothing(tracing: Tracing, pattern: str, why: str) -> ControlFileError:
    return ControlFileError(errno.EINVAL, f"{pattern!r} matches no available function: {why}")


def _why_nothing(tracing: Tracing, pattern: str) -> str:
    image, match = tracing.kernel.image, _matcher(pattern)
    named = [function.name for function in image.functions if match(function.name)]
    if not named:
        return f"{image.name} has no such function"
    notrace = {function.name for function in image.notrace}
    if all(name in notrace for name in named):
        return "what it names is notrace"
    return (
        "what it names has not run yet, so its call site is not known "
        "(--discover scan knows all sites at boot)"
    )


def choose(
    tracing: Tracing, text: str, before: NDArray[np.uint64], *, append: bool
) -> NDArray[np.uint64]:
    """The sites chosen after ``text`` was written to a file that had chosen ``before``.

    Words are patterns; ``!`` in front of one removes. Without ``append`` it begins with none.

    :raises ControlFileError: EINVAL; then nothing of it counts.
    """
    chosen = before if append else before[:0]
    for word in text.split():
        chosen = _apply(tracing, chosen, word)
    return chosen


def _apply(tracing: Tracing, chosen: NDArray[np.uint64], word: str) -> NDArray[np.uint64]:
    sites = matching_sites(tracing, word.removeprefix("!"))
    if word.startswith("!"):
        return np.setdiff1d(chosen, sites)
    return np.union1d(chosen, sites)


def parse_filter(array: TraceArray, text: str, *, append: bool) -> Parsed:
    """Likewise for ``set_ftrace_filter``, whose words may also be triggers: ``fn:command[:count]``.

    A truncating write takes the filter away but no trigger, as in Linux.

    :raises ControlFileError: EINVAL; then nothing of it counts.
    """
    chosen = array.hash.filter if append else array.hash.filter[:0]
    probes = list(array.probes)
    for word in text.split():
        if len(_COLON.split(word)) > 1:
            probes = _command(array, probes, word)
        else:
            chosen = _apply(array.tracing, chosen, word)
    return Parsed(chosen, probes)


def _command(array: TraceArray, probes: list[FunctionProbe], word: str) -> list[FunctionProbe]:
    pattern, command, *rest = _COLON.split(word)
    kind = _COMMANDS.get(command)
    if kind is None:
        known = ", ".join(_COMMANDS)
        raise ControlFileError(errno.EINVAL, f"{word!r}: no command {command!r}; there are {known}")
    if pattern.startswith("!"):
        return _remove(array, probes, pattern[1:], kind)
    count = _count(word, kind, rest)
    there = {probe.site for probe in probes if probe.kind is kind}
    sites = [s for s in matching_sites(array.tracing, pattern).tolist() if s not in there]
    if not sites:
        raise ControlFileError(errno.EINVAL, f"{word!r}: it is set already; remove it first with !")
    return probes + [FunctionProbe(array, site, kind, count) for site in sites]


def _remove(
    array: TraceArray, probes: list[FunctionProbe], pattern: str, kind: ProbeKind
) -> list[FunctionProbe]:
    name = kind.name.lower()
    if not any(probe.kind is kind for probe in probes):
        raise ControlFileError(errno.ENODEV, f"no function has the trigger {name}")
    match = _matcher(pattern)
    kept = [p for p in probes if p.kind is not kind or not match(array.tracing.name(p.site))]
    if len(kept) == len(probes):
        raise ControlFileError(errno.EINVAL, f"no function of {pattern!r} has the trigger {name}")
    return kept


def _count(word: str, kind: ProbeKind, rest: list[str]) -> int:
    if not rest:
        return 1 if kind in _ONCE else UNLIMITED
    if len(rest) > 1 or not rest[0].isascii() or not (rest[0].isdigit() or rest[0] == "unlimited"):
        raise ControlFileError(errno.EINVAL, f"{word!r}: the count is a number, or left out")
    if rest[0] == "unlimited":
        return UNLIMITED
    if len(rest[0]) > _LONGEST_NUMBER or int(rest[0]) > UNLIMITED:
        raise ControlFileError(errno.ERANGE, f"{word[:60]!r}: the count is too large")
    return int(rest[0])
