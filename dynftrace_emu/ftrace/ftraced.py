"""``ftraced``: wakes up at most once a period, and keeps what each period brought (S5, S8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.ftrace.dynamic import DynamicFtrace, Pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynftrace_emu.kernel.guest import GuestKernel
    from dynftrace_emu.machine.engine import Kthread

__all__ = ["SKIP_REASONS", "Ftraced", "Tick", "equilibrium"]

SKIP_REASONS = ("no_slot", "nested", "suspended", "patched")


@dataclass(frozen=True, slots=True)
class Tick:
    """One period of the daemon. Counts are since the tick before, over all vCPUs."""

    t: float  # seconds
    found: int
    patched: int
    pages_added: int
    mcount_calls: int
    iterations: int
    skipped: int
    stop_us: float | None  # None: the machine was not stopped


@dataclass(frozen=True, slots=True)
class _Counts:
    """Totals at one moment."""

    found: int
    mcount_calls: int
    iterations: int
    skipped: int


class Ftraced:
    """The daemon's loop. A kernel without dynamic ftrace has ticks all the same, and no passes.

    :param period: seconds of sleep, counted from the end of a pass.
    :param on_tick: called with each tick as it is over, from the daemon's thread.
    """

    def __init__(
        self,
        kernel: GuestKernel,
        ftrace: DynamicFtrace | None,
        period: float,
        on_tick: Callable[[Tick], None] | None = None,
    ) -> None:
        self._kernel, self._ftrace, self._period = kernel, ftrace, period
        self._on_tick = on_tick
        self._last = self._count()  # sites that are known at boot were not found by any tick
        self.ticks: list[Tick] = []

    def body(self) -> Kthread:
        """The kernel thread: ``machine.kthread("ftraced", daemon.body())``."""
        while True:
            yield self._period
            self.tick()

    def tick(self) -> None:
        """Wake up once."""
        time = self._kernel.machine.now()
        done = self._ftrace.ftraced_pass() if self._ftrace else Pass(False, 0, 0, 0)
        now, last = self._count(), self._last
        stop_us = self._kernel.machine.stops[-1].pause_us if done.stopped else None
        tick = Tick(
            time,
            now.found - last.found,
            done.patched,
            done.pages_added,
            now.mcount_calls - last.mcount_calls,
            now.iterations - last.iterations,
            now.skipped - last.skipped,
            stop_us,
        )
        self._last = now
        self.ticks.append(tick)
        if self._on_tick is not None:
            self._on_tick(tick)

    def _count(self) -> _Counts:
        return _Counts(
            self._ftrace.recorded if self._ftrace else 0,
            self._kernel.total("mcount_calls"),
            self._kernel.total("iterations"),
            sum(self._kernel.total(f"skipped_{reason}") for reason in SKIP_REASONS),
        )


def equilibrium(ticks: list[Tick]) -> float | None:
    """When the system settled: t of the first tick of the final run that found nothing (S8)."""
    settled = None
    for tick in reversed(ticks):
        if tick.found:
            break
        settled = tick.t
    return settled
