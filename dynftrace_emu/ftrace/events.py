"""What happens to call sites, as values; whoever watches gets them as they happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FtraceEvent", "Observer", "PageAdded", "SiteRecorded", "TextChanged", "TracingSwitched"]


@dataclass(frozen=True, slots=True)
class SiteRecorded:
    """A call site ran for the first time: ``ip`` is its return address."""

    time: float
    vcpu: int
    ip: int
    parent_ip: int
    bucket: int
    chain: int  # nodes in the bucket, this one included
    page: int
    slot: int


@dataclass(frozen=True, slots=True)
class PageAdded:
    """The daemon (or the boot) added a page of records; ``capacity`` is the new total."""

    time: float
    capacity: int


@dataclass(frozen=True, slots=True)
class TextChanged:
    """Sites were changed while the machine was stopped; rows of 5 bytes, (n, 5)."""

    time: float
    why: str
    sites: NDArray[np.uint64]
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    failed: NDArray[np.bool_]
    parked: tuple[tuple[int, int], ...]  # (vCPU, ip)


@dataclass(frozen=True, slots=True)
class TracingSwitched:
    """Tracing went on or off; ``sites`` were changed for it."""

    time: float
    enabled: bool
    sites: int


FtraceEvent = SiteRecorded | PageAdded | TextChanged | TracingSwitched
Observer = Callable[[FtraceEvent], None]
