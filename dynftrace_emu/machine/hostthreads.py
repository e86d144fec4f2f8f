"""Host threads that run beside the vCPUs of the threaded engine, and end together."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynftrace_emu.machine.engine import Kthread

__all__ = ["HostThreads"]


@dataclass(slots=True)
class _Sleeper:
    """A kernel thread's body, and how much of its present sleep is left, in seconds."""

    name: str
    body: Kthread
    daemon: bool
    left: float = 0.0
    done: bool = False

    def run(self, ended: threading.Event) -> None:
        """Work and sleep until the body is done, or everything has ended."""
        while True:
            if self.left > 0:
                until = time.perf_counter() + self.left
                if ended.wait(self.left):
                    self.left = max(0.0, until - time.perf_counter())
                    return
            try:
                self.left = next(self.body)
            except StopIteration:
                self.done = True
                return


class HostThreads:
    """Kernel threads and tickers, on the wall clock.

    :param on_error: called from a thread that ends with an exception, with it.
    """

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._ended = threading.Event()  # wakes everybody from their sleep
        self._ended.set()
        self._sleepers: list[_Sleeper] = []
        self._threads: list[threading.Thread] = []

    @property
    def busy(self) -> bool:
        """Whether a kernel thread that is no daemon has not finished."""
        return any(not sleeper.done and not sleeper.daemon for sleeper in self._sleepers)

    def kthread(self, name: str, body: Kthread, *, daemon: bool = False) -> None:
        """Add a kernel thread: it runs between :meth:`begin` and :meth:`end`."""
        sleeper = _Sleeper(name, body, daemon)
        self._sleepers.append(sleeper)
        if not self._ended.is_set():
            self._start(name, lambda: sleeper.run(self._ended))

    def ticker(self, name: str, rate: float, tick: Callable[[], None]) -> None:
        """Call ``tick`` at ``rate`` a second until :meth:`end`; a late one is not made up for."""

        def run() -> None:
            due = time.perf_counter()
            while True:
                due = max(due + 1 / rate, time.perf_counter())
                if self._ended.wait(due - time.perf_counter()):
                    return
                tick()

        self._start(name, run)

    def begin(self) -> None:
        """Start every kernel thread, or let it go on where it was."""
        self._ended.clear()
        for sleeper in self._sleepers:
            self._start(sleeper.name, partial(sleeper.run, self._ended))

    def end(self) -> None:
        """Let every thread finish what it is at, and wait for it."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - handed on, whatever it is
                self._on_error(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
