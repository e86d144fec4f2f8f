"""The critical sections of the tracers in guest code (firmware/trace/entry.S)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["critical_sections"]


def critical_sections(kernel: GuestKernel) -> tuple[tuple[int, int], ...]:
    """Where a CPU has asked who wants a call and has not told them yet, or is telling a return.

    Interrupts are off there, so Linux's rule never stops a CPU in one; a harsher rule must be told.
    """
    address = kernel.image.address
    return (
        (address("__ftrace_caller_section") + 1, address("__ftrace_caller_section_end")),
        (address("__ftrace_caller_slow"), address("ftrace_caller_unknown")),
        (address("__ftrace_unknown_section") + 1, address("return_to_handler")),
        (address("__return_to_handler_section") + 1, address("__return_to_handler_section_end")),
        (address("__return_to_handler_slow"), address("__ftrace_text_end")),
    )
