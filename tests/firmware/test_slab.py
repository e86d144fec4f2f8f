"""mm/slab.S: objects do not overlap, memory comes back, misuse is a BUG."""

import itertools
import random

import pytest

from dynftrace_emu.kernel.structs import PAGE_SIZE, PCPU
from tests.firmware.guest import HEAP, PCPU_AT, RETURN_TO, STACK_TOP, GuestFault
from tests.firmware.kernel_lib import LIB, MM, SCRATCH, guest_fixture, preempt_count

built = guest_fixture((*LIB, *MM))
PAGES = 64
CLASSES = (32, 64, 128, 256, 512, 1024, 2048)


@pytest.fixture
def guest(built):
    built.write_u64(PCPU_AT + PCPU.offset("zone_start"), HEAP)
    built.write_u64(PCPU_AT + PCPU.offset("zone_end"), HEAP + (PAGES + 1) * PAGE_SIZE)
    built.write_u64(PCPU_AT + PCPU.offset("preempt_count"), 0)  # a BUG left it anywhere
    built.write(HEAP, b"\xa5" * (PAGES * PAGE_SIZE))
    built.call("page_alloc_init_cpu")
    built.call("kmem_cache_init_cpu")
    built.write(SCRATCH, b"name\0")
    return built


def initcalls(guest):
    data = next(s.data for s in guest.unit.sections if s.name == "cpu_initcalls")
    return [int.from_bytes(data[at : at + 8], "little") for at in (0, 8)]


def test_pages_boot_before_slabs(guest):
    names = ("page_alloc_init_cpu", "kmem_cache_init_cpu")
    assert initcalls(guest) == [guest.address(name) for name in names]


@pytest.mark.parametrize("seed", range(3))
def test_kmalloc_against_a_model(guest, seed):
    rng = random.Random(seed)
    before = guest.call("nr_free_pages")
    held: dict[int, bytes] = {}
    for _ in range(700):
        if rng.random() < 0.6 and len(held) < 80:
            count = rng.choice([1, 8, 31, 32, 33, 100, 500, 512, 700, 2048, 2049, 4096])
            at = guest.call("kmalloc", count)
            assert at, "memory leaks"
            assert guest.call("ksize", at) == next((c for c in CLASSES if c >= count), PAGE_SIZE)
            assert at % 16 == 0
            held[at] = rng.randbytes(count)
            guest.write(at, held[at])
        elif held:
            at = rng.choice(sorted(held))
            data = held.pop(at)
            assert guest.read(at, len(data)) == data, "somebody else wrote here"
            guest.call("kfree", at)
        assert preempt_count(guest) == 0
    for at, data in held.items():
        assert guest.read(at, len(data)) == data
        guest.call("kfree", at)
    # What is not back are empty slabs: one a cache, and descriptors for those off slab.
    assert guest.call("nr_free_pages") >= before - len(CLASSES)
    for index in range(len(CLASSES))[::-1]:
        cache = guest.read_u64(guest.address("malloc_caches") + 8 * index)
        guest.call("kmem_cache_shrink", cache)
    assert guest.call("nr_free_pages") == before


