"""Where an ELF image can be traced: its call sites, whatever its compiler made of them.

gcc knows five kinds: a call to mcount behind the prologue (``-pg``) or to ``__fentry__`` in front
of it (``-mfentry``), either of them in a table (``-mrecord-mcount``) or a 5-byte nop from the
start (``-mnop-mcount``), and N bytes of nops with a table of their own
(``-fpatchable-function-entry=N[,M]``). They are found here and then made alike, while nothing runs:
each becomes a 5-byte call to our mcount, with one-byte nops behind it where there was more room.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.disassembly import CALL_SIZE, disassemble
from dynftrace_emu.kernel.elf.calls import (
    Call,
    branch_targets,
    calls_to,
    direct_calls,
    guess_target,
    is_at_entry,
    is_behind_prologue,
    nops_at,
    prologue_end,
    skip_endbr,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dynftrace_emu.kernel.elf.text import ElfText

__all__ = ["CallSites", "Ignored", "SiteTable", "find_call_sites"]

MCOUNT_LOC = "__mcount_loc"
PATCHABLE = "__patchable_function_entries"
_AGREED = 16  # functions
_NOP5 = bytes.fromhex("0f1f440000")


@dataclass(frozen=True, slots=True)
class Ignored:
    """A place that a table names and that cannot hold a call."""

    address: int
    reason: str


@dataclass(frozen=True, slots=True)
class SiteTable:
    """A table of call sites: its section's name, how many it lists, and those that can be used."""

    name: str
    entries: int
    sites: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CallSites:
    """All call sites of an image.

    :param style: the compiler's options that make such sites, as ``-pg -mfentry``; empty: none.
    :param before_frame: they come before the function has a frame, as with ``-mfentry``.
    :param calls: every site, ascending, with the bytes it takes.
    :param guessed: no symbol says where mcount is: its address was worked out from its callers.
    :param unlisted: calls that disassembly finds and the table does not list.
    """

    style: str = ""
    before_frame: bool = False
    calls: tuple[Call, ...] = ()
    table: SiteTable | None = None
    ignored: tuple[Ignored, ...] = ()
    guessed: bool = False
    unlisted: tuple[int, ...] = field(default=())

    @property
    def addresses(self) -> NDArray[np.uint64]:
        """The sites, ascending."""
        return np.array([call.site for call in self.calls], dtype=np.uint64)


def find_call_sites(text: ElfText, targets: Mapping[int, bool | None]) -> CallSites:
    """Find them.

    :param targets: where mcount (False) and ``__fentry__`` (True) are; None: both are one function.
    :raises ImageError: a table points where no site can be, or kinds are mixed that no single
        runtime serves.
    """
    recorded = text.table(MCOUNT_LOC)
    guessed = False
    calls = _calls(text, targets)
    if 0 in targets and not calls:
        targets = {}
    if not targets and recorded is not None:
        targets = _targets_of_table(text, recorded)
        guessed = bool(targets)
    elif not targets and not text.has_symbols:
        targets = guess_target(text)
        guessed = bool(targets)
    if guessed:
        calls = _calls(text, targets)
    if recorded is not None:
        return _recorded(text, recorded, calls, targets, guessed=guessed)
    if calls:
        before = _one_kind(text, calls, targets)
        style = "-pg -mfentry" if before else "-pg"
        return CallSites(style, before, tuple(calls), guessed=guessed)
    patchable = text.table(PATCHABLE)
    if patchable is not None:
        return _patchable(text, patchable)
    return _nops_at_functions(text)


def _calls(text: ElfText, targets: Mapping[int, object]) -> list[Call]:
    """Calls to ``targets``, by address; a call to address 0 only where mcount is called."""
    found = [call for part in text.parts for call in calls_to(text, part, targets)]
    return sorted(
        (call for call in found if call.target or is_at_entry(text, call.site)),
        key=lambda call: call.site,
    )


