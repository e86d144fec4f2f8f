"""Samples of a running vCPU: how far its work is, against its own CPU time.

They are taken in the vCPU's own thread where it has left the guest anyway, at a safepoint that
traps: a hundred times a second, for the timer. So they cost nothing that other runs do not pay, the
CPU time is that of this vCPU alone, and iterations and checksum are of the same moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dynftrace_emu.bench.lab import CheckFailed
from dynftrace_emu.bench.modes import YARDSTICK
from dynftrace_emu.machine.hypercalls import Port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dynftrace_emu.bench.lab import Lab
    from dynftrace_emu.ftrace.run import Run
    from dynftrace_emu.machine.exits import Exit
    from dynftrace_emu.machine.vcpu import OutPort, VCpu

__all__ = ["ITERATION_START", "Point", "Reference", "Sampler"]

ITERATION_START = "start_iteration"
"""The function with which each iteration begins (firmware/workloads/workload.S)."""
_MOST_DOUBLINGS = 8


@dataclass(frozen=True, slots=True)
class Point:
    """One look at vCPU 0."""

    cpu_s: float  # CPU time of its thread since this run of the machine began
    wall_s: float
    iterations: int
    checksum: int
    events: int


class Sampler:
    """Takes the points of one machine with one vCPU; made before its first run.

    :param count_events: says how many there have been.
    :param each: at each iteration's start, for what is so slow that this costs nothing; else at
        safepoints.
    """

    def __init__(self, run: Run, count_events: Callable[[], int], *, each: bool = False) -> None:
        self._run, self._count_events = run, count_events
        self._points: list[Point] = []
        vcpu = run.machine.vcpus[0]
        if each:
            vcpu.hook_instruction(run.image.address(ITERATION_START), self._note)
        else:
            handler = vcpu.out_ports[Port.SAFEPOINT]
            vcpu.out_ports[Port.SAFEPOINT] = partial(self._at_safepoint, handler)

    def _at_safepoint(self, handler: OutPort, vcpu: VCpu, value: int) -> Exit | None:
        self._note(vcpu)
        return handler(vcpu, value)

    def _note(self, _vcpu: VCpu) -> None:
        area = self._run.kernel.pcpu(0)
        self._points.append(
            Point(
                time.thread_time(),
                time.perf_counter(),
                int(area["iterations"][0]),
                int(area["checksum"][0]),
                self._count_events(),
            )
        )

    def take(self, lab: Lab, seconds: float) -> list[Point]:
        """Run for ``seconds``, or longer if that is less than two iterations.

        :raises CheckFailed: there is no second iteration.
        """
        for doubling in range(_MOST_DOUBLINGS):
            self._points.clear()
            lab.run(self._run, seconds * 2**doubling)
            if self._points and self._points[-1].iterations - self._points[0].iterations >= 2:
                return list(self._points)
        raise CheckFailed(f"{self._run.image.name} ({self._run.options.variant}) gets nowhere")


class Reference:
    """What the workload's checksum is after so many iterations, from a kernel without calls."""

    def __init__(self, lab: Lab, image: str, workload: str | None) -> None:
        self._lab, self._checksums = lab, dict[int, int]()
        self._run = run = lab.make(YARDSTICK.options(image, workload, 1, 0))
        vcpu = run.machine.vcpus[0]
        vcpu.hook_instruction(run.image.address(ITERATION_START), self._keep)

    def _keep(self, _vcpu: VCpu) -> None:
        area = self._run.kernel.pcpu(0)
        self._checksums[int(area["iterations"][0])] = int(area["checksum"][0])

    def check(self, who: str, points: Iterable[Point]) -> None:
        """Make sure that it is the same work which others do.

        :raises CheckFailed: a checksum differs.
        """
        for point in points:
            expected = self.checksum(point.iterations)
            if point.checksum != expected:
                raise CheckFailed(
                    f"{who} does not do the same work: after {point.iterations} iterations its "
                    f"checksum is {point.checksum:#018x}, without calls it is {expected:#018x}"
                )

    def checksum(self, iterations: int) -> int:
        """The checksum after so many."""
        while iterations not in self._checksums:
            self._lab.run(self._run, 0.1)
        return self._checksums[iterations]
