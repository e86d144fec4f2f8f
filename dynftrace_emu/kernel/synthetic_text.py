"""Generated text: call trees of functions, made of units of 16 bytes each.

What is drawn for a function depends on its number and the seed alone, so the trees of a small
kernel are those that a larger one begins with. Without calls to mcount a function begins five bytes
later, and everything else lies where it lies with them.
"""

from __future__ import annotations

import zlib
from enum import IntEnum, auto
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.kernel.disassembly import CALL_SIZE, TextScan

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TREE", "SyntheticText"]

UNIT = 16
TREE = 128
"""Functions in a call tree, at most: what runs between two safepoints."""

# Of functions in bytes: the share that is smaller, and the size. The smallest have no call site.
_QUANTILES = (0.0, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
_SIZES = (48, 48, 62, 80, 128, 160, 224, 272, 336, 560, 912, 1600, 2352, 3288, 6313)
_FAN_OUT = (1, 2, 3, 4)
_FAN_OUT_SHARES = (0.30, 0.30, 0.25, 0.15)
_HOT = 12  # units, unless there are more calls: long functions are mostly their unlikely cases
_SHARES = (("STACK", 0.30), ("GUARD", 0.25), ("LOOP", 0.05))  # of hot units; the rest is ALU


class _Kind(IntEnum):
    """What a unit is; :data:`_CODE` has the bytes."""

    PROLOGUE = 0
    EXIT = auto()
    ALU = auto()
    STACK = auto()
    GUARD = auto()
    LOOP = auto()
    CALL = auto()


# A function gets a number in rdi and returns one in rax; no unit maps two numbers to one, or after
# a while all results would be the same. Four bytes 00 are put in later.
_CODE = {
    # push rbp; mov rbp, rsp; call mcount; sub rsp, 32; mov rax, rdi
    _Kind.PROLOGUE: "55 4889e5 e800000000 4883ec20 4889f8",
    # leave; ret
    _Kind.EXIT: "c9 c3 cccccccccccccccccccccccccccc",
    # add rax, imm32; xor rax, imm32; rol rax, 7
    _Kind.ALU: "480500000000 483500000000 48c1c007",
    # mov [rbp - 8], rax; add qword ptr [rbp - 8], imm32; mov rax, [rbp - 8]
    _Kind.STACK: "488945f8 488145f800000000 488b45f8",
    # cmp qword ptr [rbp + 8], 0; je cold; rol rax, 1; xchg ax, ax: no return address is 0
    _Kind.GUARD: "48837d0800 0f8400000000 48d1c0 6690",
    # mov ecx, 4; 1: rol rax, 1; inc rax; dec ecx; jnz 1b; nop
    _Kind.LOOP: "b904000000 48d1c0 48ffc0 ffc9 75f6 90",
    # mov rdi, rax; call callee; rol rax, 5; inc rax; nop
    _Kind.CALL: "4889c7 e800000000 48c1c005 48ffc0 90",
}
_PROLOGUE_UNTRACED = "cccccccccc 55 4889e5 4883ec20 4889f8"
_MCOUNT_AT, _CALL_AT = 4, 3  # of the e8, in PROLOGUE and CALL
_IMMEDIATES = {_Kind.ALU: (2, 8), _Kind.STACK: (8,)}


def _uniform(seed: int, what: str, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), by index: splitmix64, which is the same with every version of NumPy."""
    with np.errstate(over="ignore"):
        x = np.arange(1, count + 1, dtype=np.uint64)
        x += np.uint64(zlib.crc32(what.encode()) << 32 | seed)
        x *= np.uint64(0x9E37_79B9_7F4A_7C15)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58_476D_1CE4_E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D0_49BB_1331_11EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


class SyntheticText:
    """Who calls whom and where everything lies: arrays over the functions, in text order.

    :param mcount: where it is; None: the functions do not call it.
    """

    def __init__(self, functions: int, seed: int, address: int, mcount: int | None) -> None:
        self.functions, self.address = functions, address
        self._seed, self._mcount = seed, mcount
        self.trees = -(-functions // TREE)
        self.parents = self._draw_parents()
        self.calls = np.bincount(self.parents[self.parents >= 0], minlength=functions)
        self._draw_sizes()

    def _draw_parents(self) -> NDArray[np.int64]:
        """Of each function the caller, in the breadth-first order of its tree; -1: it is a root."""
        draws = _uniform(self._seed, "fan-out", self.trees * TREE)
        bounds = np.cumsum(_FAN_OUT_SHARES)[:-1]
        fan_out = np.array(_FAN_OUT)[np.searchsorted(bounds, draws, side="right")]
        parents = np.full((self.trees, TREE), -1)
        for tree, counts in enumerate(fan_out.reshape(self.trees, TREE)):
            parents[tree, 1:] = np.repeat(np.arange(TREE), counts)[: TREE - 1] + tree * TREE
        return parents.ravel()[: self.functions]

    def _draw_sizes(self) -> None:
        """Units of each function: prologue, hot ones, exit; then perhaps cold ones, and an exit."""
        sizes = np.interp(_uniform(self._seed, "size", self.functions), _QUANTILES, _SIZES)
        body = np.rint(sizes / UNIT).astype(np.int64) - 2
        self._hot = np.maximum(np.minimum((body + 1) // 2, _HOT), self.calls + 1)
        cold = body - self._hot
        self._has_cold = cold > 1
        self._units = 2 + self._hot + np.where(self._has_cold, cold, 0)
        self._starts = np.cumsum(self._units) - self._units

    # --- where things are ---

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self._units.sum()) * UNIT

    @property
    def entries(self) -> NDArray[np.uint64]:
        """The address of each function."""
        return self._address(self._starts, 0 if self._mcount is not None else CALL_SIZE)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each function, from its entry to behind its last ``ret``."""
        end = self._address(self._starts + self._units - 1, len(b"\xc9\xc3"))
        return (end - self.entries).astype(np.int64)

    @property
    def roots(self) -> NDArray[np.uint64]:
        """The entry of each tree's root."""
        return self.entries[::TREE]

    def _address(self, units: NDArray[np.int64], offset: int) -> NDArray[np.uint64]:
        return units.astype(np.uint64) * np.uint64(UNIT) + np.uint64(self.address + offset)

    # --- what is there ---

    def code(self) -> tuple[bytes, TextScan]:
        """The text, and what is to be known of it."""
        kinds = self._kinds()
        templates = np.array([list(bytes.fromhex(_CODE[kind])) for kind in _Kind], dtype=np.uint8)
        if self._mcount is None:
            templates[_Kind.PROLOGUE] = list(bytes.fromhex(_PROLOGUE_UNTRACED))
        rows = templates[kinds]
        for kind, places in _IMMEDIATES.items():
            units = np.flatnonzero(kinds == kind)
            for place in places:
                draws = _uniform(self._seed, f"{kind.name} {place}", len(kinds))[units]
                _put(rows, units, place, (draws * 2.0**32).astype(np.uint64))
        self._put_guards(rows, np.flatnonzero(kinds == _Kind.GUARD))
        calls = self._put_calls(rows)
        return rows.tobytes(), TextScan(calls=calls)

    def _kinds(self) -> NDArray[np.uint8]:
        """Of each unit, its :class:`_Kind`."""
        function = np.repeat(np.arange(self.functions), self._units)
        place = np.arange(len(function)) - self._starts[function]
        is_hot = (place > 0) & (place <= self._hot[function])
        kinds = np.full(len(function), _Kind.ALU, dtype=np.uint8)
        draws, share = _uniform(self._seed, "kind", len(function)), 0.0
        for name, part in _SHARES:
            kinds[is_hot & (draws >= share) & (draws < share + part)] = _Kind[name]
            share += part
        kinds[(place == 1) & self._has_cold[function]] = _Kind.GUARD  # so that it can be reached
        kinds[(kinds == _Kind.GUARD) & ~self._has_cold[function]] = _Kind.ALU
        kinds[self._calling_units()] = _Kind.CALL
        kinds[place == 0] = _Kind.PROLOGUE
        is_last = place == self._units[function] - 1
        kinds[is_last | (place == self._hot[function] + 1)] = _Kind.EXIT
        return kinds

    def _called(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.parents >= 0)

    def _calling_units(self) -> NDArray[np.int64]:
        """Of each function that is called, the unit that calls it: spread over its caller's."""
        callers = self.parents[self._called()]
        first = np.searchsorted(callers, callers)  # callees of one function follow each other
        nth = np.arange(len(callers)) - first
        calls = self.calls[callers]
        places = 2 + (2 * nth + 1) * (self._hot[callers] - 1) // (2 * calls)
        units: NDArray[np.int64] = self._starts[callers] + places
        return units

    def _put_guards(self, rows: NDArray[np.uint8], units: NDArray[np.int64]) -> None:
        function = np.searchsorted(self._starts, units, side="right") - 1
        cold = self._starts[function] + self._hot[function] + 2
        _put(rows, units, 7, self._address(cold, 0) - self._address(units, 11))

    def _put_calls(self, rows: NDArray[np.uint8]) -> list[tuple[int, int]]:
        """Returns all calls: where, and to what."""
        units = self._calling_units()
        targets = self.entries[self._called()]
        places = self._put_call(rows, units, _CALL_AT, targets)
        if self._mcount is not None:
            to_mcount = np.full(self.functions, self._mcount, dtype=np.uint64)
            sites = self._put_call(rows, self._starts, _MCOUNT_AT, to_mcount)
            places, targets = np.concatenate([places, sites]), np.concatenate([targets, to_mcount])
        order = np.argsort(places)
        return list(zip(places[order].tolist(), targets[order].tolist(), strict=True))

    def _put_call(
        self, rows: NDArray[np.uint8], units: NDArray[np.int64], at: int, to: NDArray[np.uint64]
    ) -> NDArray[np.uint64]:
        places = self._address(units, at)
        _put(rows, units, at + 1, to - places - np.uint64(CALL_SIZE))
        return places


def _put(
    rows: NDArray[np.uint8], units: NDArray[np.int64], place: int, values: NDArray[np.uint64]
) -> None:
    """Store the low 32 bits of ``values`` at byte ``place`` of the units."""
    low = values.astype("<u4").view(np.uint8).reshape(-1, 4)
    for byte in range(4):
        rows[units, place + byte] = low[:, byte]
