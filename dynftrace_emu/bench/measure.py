"""Carries out a plan."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from dynftrace_emu.bench import instructions, patching, program, record, throughput, vcpus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dynftrace_emu.bench.figures import Result
    from dynftrace_emu.bench.lab import Lab
    from dynftrace_emu.bench.plan import Plan

__all__ = ["estimate", "measure"]

_MEASURE: Mapping[str, Callable[[Lab, Plan, Result], None]] = MappingProxyType(
    {
        throughput.KIND: throughput.measure_modes,
        instructions.KIND: instructions.measure_instructions,
        patching.KIND: patching.measure_patching,
        vcpus.KIND: vcpus.measure_vcpus,
        record.KIND: record.measure_record,
        program.KIND: program.measure_program,
    }
)
_ESTIMATE: Mapping[str, Callable[[Plan], float]] = MappingProxyType(
    {
        throughput.KIND: throughput.estimate,
        instructions.KIND: instructions.estimate,
        patching.KIND: patching.estimate,
        vcpus.KIND: vcpus.estimate,
        record.KIND: record.estimate,
        program.KIND: program.estimate,
    }
)


def estimate(plan: Plan) -> float:
    """How long it takes, in seconds, about."""
    return sum(_ESTIMATE[kind](plan) for kind in plan.kinds)


def measure(lab: Lab, plan: Plan, result: Result) -> None:
    """Make the plan's measurements; whatever ends it early, ``result`` holds what was done.

    :raises Interrupted: somebody wants it to end.
    :raises DynftraceError: a measured kernel failed, or a check.
    """
    for kind in plan.kinds:
        _MEASURE[kind](lab, plan, result)
    result.complete = True
