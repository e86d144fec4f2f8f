"""mm/page_alloc.S: a zone hands out each of its pages once."""

import random

import pytest

from dynftrace_emu.kernel.structs import PAGE_SIZE, PCPU
from tests.firmware.guest import HEAP, PCPU_AT, GuestFault
from tests.firmware.kernel_lib import MM, guest_fixture, preempt_count

guest = guest_fixture(MM[:1])


def boot(guest, start=HEAP, size=16 * PAGE_SIZE):
    guest.write(HEAP, b"\xa5" * (size + 2 * PAGE_SIZE))
    guest.write_u64(PCPU_AT + PCPU.offset("zone_start"), start)
    guest.write_u64(PCPU_AT + PCPU.offset("zone_end"), start + size)
    guest.call("page_alloc_init_cpu")
    return guest.call("nr_free_pages")


def take_all(guest):
    pages = []
    while page := guest.call("alloc_page"):
        pages.append(page)
    return pages


@pytest.mark.parametrize(
    ("start", "size", "pages"),
    [
        (HEAP, 16 * PAGE_SIZE, 15),
        (HEAP + 8, 16 * PAGE_SIZE - 8, 15),
        (HEAP, 16 * PAGE_SIZE - 1, 14),
        (HEAP, 128 * PAGE_SIZE, 127),
        (HEAP, 300 * PAGE_SIZE, 297),
        (HEAP, 2 * PAGE_SIZE, 1),
        (HEAP, PAGE_SIZE, 0),
        (HEAP, 0, 0),
    ],
)
def test_zone_layout(guest, start, size, pages):
    assert boot(guest, start, size) == pages
    taken = take_all(guest)
    assert len(taken) == pages
    assert taken == sorted(set(taken)), "the lowest comes first, each once"
    map_at = guest.read_u64(guest.address("zone_mem_map"))
    assert start <= map_at
    assert all(page % PAGE_SIZE == 0 for page in taken)
    assert all(map_at + 32 * pages <= page <= start + size - PAGE_SIZE for page in taken)
    assert guest.read(start + size, PAGE_SIZE) == b"\xa5" * PAGE_SIZE


def test_pages_come_zeroed_and_are_used_again(guest):
    rng = random.Random(3)
    total = boot(guest)
    held = []
    for _ in range(200):
        if rng.random() < 0.5:
            page = guest.call("alloc_page")
            assert (page == 0) == (len(held) == total)
            if page:
                assert page not in held
                assert guest.read(page, PAGE_SIZE) == bytes(PAGE_SIZE)
                guest.write(page, b"\xff" * PAGE_SIZE)
                held.append(page)
        elif held:
            guest.call("free_page", held.pop(rng.randrange(len(held))))
        assert guest.call("nr_free_pages") == total - len(held)
        assert preempt_count(guest) == 0


def test_page_and_address(guest):
    boot(guest)
    page = guest.call("alloc_page")
    for byte in (0, 1, PAGE_SIZE - 1):
        struct_page = guest.call("virt_to_page", page + byte)
        assert guest.call("page_address", struct_page) == page


def test_bugs_are_caught(guest):
    boot(guest)
    page = guest.call("alloc_page")
    guest.call("free_page", page)
    with pytest.raises(GuestFault):
        guest.call("free_page", page)
    for foreign in (0, HEAP, HEAP + PAGE_SIZE - 1, HEAP + 16 * PAGE_SIZE, HEAP - 1):
        for name in ("free_page", "virt_to_page"):
            with pytest.raises(GuestFault):
                guest.call(name, foreign)
