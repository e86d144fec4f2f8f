"""The document of a run: what its numbers count, and the run without any record at first."""

from __future__ import annotations

import capstone

from dynftrace_emu.ftrace.document import document, site_counts
from tests.ftrace.invariants import NOP5, call_bytes, check_invariants, traced_bytes

RECORD_PORT = 0xF5


def short_run(make_run, **options):
    defaults = {"vcpus": 1, "seconds": 1.0, "period": 0.25, "boot_records": 1000}
    return make_run(**{**defaults, **options})


def test_call_sites_are_what_capstone_finds_in_each_function(make_run) -> None:
    """Counted here from the image's bytes, function by function."""
    run = short_run(make_run)
    image = run.image
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    found, without = [], []
    for function in image.functions:
        code = run.machine.memory.read(function.address, function.size)
        sites = [
            insn.address
            for insn in decoder.disasm(code, function.address)
            if insn.bytes[0] == 0xE8 and insn.op_str == f"{image.mcount:#x}"
        ]
        found += sites
        if not sites:
            without.append(function.name)
    result = document(run)
    assert sorted(found) == image.call_sites.tolist()
    assert result["call_sites"] == len(found) >= 200
    assert result["functions"] == len(image.functions)
    assert result["notrace"] == len(without)
    assert {"mcount", "ftrace_record_ip", "nmi", "do_nmi"} <= set(without)


def test_sites_are_counted_by_their_bytes_at_the_end(make_run) -> None:
    run = short_run(make_run)
    run.execute()
    check_invariants(run)
    before = site_counts(run)
    recorded = run.dynamic.arch.sites().tolist()
    jumps = [site for site in recorded if run.machine.memory.read(site, 1) == b"\xeb"]
    one, other, third, fourth = jumps[:4]
    run.machine.memory.write(one, NOP5)
    run.machine.memory.write(other, call_bytes(run, other))
    run.machine.memory.write(third, b"\xcc" * 5)
    run.machine.memory.write(fourth, traced_bytes(run, fourth))
    assert site_counts(run) == {
        "call": before["call"] + 2,
        "jmp": before["jmp"] - 4,
        "nop": 1,
        "failed": 1,
        "never_recorded": before["never_recorded"],
        "traced": 1,
    }


def test_traced_sites_are_those_that_call_the_tracers_at_the_end(make_run) -> None:
    run = short_run(make_run, seconds=0.9, tracing=(0.6, None))
    run.execute()
    check_invariants(run)
    result = document(run)
    sites = result["sites"]
    assert sites["traced"] > 100
    assert sites["call"] == result["call_sites"]
    assert result["tracing"][0]["sites"] == sites["traced"]
    run.dynamic.ftraced_pass()
    assert site_counts(run)["traced"] == result["records"]["used"]


def test_a_failed_record_counts_as_failed_whatever_it_reads_as(make_run) -> None:
    run = short_run(make_run)
    run.execute()
    site = int(run.dynamic.arch.sites()[0])
    assert run.machine.memory.read(site, 2) == b"\xeb\x03"
    run.machine.memory.write(site, b"\xcc" * 5)
    run.dynamic.startup()
    run.machine.memory.write(site, call_bytes(run, site))
    result = document(run)
    assert (result["records"]["failed"], result["sites"]["failed"]) == (1, 1)
    assert result["sites"]["call"] == result["call_sites"] - 1
    assert result["tracing"][0]["sites"] == sum(tick["patched"] for tick in result["ticks"]) - 1


def test_found_and_patched_are_since_the_tick_before(make_run) -> None:
    run = short_run(make_run, seconds=2.0)
    recorded_at = []
    run.observe(lambda event: recorded_at.append(event.time) if hasattr(event, "bucket") else None)
    run.execute()
    result = document(run)
    assert [tick["t"] for tick in result["ticks"]] == [0.25 * n for n in range(1, 9)]
    for tick in result["ticks"]:
        count = sum(1 for time in recorded_at if tick["t"] - 0.25 <= time < tick["t"])
        # vCPUs are a slice apart: an event's time is that of the slice it came in.
        assert abs(tick["found"] - count) <= 2
    assert sum(tick["found"] for tick in result["ticks"]) == len(recorded_at)
    assert all(tick["found"] == tick["patched"] for tick in result["ticks"])


def test_without_a_page_at_first_calls_are_skipped_in_guest_code_and_all_is_patched_in_the_end(
    make_run,
) -> None:
    run = make_run(vcpus=2, seconds=5.0, period=0.5, boot_records=0)
    traps = []
    for vcpu in run.machine.vcpus:
        hook = vcpu.in_ports[RECORD_PORT]
        vcpu.in_ports[RECORD_PORT] = lambda cpu, hook=hook: (
            traps.append(run.machine.now()) or hook(cpu)
        )
    run.execute()
    check_invariants(run)
    result = document(run)
    first, *others = result["ticks"]
    assert (first["found"], first["patched"], first["stop_us"]) == (0, 0, None)
    assert first["pages_added"] == 1
    assert first["skipped"] > 10_000
    assert min(traps) >= 0.5  # the host was not asked before there was a page
    assert len(traps) <= result["records"]["used"] + 2  # nor later, but to record
    slow, fast = first["iterations"], others[-1]["iterations"]
    assert 0 < fast / 3 <= slow <= fast
    assert result["equilibrium_s"] is not None
    assert result["sites"]["call"] == result["sites"]["never_recorded"]
    assert result["sites"]["jmp"] == sum(tick["found"] for tick in others) > 300


def test_the_kinds_of_kernel_that_have_no_records_have_ticks_all_the_same(make_run) -> None:
    for variant in ("static", "none"):
        run = short_run(make_run, variant=variant, virtual_hz=200_000)
        run.execute()
        check_invariants(run)
        result = document(run)
        assert len(result["ticks"]) == 4
        for tick in result["ticks"]:
            assert (tick["found"], tick["patched"], tick["pages_added"]) == (0, 0, 0)
            assert tick["stop_us"] is None
            assert (tick["mcount_calls"] > 0) == (variant == "static")
        assert (result["call_sites"] == 0) == (variant == "none")
        assert result["records"]["used"] == result["records"]["capacity"] == 0
        assert result["stops"]["count"] == 0
        assert result["sites"]["jmp"] == 0
