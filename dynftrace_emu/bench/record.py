"""What the recorder costs a call: measured by a guest that reads the time stamp counter itself.

Its kernel calls the same few hundred functions pass after pass, and notes the counter before and
after each. At first mcount leads to the stub; from an initcall on to the recorder, so the next pass
is all misses, and every one after that all hits. Where there are no records each call is skipped. A
build without calls says what a pass costs anyway.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from functools import cache
from statistics import median
from typing import TYPE_CHECKING

from dynftrace_emu.bench.figures import Figure
from dynftrace_emu.bench.lab import CheckFailed
from dynftrace_emu.ftrace.dynamic import DynamicFtrace
from dynftrace_emu.kernel.boot import boot
from dynftrace_emu.kernel.image import KernelImage
from dynftrace_emu.kernel.mini_kernel import VARIANTS
from dynftrace_emu.machine.threaded import ThreadedEngine
from dynftrace_emu.machine.tsc import TscRate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dynftrace_emu.bench.figures import Result
    from dynftrace_emu.bench.lab import Lab
    from dynftrace_emu.bench.plan import Plan

__all__ = ["KIND", "estimate", "measure_record"]

KIND = "record"
FUNCTIONS = 600
"""About as many as the mini-kernel records, so hash chains are as long."""
PASSES = 100
_WARM = 10  # passes that may still translate
_STEP_S = 0.2

_KERNEL = f"""
.include "linkage.inc"
.include "percpu.inc"
.ifdef CONFIG_FTRACE
.include "arch/mcount.S"
.endif

ENTRY startup_64
        lea rbx, [rip + times]
        call passes
.ifdef CONFIG_FTRACE
        call ftrace_dynamic_init        # from here on mcount leads to the recorder
.endif
        call passes
1:
        out PORT_CPU_OFFLINE, al
        hlt
        jmp 1b
END startup_64

# passes(): times rbx, and on
ENTRY passes
        mov r12d, {PASSES}
2:
        rdtsc
        mov [rbx], eax
        mov [rbx + 4], edx
        call one_pass
        rdtsc
        mov [rbx + 8], eax
        mov [rbx + 12], edx
        add rbx, 16
        cmp qword ptr gs:[PCPU_REQUESTS], 0
        je 3f
        out PORT_SAFEPOINT, al
        hlt
3:
        dec r12d
        jnz 2b
        ret
END passes
"""


def estimate(plan: Plan) -> float:
    """How long it takes, in seconds, about."""
    return plan.rounds * _STEP_S


def measure_record(lab: Lab, plan: Plan, result: Result) -> None:
    """Measure rounds of three kernels: without calls, with records for all, with none."""
    values: dict[str, list[float]] = defaultdict(list)
    try:
        for number in range(plan.rounds):
            lab.step(_STEP_S, f"recording, round {number + 1}")
            base = _measure("none", 0)
            recorded, skipped = _measure("dynamic", FUNCTIONS), _measure("dynamic", 0)
            nothing = median(base[_WARM:])
            values["stub"].append(median(recorded[_WARM:PASSES]) - nothing)
            values["miss"].append(recorded[PASSES] - nothing)
            values["hit"].append(median(recorded[PASSES + _WARM :]) - nothing)
            values["skipped"].append(median(skipped[PASSES + _WARM :]) - nothing)
    finally:
        _add(result, values)


def _add(result: Result, values: dict[str, list[float]]) -> None:
    for subject, found in values.items():
        figure = Figure(KIND, subject, "added", "ns/call", tuple(found))
        result.figures.append(figure)
        result.rounds += [
            {"kind": KIND, "workload": "", "subject": subject, "round": number, "added_ns": value}
            for number, value in enumerate(found)
        ]


def _measure(variant: str, records: int) -> list[float]:
    """Nanoseconds a call, of each pass."""
    gc.collect()
    rate = TscRate()
    kernel = boot(_image(variant), 1, ThreadedEngine, hz=0)
    ftrace = None
    if variant == "dynamic":
        ftrace = DynamicFtrace(kernel, boot_records=records)
    kernel.machine.run()
    if ftrace is not None:
        _check(ftrace.recorded, kernel.total("skipped_no_slot"), records)
    times: NDArray[np.uint64] = kernel.machine.memory.view(
        kernel.image.address("times"), "<u8", 4 * PASSES
    ).reshape(-1, 2)
    passes = (times[:, 1] - times[:, 0]) * (rate.ns_per_count() / (1 << 32)) / FUNCTIONS
    return [float(value) for value in passes]


def _check(recorded: int, skipped: int, records: int) -> None:
    """Every site is recorded, or every call behind the initcall is skipped."""
    expected = (FUNCTIONS, 0) if records else (0, FUNCTIONS * PASSES)
    if (recorded, skipped) != expected:
        raise CheckFailed(
            f"with {records} records {recorded} sites were recorded and {skipped} calls skipped, "
            f"not {expected[0]} and {expected[1]}"
        )


@cache
def _image(variant: str) -> KernelImage:
    names = [f"record_{number}" for number in range(FUNCTIONS)]
    functions = "".join(f"\nFUNC {name}\n        RETURN\nEND {name}\n" for name in names)
    calls = "".join(f"        call {name}\n" for name in names)
    text = (
        f"{_KERNEL}\nENTRY one_pass\n{calls}        ret\nEND one_pass\n{functions}\n"
        f".data\n        .p2align 6\ntimes:\n        .skip {2 * PASSES * 16}\n"
    )
    return KernelImage.from_assembly(
        text, name="recorded", variant=variant, defines=VARIANTS[variant]
    )
