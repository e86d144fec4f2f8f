"""What each CPU's fetch sees of text that is being stored to.

A *spot* is a few bytes of text that a protocol may store to. A store falls into *pieces*, one for
each aligned chunk it touches: a piece is whole, two of them are two stores. What a CPU sees of a
spot changes with its text model (:class:`.model.Text`); memory, and so every data read, changes at
once.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

__all__ = ["Piece", "Spot", "apply", "pieces", "views"]

_MAX_PENDING = 8
"""Pieces of one spot whose order is still tried in full; of more the oldest are visible."""


class Spot(NamedTuple):
    """``size`` bytes of text at virtual ``address``, which lie at ``physical`` in RAM."""

    address: int
    size: int
    physical: int


class Piece(NamedTuple):
    """Bytes that become visible to a fetch together."""

    spot: int
    offset: int
    data: bytes


def pieces(spot: int, address: int, offset: int, data: bytes, chunk: int) -> list[Piece]:
    """A store of ``data`` at ``offset`` in the spot at ``address``, cut at chunk boundaries."""
    found = []
    while data:
        room = chunk - (address + offset) % chunk
        found.append(Piece(spot, offset, data[:room]))
        offset, data = offset + room, data[room:]
    return found


def apply(seen: bytes, piece: Piece) -> bytes:
    """``seen`` with the piece in it."""
    return seen[: piece.offset] + piece.data + seen[piece.offset + len(piece.data) :]


@lru_cache(maxsize=65536)
def views(
    seen: bytes, pending: tuple[Piece, ...], spot: int
) -> tuple[tuple[bytes, tuple[Piece, ...]], ...]:
    """Everything a relaxed fetch of ``spot`` may see: (bytes, what stays pending), distinct.

    All pending pieces visible comes first, none comes last. A byte never goes back: an older piece
    does not come over a newer one.
    """
    own = [piece for piece in pending if piece.spot == spot]
    found: dict[tuple[bytes, tuple[Piece, ...]], None] = {}
    for chosen in itertools.product((True, False), repeat=min(len(own), _MAX_PENDING)):
        visible = [True] * (len(own) - len(chosen)) + list(chosen)
        now, later = seen, list[Piece]()
        for piece, is_visible in zip(own, visible, strict=True):
            if is_visible:
                now = apply(now, piece)
                later = [part for old in later for part in _without(old, piece)]
            else:
                later.append(piece)
        others = tuple(piece for piece in pending if piece.spot != spot)
        found[now, others + tuple(later)] = None
    return tuple(found)


def _without(old: Piece, new: Piece) -> list[Piece]:
    """The parts of ``old`` that ``new`` does not cover."""
    begin, end = new.offset, new.offset + len(new.data)
    before = old.data[: max(0, begin - old.offset)]
    after = old.data[max(0, end - old.offset) :]
    parts = [
        Piece(old.spot, old.offset, before),
        Piece(old.spot, max(old.offset, end), after),
    ]
    return [part for part in parts if part.data]
