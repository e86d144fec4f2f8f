"""What must hold after every run, whatever it was."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from dynftrace_emu.ftrace.document import document

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.run import Run

NOP5 = bytes.fromhex("0f1f440000")


def call_bytes(run: Run, site: int) -> bytes:
    return b"\xe8" + struct.pack("<i", run.image.mcount - site - 5)


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
    assert sites["never_recorded"] <= sites["call"]
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
    dynamic_switches = len(result["tracing"]) * (result["variant"] == "dynamic")
    assert result["stops"]["count"] == stopped + dynamic_switches
    for tick in ticks:
        assert (tick["patched"] > 0) <= (tick["stop_us"] is not None)


def check_text(run: Run, result: dict) -> None:
    """Each site holds a call to mcount, or what stands for it; nothing else of the text changed."""
    recorded = set() if run.dynamic is None else set(run.dynamic.arch.sites().tolist())
    counts = {"call": 0, "jmp": 0, "nop": 0}
    for segment in run.image.segments:
        if not segment.executable:
            continue
        now = bytearray(run.machine.memory.read(segment.address, len(segment.data)))
        for site in run.image.call_sites.tolist():
            at = site - segment.address
            if not 0 <= at < len(now):
                continue
            call = call_bytes(run, site)
            kinds = {call: "call", b"\xeb\x03" + call[2:]: "jmp", NOP5: "nop"}
            kind = kinds[bytes(now[at : at + 5])]
            counts[kind] += 1
            assert kind == "call" or site in recorded
            now[at : at + 5] = call
        assert now == segment.data
    assert counts == {kind: result["sites"][kind] for kind in counts}
