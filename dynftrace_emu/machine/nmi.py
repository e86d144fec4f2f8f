"""The NMI latch of a CPU, which the engine does not show (SDM vol. 3A, 6.7.1).

While an NMI is handled further ones are blocked until *any* iret; one is kept pending, more are
lost.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NmiLatch"]


@dataclass(slots=True)
class NmiLatch:
    """One CPU's latch; it belongs to the thread that runs the CPU."""

    blocked: bool = False
    pending: bool = False

    def signal(self) -> None:
        """The NMI pin is pulsed."""
        self.pending = True

    def take(self) -> bool:
        """Whether an NMI is delivered now; if so, others are blocked from here on."""
        if self.blocked or not self.pending:
            return False
        self.pending = False
        self.blocked = True
        return True

    def iret(self) -> None:
        """An iret was executed, whichever it was."""
        self.blocked = False
