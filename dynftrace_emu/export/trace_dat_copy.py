"""Any trace as a trace.dat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.export.trace_dat import TraceDatWriter

if TYPE_CHECKING:
    from pathlib import Path

    from dynftrace_emu.export.trace_source import TraceSource

__all__ = ["write_trace_dat"]


def write_trace_dat(source: TraceSource, path: Path) -> None:
    """Write a trace, packed anew."""
    with TraceDatWriter(path, source.info) as writer:
        for events, lost in source.batches():
            table = events.table
            for cpu in range(source.info.nr_cpus):
                part = table[table["cpu"] == cpu]
                writer.add_events(cpu, part, events.payloads, lost.get(cpu, 0))
        for event in source.host_events:
            writer.add_host_event(event)
