"""The patching protocols that can be explored, right ones and wrong ones.

Each is a generator of steps. ``stop_machine`` runs the very generator that patches the real
machine.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.explore.steps import Protocol, Resume, Step, Stop, Store, Sync
from dynftrace_emu.ftrace import protocols
from dynftrace_emu.ftrace.protocols import CompareExchange, TextChange, stop_machine_protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dynftrace_emu.explore.poke import Poke

__all__ = ["PROTOCOLS", "breakpoint_protocol"]

INT3 = 0xCC


def stop_machine(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """The seed's: one 2-byte exchange a site, everybody parked, all synced (S7, S11)."""
    yield Stop()
    yield from stop_machine_protocol(change)
    yield Resume()


def stop_machine_4_1(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """With the writer of 2.6.27: a locked exchange of 4 bytes, then a store of the fifth."""
    yield Stop()
    yield CompareExchange(change.sites, change.old[:, :4], change.new[:, :4])
    yield Store(change.sites + np.uint64(4), change.new[:, 4:])
    yield protocols.Sync()
    yield Resume()


def stop_machine_unsynced(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """Everybody parked and let go without a sync. Broken on purpose."""
    yield Stop()
    for step in stop_machine_protocol(change):
        if not isinstance(step, protocols.Sync):
            yield step
    yield Resume()


def breakpoint_protocol(change: TextChange, poke: Poke) -> Iterator[Step]:
    """Today's Linux (``text_poke_bp_batch``): int3, sync, tail, sync, head, sync."""
    yield from poke.publish(change)
    yield poke.get()
    yield Store(change.sites, np.full((len(change.sites), 1), INT3, dtype=np.uint8))
    yield Sync()
    yield Store(change.sites + np.uint64(1), change.new[:, 1:], width=4)
    yield Sync()
    yield Store(change.sites, change.new[:, :1])
    yield Sync()
    yield poke.put()
    yield poke.wait_for_handlers()
    yield poke.clear()


def live(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """One store of all that differs, nobody stopped, then a sync. Broken on purpose."""
    yield _whole(change)
    yield Sync()


def live_unsynced(change: TextChange, _poke: Poke) -> Iterator[Step]:
    """The same without the sync. Broken on purpose."""
    yield _whole(change)


def none(_change: TextChange, _poke: Poke) -> Iterator[Step]:
    """Nothing: guest code patches, or nobody does."""
    return iter(())


def _whole(change: TextChange) -> Store:
    differs = (change.old != change.new).any(axis=0)
    width = 2 if not differs[2:].any() else change.old.shape[1]
    return Store(change.sites, change.new[:, :width])


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "stop_machine": stop_machine,
        "stop_machine-4+1": stop_machine_4_1,
        "stop_machine-unsynced": stop_machine_unsynced,
        "breakpoint": breakpoint_protocol,
        "live": live,
        "live-unsynced": live_unsynced,
        "none": none,
    }
)
"""By the name that ``--protocol`` takes."""
