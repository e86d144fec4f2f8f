"""What ring buffers hold, decoded: one NumPy table for events of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EVENT", "Events", "TraceFlag"]


class TraceFlag(IntFlag):
    """The ``flags`` of an event (include/linux/trace_events.h, ``enum trace_flag_type``)."""

    IRQS_OFF = 1
    NEED_RESCHED = 4
    HARDIRQ = 8
    SOFTIRQ = 16
    NMI = 64


EVENT = np.dtype(
    [
        ("ts", "<u8"),  # by the buffer's clock: ns, or a count
        ("number", "<u8"),  # how many events the ring buffer had got before this one
        ("cpu", "<u2"),
        ("type", "<u2"),  # EventId
        ("flags", "u1"),  # TraceFlag
        ("preempt", "u1"),  # preempt_count, its low 8 bits
        ("pid", "<i4"),
        ("ip", "<u8"),  # of the call site; function_graph's func
        ("parent_ip", "<u8"),  # a return address
        ("depth", "<i4"),  # function_graph
        ("calltime", "<u8"),  # function_graph's exit: ns on the local clock
        ("rettime", "<u8"),
        ("payload", "<i4"),  # index into Events.payloads, or -1
    ]
)
"""One event. Fields that a kind of event does not have are 0."""


@dataclass(frozen=True, slots=True)
class Events:
    """Events, in order; ``payloads`` are what does not fit a fixed field.

    The payload of a KERNEL_STACK event is a tuple of addresses, innermost first; of a PRINT event
    its text (``str``); of a RAW_DATA event its ``bytes``, the leading 4-byte id included.
    """

    table: NDArray[Any]  # dtype EVENT
    payloads: tuple[object, ...] = ()

    def __len__(self) -> int:
        return len(self.table)
