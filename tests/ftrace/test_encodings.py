"""What a call site's bytes can be, against Capstone."""

from __future__ import annotations

import capstone
import numpy as np
import pytest

from dynftrace_emu.ftrace.encodings import CALL, JMP, NOP, matches

MCOUNT = 0xFFFF_FFFF_8100_0090
OFFSETS = (-0x8C, -5, 0x12345, -0x7FFF_0000)
SITES = np.array([MCOUNT + offset for offset in OFFSETS], dtype=np.uint64)


def text(code: bytes, address: int) -> tuple[str, int]:
    """The first instruction, and its length."""
    [insn] = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(code, address, 1)
    return f"{insn.mnemonic} {insn.op_str}", insn.size


@pytest.mark.parametrize("index", range(len(SITES)))
def test_each_encoding_is_the_instruction_it_says(index: int) -> None:
    site = int(SITES[index])
    call, jmp, nop = (e.rows(SITES, MCOUNT)[index].tobytes() for e in (CALL, JMP, NOP))
    behind = (site + 5) & 0xFFFF_FFFF_FFFF_FFFF
    assert text(call, site) == (f"call {MCOUNT:#x}", 5)
    assert text(jmp, site) == (f"jmp {behind:#x}", 2)
    assert text(nop, site) == ("nop dword ptr [rax + rax]", 5)
    assert nop == bytes.fromhex("0f1f440000")
    assert jmp == b"\xeb\x03" + call[2:]


def test_no_sites_no_rows() -> None:
    none = np.zeros(0, dtype=np.uint64)
    assert [e.rows(none, MCOUNT).shape for e in (CALL, JMP, NOP)] == [(0, 5)] * 3


def test_a_row_matches_only_with_all_its_bytes() -> None:
    rows = CALL.rows(SITES, MCOUNT)
    assert matches(rows, rows).all()
    for byte in range(5):
        other = rows.copy()
        other[:, byte] ^= 1
        assert not matches(other, rows).any()
