"""Counts of instructions: exact, whatever slices a seed makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynftrace_emu.bench.figures import Result
from dynftrace_emu.bench.instructions import Count, _check_same_work, measure_instructions
from dynftrace_emu.bench.lab import CheckFailed
from dynftrace_emu.bench.modes import MODES, YARDSTICK
from tests.bench.conftest import small_plan
from tests.machine.guests import boot_guest, deterministic

BY_NAME = {mode.name: mode for mode in MODES}


def loop_of(rounds: int) -> str:
    """3 instructions around 3 a round; then two more: out, and the hlt behind it."""
    return f"""
ENTRY startup_64
        mov ecx, {rounds}
        xor eax, eax
        xor edx, edx
1:
        add eax, ecx
        dec ecx
        jnz 1b
        OFFLINE
END startup_64
"""


@pytest.mark.parametrize("rounds", [1, 7, 1000, 54_321])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_loop_of_known_length_is_counted_to_the_instruction(rounds: int, seed: int) -> None:
    kernel = boot_guest(loop_of(rounds), engine=deterministic(seed))
    kernel.machine.run(None)
    assert kernel.machine.vcpus[0].instructions == 3 + 3 * rounds + 2


@pytest.mark.parametrize("seed", [0, 1])
def test_a_hook_on_every_instruction_sees_as_many_as_are_counted(seed: int) -> None:
    """An oracle of another kind: the engine calls it, and it counts itself."""
    kernel = boot_guest(loop_of(500), engine=deterministic(seed))
    seen = []
    vcpu = kernel.machine.vcpus[0]
    vcpu.hook_code(lambda _uc, address, _size, _data: seen.append(address))
    kernel.machine.run(None)
    assert len(seen) == vcpu.instructions == 3 + 3 * 500 + 2


@pytest.fixture(scope="module")
def counted(images) -> Result:
    from dynftrace_emu.bench.lab import Lab

    lab = Lab()
    lab._images = images
    modes = ["none", "static", "patched-jmp", "patched-nop", "function", "function-one"]
    plan = small_plan(lab, modes=modes, workloads=["leaf"])
    result = Result("mini-kernel")
    measure_instructions(lab, plan, result)
    again = Result("mini-kernel")
    plan = replace(plan, modes=(YARDSTICK, BY_NAME["static"]))
    measure_instructions(lab, plan, again)
    for figure in again.figures:
        assert figure == result.find(figure.id)  # the same to the instruction
    return result


def value(result: Result, mode: str, quantity: str) -> float:
    return result.find(f"instructions/leaf/{mode}/{quantity}").median


def test_every_figure_is_exact_and_the_yardstick_is_1(counted: Result) -> None:
    assert all(figure.exact and len(figure.values) == 1 for figure in counted.figures)
    assert value(counted, "none", "ratio") == 1


def test_a_call_that_is_never_patched_costs_what_mcount_has_up_to_its_ret(counted: Result) -> None:
    """call, inc, mov, cmp, jne, ret; more or less of a tick joins in."""
    assert value(counted, "static", "added") == pytest.approx(6, abs=0.05)


def test_a_patched_site_costs_one_instruction_a_call(counted: Result) -> None:
    """A jump or a nop: as many as there are calls, which the guest counts in another mode."""
    rows = {row["subject"]: row for row in counted.rounds}
    calls = rows["static"]["events"]
    for mode in ("patched-jmp", "patched-nop", "function-one"):
        added = rows[mode]["instructions"] - rows["none"]["instructions"]
        assert added == pytest.approx(calls, rel=0.02)
    assert rows["function"]["events"] == pytest.approx(calls, rel=0.02)


def test_iterations_are_the_same_in_every_mode(counted: Result) -> None:
    assert len({row["iterations"] for row in counted.rounds}) == 1


def test_other_work_is_an_error() -> None:
    mode = BY_NAME["function"]
    count = Count(1000, 0x1234, 5)
    counts = {YARDSTICK: (count, count), mode: (count, replace(count, checksum=0x4321))}
    with pytest.raises(CheckFailed, match="function, leaf does not do the same work"):
        _check_same_work("leaf", mode, counts)
