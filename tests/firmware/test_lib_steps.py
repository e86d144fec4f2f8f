"""workloads/lib_steps.S: every step against a model of what it computes, and its price."""

import zlib

import pytest
import unicorn

from dynftrace_emu.kernel.structs import PAGE_SIZE, PCPU, TASK
from tests.firmware.guest import HEAP, PCPU_AT, TASK_AT
from tests.firmware.kernel_lib import LIB, MM, U64, Prandom, guest_fixture, preempt_count
from tests.firmware.test_checksum import rfc1071
from tests.firmware.test_hash import mix

built = guest_fixture((*LIB, *MM, "workloads/lib_steps.S"))
PAGES = 128
ONES = 0xFFFF_FFFF
SEED = 0x1234_5678_9ABC_DEF1


@pytest.fixture
def guest(built):
    built.write(TASK_AT, bytes(TASK.size))
    built.write_u64(PCPU_AT + PCPU.offset("zone_start"), HEAP)
    built.write_u64(PCPU_AT + PCPU.offset("zone_end"), HEAP + PAGES * PAGE_SIZE)
    built.write(HEAP, b"\xa5" * (PAGES * PAGE_SIZE))
    for name in ("crc32init_le", "page_alloc_init_cpu", "kmem_cache_init_cpu"):
        built.call(name)
    built.write_u64(TASK_AT + TASK.offset("rng"), SEED)
    return built


def crc32(data):
    return zlib.crc32(data) ^ ONES


def sort_model(rng, fold):
    rounds = [(4, 4, 8), (8, 8, 6), (12, 4, 4), (4, 4, 8)]
    while True:
        for size, key, count in rounds:
            data = rng.random_bytes(count * size)
            array = [data[at : at + size] for at in range(0, len(data), size)]
            array.sort(key=lambda e: int.from_bytes(e[:key], "little"))
            for element in array[::-3]:
                fold(int.from_bytes(element[:2], "little"))
            fold(crc32(b"".join(array)))
            yield


def hash_model(rng, fold):
    table: dict[int, int] = {}
    number = 0
    while True:
        number += 1
        for _ in range(4):
            key = rng.below(48)
            if key in table:
                fold(table.pop(key))
            else:
                golden = 0x9E3779B9
                table[key] = mix((key + golden) & ONES, (number + golden) & ONES, 0)[2]
                fold(table[key])
        if number % 8 == 0:
            fold(sum((value * 0x9E370001 & ONES) >> 16 for value in table.values()))
        yield


def string_model(rng, fold):
    round_ = 0
    while True:
        round_ += 1
        number = rng.u64()
        first, second = number & 0xFFF, number >> 32 & 0xFFF
        if round_ % 2:
            fold(first + second)
        else:
            text = f"bytes={first} {second:#x} up\n".encode()
            fold(crc32(text))
            fold(rfc1071(text) ^ 0xFFFF)
        yield


def tree_model(rng, fold):
    keys: set[int] = set()
    number = 0
    while True:
        number += 1
        for _ in range(2):
            key = rng.below(128)
            keys ^= {key}
        fold(len(keys))
        fold(min(set(range(129)) - keys) + key)
        if number % 8 == 0:
            total = 0
            for one in sorted(keys):
                total = (total * 31 + one) & U64
            fold(total)
        yield


def list_model(rng, fold):
    while True:
        for key in sorted(rng.u32() for _ in range(6)):
            fold(key)
        yield


MODELS = {
    "sort": sort_model,
    "hash": hash_model,
    "string": string_model,
    "tree": tree_model,
    "list": list_model,
}


@pytest.mark.parametrize("name", MODELS)
def test_step_against_its_model(guest, name):
    checksum = 0

    def fold(value):
        nonlocal checksum
        checksum = ((checksum << 5 | checksum >> 59) ^ value * 0x9E3779B97F4A7C15) & U64

    guest.call(f"{name}_setup", TASK_AT)
    model = MODELS[name](Prandom(SEED), fold)
    for number in range(400):
        guest.call(f"{name}_step", TASK_AT)
        next(model)
        assert guest.read_u64(TASK_AT + TASK.offset("checksum")) == checksum, number
        assert preempt_count(guest) == 0


@pytest.mark.parametrize("name", MODELS)
def test_steps_do_not_leak(guest, name):
    guest.call(f"{name}_setup", TASK_AT)
    for _ in range(100):
        guest.call(f"{name}_step", TASK_AT)
    before = guest.call("nr_free_pages")
    for _ in range(1000):
        guest.call(f"{name}_step", TASK_AT)
    assert guest.call("nr_free_pages") >= before - 1


@pytest.mark.parametrize("name", MODELS)
def test_a_step_has_its_price(guest, name):
    """The workload's steps are of one size: 600 to 1500 instructions, seen over a while."""
    executed = 0

    def count(uc, address, size, data):
        nonlocal executed
        executed += 1

    guest.call(f"{name}_setup", TASK_AT)
    hook = guest.uc.hook_add(unicorn.UC_HOOK_CODE, count)
    guest.uc.ctl_flush_tb()  # the hook fires in code translated from now on
    try:
        for _ in range(48):
            guest.call(f"{name}_step", TASK_AT)
    finally:
        guest.uc.hook_del(hook)
        guest.uc.ctl_flush_tb()
    price = executed / 48
    assert 600 <= price <= (1900 if "mcount" in guest.unit.symbols else 1500)
