"""Patching protocols: generators of steps, which say what is stored and synced, and do nothing.

Steps carry arrays, so many sites are one step. :mod:`.patcher` runs them in one go while the
machine is stopped; whoever wants to see what happens between two steps drives the same generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CompareExchange", "Protocol", "Step", "Sync", "TextChange", "stop_machine_protocol"]


@dataclass(frozen=True, slots=True)
class TextChange:
    """Sites (ascending) with their five bytes before and after, shape (n, 5)."""

    sites: NDArray[np.uint64]
    old: NDArray[np.uint8]
    new: NDArray[np.uint8]

    def select(self, mask: NDArray[np.bool_]) -> TextChange:
        """The part of it that ``mask`` chooses."""
        if mask.all():
            return self
        return TextChange(self.sites[mask], self.old[mask], self.new[mask])


@dataclass(frozen=True, slots=True)
class CompareExchange:
    """At each address: if the bytes are ``old``, store ``new``.

    Rows of 2 bytes are one locked 16-bit exchange each; longer ones are for a machine that is
    stopped.
    """

    addresses: NDArray[np.uint64]
    old: NDArray[np.uint8]
    new: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sync:
    """Every vCPU drops what it took from the old text."""


Step = CompareExchange | Sync
Protocol = Callable[[TextChange], Iterator[Step]]


def stop_machine_protocol(change: TextChange) -> Iterator[Step]:
    """The seed's: one exchange a site, of the bytes that differ, with nobody running (S7, S11)."""
    differs = (change.old != change.new).any(axis=0)
    if differs.any():
        width = 2 if not differs[2:].any() else change.old.shape[1]
        yield CompareExchange(change.sites, change.old[:, :width], change.new[:, :width])
    yield Sync()
