"""What the explored machine may do: how stores reach a fetch, what syncs, who may be parked.

The text models are ways in which a CPU may see what another one stores to text (SDM vol. 3A, 9.1.3
asks for a serializing instruction; what happens without one depends on the processor).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dynftrace_emu.errors import OptionError
from dynftrace_emu.machine.engine import Park

__all__ = ["CHUNKS", "Bounds", "Model", "Text"]

CHUNKS = (8, 16, 32, 64)
"""Sizes of an aligned block that one fetch reads as a whole, in bytes."""
MAX_BOUND = 1_000_000


class Text(Enum):
    """When a store to text is seen by another CPU's fetch, from the least adversarial on."""

    COHERENT = "coherent"  # by the next fetch
    STALE = "stale"  # when that CPU syncs, and no sooner
    RELAXED = "relaxed"  # at any time, in any order, chunk by chunk; at the latest at the sync


@dataclass(frozen=True, slots=True)
class Model:
    """How the explored machine behaves.

    :param chunk: within an aligned chunk a store is whole, across two it is torn.
    :param park: where stop_machine may park a CPU.
    :param serializing: instructions that sync the CPU that executes them, beside interrupts:
        ``iret``, ``cpuid``, ``mov-cr``. Leaving them out is conservative.
    """

    text: Text = Text.RELAXED
    chunk: int = 16
    park: Park = Park.PREEMPTIBLE
    serializing: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.chunk not in CHUNKS:
            raise OptionError(f"--chunk {self.chunk}: choose from {', '.join(map(str, CHUNKS))}")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far an exploration goes.

    :param preemptions: switches away from who could go on, after patching has begun; None: any.
    :param nmis: NMIs in a schedule, on all CPUs together; ``timers`` likewise.
    :param steps: of one schedule; what is longer is truncated, and counted.
    """

    preemptions: int | None = None
    nmis: int = 0
    timers: int = 0
    steps: int = 5000

    def __post_init__(self) -> None:
        for name, value, least in (
            ("preemptions", self.preemptions, 0),
            ("nmis", self.nmis, 0),
            ("timers", self.timers, 0),
            ("steps", self.steps, 1),
        ):
            if value is not None and not least <= value <= MAX_BOUND:
                raise OptionError(f"{name}: {value} is not from {least} to {MAX_BOUND}")
