"""Why a vCPU came back from running, the way ``KVM_RUN`` says it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["Exit", "ExitReason"]


class ExitReason(Enum):
    """Why :meth:`VCpu.run` came back."""

    BUDGET = auto()  # the instructions asked for have run
    HALTED = auto()  # hlt; RIP is behind it
    SAFEPOINT = auto()  # the guest saw its request word and trapped
    GATE = auto()  # stopped in front of a block, as the word of its gate asked
    OFFLINE = auto()  # the guest took this CPU out of the machine
    SHUTDOWN = auto()  # exit port; value is the code
    EXCEPTION = auto()  # value is the vector; RIP as the CPU would save it
    IRET = auto()  # stopped in front of an iret, as run(stop_at_iret=True) asked
    BUS_ERROR = auto()  # an access to a physical address without RAM


@dataclass(frozen=True, slots=True)
class Exit:
    """A reason, and the number that belongs to it."""

    reason: ExitReason
    value: int = 0
