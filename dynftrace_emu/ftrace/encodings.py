"""What a call site's five bytes can be: the call, the jump over it, or the 5-byte nop.

An encoding is a value: it says which bytes it is at given addresses, and writes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = [
    "DISABLED",
    "JMP",
    "MCOUNT_INSN_SIZE",
    "NOP",
    "Call",
    "Encoding",
    "Jump",
    "Nop",
    "matches",
]

MCOUNT_INSN_SIZE = 5
_CALL_OPCODE = 0xE8
_JMP_PLUS_3 = (0xEB, 0x03)
_NOP5 = b"\x0f\x1f\x44\x00\x00"


def _rows(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The five low bytes of each word, as rows: numbers are much faster to make than rows."""
    return words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :MCOUNT_INSN_SIZE]


class Encoding(ABC):
    """One way a site can read."""

    name: str
    changed_bytes: int
    """How many of a call's bytes, from the first, this encoding changes."""

    @abstractmethod
    def rows(self, sites: NDArray[np.uint64], mcount: int) -> NDArray[np.uint8]:
        """Its bytes at each of ``sites``, shape (n, 5), where the call goes to ``mcount``."""


@dataclass(frozen=True)
class Call(Encoding):
    """``call rel32`` to mcount."""

    name = "call"
    changed_bytes = 0

    def rows(self, sites: NDArray[np.uint64], mcount: int) -> NDArray[np.uint8]:
        displacement = np.uint64(mcount) - (sites + np.uint64(MCOUNT_INSN_SIZE))
        return _rows(displacement << np.uint64(8) | np.uint64(_CALL_OPCODE))


@dataclass(frozen=True)
class Jump(Encoding):
    """``jmp +3``: two bytes over the call's first two; its last three stay (S7)."""

    name = "jmp"
    changed_bytes = 2

    def rows(self, sites: NDArray[np.uint64], mcount: int) -> NDArray[np.uint8]:
        rows = Call().rows(sites, mcount)
        rows[:, :2] = _JMP_PLUS_3
        return rows


@dataclass(frozen=True)
class Nop(Encoding):
    """``0f 1f 44 00 00``: the one-instruction nop that later kernels use."""

    name = "nop"
    changed_bytes = MCOUNT_INSN_SIZE

    def rows(self, sites: NDArray[np.uint64], mcount: int) -> NDArray[np.uint8]:
        return _rows(np.full(len(sites), int.from_bytes(_NOP5, "little"), dtype=np.uint64))


CALL, JMP, NOP = Call(), Jump(), Nop()
DISABLED: Mapping[str, Encoding] = MappingProxyType({"jmp": JMP, "nop": NOP})
"""The encodings a disabled site can have, by ``--site`` name."""


def matches(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Row by row, whether all bytes are as wanted."""
    result = np.ones(len(found), dtype=np.bool_)
    for column in range(found.shape[1]):  # much faster than all(axis=1) on so short an axis
        result &= found[:, column] == wanted[:, column]
    return result
