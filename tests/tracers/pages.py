"""A decoder of ring buffer pages of the tests' own, written from include/linux/ring_buffer.h."""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER = struct.Struct("<QQ")  # time_stamp, commit
COMMIT_MASK = (1 << 20) - 1


@dataclass(frozen=True)
class Raw:
    """One event: its time and its data, which begins with the common fields."""

    ts: int
    data: bytes

    @property
    def common(self) -> tuple[int, int, int, int]:
        """Type, flags, preempt count, pid."""
        return struct.unpack_from("<HBBi", self.data)


def decode(page: bytes) -> list[Raw]:
    ts, commit = HEADER.unpack_from(page)
    at, end = HEADER.size, HEADER.size + (commit & COMMIT_MASK)
    assert end <= len(page)
    events = []
    while at < end:
        (word,) = struct.unpack_from("<I", page, at)
        kind, delta = word & 31, word >> 5
        at += 4
        if kind == 30:  # time extend: the upper bits of the delta follow
            (high,) = struct.unpack_from("<I", page, at)
            ts += delta + (high << 27)
            at += 4
            continue
        assert kind < 29, f"padding or a time stamp at {at}"
        ts += delta
        if kind:
            size = 4 * kind
        else:
            (size,) = struct.unpack_from("<I", page, at)
            size -= 4
            at += 4
        events.append(Raw(ts, page[at : at + size]))
        at += -(-size // 4) * 4
    assert at == end, "an event reaches beyond what is committed"
    return events


def time_extends(page: bytes) -> int:
    """How many there are."""
    commit = HEADER.unpack_from(page)[1] & COMMIT_MASK
    at, count = HEADER.size, 0
    while at < HEADER.size + commit:
        (word,) = struct.unpack_from("<I", page, at)
        kind = word & 31
        count += kind == 30
        if kind == 30:
            at += 8
        elif kind:
            at += 4 + 4 * kind
        else:
            at += 4 + -(-struct.unpack_from("<I", page, at + 4)[0] // 4) * 4
    return count
