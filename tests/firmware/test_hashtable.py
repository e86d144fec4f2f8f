"""lib/hashtable.S against a dict of lists."""

import random
import struct

import pytest

from tests.firmware.kernel_lib import SCRATCH, guest_fixture

# Adds up the keys it is called with, and takes the even ones out.
EXTRA = """
sum_keys:
        mov rax, [rdi+HENT_KEY]
        add [rsi], rax
        test al, 1
        jne 1f
        mov rcx, rdi
        mov rdi, [rsi+8]
        mov rsi, rcx
        call hashtable_del
1:      ret
"""
guest = guest_fixture(extra=EXTRA)
TABLE, BUCKETS, ENTRIES, SUM = (SCRATCH + 0x1000 * n for n in range(4))
COUNT, ENTRY_SIZE = 16, 32


@pytest.mark.parametrize("bits", [1, 4])
def test_against_a_model(guest, bits):
    rng = random.Random(bits)
    guest.write(BUCKETS, b"\xa5" * 256)
    guest.call("hashtable_init", TABLE, BUCKETS, bits)
    assert guest.read(BUCKETS, 256) == bytes(8 << bits) + b"\xa5" * (256 - (8 << bits))
    free = [ENTRIES + ENTRY_SIZE * n for n in range(40)]
    guest.write(ENTRIES, bytes(40 * ENTRY_SIZE))
    table: dict[int, list[int]] = {}  # key -> entries, newest last
    for _ in range(600):
        key = rng.randrange(12) << rng.choice([0, 40])
        entries = table.setdefault(key, [])
        if free and rng.random() < 0.55:
            entry = free.pop(rng.randrange(len(free)))
            guest.write_u64(entry + 16, key)
            guest.call("hashtable_add", TABLE, entry)
            entries.append(entry)
            assert guest.call("hlist_unhashed", entry) == 0
        elif entries:
            entry = entries.pop(rng.randrange(len(entries)))
            guest.call("hashtable_del", TABLE, entry)
            assert guest.call("hlist_unhashed", entry) == 1
            free.append(entry)
        newest = entries[-1] if entries else 0
        assert guest.call("hashtable_lookup", TABLE, key) == newest
        assert guest.read_u64(TABLE + COUNT) == 40 - len(free)

    keys = [key for key, entries in table.items() for _ in entries]
    guest.write(SUM, struct.pack("<2Q", 0, TABLE))
    visited = guest.call("hashtable_for_each", TABLE, guest.address("sum_keys"), SUM)
    assert visited == len(keys)
    assert guest.read_u64(SUM) == sum(keys)
    for key, entries in table.items():
        left = bool(entries) and key & 1
        assert bool(guest.call("hashtable_lookup", TABLE, key)) == left


def test_deleting_twice_is_harmless(guest):
    guest.call("hashtable_init", TABLE, BUCKETS, 1)
    guest.write(ENTRIES, bytes(ENTRY_SIZE))
    guest.call("hlist_add_head", ENTRIES, BUCKETS)
    guest.call("hlist_del_init", ENTRIES)
    guest.call("hlist_del_init", ENTRIES)
    assert guest.read_u64(BUCKETS) == 0
