"""The machine's conventions with whatever runs in it: ports, and the word of pending requests.

Two ports are those people know from Bochs and QEMU (``-debugcon``, ``isa-debug-exit``); the others
are this machine's own. A guest that traps writes ``out PORT, al`` with ``hlt`` behind it: only the
``hlt`` ends the engine's run at a definite place.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = ["PVCLOCK_FIELDS", "Port", "Request"]


class Port(IntEnum):
    """I/O ports that the machine itself answers."""

    DEBUG_CONSOLE = 0xE9  # out: one character
    EXIT = 0xF4  # out: the machine ends with this code
    SAFEPOINT = 0xF1  # out, hlt: the request word is not 0
    CPU_START = 0xF2  # out: start the vCPU numbered in EAX
    CPU_OFFLINE = 0xF3  # out, hlt: this vCPU has finished


class Request(IntFlag):
    """Bits of a vCPU's request word. The host sets and clears them, the guest only polls."""

    STOP = 1
    TIMER = 2
    NMI = 4


PVCLOCK_FIELDS = (
    ("counter", "<u8", "address of the count of instructions run, or 0: read the TSC"),
    ("mul", "<u8", "ns for each count, times 2^32"),
    ("offset", "<u8", "ns to add, modulo 2^64"),
)
"""A vCPU's clock, in the manner of KVM's ``pvclock``: ns = (count * mul >> 32) + offset."""
