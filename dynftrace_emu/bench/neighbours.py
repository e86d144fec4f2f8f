"""What people hook from Python where they have no tracer: each hook keeps what it sees in a list.

The hooks are the engine's own, with nothing in between.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Any

from dynftrace_emu.bench.modes import Hook, traceable

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.run import Run
    from dynftrace_emu.kernel.image import KernelImage

__all__ = ["install_hook"]


def install_hook(run: Run, hook: Hook, functions: KernelImage) -> list[Any]:
    """Hook vCPU 0 of a machine that has not run; returns the list the hook fills.

    :param functions: an image of the same kernel whose call sites say which functions to hook.
    """
    vcpu, seen = run.machine.vcpus[0], list[Any]()

    def keep_address(_engine: object, address: int, _size: int, _data: object) -> None:
        seen.append(address)

    match hook:
        case Hook.ENTRY:
            for name in traceable(functions):
                address = run.image.address(name)
                vcpu.hook_code(keep_address, address, address)
        case Hook.MCOUNT:
            address = run.image.address("mcount")
            vcpu.hook_code(keep_address, address, address)
        case Hook.BLOCK:
            _hook_blocks(run, seen)
        case Hook.INSTRUCTION:
            vcpu.hook_code(keep_address)
    return seen


def _hook_blocks(run: Run, seen: list[Any]) -> None:
    starts = [function.address for function in run.image.functions]
    names = [function.name for function in run.image.functions]

    def keep_name(_engine: object, address: int, _size: int, _data: object) -> None:
        seen.append(names[bisect.bisect(starts, address) - 1])

    run.machine.vcpus[0].hook_blocks(keep_name)