def _one_kind(text: ElfText, calls: list[Call], targets: Mapping[int, bool | None]) -> bool:
    """Whether the calls come before the frame.

    :raises ImageError: some do and some do not.
    """
    behind = sum(1 for call in calls if is_behind_prologue(text, call.site))
    mostly_before = 2 * behind < len(calls)
    kinds: dict[bool, Call] = {}
    for call in reversed(calls):
        before = targets[call.target]
        kinds[mostly_before if before is None else before] = call
    if len(kinds) > 1:
        raise ImageError(
            f"{text.name}: calls both mcount (at {text.where(kinds[False].site)}) and __fentry__ "
            f"(at {text.where(kinds[True].site)}): compile all of it one way"
        )
    return next(iter(kinds))


# --- __mcount_loc ---


def _targets_of_table(text: ElfText, entries: NDArray[np.uint64]) -> dict[int, bool | None]:
    """Without symbols: whom most of the listed calls call."""
    found = Counter(
        call.target
        for address in entries.tolist()
        if (call := direct_calls(text, address)) is not None
    )
    if not found:
        return {}
    target = found.most_common(1)[0][0]
    first = next(a for a in entries.tolist() if direct_calls(text, a) is not None)
    return {target: not is_behind_prologue(text, first)}


def _recorded(
    text: ElfText,
    entries: NDArray[np.uint64],
    calls: list[Call],
    targets: Mapping[int, bool | None],
    *,
    guessed: bool,
) -> CallSites:
    by_site = {call.start: call for call in calls}
    listed: list[Call] = []
    for number, address in enumerate(entries.tolist()):
        call = by_site.get(address) or _nop5(text, address) or _known_call(text, address, targets)
        if call is None:
            raise ImageError(
                f"{text.name}: entry {number} of {MCOUNT_LOC} {_what_is_there(text, address)}; it "
                "should be a call to mcount or a 5-byte nop"
            )
        _require_boundary(text, MCOUNT_LOC, number, address)
        listed.append(call)
    nops = sum(1 for call in listed if not call.target)
    before = _kind_of_listed(text, listed, targets)
    style = "-pg" + (" -mfentry" if before else "") + " -mrecord-mcount"
    if nops > len(listed) // 2:
        style += " -mnop-mcount"
    listed_sites = {call.site for call in listed}
    unlisted = [call for call in calls if call.site not in listed_sites]
    both = sorted([*listed, *unlisted], key=lambda call: call.site)
    table = SiteTable(MCOUNT_LOC, len(entries), tuple(sorted(listed_sites)))
    others = tuple(call.site for call in unlisted)
    return CallSites(style, before, tuple(both), table, (), guessed, others)


def _known_call(text: ElfText, address: int, targets: Mapping[int, object]) -> Call | None:
    """A call to mcount, also where only the table says so: one to address 0 in a stripped image."""
    call = direct_calls(text, address)
    return call if call is not None and call.target in targets else None


def _nop5(text: ElfText, address: int) -> Call | None:
    if text.read(address, CALL_SIZE) != _NOP5:
        return None
    return Call(address, address, CALL_SIZE, 0)


def _kind_of_listed(text: ElfText, listed: list[Call], targets: Mapping[int, bool | None]) -> bool:
    calls = [call for call in listed if call.target]
    if calls:
        return _one_kind(text, calls, targets)
    behind = sum(1 for call in listed if is_behind_prologue(text, call.site))
    return behind <= len(listed) // 2


def _what_is_there(text: ElfText, address: int) -> str:
    part = text.part_at(address)
    if part is None:
        return f"points to {address:#x}, outside the text"
    inside = text.instruction_around(address)
    if inside is not None:
        at, line = inside
        return f"points into the middle of `{line}` at {text.where(at)}"
    code = disassemble(text.read(address, 15) or b"", address, 1)
    line = code[0][2] if code else "nothing"
    return f"points to `{line}` at {text.where(address)}"


def _require_boundary(text: ElfText, table: str, number: int, address: int) -> None:
    if text.instruction_around(address) is not None:
        raise ImageError(f"{text.name}: entry {number} of {table} {_what_is_there(text, address)}")


# --- nops ---


