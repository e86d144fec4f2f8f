"""S13: the six functions that the seed's header declares "defined in arch", one method each."""

from __future__ import annotations

import numpy as np
import pytest

from dynftrace_emu.ftrace.arch import FtraceArch, SiteState
from dynftrace_emu.ftrace.encodings import JMP
from tests.ftrace.tiny_kernel import HEADER, TinyKernel

SEED_FUNCTIONS = (
    "ftrace_alloc_shutdown_node",
    "ftrace_shutdown_arch_init",
    "ftrace_code_disable",
    "ftrace_startup_code",
    "ftrace_shutdown_code",
    "ftrace_shutdown_replenish",
)


@pytest.fixture
def tiny() -> TinyKernel:
    tiny = TinyKernel()
    tiny.call_all(["f2", "f0", "f1"])
    return tiny


def kinds(tiny: TinyKernel) -> list[str]:
    return [tiny.kind(function) for function in ("f0", "f1", "f2", "f3")]


@pytest.mark.parametrize("name", SEED_FUNCTIONS)
def test_each_has_a_method_that_says_which_it_is(name: str) -> None:
    method = getattr(FtraceArch, name.removeprefix("ftrace_"))
    assert f"``{name}``" in method.__doc__


def test_arch_init_makes_the_batch_and_tells_the_guest_how_a_disabled_site_begins() -> None:
    tiny = TinyKernel(boot_records=0, initcall=False)
    arch = FtraceArch(tiny.kernel, JMP)
    tiny.kernel.write("ftrace_disabled_insn", 0)
    arch.shutdown_arch_init(150)
    assert len(tiny.pages()) == 2
    assert tiny.memory.read(tiny.address("ftrace_disabled_insn"), 2) == b"\xeb\x03"


def test_alloc_gives_each_slot_once_and_then_none() -> None:
    tiny = TinyKernel(boot_records=290, initcall=False)
    nodes = [tiny.ftrace.arch.alloc_shutdown_node(ip) for ip in range(292)]
    assert nodes[290:] == [None, None]
    pages = [page for page, _ in tiny.pages()]
    assert pages == [tiny.ftrace.arch.records.pages[1]]
    expected = [
        page + HEADER.size + 28 * slot
        for page in tiny.ftrace.arch.records.pages
        for slot in range(145)
    ]
    assert nodes[:290] == expected


def test_replenish_adds_a_page_where_the_last_one_is_in_use(tiny: TinyKernel) -> None:
    assert [tiny.ftrace.arch.shutdown_replenish() for _ in range(3)] == [1, 0, 0]
    assert [index for _, index in tiny.pages()] == [3, 0]


def test_code_disable_takes_the_records_from_a_number_on(tiny: TinyKernel) -> None:
    outcome = tiny.ftrace.arch.code_disable(1)
    assert outcome.patched.tolist() == [True, True]
    assert kinds(tiny) == ["jmp", "jmp", "call", "call"]


def test_code_disable_makes_calls_of_those_that_are_wanted(tiny: TinyKernel) -> None:
    outcome = tiny.ftrace.arch.code_disable(1, np.array([True, False]))
    assert outcome.patched.tolist() == [True, True]
    assert kinds(tiny) == ["traced", "jmp", "call", "call"]
    assert tiny.ftrace.arch.states().tolist() == [
        SiteState.NEW,  # f2 f0 f1
        SiteState.TRACED,
        SiteState.DISABLED,
    ]


def test_startup_and_shutdown_code_take_every_record(tiny: TinyKernel) -> None:
    arch = tiny.ftrace.arch
    assert arch.shutdown_code().patched.all()
    assert kinds(tiny) == ["jmp", "jmp", "jmp", "call"]
    assert arch.startup_code().patched.all()
    assert kinds(tiny) == ["traced", "traced", "traced", "call"]
    assert arch.shutdown_code().patched.all()
    assert kinds(tiny) == ["jmp", "jmp", "jmp", "call"]


def test_startup_and_shutdown_code_change_only_the_sites_that_differ(tiny: TinyKernel) -> None:
    """Those that are as they should be are not even looked at: one has been spoiled meanwhile."""
    arch = tiny.ftrace.arch
    arch.startup_code(np.array([True, True, False]))  # f2 f0 f1
    assert kinds(tiny) == ["traced", "jmp", "traced", "call"]
    tiny.poke("f0", b"\x90" * 5)
    outcome = arch.startup_code(np.array([False, True, True]))
    assert outcome.patched.tolist() == [True, False, True]
    assert outcome.already.tolist() == [False, True, False]
    assert not outcome.failed.any()
    assert tiny.bytes_at("f0") == b"\x90" * 5
    assert [tiny.kind(function) for function in ("f1", "f2")] == ["traced", "jmp"]
    outcome = arch.shutdown_code(np.array([False, True, True]))
    assert outcome.already.all()
    assert arch.shutdown_code().failed.tolist() == [False, True, False]
    assert arch.startup_code().already.tolist() == [False, False, False]  # nor is a failed one


def test_changing_says_which_sites_would_be_changed(tiny: TinyKernel) -> None:
    arch = tiny.ftrace.arch
    nobody, all_of_them = np.zeros(3, dtype=bool), np.ones(3, dtype=bool)
    sites = arch.sites().tolist()
    assert arch.changing(0, nobody).tolist() == sorted(sites)
    arch.code_disable(1)
    assert arch.changing(0, nobody).tolist() == [sites[0]]
    assert arch.changing(1, all_of_them[1:]).tolist() == sorted(sites[1:])
    failing = arch.sites().tolist().index(tiny.site("f0"))
    tiny.poke("f0", b"\x90" * 5)
    arch.startup_code()
    rest = [site for number, site in enumerate(sites) if number != failing]
    assert failing == 1
    assert arch.changing(0, nobody).tolist() == sorted(rest)


def test_outcomes_are_in_the_order_of_the_records(tiny: TinyKernel) -> None:
    tiny.poke("f0", b"\x90" * 5)
    outcome = tiny.ftrace.arch.code_disable(0)
    assert outcome.failed.tolist() == [False, True, False]  # f2 f0 f1
    assert outcome.patched.tolist() == [True, False, True]
    assert [record.failed for record in tiny.records()] == [0, 1, 0]
    again = tiny.ftrace.arch.code_disable(0)
    assert again.already.tolist() == [True, False, True]
    assert not again.patched.any()


def test_no_records_are_no_work() -> None:
    tiny = TinyKernel(boot_records=0, initcall=False)
    for convert in (tiny.ftrace.arch.startup_code, tiny.ftrace.arch.shutdown_code):
        assert convert().patched.tolist() == []
    assert tiny.ftrace.arch.code_disable(0).patched.tolist() == []
    assert tiny.ftrace.arch.sites().dtype == np.uint64
