"""``bench`` of an ELF image: its instructions in each mode, from its start to its end."""

from __future__ import annotations

import pytest

from dynftrace_emu.bench.compare import compare
from dynftrace_emu.bench.figures import Result
from dynftrace_emu.bench.lab import CheckFailed, Lab
from dynftrace_emu.bench.measure import measure
from dynftrace_emu.bench.plan import make_plan
from dynftrace_emu.bench.tables import tables
from dynftrace_emu.errors import OptionError
from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run
from tests.elf_builds import compile_c

MODES = {"recording", "patched-jmp", "patched-nop", "function", "graph"}


def bench(path, **chosen):
    lab = Lab()
    plan = make_plan(lab, str(path), **chosen)
    result = Result(str(path), plan.settings())
    measure(lab, plan, result)
    return result


def value(result, mode, quantity):
    return result.find(f"program/{mode}/{quantity}").median


def test_each_mode_is_measured_against_nops(samples):
    result = bench(samples / "sample-fentry.elf")
    assert set(result.subjects("program")) == MODES
    assert value(result, "patched-nop", "ratio") == 1
    assert value(result, "patched-jmp", "ratio") == 1
    assert 1 < value(result, "recording", "ratio") < value(result, "function", "ratio")
    assert value(result, "function", "ratio") < value(result, "graph", "ratio")
    assert value(result, "function", "events") == value(result, "graph", "events") == 697
    assert value(result, "patched-nop", "events") == 0


def test_nops_cost_what_the_same_text_costs_when_stepped_through(tmp_path):
    """Against a count by hand: every instruction of the image's own, hooked one by one."""
    source = """
    __attribute__((noinline)) int f(int x) { return x + 1; }
    int main(void) { return f(1) + f(2); }
    """
    path = compile_c(tmp_path, source, "-pg -mfentry")
    options = RunOptions(
        str(path), engine=EngineName.DETERMINISTIC, vcpus=1, discover="scan", site="nop"
    )
    run = Run(options)
    executed = []
    vcpu = run.machine.vcpus[0]
    for segment in run.image.segments:
        if segment.executable:
            for address in range(segment.address, segment.address + len(segment.data)):
                vcpu.hook_instruction(address, lambda cpu: executed.append(cpu.rip))
    run.execute()
    assert value(bench(path), "patched-nop", "instructions") == len(executed)


def test_it_is_shown_and_compared(samples):
    result = bench(samples / "switch-mcount.elf", modes=("graph",))
    assert set(result.subjects("program")) == {"patched-nop", "graph"}
    (table,) = tables(result)
    assert table.title == "Instructions of a whole run, exactly"
    assert table.rows[0][1] == "1.0000"
    assert not list(compare(result, result, "instructions", 0).moved())


def test_what_does_not_end_or_is_for_our_kernels_is_refused(tmp_path, samples, monkeypatch):
    monkeypatch.setattr("dynftrace_emu.bench.program._LONGEST_S", 0.01)
    endless = compile_c(tmp_path, "int main(void) { for (;;); }", "-pg")
    with pytest.raises(CheckFailed, match="does not end by itself"):
        bench(endless)
    for name, chosen in (("only", ("modes",)), ("workloads", ("leaf",)), ("rounds", 3)):
        with pytest.raises(OptionError, match="is for our kernels"):
            bench(samples / "switch-mcount.elf", **{name: chosen})
