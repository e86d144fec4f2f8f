"""Where measurements are made: fresh machines, one at a time, and what Ctrl-C reaches."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from dynftrace_emu.errors import DynftraceError
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.kernel.mini_kernel import load_image
from dynftrace_emu.tracefs.controls import Controls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dynftrace_emu.ftrace.options import RunOptions
    from dynftrace_emu.kernel.image import KernelImage
    from dynftrace_emu.machine.engine import Kthread, RunEnd
    from dynftrace_emu.machine.machine import Machine

__all__ = ["CheckFailed", "Interrupted", "Lab"]

_SETTLE_TRIES = 300


class Interrupted(Exception):
    """Somebody wants the bench to end; what has been measured is kept."""


class CheckFailed(DynftraceError):
    """A measured kernel did not do what it should have: its figures would say nothing."""


class Lab:
    """Makes the machines that are measured.

    ``on_step`` is called in front of each step with how many seconds it may take, and its name.
    """

    def __init__(self) -> None:
        self.on_step: Callable[[float, str], None] = lambda _seconds, _name: None
        self._images: dict[tuple[str, str], KernelImage] = {}
        self._machine: Machine | None = None  # the one that runs
        self._interrupted = False

    def step(self, seconds: float, name: str) -> None:
        """Say what comes next.

        :raises Interrupted: nothing does.
        """
        self._check()
        self.on_step(seconds, name)

    def interrupt(self) -> None:
        """End soon; from a signal handler."""
        self._interrupted = True
        if self._machine is not None:
            self._machine.interrupt()

    def _check(self) -> None:
        if self._interrupted:
            raise Interrupted

    def image(self, name: str, variant: str) -> KernelImage:
        """An image, made once.

        :raises ImageError: there is no such image.
        """
        key = (name, variant)
        if key not in self._images:
            self._images[key] = load_image(name, variant)
        return self._images[key]

    def forget_images(self) -> None:
        """Drop what :meth:`image` has kept: the large ones take much memory."""
        self._images.clear()

    def make(self, options: RunOptions, writes: Sequence[str] = ()) -> Run:
        """A fresh machine, ready to run; those that nobody needs any more are gone by then.

        :param writes: to control files, before the first instruction.
        """
        gc.collect()  # engines and guest memory lie in cycles
        options = replace(options, set=tuple(writes))
        run = Run(options, image=self.image(options.image, options.variant))
        Controls(run)
        return run

    @contextmanager
    def machine(self, options: RunOptions, writes: Sequence[str] = ()) -> Iterator[Run]:
        """The same, for a while.

        :raises CheckFailed: it broke a rule while it ran.
        """
        run = self.make(options, writes)
        yield run
        if violations := run.violations():
            raise CheckFailed(violations[0])

    def run(self, run: Run, seconds: float | None) -> RunEnd:
        """Run a machine for so long.

        :raises Interrupted: by :meth:`interrupt`.
        """
        self._check()
        self._machine = run.machine
        try:
            end = run.machine.run(seconds)
        finally:
            self._machine = None
        self._check()
        return end

    def drive(self, run: Run, body: Kthread) -> None:
        """Run a machine, with host code beside it, until that has ended.

        :raises Interrupted: by :meth:`interrupt`.
        """

        def driver() -> Kthread:
            yield from body
            run.machine.interrupt()

        run.machine.kthread("bench", driver(), daemon=True)
        self.run(run, None)

    def settle(self, run: Run, seconds: float) -> None:
        """Warm a machine up: ``seconds``, a whole iteration, and nothing left to patch.

        :raises CheckFailed: it does not settle.
        """
        for _ in range(_SETTLE_TRIES):
            self.run(run, seconds)
            if min(run.kernel.percpu("iterations")) >= 1 and _is_patched(run):
                return
        raise CheckFailed(f"{run.image.name} ({run.image.variant}) does not settle")


def _is_patched(run: Run) -> bool:
    """Whether the daemon, if it is to patch, found nothing the last time."""
    if run.options.discover != "runtime" or run.options.period > _SETTLE_TRIES:
        return True
    return bool(run.daemon.ticks) and run.daemon.ticks[-1].found == 0
