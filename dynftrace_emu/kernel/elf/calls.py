"""Recognising calls, prologues and nops in x86-64 text, by their bytes."""

from __future__ import annotations

import bisect
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.kernel.disassembly import CALL_SIZE, disassemble

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from dynftrace_emu.kernel.elf.text import ElfText, TextPart

__all__ = [
    "Call",
    "branch_targets",
    "called_addresses",
    "calls_to",
    "direct_calls",
    "guess_target",
    "is_at_entry",
    "is_behind_prologue",
    "nops_at",
    "prologue_end",
    "prologue_start",
    "skip_endbr",
]

ENDBR64 = bytes.fromhex("f30f1efa")
_CALL, _JMP, _JMP_SHORT, _ADDR32 = 0xE8, 0xE9, 0xEB, 0x67
_INDIRECT = b"\xff\x15"  # call [rip + disp32]
_INDIRECT_SIZE = 6
_BY_REGISTER = ((b"\x49\xba", b"\x41\xff\xd2"), (b"\x49\xbb", b"\x41\xff\xd3"))  # r10, r11
_WINDOW = 48
_FEWEST = 2  # callers from which mcount is guessed

# What gcc puts between a function's start and its call to mcount: the frame, saved registers, room.
_FRAME = (
    rb"\x55\x48\x89\xe5"
    rb"(?:\x41[\x50-\x57]|[\x50-\x57]|\x48\x83[\xec\xe4].|\x48\x81\xec....)*"
)
_PROLOGUE = re.compile(_FRAME, re.DOTALL)
_PROLOGUE_BEFORE = re.compile(rb"(?:\xf3\x0f\x1e\xfa)?" + _FRAME + rb"\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """A call site.

    ``site`` is where the 5-byte call will be, ``start`` where a table would name it, ``size`` the
    bytes that belong to it; ``target`` is whom it calls now, 0 if it is a nop.
    """

    site: int
    start: int
    size: int
    target: int


def calls_to(text: ElfText, part: TextPart, targets: Mapping[int, object]) -> Iterator[Call]:
    """Calls to one of ``targets``: direct ones (also ``addr32``), through a GOT or a register."""
    if not targets:
        return
    sites, called = _direct(part)
    for index in np.flatnonzero(np.isin(called, np.array(list(targets), np.uint64))).tolist():
        site, target = int(sites[index]), int(called[index])
        start = _with_prefix(text, site)
        yield Call(start, start, CALL_SIZE + site - start, target)
    offset = part.data.find(_INDIRECT)
    while offset >= 0:
        site = part.address + offset
        slot = site + _INDIRECT_SIZE + _int32(part.data[offset + 2 : offset + 6])
        word = text.read(slot, 8)
        if word is not None and int.from_bytes(word, "little") in targets:
            yield Call(site, site, _INDIRECT_SIZE, int.from_bytes(word, "little"))
        offset = part.data.find(_INDIRECT, offset + 1)
    for target in targets:
        yield from _absolute(part, target)


def _absolute(part: TextPart, target: int) -> Iterator[Call]:
    """What the large code model makes of a call: the address in a register, and a call of that."""
    for move, call in _BY_REGISTER:
        code = move + target.to_bytes(8, "little") + call
        offset = part.data.find(code)
        while offset >= 0:
            site = part.address + offset
            yield Call(site, site, len(code), target)
            offset = part.data.find(code, offset + len(code))


def _with_prefix(text: ElfText, site: int) -> int:
    """Where the instruction begins: ld puts ``addr32`` in front of calls that went by the GOT."""
    prefixed = text.read(site - 1, 1) == bytes([_ADDR32]) and text.begins_instruction(site - 1)
    return site - 1 if prefixed else site


def _int32(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _direct(part: TextPart) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Every ``e8`` and whom it would call; those that are not calls call nobody we ask for."""
    code = np.frombuffer(part.data, np.uint8)
    offsets = np.flatnonzero(code[: max(0, len(code) - 4)] == _CALL)
    raw = code[offsets[:, None] + np.arange(1, CALL_SIZE)]
    displacements = np.ascontiguousarray(raw).view("<i4").reshape(-1).astype(np.int64)
    sites = offsets.astype(np.uint64) + np.uint64(part.address)
    return sites, sites + np.uint64(CALL_SIZE) + displacements.view(np.uint64)


def direct_calls(text: ElfText, address: int) -> Call | None:
    """The direct call at ``address``, if there is one."""
    code = text.read(address, CALL_SIZE)
    if code is None or code[0] != _CALL:
        return None
    target = (address + CALL_SIZE + _int32(code[1:])) % (1 << 64)
    return Call(address, address, CALL_SIZE, target)


def prologue_start(text: ElfText, site: int) -> int | None:
    """Where the prologue begins that ends at ``site``, or None if there is none."""
    part = text.part_at(site)
    if part is None:
        return None
    begin = max(part.address, site - _WINDOW)
    before = part.data[begin - part.address : site - part.address]
    found = _PROLOGUE_BEFORE.search(before)
    return begin + found.start() if found else None


def prologue_end(text: ElfText, start: int) -> int:
    """Where a function goes on that begins by making its frame; ``start`` if it does not."""
    part = text.part_at(start)
    if part is None:
        return start
    offset = start - part.address
    found = _PROLOGUE.match(part.data[offset : offset + _WINDOW])
    return start + found.end() if found else start


def is_behind_prologue(text: ElfText, site: int) -> bool:
    """Whether the function has its frame already."""
    return prologue_start(text, site) is not None


def is_at_entry(text: ElfText, site: int) -> bool:
    """Whether a function that is known begins here, or has just made its frame."""
    starts = text.likely_starts
    index = bisect.bisect(starts, site) - 1
    begins = index >= 0 and skip_endbr(text, starts[index]) == site
    return begins or is_behind_prologue(text, site)


def skip_endbr(text: ElfText, address: int) -> int:
    """``address``, or behind the ``endbr64`` that is there."""
    return address + len(ENDBR64) if text.read(address, 4) == ENDBR64 else address


def nops_at(text: ElfText, address: int) -> list[int]:
    """The sizes of the nops that follow each other from ``address`` on."""
    sizes: list[int] = []
    while True:
        code = text.read(address, 15) or text.read(address, 5) or text.read(address, 1)
        line = disassemble(code, address, 1) if code else []
        if not line or not line[0][2].startswith("nop"):
            return sizes
        sizes.append(len(line[0][1]))
        address += sizes[-1]


def guess_target(text: ElfText) -> dict[int, bool | None]:
    """Without symbols: who is called by nothing but functions that have just begun.

    The one with the most callers; nobody, if there is none with at least two.
    """
    callers: dict[int, list[int]] = {}
    counts: Counter[int] = Counter()
    for part in text.parts:
        sites, called = _direct(part)
        for site, target in zip(sites.tolist(), called.tolist(), strict=True):
            if text.part_at(target) is not None:
                callers.setdefault(target, []).append(_with_prefix(text, site))
                counts[target] += 1
    entered = set(callers) | _jump_targets(text)
    for target, count in counts.most_common():
        if count < _FEWEST:
            break
        if all(is_behind_prologue(text, site) for site in callers[target]):
            return {target: False}
        if all(_is_function_start(text, site, entered) for site in callers[target]):
            return {target: True}
    return {}


def called_addresses(text: ElfText) -> set[int]:
    """Everything within the text that a direct call may go to."""
    found: set[int] = set()
    for part in text.parts:
        found.update(a for a in np.unique(_direct(part)[1]).tolist() if text.part_at(a) is not None)
    return found


def branch_targets(text: ElfText, start: int, end: int) -> list[int]:
    """Where between ``start`` and ``end`` the function that begins with them branches to."""
    part = text.part_at(start)
    if part is None:
        return []
    following = bisect.bisect(text.likely_starts, start)
    limit = min([part.end, *text.likely_starts[following : following + 1]])
    found = []
    for _, _, line in disassemble(text.read(start, limit - start) or b"", start):
        name, _, operand = line.partition(" ")
        if name.startswith(("j", "loop")) and operand.startswith("0x"):
            found.append(int(operand, 16))
    return [target for target in found if start < target < end]


def _jump_targets(text: ElfText) -> set[int]:
    """Where jumps may go, by bytes that may be one."""
    found: set[int] = set()
    for part in text.parts:
        code = np.frombuffer(part.data, np.uint8)
        short = np.flatnonzero(code[:-1] == _JMP_SHORT)
        near = np.flatnonzero(code[: max(0, len(code) - 4)] == _JMP)
        raw = np.ascontiguousarray(code[near[:, None] + np.arange(1, CALL_SIZE)])
        for offsets in (
            2 + short + code[short + 1].view(np.int8),
            CALL_SIZE + near + raw.view("<i4").reshape(-1),
        ):
            found.update(part.address + offset for offset in offsets.tolist())
    return found


def _is_function_start(text: ElfText, site: int, called: set[int]) -> bool:
    """Whether a function seems to begin here: somebody enters it, or it is aligned."""
    start = site - len(ENDBR64) if text.read(site - 4, 4) == ENDBR64 else site
    if start in called or start in text.entries:
        return True
    before = text.read(start - 1, 1)
    return start % 16 == 0 and (before is None or before in (b"\xc3", b"\xcc", b"\x90", b"\x00"))
