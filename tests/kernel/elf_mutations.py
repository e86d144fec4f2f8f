"""Damages ELF files where it hurts: a field of a header, a symbol, a relocation, a table."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import strategies as st

INTERESTING = (
    0, 1, 2, 3, 5, 7, 8, 0x10, 0x40, 0xFF, 0xFFF, 0x1000, 0x7FFF, 0xFF00, 0xFFF1, 0xFFF2, 0xFFFF,
    0x40_0000, 0x40_1001, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32, 1 << 40, 1 << 47,
    (1 << 63) - 1, 1 << 63, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF_8100_0000, (1 << 64) - 4096,
    (1 << 64) - 8, (1 << 64) - 1,
)  # fmt: skip
_HEADER = ((4, 1), (5, 1), (16, 2), (18, 2), (24, 8), (32, 8), (40, 8), (52, 2), (54, 2), (56, 2),
           (58, 2), (60, 2), (62, 2))  # fmt: skip
_PROGRAM = ((0, 4), (4, 4), (8, 8), (16, 8), (32, 8), (40, 8))
_SECTION = ((0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 8), (56, 8))
_SYMBOL = ((0, 4), (4, 1), (6, 2), (8, 8), (16, 8))
_RELOCATION = ((0, 8), (8, 4), (12, 4), (16, 8))
_TABLES = {
    2: (24, _SYMBOL),
    11: (24, _SYMBOL),
    4: (24, _RELOCATION),
    14: (8, ((0, 8),)),
    6: (16, ((0, 8), (8, 8))),
}
_NAMED = ("__mcount_loc", "__patchable_function_entries", ".init_array")


def fields(data: bytes) -> list[tuple[int, int]]:
    """(offset, width) of everything that a loader believes."""
    program, section = struct.unpack_from("<QQ", data, 32)
    programs, sections = (
        struct.unpack_from("<H", data, 56)[0],
        struct.unpack_from("<H", data, 60)[0],
    )
    names = struct.unpack_from("<H", data, 62)[0]
    found = list(_HEADER)
    found += [(program + 56 * n + at, width) for n in range(programs) for at, width in _PROGRAM]
    found += [(section + 64 * n + at, width) for n in range(sections) for at, width in _SECTION]
    strings = struct.unpack_from("<Q", data, section + 64 * names + 24)[0]
    for number in range(sections):
        name, kind, _, _, offset, size = struct.unpack_from("<IIQQQQ", data, section + 64 * number)
        text = data[strings + name : data.index(b"\0", strings + name)].decode()
        if text in _NAMED:
            step, parts = 8, ((0, 8),)
        elif kind in _TABLES:
            step, parts = _TABLES[kind]
        else:
            continue
        rows = range(offset, offset + size - step + 1, step)
        found += [(row + at, width) for row in rows for at, width in parts]
    return found


@dataclass(frozen=True)
class Damage:
    """Values for some fields, and how much of the file is left, in 1/1000."""

    values: tuple[tuple[int, int], ...]  # (which field, modulo their number; value)
    kept: int = 1000

    def apply(self, data: bytes) -> bytes:
        places = fields(data)
        changed = bytearray(data)
        for number, value in self.values:
            offset, width = places[number % len(places)]
            changed[offset : offset + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        return bytes(changed[: len(data) * self.kept // 1000])


def damages() -> st.SearchStrategy[Damage]:
    values = st.tuples(
        st.integers(0, 1 << 16),
        st.one_of(st.sampled_from(INTERESTING), st.integers(0, (1 << 64) - 1), st.integers(0, 300)),
    )
    kept = st.one_of(st.just(1000), st.just(1000), st.integers(0, 1000))
    return st.builds(Damage, st.lists(values, min_size=1, max_size=5).map(tuple), kept)
