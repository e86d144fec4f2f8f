"""Who wants which call sites: the hashes of ``struct ftrace_ops`` (kernel/trace/ftrace.c)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["EMPTY_HASH", "Listeners", "OpsHash", "site_array"]


def site_array(sites: object = ()) -> NDArray[np.uint64]:
    """Sites as a sorted array without duplicates."""
    return np.unique(np.asarray(list(sites), dtype=np.uint64))  # type: ignore[call-overload]


def _nothing() -> NDArray[np.uint64]:
    return np.zeros(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class OpsHash:
    """Which sites somebody wants: those of ``filter``, all if that is empty, less ``notrace``.

    :param only: an empty ``filter`` means no site at all, as for triggers.
    """

    filter: NDArray[np.uint64] = field(default_factory=_nothing)
    notrace: NDArray[np.uint64] = field(default_factory=_nothing)
    only: bool = False

    @property
    def wants_unknown(self) -> bool:
        """Whether a site that nobody knows yet is wanted too."""
        return not self.only and not len(self.filter)

    def wants(self, sites: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Site by site, whether it is wanted."""
        wanted = np.ones(len(sites), dtype=np.bool_)
        if not self.wants_unknown:
            wanted = np.isin(sites, self.filter)
        if len(self.notrace):
            wanted &= ~np.isin(sites, self.notrace)
        return wanted


EMPTY_HASH = OpsHash()


@dataclass(frozen=True, slots=True, eq=False)
class Listeners:
    """Everybody who is registered, by bit (:class:`~.structs.TraceBit`), and marks on sites.

    A mark is a bit that says something of a site to the tracers, and makes it no call: ``marks``
    maps it to the bit it goes with and the sites.
    """

    hashes: Mapping[int, OpsHash] = field(default_factory=dict)
    marks: Mapping[int, tuple[int, NDArray[np.uint64]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.hashes)

    def bits(self, sites: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """For each site the bits of those who want it, and its marks."""
        bits = np.zeros(len(sites), dtype=np.uint32)
        for bit, ops_hash in self.hashes.items():
            bits |= ops_hash.wants(sites).astype(np.uint32) << np.uint32(bit)
        for bit, (owner, marked) in self.marks.items():
            mask = np.isin(sites, marked) & (bits >> np.uint32(owner) & np.uint32(1)).astype(bool)
            bits |= mask.astype(np.uint32) << np.uint32(bit)
        return bits

    @property
    def unknown(self) -> int:
        """The bits of those who want sites that nobody knows yet."""
        return sum(1 << bit for bit, ops_hash in self.hashes.items() if ops_hash.wants_unknown)
