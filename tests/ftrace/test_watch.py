"""The timeline of one call site, from its first miss on."""

from __future__ import annotations

import re

import pytest

from dynftrace_emu.errors import OptionError
from dynftrace_emu.ftrace.watch import Watch
from tests.ftrace.invariants import NOP5, call_bytes, traced_bytes
from tests.ftrace.tiny_kernel import own_hash_long


def watched(make_run, function: str, **options) -> tuple:
    defaults = {"vcpus": 2, "seconds": 2.0, "period": 0.5, "boot_records": 1000}
    run = make_run(**{**defaults, "virtual_hz": 500_000, **options})
    watch = Watch(run, function)
    run.execute()
    return run, list(watch.lines())


@pytest.mark.parametrize("site", ["jmp", "nop"])
def test_the_life_of_a_site(make_run, site: str) -> None:
    run, lines = watched(make_run, "vfs_read", site=site, tracing=(1.2, 1.7))
    address = run.image.address("vfs_read") + 4
    call, traced = call_bytes(run, address), traced_bytes(run, address)
    away = b"\xeb\x03" + call[2:] if site == "jmp" else bytes.fromhex("0f1f440000")
    text = "\n".join(lines)

    assert f"{address:#x}" in lines[0]
    assert "vfs_read+0x4/" in lines[0]
    number = run.dynamic.arch.sites().tolist().index(address)
    assert "first miss on vCPU " in text
    assert f"hash bucket {own_hash_long(address + 5)}, " in text
    assert f"record page {number // 145}, slot {number % 145}" in text

    passes = [line.split()[2].rstrip(":") for line in lines if "machine stopped" in line]
    assert passes == ["ftraced", "startup_code", "shutdown_code"]
    changes = [line.split() for line in lines if re.match(r" +(before|after) ", line)]
    bytes_seen = [(words[0], " ".join(words[1:6])) for words in changes]
    assert bytes_seen == [
        ("before", call.hex(" ")),
        ("after", away.hex(" ")),
        ("before", away.hex(" ")),
        ("after", traced.hex(" ")),
        ("before", traced.hex(" ")),
        ("after", away.hex(" ")),
    ]
    assert changes[0][6:] == ["call", f"{run.image.mcount:#x}"]
    assert changes[1][6] == site
    assert changes[3][6:] == ["call", f"{run.image.address('ftrace_caller'):#x}"]
    assert len([line for line in lines if re.search(r"vCPU [01] stands at \w+", line)]) == 6
    assert len([line for line in lines if "synced: 2 vCPUs" in line]) == 3
    assert [line.split()[3] for line in lines if "tracing on" in line or "tracing off" in line] == [
        "on:",
        "off:",
    ]
    assert away.hex(" ") in lines[-1]
    times = [float(m[1]) for line in lines if (m := re.match(r" +([\d.]+) s  ", line))]
    assert times == sorted(times)


def test_a_site_that_runs_first_while_tracing_becomes_a_call_to_the_tracers(make_run) -> None:
    """And passes that have nothing to do with a site are not in its life."""
    run, lines = watched(make_run, "wb_kupdate", tracing=(1.0, 3.5), seconds=4.0)
    address = run.image.address("wb_kupdate") + 4
    call, traced = call_bytes(run, address), traced_bytes(run, address)
    passes = [line.split()[2].rstrip(":") for line in lines if "machine stopped" in line]
    assert passes == ["ftraced", "shutdown_code"]
    changes = [line.split() for line in lines if re.match(r" +(before|after) ", line)]
    assert [" ".join(words[1:6]) for words in changes] == [
        call.hex(" "),
        traced.hex(" "),
        traced.hex(" "),
        (b"\xeb\x03" + call[2:]).hex(" "),
    ]
    assert len(run.machine.stops) > 4
    order = [line for line in lines if re.search("tracing o|first miss|machine stopped", line)]
    assert ["on" in order[0], "miss" in order[1], "off" in order[-1]] == [True] * 3


def test_a_site_that_never_ran_says_so(make_run) -> None:
    run, lines = watched(make_run, "setup_arch", seconds=1.0)
    text = "\n".join(lines)
    assert "never recorded" in text
    assert "machine stopped" not in text
    assert call_bytes(run, run.image.address("setup_arch") + 4).hex(" ") in lines[-1]


def test_a_site_whose_bytes_are_not_as_expected_says_so(make_run) -> None:
    run = make_run(vcpus=1, seconds=1.0, period=0.5, boot_records=1000)
    watch = Watch(run, "vfs_read")
    site = run.image.address("vfs_read") + 4

    def spoil(event) -> None:
        if getattr(event, "ip", None) == site + 5:
            run.machine.memory.write(site, NOP5)  # it may be executed, too

    run.observe(spoil)
    run.execute()
    assert any("marked failed" in line for line in watch.lines())


@pytest.mark.parametrize(
    ("function", "says"), [("no_such_function", "no such function"), ("do_nmi", "notrace")]
)
def test_what_cannot_be_watched(make_run, function: str, says: str) -> None:
    run = make_run(vcpus=1)
    with pytest.raises(OptionError, match=says):
        Watch(run, function)