def _patchable(text: ElfText, entries: NDArray[np.uint64]) -> CallSites:
    found: dict[int, Call] = {}
    ignored: list[Ignored] = []
    shapes: Counter[tuple[int, int]] = Counter()
    in_front = _most_nops_in_front(text, entries)
    runs: list[tuple[int, int, list[int]]] = []  # of each entry: M, where it begins, its nops
    for number, address in enumerate(entries.tolist()):
        reserved = _reserved(text, number, address)
        entry = text.entry_within(address, reserved)
        if entry is None:
            entry = address + min(in_front, reserved) if not text.has_symbols else address
        begin = skip_endbr(text, entry)
        nops = nops_at(text, begin)
        runs.append((entry - address, begin, nops))
        shapes[entry - address + sum(nops), entry - address] += 1
    (count, before), votes = _most_common(shapes)
    for in_front, begin, nops in runs:
        own = _given(text, begin, nops, count - in_front, agreed=votes >= _AGREED)
        size = _cover(own)
        if size < CALL_SIZE:
            reason = f"{sum(own)} bytes of nops at its entry; a call takes {CALL_SIZE}"
            ignored.append(Ignored(begin, reason))
        else:
            found[begin] = Call(begin, begin, size, 0)
    sites = tuple(found[site] for site in sorted(found))
    table = SiteTable(PATCHABLE, len(entries), tuple(sorted(found)))
    style = "-fpatchable-function-entry"
    if count:
        style += f"={count},{before}" if before else f"={count}"
    return CallSites(style, True, sites, table, tuple(ignored))


def _most_common(shapes: Counter[tuple[int, int]]) -> tuple[tuple[int, int], int]:
    """N and M as most entries have them, the fewest of those that as many have; and how many."""
    return min(shapes.items(), key=lambda item: (-item[1], item[0]), default=((0, 0), 0))


def _given(text: ElfText, begin: int, nops: list[int], most: int, *, agreed: bool) -> list[int]:
    """The nops at ``begin`` that are the compiler's: at most N, and the program branches to none.

    Behind those there may be nops of the program's own.

    :param agreed: so many functions have as many nops that none of those is the program's.
    """
    end = begin + min(sum(nops), most)
    if not (agreed and sum(nops) <= most):
        end = min([end, *branch_targets(text, begin, end)])
    own: list[int] = []
    for size in nops:
        if begin + sum(own) + size > end:
            break
        own.append(size)
    return own


def _reserved(text: ElfText, number: int, address: int) -> int:
    """Bytes of nops from where the table points on, with what an ``endbr64`` is in front of.

    :raises ImageError: there is nothing of the kind.
    """
    if text.part_at(address) is None:
        raise ImageError(
            f"{text.name}: entry {number} of {PATCHABLE} {_what_is_there(text, address)}"
        )
    _require_boundary(text, PATCHABLE, number, address)
    reserved = sum(nops_at(text, address))
    if not reserved:
        what = _what_is_there(text, address)
        raise ImageError(f"{text.name}: entry {number} of {PATCHABLE} {what}; it should be a nop")
    return reserved


def _most_nops_in_front(text: ElfText, entries: NDArray[np.uint64]) -> int:
    """Without symbols: M, as the functions show that something calls."""
    if text.has_symbols:
        return 0
    found: Counter[int] = Counter()
    for address in entries.tolist():
        entry = text.entry_within(address, sum(nops_at(text, address)))
        if entry is not None:
            found[entry - address] += 1
    return found.most_common(1)[0][0] if found else 0


def _cover(nops: list[int]) -> int:
    """Bytes of the first nops that together have room for a call, or of all there are."""
    size = 0
    for nop in nops:
        if size >= CALL_SIZE:
            break
        size += nop
    return size


def _nops_at_functions(text: ElfText) -> CallSites:
    """``-mnop-mcount`` without a table: where most functions begin with the 5-byte nop."""
    found: list[Call] = []
    behind = 0
    for start in text.likely_starts:
        first = skip_endbr(text, start)
        for at in (first, prologue_end(text, first)):
            if (call := _nop5(text, at)) is not None:
                found.append(call)
                behind += at != first
                break
    if len(found) < 2 or 4 * len(found) <= len(text.likely_starts):
        return CallSites()
    before = 2 * behind <= len(found)
    style = "-pg -mfentry -mnop-mcount" if before else "-pg -mnop-mcount"
    return CallSites(style, before, tuple(sorted(found, key=lambda call: call.site)))
