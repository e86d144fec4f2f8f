"""trace.dat version 6, as trace-cmd and KernelShark read it.

Our own marks are lines of type A in kallsyms (``trace_dat_format.NOTE``): the tracer, the number of
vCPUs, where functions end. What the host did are events of system ``ftraced``, on one CPU more.
"""

from __future__ import annotations

from dynftrace_emu.export.trace_dat_pack import LOST_UNKNOWN
from dynftrace_emu.export.trace_dat_reader import TraceDat, read_trace_dat
from dynftrace_emu.export.trace_dat_spill import recover
from dynftrace_emu.export.trace_dat_writer import TraceDatWriter

__all__ = ["LOST_UNKNOWN", "TraceDat", "TraceDatWriter", "read_trace_dat", "recover"]
