"""The control files of /sys/kernel/tracing, as objects."""

from __future__ import annotations

from dynftrace_emu.tracefs.tree import TraceFs

__all__ = ["TraceFs"]
