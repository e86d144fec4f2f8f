"""Whole runs in the deterministic engine: the workload's result never depends on ftrace.

Twenty seeds over the ways to run it, cheap enough to be run each time: every seed is here, and
every option meets several seeds. vCPU n must come to the same checksum in all of them.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

import capstone
import pytest

from dynftrace_emu.ftrace.document import document
from dynftrace_emu.ftrace.events import SiteRecorded
from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.machine.engine import Park
from dynftrace_emu.machine.vcpu import Reg, VCpu
from tests.ftrace.conftest import assembled
from tests.ftrace.invariants import check_invariants, map_word

if TYPE_CHECKING:
    from collections.abc import Callable

ITERATIONS = 200
TRACING = {"tracing": (1.0, 3.0)}
NMIS = {"nmi_rate": 1000.0}
ANYWHERE = {"park": Park.ANYWHERE}
NONE = {"variant": "none"}
STATIC = {"variant": "static"}
NOPS = {"site": "nop"}

MOST = TRACING | NMIS | ANYWHERE
# The reference is seed 0: two vCPUs in a kernel built without calls.
RUNS = [
    # seed, vCPUs, options
    (1, 1, {}),
    (2, 1, STATIC),
    (3, 2, TRACING | STATIC),
    (4, 1, TRACING),
    (5, 1, TRACING | NOPS),
    (6, 1, NMIS),
    (7, 1, ANYWHERE),
    (8, 1, MOST),
    (9, 2, TRACING),
    (10, 1, NONE),
    (11, 1, ANYWHERE | NOPS),
    (12, 1, {"boot_records": 0}),
    (13, 1, STATIC | NMIS),
    (14, 1, ANYWHERE | TRACING),
    (15, 1, NONE | ANYWHERE),
    (16, 2, MOST | NOPS),
    (17, 1, TRACING | {"boot_records": 1000, "period": 0.25}),
]
WIDE_RUNS = [(18, NONE), (19, TRACING | ANYWHERE)]


SECTION = "__ftrace_caller_section"


class Calls:
    """Calls that come to the tracers, by whether somebody listened when they asked who wants them.

    A call that is interrupted while it is told asks again; then the last time counts. ``asked`` is
    called with each call's number, vCPU and site at its first time.
    """

    def __init__(self, run: Run, asked: Callable[[int, VCpu, int], None]) -> None:
        self._run, self._asked = run, asked
        self._memory = run.machine.memory
        self._entries: dict[tuple[int, int], tuple[int, int]] = {}  # by vCPU and stack pointer
        self._wanted: dict[int, tuple[int, bool]] = {}
        self.came = 0
        for vcpu in run.machine.vcpus:
            for entry, *rest, section in (
                ("ftrace_caller", "ftrace_caller_hot", "ftrace_caller_slow", SECTION),
                ("ftrace_caller_unknown", "__ftrace_unknown_section"),
            ):
                ways = [entry, *rest, section]
                pushed = sum(map(bytes_pushed, (run, run), ways[::2], ways[1::2]))
                vcpu.hook_instruction(run.image.address(entry), self._enter)
                vcpu.hook_instruction(
                    run.image.address(section), lambda vcpu, pushed=pushed: self._ask(vcpu, pushed)
                )

    def traced(self) -> list[int]:
        """Of each vCPU, how many calls met a tracer."""
        counts = [0] * len(self._run.machine.vcpus)
        for vcpu, wanted in self._wanted.values():
            counts[vcpu] += wanted
        return counts

    def _enter(self, vcpu: VCpu) -> None:
        rsp = vcpu[Reg.RSP]
        self.came += 1
        self._entries[vcpu.index, rsp] = self.came, self._memory.read_u64(rsp) - 5

    def _ask(self, vcpu: VCpu, pushed: int) -> None:
        number, site = self._entries[vcpu.index, vcpu[Reg.RSP] + pushed]
        is_first = number not in self._wanted
        self._wanted[number] = vcpu.index, is_on(self._run)
        if is_first:
            self._asked(number, vcpu, site)


def bytes_pushed(run: Run, begin: str, end: str) -> int:
    """What the instructions between two labels take of the stack."""
    start = run.image.address(begin)
    code = run.machine.memory.read(start, run.image.address(end) - start)
    total = 0
    for insn in capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(code, start):
        if insn.mnemonic.startswith("push"):
            total += 8
        elif insn.mnemonic == "sub" and insn.op_str.startswith("rsp, "):
            total += int(insn.op_str.removeprefix("rsp, "), 0)
    return total


def is_on(run: Run) -> bool:
    """Whether somebody listens, by the word that the stop has changed together with the text."""
    return run.kernel.read("ftrace_unknown_ops") != 0


def mcount_asks(run: Run) -> int:
    """The instruction of mcount that looks whether a tracer wants unknown sites."""
    mcount = run.image.symbols["mcount"]
    code = run.machine.memory.read(mcount.address, mcount.size)
    word = run.image.address("ftrace_unknown_ops")
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    rip_relative = b"\x48\x83\x3d"  # cmp, with an 8-bit immediate behind the displacement
    [found] = [
        insn.address
        for insn in decoder.disasm(code, mcount.address)
        if insn.bytes[:3] == rip_relative
        and insn.bytes[3:7] == (word - insn.address - insn.size).to_bytes(4, "little", signed=True)
    ]
    return found


def run_document(seed: int, vcpus: int, options: dict, iterations: int = ITERATIONS) -> dict:
    chosen = RunOptions(
        engine=EngineName.DETERMINISTIC,
        seed=seed,
        vcpus=vcpus,
        **{"seconds": None, "iterations": iterations, **options},
    )
    run = Run(chosen, image=assembled(chosen.variant, chosen.image))
    run.execute()
    check_invariants(run)
    return document(run)


@cache
def reference() -> list[str]:
    """What vCPUs 0 and 1 compute when there is nothing to trace."""
    return run_document(0, 2, NONE)["workload"]["checksum"]


def check_it_happened(result: dict, options: dict) -> None:
    """That the run was what it is meant to be: long enough, patched, traced, interrupted."""
    assert result["workload"]["iterations"] == [ITERATIONS] * result["vcpus"]
    assert result["seconds"] >= 5
    if result["variant"] == "dynamic":
        assert result["sites"][result["site"]] > 300
        check_who_dealt_with_the_sites(result)
    if "tracing" in options:
        assert [switch["enabled"] for switch in result["tracing"]] == [True, False]
        assert [switch["t"] for switch in result["tracing"]] == [1.0, 3.0]
        assert result["traced_calls"] > 10_000
    else:
        assert (result["tracing"], result["traced_calls"]) == ([], 0)
    assert (result["nmis"] > 2000) == ("nmi_rate" in options)


def check_who_dealt_with_the_sites(result: dict) -> None:
    """Each recorded site is dealt with once by a pass or by a switch, and changed by each switch.

    Passes go on while tracing is on: they make calls to ``ftrace_caller`` of what they find.
    """
    patched = [(tick["t"], tick["patched"]) for tick in result["ticks"]]
    disabled = result["sites"][result["site"]]
    if not result["tracing"]:
        assert disabled == sum(count for _, count in patched)
        return
    on, off = result["tracing"]
    before = sum(count for t, count in patched if t <= on["t"])
    meanwhile = sum(count for t, count in patched if on["t"] < t <= off["t"])
    after = sum(count for t, count in patched if off["t"] < t)
    assert on["sites"] >= before > 100
    assert meanwhile > 0
    assert off["sites"] >= on["sites"] + meanwhile
    assert disabled == off["sites"] + after


@pytest.mark.parametrize(("seed", "vcpus", "options"), RUNS, ids=lambda value: str(value)[:60])
def test_the_checksum_is_that_of_a_kernel_without_calls(seed, vcpus, options) -> None:
    result = run_document(seed, vcpus, options)
    check_it_happened(result, options)
    assert result["workload"]["checksum"] == reference()[:vcpus]


def test_so_it_is_for_each_of_eight_vcpus() -> None:
    without, traced = (run_document(seed, 8, options) for seed, options in WIDE_RUNS)
    for result, (_, options) in zip((without, traced), WIDE_RUNS, strict=True):
        check_it_happened(result, options)
    assert without["workload"]["checksum"] == traced["workload"]["checksum"]
    assert traced["workload"]["checksum"][:2] == reference()
    assert len(set(traced["workload"]["checksum"])) == 8  # each does its own work


def test_all_twenty_seeds_are_here() -> None:
    assert sorted([0, *(seed for seed, *_ in RUNS), *(seed for seed, _ in WIDE_RUNS)]) == [
        *range(20)
    ]


@pytest.mark.parametrize("options", [MOST, STATIC | TRACING], ids=["dynamic", "static"])
def test_one_seed_is_one_document_and_another_seed_is_another(options) -> None:
    def text(seed: int) -> str:
        short = {"tracing": (0.2, 0.8), "seconds": 1.5, "period": 0.1}
        result = run_document(seed, 2, {**options, **short}, iterations=500)
        del result["seed"]
        return json.dumps(result)

    assert text(7) == text(7) != text(8)


@pytest.mark.parametrize("variant", ["dynamic", "static"])
def test_traced_calls_are_the_calls_that_met_a_tracer(variant) -> None:
    """Counted apart, by hooks where a call asks who wants it; also calls of unrecorded sites."""
    options = RunOptions(
        engine=EngineName.DETERMINISTIC,
        seed=3,
        variant=variant,
        seconds=2.0,
        tracing=(0.5, 1.5),
        nmi_rate=100,
        park=Park.ANYWHERE,
    )
    run = Run(options, image=assembled(variant, "mini-kernel"))
    sent = [0, 0]
    recorded, unrecorded, directly = set(), set(), set()

    def on_recorded(event) -> None:
        if isinstance(event, SiteRecorded):
            recorded.add(event.ip - 5)

    def on_sending(vcpu: VCpu) -> None:
        if is_on(run):
            sent[vcpu.index] += 1

    def on_asked(_number: int, vcpu: VCpu, site: int) -> None:
        if is_on(run):
            if site not in recorded:
                unrecorded.add(site)
            if vcpu.rip == run.image.address("__ftrace_caller_section"):
                directly.add(site)

    calls = Calls(run, on_asked)
    for vcpu in run.machine.vcpus:
        for place in (mcount_asks(run), run.image.address("ftrace_caller")):
            vcpu.hook_instruction(place, on_sending)
    run.observe(on_recorded)
    run.execute()
    traced = calls.traced()
    assert unrecorded
    assert (len(directly) > 100) == (variant == "dynamic")
    assert run.kernel.percpu("traced_calls") == traced
    assert min(traced) > 5_000
    assert document(run)["traced_calls"] == sum(traced)
    # Who came while it was on, met it; but in each task a call may stand in between as it goes off.
    assert all(0 <= a - b <= 8 for a, b in zip(sent, traced, strict=True))


def test_the_first_execution_of_a_site_while_tracing_is_recorded_and_traced() -> None:
    """And so are those that follow, however the pass that deals with it comes in between."""
    run = Run(
        RunOptions(
            engine=EngineName.DETERMINISTIC,
            seed=4,
            seconds=2.2,
            period=0.25,
            tracing=(1.0, None),
            boot_records=1000,
        ),
        image=assembled("dynamic", "mini-kernel"),
    )
    watched = frozenset(run.image.call_sites.tolist()[::8])
    executed, traced = Counter(), Counter()  # of those, from when tracing has come on
    first = []  # sites that ran for the first time then

    def on_site(vcpu: VCpu) -> None:
        if is_on(run):
            executed[vcpu.rip] += 1

    def on_asked(_number: int, _vcpu: VCpu, site: int) -> None:
        if site in watched and is_on(run):
            traced[site] += 1

    def on_recorded(event) -> None:
        if isinstance(event, SiteRecorded) and is_on(run):
            first.append(event.ip - 5)

    for vcpu in run.machine.vcpus:
        for site in watched:
            vcpu.hook_instruction(site, on_site)
    calls = Calls(run, on_asked)
    run.observe(on_recorded)
    run.execute()
    check_invariants(run)
    assert len(first) > 20  # the second wave
    assert len(set(first)) == len(first)
    assert executed.keys() == traced.keys()
    assert len(watched & set(first)) > 2
    assert watched & set(first) <= traced.keys()
    # As it came on, and at the end, a task may stand between its call and the tracer.
    assert sum((executed - traced).values()) + sum((traced - executed).values()) <= 16
    assert sum(traced.values()) > 1000
    assert calls.traced() == run.kernel.percpu("traced_calls")
    sites = document(run)["sites"]
    known = [site for site in run.dynamic.arch.sites().tolist() if map_word(run, site)]
    assert (sites["traced"], sites["jmp"]) == (len(known), 0)
    assert set(first) & set(known)


def test_mcount_calls_are_the_entries_to_mcount() -> None:
    options = RunOptions(
        engine=EngineName.DETERMINISTIC, seconds=1.0, period=0.25, boot_records=0, vcpus=2
    )
    entries, at_ticks = [], []
    run = Run(
        options,
        image=assembled("dynamic", "mini-kernel"),
        on_tick=lambda _: at_ticks.append(len(entries)),
    )
    for vcpu in run.machine.vcpus:
        vcpu.hook_instruction(run.image.address("mcount"), entries.append)
    run.execute()
    ticks = [tick.mcount_calls for tick in run.daemon.ticks]
    assert [sum(ticks[: n + 1]) for n in range(len(ticks))] == at_ticks
    assert run.kernel.total("mcount_calls") == len(entries) > 5000
