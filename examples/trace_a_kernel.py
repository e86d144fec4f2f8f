"""A kernel from assembly text, recorded, patched and traced: the API without the command line."""

from dynftrace_emu.ftrace.dynamic import DynamicFtrace
from dynftrace_emu.kernel.boot import boot
from dynftrace_emu.kernel.image import KernelImage
from dynftrace_emu.machine.deterministic import DeterministicEngine
from dynftrace_emu.machine.engine import Park
from dynftrace_emu.machine.machine import Machine

KERNEL = """
.include "linkage.inc"
.include "arch/mcount.S"

ENTRY startup_64
        call ftrace_dynamic_init        # from here on mcount leads to the recorder
1:
        call greet
        call count
        jmp 1b
END startup_64

FUNC greet
        RETURN
END greet

FUNC count
        inc qword ptr [rip + counter]
        RETURN
END count

.data
counter:
        .quad 0
"""


def make_engine(machine: Machine) -> DeterministicEngine:
    """Make the engine: as this kernel never turns interrupts on, it may be parked anywhere."""
    return DeterministicEngine(machine, seed=1, park=Park.ANYWHERE)


def main() -> None:
    """Print what mcount saw before the first pass, after it, and with tracing on."""
    image = KernelImage.from_assembly(KERNEL, name="tiny")
    kernel = boot(image, 1, make_engine, hz=0)
    ftrace = DynamicFtrace(kernel)
    machine = kernel.machine

    machine.run(0.1)
    print(f"recorded {ftrace.recorded} sites, mcount calls {kernel.total('mcount_calls')}")
    done = ftrace.ftraced_pass()
    before = kernel.total("mcount_calls")
    machine.run(0.1)
    print(f"patched {done.patched}, mcount calls since {kernel.total('mcount_calls') - before}")
    ftrace.startup()
    machine.run(0.1)
    print(f"traced {kernel.total('traced_calls') > 0}")


if __name__ == "__main__":
    main()
