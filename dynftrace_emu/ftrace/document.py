"""What a run came to, as the one JSON document of ``run --json`` (schema 1)."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.ftrace.encodings import CALL, JMP, MCOUNT_INSN_SIZE, NOP, matches
from dynftrace_emu.ftrace.ftraced import SKIP_REASONS, equilibrium
from dynftrace_emu.ftrace.options import EngineName
from dynftrace_emu.kernel.elf.image import ElfImage
from dynftrace_emu.machine.engine import RunEnd

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.run import Run

__all__ = ["SCHEMA", "document", "site_counts"]

SCHEMA = 1


def document(run: Run) -> dict[str, Any]:
    """The result of ``run``, finished or failed. Times in seconds, pauses in microseconds."""
    options, kernel = run.options, run.kernel
    threaded = options.engine is EngineName.THREADED
    ticks = [asdict(tick) for tick in run.daemon.ticks]
    assert options.engine is not None
    result = {
        "schema": SCHEMA,
        "image": run.image.name,
        "variant": options.variant,
        "engine": options.engine.value,
        "seed": None if threaded else options.seed,
        "vcpus": options.vcpus,
        "seconds": _seconds(run),
        "site": options.site,
        "discover": options.discover,
        "functions": len(run.image.functions),
        "call_sites": len(run.image.call_sites),
        "notrace": len(run.image.notrace),
        "records": _records(run),
        "ticks": [_rounded(tick) for tick in ticks],
        "sites": site_counts(run),
        "equilibrium_s": _round(equilibrium(run.daemon.ticks)),
        "stops": _stops(run),
        "nmis": sum(run.machine.nmis),
        "tracing": [
            {"t": _round(event.time), "enabled": event.enabled, "sites": event.sites}
            for event in run.switches
        ],
        "traced_calls": kernel.total("traced_calls"),
        "workload": {
            "iterations": kernel.percpu("iterations"),
            "checksum": [f"{value:#018x}" for value in kernel.percpu("checksum")],
        },
    }
    if run.image.elf is not None:
        del result["workload"]
        result |= _of_image(run)
    return result


def _of_image(run: Run) -> dict[str, Any]:
    """What only a run of an ELF image has: how it ended, and what came back."""
    image = run.image
    assert isinstance(image, ElfImage)
    returned = run.kernel.returned
    return {
        "call": run.options.call,
        "returned": None if returned is None else f"{returned:#x}",
        "ended": None if run.ended is None else run.ended.value,
        "style": image.sites.style,
        "console": [line for _, line in run.machine.console.lines],
    }


def _seconds(run: Run) -> float | None:
    """What was asked for if it came to that, else when the run ended."""
    if run.ended is RunEnd.TIME:
        return run.options.seconds
    return _round(run.machine.now())


def _records(run: Run) -> dict[str, Any]:
    skipped = {reason: run.kernel.total(f"skipped_{reason}") for reason in SKIP_REASONS}
    if run.dynamic is None:
        return {"used": 0, "capacity": 0, "pages": 0, "failed": 0, "skipped": skipped}
    records = run.dynamic.arch.records
    return {
        "used": records.used,
        "capacity": records.capacity,
        "pages": len(records.pages),
        "failed": int(records.failed().sum()),
        "skipped": skipped,
    }


def site_counts(run: Run) -> dict[str, int]:
    """Call sites by the bytes they hold now.

    ``never_recorded`` and ``traced`` (calls that lead to the tracers) are part of ``call``;
    ``failed`` is what is marked so, or is neither call nor jump nor nop.
    """
    sites, mcount = run.image.call_sites, run.image.mcount or 0
    if not len(sites):
        return dict.fromkeys(("call", "jmp", "nop", "failed", "never_recorded", "traced"), 0)
    found = run.machine.memory.gather(sites, MCOUNT_INSN_SIZE)
    recorded = np.zeros(0, dtype=np.uint64)
    bad = np.zeros(0, dtype=np.uint64)
    if run.dynamic is not None:
        recorded = run.dynamic.arch.sites()
        bad = recorded[run.dynamic.arch.records.failed()]
    failed = np.isin(sites, bad)
    masks = {e.name: matches(found, e.rows(sites, mcount)) & ~failed for e in (CALL, JMP, NOP)}
    traced = matches(found, CALL.rows(sites, run.image.address("ftrace_caller"))) & ~failed
    masks["call"] |= traced
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    counts["failed"] = len(sites) - sum(counts.values())
    counts["never_recorded"] = int((masks["call"] & ~np.isin(sites, recorded)).sum())
    counts["traced"] = int(traced.sum())
    return counts


def _stops(run: Run) -> dict[str, Any]:
    pauses = [stop.pause_us for stop in run.machine.stops]
    return {
        "count": len(pauses),
        "median_us": round(median(pauses), 1) if pauses else None,
        "worst_us": round(max(pauses), 1) if pauses else None,
    }


def _rounded(tick: dict[str, Any]) -> dict[str, Any]:
    stop_us = tick["stop_us"]
    return {
        **tick,
        "t": _round(tick["t"]),
        "stop_us": None if stop_us is None else round(stop_us, 1),
    }


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
