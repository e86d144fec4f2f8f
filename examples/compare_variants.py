"""What calls to mcount cost: iterations a second without calls, patched, and never patched.

Threaded engine, one vCPU, rounds interleaved; the figure is the median of each round's ratio to the
variant without calls. Half a second of warm-up, in which everything is recorded and patched.
"""

from __future__ import annotations

import sys
from statistics import median

from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run

MODES = {
    "none": {"variant": "none"},
    "patched, jmp": {"variant": "dynamic", "site": "jmp"},
    "patched, nop": {"variant": "dynamic", "site": "nop"},
    "static": {"variant": "static"},
}
ROUNDS = 5
WARM_UP_S, MEASURED_S = 0.5, 1.0
BATCH = 2000  # records at boot: room for every site


def rate(workload: str, mode: dict[str, str]) -> float:
    """Iterations a second of one vCPU in a fresh machine."""
    run = Run(
        RunOptions(
            engine=EngineName.THREADED,
            vcpus=1,
            workload=workload,
            boot_records=BATCH,
            period=WARM_UP_S / 4,
            seconds=WARM_UP_S,
            **mode,  # type: ignore[arg-type]
        )
    )
    run.execute()
    before, since = run.kernel.total("iterations"), run.machine.now()
    run.machine.run(MEASURED_S)
    return (run.kernel.total("iterations") - before) / (run.machine.now() - since)


def main() -> None:
    """Print a table: workload, mode, ratio to none, iterations a second."""
    for workload in ("default", "leaf", "compute"):
        rounds = [
            {name: rate(workload, mode) for name, mode in MODES.items()} for _ in range(ROUNDS)
        ]
        for name in MODES:
            ratios = [one["none"] / one[name] for one in rounds]
            rates = median(one[name] for one in rounds)
            sys.stdout.write(
                f"{workload:<8} {name:<13} {median(ratios):5.2f} x the time of none "
                f"({min(ratios):.2f} to {max(ratios):.2f}), {rates:,.0f} iterations/s\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
