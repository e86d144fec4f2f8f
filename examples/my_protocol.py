"""A patching protocol of one's own: int3, then the tail, then the first byte (docs/explore.md).

dynftrace-emu explore --protocol examples/my_protocol.py:patch
dynftrace-emu explore --protocol examples/my_protocol.py:hasty --expect torn-fetch
"""

from collections.abc import Iterator

import numpy as np

from dynftrace_emu.explore.poke import Poke
from dynftrace_emu.explore.steps import Step, Store, Sync
from dynftrace_emu.ftrace.protocols import TextChange


def patch(change: TextChange, poke: Poke) -> Iterator[Step]:
    """Nobody fetches the tail while it changes: an int3 stands in front of it."""
    yield from poke.publish(change)  # what the int3 handler is to do instead
    yield poke.get()
    yield Store(change.sites, np.full((len(change.sites), 1), 0xCC))
    yield Sync()
    yield Store(change.sites + np.uint64(1), change.new[:, 1:])
    yield Sync()
    yield Store(change.sites, change.new[:, :1])
    yield Sync()
    yield poke.put()
    yield poke.wait_for_handlers()


def hasty(change: TextChange, poke: Poke) -> Iterator[Step]:
    """The same without the first sync: a CPU may still fetch the old first byte."""
    steps = list(patch(change, poke))
    del steps[next(n for n, step in enumerate(steps) if isinstance(step, Sync))]
    return iter(steps)
