"""What must hold after every run, whatever it was."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.ftrace.document import document

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.run import Run

NOP5 = bytes.fromhex("0f1f440000")
KNOWN = 1 << 7  # in a word of the site map: somebody has dealt with the site
FTRACE_MAP_OFFSET = 0x2008_0000


def call_bytes(run: Run, site: int) -> bytes:
    """The call as the assembler should have made it: to mcount."""
    return b"\xe8" + struct.pack("<i", run.image.mcount - site - 5)


def traced_bytes(run: Run, site: int) -> bytes:
    """The call of a site that some tracer wants."""
    return b"\xe8" + struct.pack("<i", run.image.address("ftrace_caller") - site - 5)


def map_word(run: Run, site: int) -> int:
    """The site's word of the map, from where guest code looks for it."""
    address = (site & ~3) + FTRACE_MAP_OFFSET
    return struct.unpack("<I", run.machine.memory.read(address, 4))[0]


def check_invariants(run: Run) -> None:
    """Compare a run's document with the guest's memory and with itself."""
    result = document(run)
    if run.dynamic is not None:
        sites = run.dynamic.arch.sites().tolist()
        assert len(set(sites)) == len(sites), "a site is recorded twice"
        assert set(sites) <= set(run.image.call_sites.tolist())
        assert run.dynamic.arch.patcher.mismatches == []
    check_sums(result)
    check_text(run, result)
    assert not any(vcpu.is_stale for vcpu in run.machine.vcpus)


def check_sums(result: dict) -> None:
    """What a document must say whatever the run was; also for documents of other processes."""
    sites, records = result["sites"], result["records"]
    ticks = result["ticks"]
    of_kinds = sites["call"] + sites["jmp"] + sites["nop"] + sites["failed"]
    assert of_kinds == result["call_sites"]
    assert result["call_sites"] + result["notrace"] == result["functions"]
    assert sites["never_recorded"] + sites["traced"] <= sites["call"]
    is_on = bool(result["tracing"]) and result["tracing"][-1]["enabled"]
    assert is_on or sites["traced"] == 0
    if result["variant"] == "dynamic":
        assert result["call_sites"] == sites["never_recorded"] + records["used"]
    assert sites["jmp" if result["site"] == "nop" else "nop"] == 0
    assert sum(tick["found"] for tick in ticks) <= records["used"] <= records["capacity"]
    assert records["capacity"] == 145 * records["pages"]
    assert records["failed"] == sites["failed"] == 0
    assert sum(tick["pages_added"] for tick in ticks) <= records["pages"]
    assert all(tick["pages_added"] in (0, 1) for tick in ticks)
    assert sum(tick["skipped"] for tick in ticks) <= sum(records["skipped"].values())
    assert sum(tick["iterations"] for tick in ticks) <= sum(result["workload"]["iterations"])
    assert [tick["t"] for tick in ticks] == sorted(tick["t"] for tick in ticks)
    stopped = sum(1 for tick in ticks if tick["stop_us"] is not None)
    # Before the first instruction there is nobody to stop.
    soon = 0 if result["engine"] == "deterministic" else 0.1
    at_once = sum(1 for switch in result["tracing"] if switch["t"] <= soon)
    assert 0 <= stopped + len(result["tracing"]) - result["stops"]["count"] <= at_once
    for tick in ticks:
        assert (tick["patched"] > 0) <= (tick["stop_us"] is not None)


def check_text(run: Run, result: dict) -> None:
    """Each site reads as it is known to be; nothing else of the text changed.

    A site that nobody has dealt with calls mcount. One that somebody has calls ``ftrace_caller`` if
    the map says that some tracer wants it, and is disabled if nobody does.
    """
    recorded = set() if run.dynamic is None else set(run.dynamic.arch.sites().tolist())
    counts = {"call": 0, "jmp": 0, "nop": 0, "traced": 0}
    for segment in run.image.segments:
        if not segment.executable:
            continue
        now = bytearray(run.machine.memory.read(segment.address, len(segment.data)))
        for site in run.image.call_sites.tolist():
            at = site - segment.address
            if not 0 <= at < len(now):
                continue
            call = call_bytes(run, site)
            kinds = {
                call: "call",
                b"\xeb\x03" + call[2:]: "jmp",
                NOP5: "nop",
                traced_bytes(run, site): "traced",
            }
            kind = kinds[bytes(now[at : at + 5])]
            counts[kind] += 1
            word = map_word(run, site)
            assert (kind == "traced") == bool(word & ~KNOWN), f"{site:#x}: {kind}, {word:#x}"
            assert (kind != "call") == bool(word & KNOWN), f"{site:#x}: {kind}, {word:#x}"
            assert kind == "call" or site in recorded
            now[at : at + 5] = call
        assert now == segment.data
    counts["call"] += counts["traced"]  # both are calls
    assert counts == {kind: result["sites"][kind] for kind in counts}
    check_map(run)


def check_map(run: Run) -> None:
    """The map has a word for each site that is known, and nothing else."""
    if run.ftrace is None:
        return
    region = run.machine.memory.region("ftrace map")
    words = np.frombuffer(run.machine.memory.read(region.address, region.size), "<u4")
    sites = run.image.call_sites.tolist()
    known = sum(1 for site in sites if map_word(run, site))
    assert np.count_nonzero(words) == known
