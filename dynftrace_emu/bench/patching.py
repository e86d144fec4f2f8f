"""Recording, patching and switching at the scale of a real kernel: ``synthetic:N``.

Everything happens in a machine that runs, as it would in ``run``: a pause includes the time until
the last vCPU has parked. What the vCPUs must translate anew afterwards is no part of it; that is
measured beside it, as what the next two iterations take beyond what two took before.
"""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from dynftrace_emu.bench.figures import Figure
from dynftrace_emu.bench.modes import MODES, YARDSTICK
from dynftrace_emu.kernel.structs import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dynftrace_emu.bench.figures import Result
    from dynftrace_emu.bench.lab import Lab
    from dynftrace_emu.bench.plan import Plan
    from dynftrace_emu.ftrace.run import Run
    from dynftrace_emu.machine.engine import Kthread

__all__ = ["KIND", "Scale", "estimate", "measure_patching"]

KIND = "patching"
NR_VCPUS = 2
_POLL_S = 0.001
_RECORDING = next(mode for mode in MODES if mode.name == "recording")
_STEADY_ITERATIONS = 2


@dataclass(slots=True)
class Scale:
    """One round at one size. Times in milliseconds, memory in MiB."""

    sites: int = 0
    image: float = 0.0  # to make the image
    boot: float = 0.0  # to make the machine
    first_iteration: float = 0.0  # until each vCPU has called every function, built without calls
    record: float = 0.0  # the same with recording, beyond that
    patch: float = 0.0  # pause
    enable: float = 0.0
    disable: float = 0.0
    after_patch: float = 0.0  # re-translation
    after_enable: float = 0.0
    after_disable: float = 0.0
    memory: float = 0.0  # of the process, for this machine, at its end
    records: float = 0.0  # of it, record pages


_TIMES = (
    "image", "boot", "first_iteration", "record", "patch", "enable", "disable", "after_patch",
    "after_enable", "after_disable",
)  # fmt: skip
_PER_SITE = ("record", "patch", "enable", "disable", "after_enable")
_SMALL, _LARGE = "synthetic:1000", "synthetic:50000"
"""Between these the cost a site must not grow."""


def estimate(plan: Plan) -> float:
    """How long it takes, in seconds, about."""
    return sum(rounds * _step_s(size) for size, rounds in plan.sizes)


def measure_patching(lab: Lab, plan: Plan, result: Result) -> None:
    """Measure each size of the plan, the sizes' rounds interleaved."""
    scales: dict[int, list[Scale]] = defaultdict(list)
    try:
        for number in range(max(rounds for _, rounds in plan.sizes)):
            for size, rounds in plan.sizes:
                if number < rounds:
                    lab.step(_step_s(size), f"synthetic:{size}, round {number + 1}")
                    scales[size].append(_measure(lab, size))
    finally:
        lab.forget_images()
        _add(result, scales)


def _step_s(size: int) -> float:
    return 0.5 + size / 2000


def _measure(lab: Lab, size: int) -> Scale:
    name, scale = f"synthetic:{size}", Scale()
    lab.forget_images()
    _first_iteration(lab, name, scale)
    lab.forget_images()
    gc.collect()
    memory = _resident_mib()
    scale.image = _ms(lambda: lab.image(name, "dynamic"))
    sites = len(lab.image(name, "dynamic").call_sites)
    begin = time.perf_counter()
    with lab.machine(_RECORDING.options(name, None, NR_VCPUS, sites)) as run:
        scale.boot = (time.perf_counter() - begin) * 1e3
        lab.drive(run, _body(run, scale))
        assert run.dynamic is not None
        scale.sites = run.dynamic.recorded
        scale.records = len(run.dynamic.arch.records.pages) * PAGE_SIZE / (1 << 20)
        scale.memory = _resident_mib() - memory
    return scale


def _first_iteration(lab: Lab, name: str, scale: Scale) -> None:
    with lab.machine(YARDSTICK.options(name, None, NR_VCPUS, 0)) as run:

        def body() -> Kthread:
            begin = time.perf_counter()
            yield from _iterations(run, 1)
            scale.first_iteration = (time.perf_counter() - begin) * 1e3

        lab.drive(run, body())


def _body(run: Run, scale: Scale) -> Kthread:
    """What happens to one kernel: its sites are recorded, patched away, traced, and let go."""
    assert run.dynamic is not None
    tracing, dynamic = run.tracing, run.dynamic
    begin = time.perf_counter()
    yield from _iterations(run, 1)
    scale.record = (time.perf_counter() - begin) * 1e3 - scale.first_iteration
    yield from _change(run, scale, "patch", lambda: dynamic.ftraced_pass())
    yield from _change(
        run, scale, "enable", lambda: tracing.set_tracer(tracing.global_array, "function")
    )
    yield from _change(
        run, scale, "disable", lambda: tracing.set_tracer(tracing.global_array, "nop")
    )


def _change(run: Run, scale: Scale, name: str, change: Callable[[], object]) -> Kthread:
    """Change text while the kernel runs at its usual pace; keep the pause, and what follows it."""
    yield from _iterations(run, 1)
    begin = time.perf_counter()
    yield from _iterations(run, _STEADY_ITERATIONS)
    before = time.perf_counter() - begin
    change()
    setattr(scale, name, run.machine.stops[-1].pause_us / 1e3)
    begin = time.perf_counter()
    yield from _iterations(run, _STEADY_ITERATIONS)
    setattr(scale, f"after_{name}", (time.perf_counter() - begin - before) * 1e3)


def _iterations(run: Run, count: int) -> Kthread:
    """Wait until each vCPU has done so many more."""
    wanted = [done + count for done in run.kernel.percpu("iterations")]
    while any(
        done < goal for done, goal in zip(run.kernel.percpu("iterations"), wanted, strict=True)
    ):
        yield _POLL_S


def _ms(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1e3


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * PAGE_SIZE / (1 << 20)


def _quantities() -> Iterator[tuple[str, str, Callable[[Scale], float]]]:
    """Name, unit, and how it follows from a round."""
    for name in _TIMES:
        yield name, "ms", attrgetter(name)
    for name in _PER_SITE:
        yield f"{name}_per_site", "us", partial(_per_site, name)
    yield "start", "ms", lambda scale: scale.image + scale.boot
    yield "record_and_patch", "ms", lambda scale: scale.record + scale.patch
    yield "memory", "MiB", lambda scale: scale.memory
    yield "records", "MiB", lambda scale: scale.records


def _per_site(name: str, scale: Scale) -> float:
    return float(getattr(scale, name)) * 1e3 / scale.sites


def _add(result: Result, scales: dict[int, list[Scale]]) -> None:
    for size, rounds in sorted(scales.items()):
        subject = f"synthetic:{size}"
        for number, scale in enumerate(rounds):
            where = {"kind": KIND, "workload": "", "subject": subject, "round": number}
            result.rounds.append({**where, **asdict(scale)})
        result.figures += [
            Figure(KIND, subject, quantity, unit, tuple(value(scale) for scale in rounds))
            for quantity, unit, value in _quantities()
        ]
    _add_growth(result)


def _add_growth(result: Result) -> None:
    """How the cost a site grows with their number."""
    for name in ("patch", "enable", "disable"):
        small = result.find(f"{KIND}/{_SMALL}/{name}_per_site")
        large = result.find(f"{KIND}/{_LARGE}/{name}_per_site")
        if small is not None and large is not None and small.median > 0:
            values = tuple(value / small.median for value in large.values)
            result.figures.append(Figure(KIND, _LARGE, f"{name}_growth", "x", values))
