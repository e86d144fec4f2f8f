from __future__ import annotations

import numpy as np
import pytest

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.disassembly import CALL_SIZE, disassemble, scan_text
from dynftrace_emu.kernel.mini_kernel import VARIANTS, load_image, workloads
from dynftrace_emu.kernel.synthetic import MAX_FUNCTIONS, SyntheticName, parse_synthetic
from dynftrace_emu.kernel.synthetic_text import TREE, SyntheticText
from dynftrace_emu.machine.hypercalls import Port

SIZES = (1, 2, TREE, TREE + 1, 700)


def text_of(image):
    return next(s for s in image.segments if s.name == ".text.synthetic")


def generated(image):
    """The generated functions, by address."""
    begin = text_of(image).address
    return [f for f in image.functions if f.address >= begin]


# --- names ---


@pytest.mark.parametrize(
    ("argument", "functions", "seed"),
    [("synthetic:1", 1, 0), ("synthetic:50000", 50_000, 0), ("synthetic:20,seed=7", 20, 7)],
)
def test_a_name_says_how_many_functions_and_from_which_seed(argument, functions, seed):
    assert parse_synthetic(argument) == SyntheticName(functions, seed)


def test_other_names_are_none_of_these():
    assert parse_synthetic("mini-kernel") is None
    assert parse_synthetic("synthetic.S") is None


@pytest.mark.parametrize(
    "argument",
    [
        "synthetic:", "synthetic:0", "synthetic:-1", "synthetic:abc", "synthetic:1.5",
        "synthetic:60000", "synthetic:" + "9" * 5000, "synthetic:10,seed=", "synthetic:10,sed=1",
        "synthetic:10 ", "synthetic:١",
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_is_one_clear_line(argument):
    with pytest.raises(ImageError, match="synthetic") as caught:
        load_image(argument)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


# --- the shape ---


def test_sizes_have_the_quantiles_they_are_said_to_have():
    sizes = SyntheticText(MAX_FUNCTIONS, 0, 0, 0).sizes
    quartiles = np.percentile(sizes, [25, 50, 75, 99])
    assert quartiles == pytest.approx([48, 128, 272, 2352], rel=0.15, abs=16)


def test_call_trees_have_the_fan_out_and_depth_they_are_said_to_have():
    text = SyntheticText(MAX_FUNCTIONS, 0, 0, 0)
    depth = np.zeros(text.functions, dtype=int)
    for function, parent in enumerate(text.parents.tolist()):
        if parent < 0:
            assert function % TREE == 0  # a root
        else:
            assert function // TREE == parent // TREE
            assert parent < function
            depth[function] = depth[parent] + 1
    calls = text.calls[text.calls > 0]
    assert set(calls.tolist()) == {1, 2, 3, 4}
    assert calls.mean() == pytest.approx(2.25, abs=0.1)
    assert 6 <= depth[: text.functions // TREE * TREE].reshape(-1, TREE).max(axis=1).mean() <= 9
    assert (text.calls == 0).mean() > 0.5


def test_a_small_kernel_has_the_first_trees_of_a_large_one():
    small, large = (SyntheticText(count, 3, 0, 0) for count in (300, 1000))
    whole = 300 // TREE * TREE  # the last tree is cut off
    assert (small.sizes[:whole] == large.sizes[:whole]).all()
    assert (small.parents == large.parents[:300]).all()


def test_names_are_all_different_also_from_those_of_the_core():
    image = load_image(f"synthetic:{MAX_FUNCTIONS}")
    core = load_image("synthetic:1")
    assert len(generated(image)) == MAX_FUNCTIONS
    assert len(image.functions) == MAX_FUNCTIONS - 1 + len(core.functions)


# --- the code ---


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("functions", SIZES)
def test_its_own_list_of_calls_is_what_disassembly_finds(functions, variant):
    image = load_image(f"synthetic:{functions}", variant)
    segment = text_of(image)
    starts = [function.address for function in generated(image)]
    found = scan_text(segment.address, segment.data, starts, Port.SAFEPOINT)
    assert found == segment.scan
    assert not found.halts + found.irets + found.locked + found.safepoints


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_function_begins_as_gcc_pg_would_have_it(variant):
    image = load_image("synthetic:300", variant)
    segment = text_of(image)
    sites = set(image.call_sites.tolist())
    for function in generated(image):
        code = segment.data[function.address - segment.address :][:4]
        assert code == bytes.fromhex("554889e5")  # push rbp; mov rbp, rsp
        assert (function.address + 4 in sites) == (variant != "none")


def test_functions_end_with_a_return_and_do_not_overlap():
    image = load_image("synthetic:300")
    segment = text_of(image)
    behind = segment.address
    for function in generated(image):
        assert function.address >= behind
        behind = function.address + function.size
        last = segment.data[behind - 2 - segment.address : behind - segment.address]
        assert disassemble(last, behind - 2)[1][2] == "ret"


def test_every_function_but_the_roots_is_called_once_by_its_tree():
    image = load_image("synthetic:700")
    starts = {function.address for function in generated(image)}
    called = [to for _, to in text_of(image).scan.calls if to != image.mcount]
    table = next(s for s in image.segments if s.name == ".rodata.synthetic").data
    roots = np.frombuffer(table, "<u8").tolist()
    assert sorted(called + roots) == sorted(starts)


def test_all_follows_from_the_number_and_the_seed():
    one, same, seeded = (
        load_image(name).sha256 for name in ("synthetic:50", "synthetic:50", "synthetic:50,seed=1")
    )
    assert one == same != seeded


def test_without_calls_everything_else_lies_where_it_does_with_them():
    traced, plain = (load_image("synthetic:300", variant) for variant in ("dynamic", "none"))
    for one, other in zip(generated(traced), generated(plain), strict=True):
        assert one.name == other.name
        assert one.address + CALL_SIZE == other.address
        assert one.address + one.size == other.address + other.size


def test_its_workload_is_the_default_one():
    assert "default" in workloads(load_image("synthetic:1"))