@pytest.mark.parametrize("objsize", [1, 8, 24, 40, 64, 104, 504, 512, 1000, 1360, 2048])
def test_a_cache_uses_its_pages_and_gives_them_back(guest, objsize):
    before = guest.call("nr_free_pages")
    cache = guest.call("kmem_cache_create", SCRATCH, objsize)
    rounded = (objsize + 7) & ~7
    assert guest.call("kmem_cache_size", cache) == rounded
    objects = []
    while at := guest.call("kmem_cache_alloc", cache):
        objects.append(at)
        guest.write(at, b"\xee" * rounded)
    assert preempt_count(guest) == 0
    objects.sort()
    assert all(b - a >= rounded for a, b in itertools.pairwise(objects))
    assert all(at % 8 == 0 for at in objects)
    assert all(at // PAGE_SIZE == (at + rounded - 1) // PAGE_SIZE for at in objects)
    assert len(objects) * rounded > (before - 4) * PAGE_SIZE * 0.6, "wasteful"
    # Off slab a page may be left: there was no memory for its descriptor.
    assert guest.call("nr_free_pages") <= (objsize >= 512)
    assert guest.call("kmem_cache_destroy", cache) == (1 << 64) - 1, "it is in use"

    random.Random(objsize).shuffle(objects)
    for at in objects:
        guest.call("kmem_cache_free", cache, at)
    assert guest.call("kmem_cache_destroy", cache) == 0
    assert guest.call("nr_free_pages") >= before - 2  # caches, off-slab descriptors
    again = guest.call("kmem_cache_create", SCRATCH, objsize)
    assert again == cache


def test_an_allocation_that_fails_leaks_nothing(guest):
    """An off-slab cache gets its page, but no memory for the descriptor."""
    cache = guest.call("kmem_cache_create", SCRATCH, 1024)
    small = [guest.call("kmalloc", 128)]
    pages = []
    while page := guest.call("alloc_page"):
        pages.append(page)
    while at := guest.call("kmalloc", 128):
        small.append(at)
    guest.call("free_page", pages.pop())
    assert guest.call("kmem_cache_alloc", cache) == 0
    assert guest.call("nr_free_pages") == 1
    guest.call("kfree", small.pop())
    assert guest.call("kmem_cache_alloc", cache)


def test_an_empty_slab_is_kept_and_used_again(guest):
    cache = guest.call("kmem_cache_create", SCRATCH, 64)
    at = guest.call("kmem_cache_alloc", cache)
    pages = guest.call("nr_free_pages")
    for _ in range(5):
        guest.call("kmem_cache_free", cache, at)
        assert guest.call("nr_free_pages") == pages
        assert guest.call("kmem_cache_alloc", cache) == at
        assert guest.call("nr_free_pages") == pages
    assert guest.call("kmem_cache_shrink", cache) == 0
    guest.call("kmem_cache_free", cache, at)
    assert guest.call("kmem_cache_shrink", cache) == 1
    assert guest.call("nr_free_pages") == pages + 1


def test_a_cache_in_use_is_not_destroyed(guest):
    for objsize, objects in ((64, 1), (2048, 2)):  # a partial slab, a full one
        cache = guest.call("kmem_cache_create", SCRATCH, objsize)
        held = [guest.call("kmem_cache_alloc", cache) for _ in range(objects)]
        assert guest.call("kmem_cache_destroy", cache) == (1 << 64) - 1
        for at in held:
            guest.call("kmem_cache_free", cache, at)
        assert guest.call("kmem_cache_destroy", cache) == 0
        chain = guest.address("cache_chain")
        at = guest.read_u64(chain)
        while at != chain:
            assert at != cache + 88, "still on the chain"
            at = guest.read_u64(at)


def test_zeroed_variants(guest):
    cache = guest.call("kmem_cache_create", SCRATCH, 40)
    for name, argument, count in (("kmem_cache_zalloc", cache, 40), ("kzalloc", 100, 100)):
        for _ in range(3):
            at = guest.call(name, argument)
            assert guest.read(at, count) == bytes(count)
            guest.write(at, b"\xff" * count)
            guest.call("kfree", at)


def test_what_is_refused(guest):
    for objsize in (0, 2049, (1 << 64) - 1):
        assert guest.call("kmem_cache_create", SCRATCH, objsize) == 0
    for count in (4097, 1 << 40, (1 << 64) - 1):
        assert guest.call("kmalloc", count) == 0
        assert guest.call("kzalloc", count) == 0
    guest.call("kfree", 0)
    assert guest.call("ksize", 0) == 0


def misuses(guest):
    cache = guest.call("kmem_cache_create", SCRATCH, 64)
    other = guest.call("kmem_cache_create", SCRATCH, 64)
    at = guest.call("kmem_cache_alloc", cache)
    guest.call("kmem_cache_alloc", cache)
    return {
        "freed twice": [("kmem_cache_free", cache, at)] * 2,
        "into another cache": [("kmem_cache_free", other, at)],
        "inside an object": [("kmem_cache_free", cache, at + 8)],
        "the descriptor": [("kmem_cache_free", cache, at & -PAGE_SIZE)],
        "not a slab": [("kmem_cache_free", cache, guest.call("alloc_page"))],
        "never allocated": [("kfree", at + 2 * 64)],
        "not ours": [("kfree", SCRATCH)],
    }


@pytest.mark.parametrize(
    "which",
    ["freed twice", "into another cache", "inside an object", "the descriptor", "not a slab",
     "never allocated", "not ours"],
)  # fmt: skip
def test_misuse_is_a_bug(guest, which):
    *first, last = misuses(guest)[which]
    for call in first:
        guest.call(*call)
    with pytest.raises(GuestFault):
        guest.call(*last)


def preempted(guest, function, argument, after, other):
    """Call ``function``; after so many instructions ``other`` runs, if preemption is on there.

    Returns RAX and whether ``other`` ran.
    """
    try:
        return guest.call(function, *argument, limit=after), False
    except GuestFault as fault:
        if "did not return" not in str(fault):
            raise
    ran = preempt_count(guest) == 0
    if ran:
        context = guest.uc.context_save()
        stack = guest.read(STACK_TOP - PAGE_SIZE, PAGE_SIZE)
        other()
        guest.write(STACK_TOP - PAGE_SIZE, stack)
        guest.uc.context_restore(context)
    guest.uc.emu_start(guest._get("RIP"), 0, count=1_000_000)
    assert guest._get("RIP") == RETURN_TO + 1
    return guest._get("RAX"), ran


@pytest.mark.parametrize("objsize", [400, 2048])
def test_preemption_anywhere(guest, objsize):
    """Another task allocates and frees in the middle: nothing is given out twice or lost."""
    cache = guest.call("kmem_cache_create", SCRATCH, objsize)
    before = guest.call("nr_free_pages")
    held: list[int] = []
    mine = guest.call("kmem_cache_alloc", cache)

    def other():
        held.extend(guest.call("kmem_cache_alloc", cache) for _ in range(2))
        guest.call("kmem_cache_free", cache, held.pop(0))
        pages = [guest.call("alloc_page") for _ in range(2)]
        assert pages[0] != pages[1]
        for page in pages:
            guest.call("free_page", page)

    interruptions = 0
    for after in range(1, 260):
        guest.call("kmem_cache_free", cache, mine)
        mine, ran = preempted(guest, "kmem_cache_alloc", [cache], after, other)
        interruptions += ran
        assert mine
        assert mine not in held
        _, ran = preempted(guest, "kmem_cache_free", [cache, mine], after, other)
        interruptions += ran
        mine = guest.call("kmem_cache_alloc", cache)
        assert mine not in held
        assert len(set(held)) == len(held)
        page, ran = preempted(guest, "alloc_page", [], after, other)
        interruptions += ran
        _, ran = preempted(guest, "free_page", [page], after, other)
        while len(held) > 5:
            guest.call("kmem_cache_free", cache, held.pop(0))
    assert interruptions > 50
    for at in [*held, mine]:
        guest.call("kmem_cache_free", cache, at)
    guest.call("kmem_cache_shrink", cache)
    descriptors = guest.read_u64(guest.address("malloc_caches") + 8 * CLASSES.index(128))
    guest.call("kmem_cache_shrink", descriptors)
    assert guest.call("nr_free_pages") >= before
