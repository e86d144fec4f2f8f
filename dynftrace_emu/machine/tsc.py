"""The time stamp counter against the host's clock (Linux: arch/x86/kernel/tsc.c)."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dynftrace_emu.machine.vcpu import read_tsc

__all__ = ["Sample", "TscRate"]

_SHORTEST_S = 0.05
"""A rate measured over less is not worth much: a sample is good to about a microsecond."""
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment: ``time.perf_counter()``, and the counter's value."""

    seconds: float
    count: int


class TscRate:
    """How fast the counter runs; the longer this object is alive, the better it knows."""

    def __init__(self) -> None:
        self._first = self.sample()

    @staticmethod
    def sample() -> Sample:
        """Look at both, several times, and keep the look that took least."""
        best, least = Sample(0.0, 0), float("inf")
        for _ in range(_TRIES):
            before = time.perf_counter()
            count = read_tsc()
            after = time.perf_counter()
            if after - before < least:
                best, least = Sample((before + after) / 2, count), after - before
        return best

    def ns_per_count(self) -> int:
        """Nanoseconds a count, times 2^32: pvclock's multiplier."""
        now = self.sample()
        if now.seconds - self._first.seconds < _SHORTEST_S:
            time.sleep(_SHORTEST_S - (now.seconds - self._first.seconds))
            now = self.sample()
        ns = (now.seconds - self._first.seconds) * 1e9
        return round(ns / (now.count - self._first.count) * (1 << 32))
