"""S7: what a site becomes and how, and what happens where the bytes are not as expected."""

from __future__ import annotations

import numpy as np
import pytest

from dynftrace_emu.ftrace.encodings import CALL, JMP, NOP
from dynftrace_emu.ftrace.patcher import ftrace_bug
from dynftrace_emu.ftrace.protocols import (
    CompareExchange,
    Sync,
    TextChange,
    stop_machine_protocol,
)
from tests.ftrace.tiny_kernel import TinyKernel

NOP5 = bytes.fromhex("0f1f440000")
GARBAGE = bytes.fromhex("e8deadbeef")  # a call, but not to mcount
either = pytest.mark.parametrize("disabled", [JMP, NOP], ids=lambda encoding: encoding.name)


def disabled_bytes(tiny: TinyKernel, function: str, disabled) -> bytes:
    return NOP5 if disabled is NOP else b"\xeb\x03" + tiny.call_bytes(function)[2:]


@either
def test_there_and_back_byte_for_byte_and_nothing_beside_the_sites(disabled) -> None:
    tiny = TinyKernel(disabled=disabled)
    text = tiny.memory.region(".text")
    before = tiny.memory.read(text.address, text.size)
    functions = ["f1", "f4", "f6"]
    tiny.call_all(functions)

    def traced(function: str) -> bytes:
        return tiny.call_bytes(function, "ftrace_caller")

    def expected(bytes_of) -> bytes:
        code = bytearray(before)
        for function in functions:
            at = tiny.site(function) - text.address
            assert code[at : at + 5] == tiny.call_bytes(function)
            code[at : at + 5] = bytes_of(function)
        return bytes(code)

    away = expected(lambda function: disabled_bytes(tiny, function, disabled))
    tiny.ftrace.ftraced_pass()
    assert tiny.memory.read(text.address, text.size) == away
    tiny.ftrace.startup()
    assert tiny.memory.read(text.address, text.size) == expected(traced)
    tiny.ftrace.shutdown()
    assert tiny.memory.read(text.address, text.size) == away


@either
def test_a_disabled_site_runs_without_a_call_and_an_enabled_one_calls(disabled) -> None:
    tiny = TinyKernel(disabled=disabled)
    calls = []
    for step in (None, tiny.ftrace.ftraced_pass, tiny.ftrace.startup, tiny.ftrace.shutdown):
        if step:
            step()
        before = tiny.mcount_calls(), tiny.kernel.total("traced_calls")
        tiny.call("f0")
        after = tiny.mcount_calls(), tiny.kernel.total("traced_calls")
        calls.append((after[0] - before[0], after[1] - before[1]))
    assert calls == [(1, 0), (0, 0), (0, 1), (0, 0)]  # mcount, the tracers


@either
def test_a_new_call_becomes_a_call_to_the_tracers_in_one_change(disabled) -> None:
    """Only its displacement differs, and all of it is compared."""
    tiny = TinyKernel(disabled=disabled)
    tiny.ftrace.startup()
    tiny.call_all(["f0", "f1"])
    tiny.poke("f1", GARBAGE)
    assert tiny.ftrace.ftraced_pass().patched == 1
    assert (tiny.kind("f0"), tiny.bytes_at("f1")) == ("traced", GARBAGE)
    [entry] = tiny.ftrace.arch.patcher.log
    assert (entry.old, entry.new) == (
        tiny.call_bytes("f0"),
        tiny.call_bytes("f0", "ftrace_caller"),
    )


def change(old, new) -> TextChange:
    sites = np.array([0x1000, 0x2000], dtype=np.uint64)
    return TextChange(sites, old.rows(sites, 0x500), new.rows(sites, 0x500))


@pytest.mark.parametrize(("old", "new"), [(CALL, JMP), (JMP, CALL)])
def test_the_jump_is_one_16_bit_exchange_a_site_then_a_sync(old, new) -> None:
    exchange, sync = stop_machine_protocol(change(old, new))
    assert isinstance(exchange, CompareExchange)
    assert exchange.addresses.tolist() == [0x1000, 0x2000]
    assert exchange.old.shape == exchange.new.shape == (2, 2)
    one_way = {0: b"\xe8", 1: b"\xeb\x03"}
    assert exchange.new[0].tobytes().startswith(one_way[new is JMP])
    assert exchange.old[0].tobytes().startswith(one_way[old is JMP])
    assert sync == Sync()


def test_a_call_to_elsewhere_is_one_exchange_of_all_five_bytes() -> None:
    """Two bytes would do for no pair of these: the displacement differs."""
    sites = np.array([0x1000, 0x2000], dtype=np.uint64)
    for old in (CALL, JMP):
        text = TextChange(sites, old.rows(sites, 0x500), CALL.rows(sites, 0xDEAD_BEEF))
        exchange, sync = stop_machine_protocol(text)
        assert isinstance(exchange, CompareExchange)
        assert exchange.old.tolist() == text.old.tolist()
        assert exchange.new.tolist() == text.new.tolist()
        assert sync == Sync()


def test_a_site_that_changed_since_it_was_checked_is_not_overwritten() -> None:
    """Compare and write are one step: what the compare does not find, the write does not touch."""

    def meddling(text: TextChange):
        tiny.poke("f0", GARBAGE)
        yield from stop_machine_protocol(text)

    tiny = TinyKernel(protocol=meddling)
    tiny.call_all(["f0", "f1"])
    tiny.ftrace.ftraced_pass()
    assert tiny.bytes_at("f0") == GARBAGE
    assert tiny.bytes_at("f1") == disabled_bytes(tiny, "f1", JMP)


