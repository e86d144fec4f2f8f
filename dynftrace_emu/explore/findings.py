"""What can be wrong, by name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Finding", "FindingClass", "Found"]


class FindingClass(Enum):
    """The classes of findings; the value is what ``--expect`` takes."""

    TORN_FETCH = "torn-fetch"  # bytes of two encodings in one instruction
    STALE_TEXT = "stale-text"  # the old text, after the protocol had ended
    MID_INSTRUCTION_RESUME = (
        "mid-instruction-resume"  # an ip inside an instruction that replaced it
    )
    NMI_IN_FTRACE = "nmi-in-ftrace"  # a traced call in an NMI, where the rule forbids it (S12)
    MISSED_CALLBACK = "missed-callback"  # a call that its tracer wanted and was not told of
    WRONG_CALLBACK = "wrong-callback"  # a tracer outside its filter, or with another's argument
    LOST_EVENT = "lost-event"  # told to a tracer, and not in its buffer
    WRONG_RESULT = "wrong-result"  # the workload's, or text that is not what was asked for
    USE_AFTER_FREE = "use-after-free"
    UNCLAIMED_INT3 = "unclaimed-int3"
    GUEST_FAULT = "guest-fault"
    DEADLOCK = "deadlock"  # somebody waits for ever


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not happen, has: where, and in words."""

    kind: FindingClass
    what: str
    cpu: int | None = None
    ip: int | None = None


class Found(Exception):
    """Carries a finding out of the step that made it."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding
