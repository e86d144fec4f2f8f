"""The seed's own patch: 2-byte exchanges under stop_machine (S7, S11, S12)."""

from __future__ import annotations

from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.model import Bounds
from dynftrace_emu.explore.scenario import Scenario
from dynftrace_emu.explore.setup import Setup

SCENARIOS = (
    Scenario(
        "the seed's patch, NMIs that keep the rule",
        Setup(name="seed", bounds=Bounds(nmis=1)),
        story=(
            "Every call becomes jmp +3 by one 16-bit locked exchange, with all CPUs parked and "
            "synced before they go on."
        ),
    ),
    Scenario(
        "the same store, live, at the last byte of a 64-byte line",
        Setup(name="seed-live-line", protocol="live", pad=59),
        expects=FindingClass.TORN_FETCH,
        mended="seed-line",
        story="LOCK does not make a fetch whole that crosses a line.",
    ),
    Scenario(
        "the same site under stop_machine",
        Setup(name="seed-line", pad=59),
    ),
)