@either
@pytest.mark.parametrize("byte", range(5))
def test_all_five_bytes_are_checked(disabled, byte: int) -> None:
    tiny = TinyKernel(disabled=disabled)
    tiny.call_all(["f0", "f1"])
    wrong = bytearray(tiny.call_bytes("f0"))
    wrong[byte] ^= 0x10
    tiny.poke("f0", bytes(wrong))
    done = tiny.ftrace.ftraced_pass()
    assert (done.patched, done.failed) == (1, 1)
    assert tiny.bytes_at("f0") == wrong
    assert tiny.bytes_at("f1") == disabled_bytes(tiny, "f1", disabled)
    assert [record.failed for record in tiny.records()] == [1, 0]


def test_a_mismatch_touches_nothing_else_in_memory_than_its_mark() -> None:
    tiny = TinyKernel()
    tiny.call_all(["f0", "f1", "f2"])
    tiny.poke("f1", GARBAGE)
    before = tiny.records()
    tiny.ftrace.ftraced_pass()
    after = tiny.records()
    assert [record.failed for record in after] == [0, 1, 0]
    assert [(r.ip, r.address) for r in after] == [(r.ip, r.address) for r in before]
    assert [tiny.bytes_at(f)[:2] for f in ("f0", "f2")] == [b"\xeb\x03"] * 2


@either
def test_a_failed_record_is_never_tried_again_even_if_the_call_comes_back(disabled) -> None:
    tiny = TinyKernel(disabled=disabled)
    tiny.call_all(["f0", "f1"])
    tiny.poke("f0", GARBAGE)
    tiny.ftrace.ftraced_pass()
    tiny.poke("f0", tiny.call_bytes("f0"))
    tiny.call_all(["f0", "f2"])
    assert tiny.recorded() == ["f0", "f1", "f2"]  # found in the hash, not recorded anew
    assert tiny.ftrace.ftraced_pass().patched == 1
    tiny.ftrace.startup()
    tiny.ftrace.shutdown()
    assert tiny.bytes_at("f0") == tiny.call_bytes("f0")
    assert tiny.bytes_at("f1") == disabled_bytes(tiny, "f1", disabled)
    assert len(tiny.ftrace.arch.patcher.mismatches) == 1


@pytest.mark.parametrize("switch", ["startup", "shutdown"])
def test_a_site_that_changed_between_two_switches_fails_and_the_others_go_on(switch: str) -> None:
    tiny = TinyKernel()
    tiny.call_all(["f0", "f1"])
    tiny.ftrace.ftraced_pass()
    if switch == "shutdown":
        tiny.ftrace.startup()
    tiny.poke("f0", GARBAGE)
    getattr(tiny.ftrace, switch)()
    assert tiny.bytes_at("f0") == GARBAGE
    assert [record.failed for record in tiny.records()] == [1, 0]
    assert tiny.kind("f1") == ("traced" if switch == "startup" else "jmp")
    assert len(tiny.ftrace.arch.patcher.mismatches) == 1


@either
def test_a_site_that_has_the_wanted_bytes_already_is_done_not_failed(disabled) -> None:
    tiny = TinyKernel(disabled=disabled)
    tiny.call_all(["f0", "f1"])
    tiny.poke("f0", disabled_bytes(tiny, "f0", disabled))
    done = tiny.ftrace.ftraced_pass()
    assert (done.patched, done.failed) == (1, 0)
    assert tiny.hashed() == set()
    assert tiny.ftrace.arch.patcher.mismatches == []
    tiny.ftrace.startup()
    assert tiny.bytes_at("f0") == tiny.call_bytes("f0", "ftrace_caller")


def test_the_report_shows_both_codes_with_their_disassembly() -> None:
    tiny = TinyKernel()
    tiny.call("f0")
    tiny.poke("f0", NOP5)
    tiny.ftrace.ftraced_pass()
    [mismatch] = tiny.ftrace.arch.patcher.mismatches
    assert (mismatch.ip, mismatch.found) == (tiny.site("f0"), NOP5)
    assert mismatch.expected == tiny.call_bytes("f0")
    text = ftrace_bug(mismatch, tiny.image.symbolize(mismatch.ip))
    assert f"{tiny.site('f0'):016x}" in text
    assert "f0+0x4/" in text
    actual, expected = (line for line in text.splitlines() if ":" in line and "  " in line)
    assert "0f:1f:44:00:00" in actual
    assert "nop dword ptr" in actual
    assert tiny.call_bytes("f0").hex(":") in expected
    assert f"call {tiny.address('mcount'):#x}" in expected


def test_the_log_names_what_was_changed_last() -> None:
    tiny = TinyKernel()
    tiny.call_all(["f0", "f1"])
    tiny.ftrace.ftraced_pass()
    tiny.ftrace.startup()
    away, back = tiny.ftrace.arch.patcher.log
    assert (away.count, back.count) == (2, 2)
    assert away.first_sites == (tiny.site("f0"), tiny.site("f1"))
    assert away.old == tiny.call_bytes("f0")
    assert back.new == tiny.call_bytes("f0", "ftrace_caller")
    assert away.new == back.old == disabled_bytes(tiny, "f0", JMP)
