"""The scenarios that ship, by name, in the order of the docs."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from dynftrace_emu.explore.scenarios import (
    breakpoint,
    cpus,
    kprobes,
    nmi,
    nops,
    records,
    seed,
    trampolines,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynftrace_emu.explore.scenario import Scenario

__all__ = ["SCENARIOS"]

_MODULES = (seed, nmi, nops, breakpoint, records, trampolines, kprobes, cpus)
SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {scenario.name: scenario for module in _MODULES for scenario in module.SCENARIOS}
)
