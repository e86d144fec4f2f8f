"""What happens to call sites, as values; whoever watches gets them as they happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "FtraceEvent",
    "Observer",
    "Observers",
    "PageAdded",
    "SiteRecorded",
    "TextChanged",
    "TracingSwitched",
]


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


class Observers:
    """Who hears of what, in the order they came."""

    def __init__(self) -> None:
        self._of: dict[type, list[Observer]] = {kind: [] for kind in get_args(FtraceEvent)}

    def append(self, observer: Observer, *kinds: type[FtraceEvent]) -> None:
        """Let ``observer`` hear of events of these kinds; of all, if none is given."""
        for kind in kinds or self._of:
            self._of[kind].append(observer)

    def hear(self, kind: type[FtraceEvent]) -> bool:
        """Whether anybody does: an event that nobody hears of need not be made."""
        return bool(self._of[kind])

    def notify(self, event: FtraceEvent) -> None:
        """Tell those who hear of it, in this thread."""
        for observer in self._of[type(event)]:
            observer(event)
