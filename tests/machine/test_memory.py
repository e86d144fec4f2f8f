"""Guest memory and its page tables, against a walk of the raw RAM written here."""

import itertools

import numpy as np
import pytest

from dynftrace_emu.errors import GuestFault, ImageError
from dynftrace_emu.kernel.boot import boot
from dynftrace_emu.kernel.mini_kernel import mini_kernel, workloads
from dynftrace_emu.machine.memory import COUNTER_PAGE, DIRECT_MAP, PAGE_SIZE, GuestMemory
from tests.machine.guests import boot_guest, deterministic, page_table_entries

WRITABLE, NO_EXECUTE = 1 << 1, 1 << 63
ADDRESS = 0x000F_FFFF_FFFF_F000
AT = 0xFFFF_FFFF_8100_0000
NO_RAM_AT = 1 << 36  # physical


@pytest.fixture
def memory():
    return GuestMemory(1 << 20)


@pytest.fixture(scope="module")
def mini_kernel_booted():
    image = mini_kernel()
    return boot(image, 2, deterministic(), workload=workloads(image)["default"])


def mapped_pages(memory):
    return page_table_entries(memory.ram.tobytes(), memory.root)


def test_nothing_a_booted_kernel_maps_is_both_writable_and_executable(mini_kernel_booted):
    entries = mapped_pages(mini_kernel_booted.machine.memory)
    executable = [a for a, pte in entries.items() if not pte & NO_EXECUTE]
    assert executable
    assert not [hex(a) for a in executable if entries[a] & WRITABLE]


def test_the_regions_table_says_what_the_page_tables_say(mini_kernel_booted):
    memory = mini_kernel_booted.machine.memory
    expected = {}
    for region in memory.regions:
        for offset in range(0, region.size, PAGE_SIZE):
            flags = 1 | (WRITABLE if region.writable else 0)
            flags |= 0 if region.executable else NO_EXECUTE
            expected[region.address + offset] = region.physical + offset | flags
    # The count of instructions is no RAM: a page of each vCPU's own, which nobody can write to.
    assert COUNTER_PAGE not in expected
    assert memory.read(COUNTER_PAGE, 8) is None
    expected[COUNTER_PAGE] = memory.size | 1 | NO_EXECUTE
    assert mapped_pages(memory) == expected


def test_regions_are_sorted_apart_and_each_has_a_purpose(mini_kernel_booted):
    memory = mini_kernel_booted.machine.memory
    regions = memory.regions
    assert all(one.end <= other.address for one, other in itertools.pairwise(regions))
    frames = sorted((r.physical, r.physical + r.size) for r in regions)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(frames))
    assert all(region.purpose for region in regions)
    for region in regions:
        assert memory.find(region.address) is memory.find(region.end - 1) is region
        assert memory.region(region.name) is region
    assert memory.find(regions[0].address - 1) is None


def test_no_text_is_writable_and_no_data_executable(mini_kernel_booted):
    kinds = {
        r.name: (r.writable, r.executable)
        for r in mini_kernel_booted.machine.memory.regions
        if r.name.startswith(".")
    }
    assert kinds[".text"] == (False, True)
    assert kinds[".rodata"] == (False, False)
    assert kinds[".data"] == (True, False)


def test_overlapping_regions_are_refused(memory):
    memory.map("one", AT, 2 * PAGE_SIZE)
    for address, size in ((AT + PAGE_SIZE, PAGE_SIZE), (AT - PAGE_SIZE, 4 * PAGE_SIZE)):
        with pytest.raises(ImageError, match=r"two at .* overlaps one"):
            memory.map("two", address, size)
    memory.map("below", AT - PAGE_SIZE, PAGE_SIZE)
    memory.map("above", AT + 2 * PAGE_SIZE, PAGE_SIZE)
    assert [region.name for region in memory.regions] == ["below", "one", "above"]


def test_ram_that_is_used_up_is_an_error(memory):
    with pytest.raises(ImageError, match="used up"):
        memory.map("big", AT, 2 << 20)


def test_allocated_pages_are_zeroed_contiguous_and_in_the_direct_map(memory):
    first, second = memory.alloc_pages(2, "a"), memory.alloc_pages(1, "b")
    for region in (first, second):
        assert region.address == DIRECT_MAP + region.physical
        assert memory.read(region.address, region.size) == bytes(region.size)
        assert region.writable
        assert not region.executable
    assert first.end <= second.address


def test_reads_and_writes_cross_pages_that_are_apart_in_ram(memory):
    high = memory.map("high", AT + PAGE_SIZE, PAGE_SIZE, writable=True)
    low = memory.map("low", AT, PAGE_SIZE, writable=True)
    data = bytes(range(1, 101))
    assert memory.write(high.address - 40, data)
    assert memory.read(high.address - 40, 100) == data
    assert bytes(memory.ram[low.physical + PAGE_SIZE - 40 : low.physical + PAGE_SIZE]) == data[:40]
    assert bytes(memory.ram[high.physical : high.physical + 60]) == data[40:]


def test_an_access_that_leaves_what_is_mapped_does_nothing(memory):
    region = memory.map("one", AT, PAGE_SIZE, writable=True)
    assert memory.read(region.end - 4, 8) is None
    assert not memory.write(region.end - 4, b"12345678")
    assert memory.read(region.address, PAGE_SIZE) == bytes(PAGE_SIZE)
    with pytest.raises(ImageError, match="not mapped"):
        memory.read_u64(region.end)
    with pytest.raises(ImageError, match="not within"):
        memory.view(region.end - 8, "<u8", 2)


def test_a_view_and_single_word_accesses_are_the_same_memory(memory):
    region = memory.map("one", AT, PAGE_SIZE, writable=True)
    view = memory.view(region.address + 16, "<u8", 2)
    view[1] = 0x1122_3344_5566_7788
    assert memory.read(region.address + 24, 8) == bytes.fromhex("8877665544332211")
    memory.write_u64(region.address + 16, 7)
    assert view[0] == 7
    assert memory.read_u64(region.address + 24) == 0x1122_3344_5566_7788


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_scatter_and_gather_reach_unaligned_rows_in_several_regions(memory, size):
    regions = [memory.map(f"r{n}", AT + n * (1 << 24), PAGE_SIZE) for n in range(3)]
    places = [r.address + at for r in regions for at in (0, 33, 100, PAGE_SIZE - size)]
    rows = np.random.default_rng(size).integers(0, 256, (len(places), size), dtype=np.uint8)
    order = np.random.default_rng(1).permutation(len(places))
    addresses = np.array(places, dtype=np.uint64)[order]
    memory.scatter(addresses, rows)
    for address, row in zip(addresses.tolist(), rows, strict=True):
        assert memory.read(address, size) == row.tobytes()
    assert (memory.gather(addresses, size) == rows).all()
    pages = [memory.ram[r.physical : r.physical + r.size] for r in regions]
    written = sum(np.count_nonzero(page) for page in pages)
    assert written == np.count_nonzero(rows)


def test_gather_reads_up_to_the_very_end_of_the_ram():
    memory = GuestMemory(8 * PAGE_SIZE)
    while memory.size - memory._free > PAGE_SIZE:  # map() may need tables for it first
        region = memory.alloc_pages(1, f"page {memory._free:#x}")
    region = memory.alloc_pages(1, "last")
    assert region.physical + region.size == memory.size
    last = np.array([region.end - 5, region.address], dtype=np.uint64)
    memory.scatter(last, np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], dtype=np.uint8))
    assert memory.gather(last, 5).tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]


def test_scatter_stores_nothing_if_one_place_is_not_mapped(memory):
    region = memory.map("one", AT, PAGE_SIZE)
    for bad in (region.address - 1, region.end - 1, region.end):
        addresses = np.array([region.address, bad], dtype=np.uint64)
        with pytest.raises(ImageError):
            memory.scatter(addresses, np.full((2, 2), 0xEE, dtype=np.uint8))
        with pytest.raises(ImageError):
            memory.gather(addresses, 2)
    assert memory.read(region.address, 2) == b"\0\0"


def test_a_walk_finds_the_page_and_its_rights(memory):
    region = memory.map("one", AT, PAGE_SIZE, writable=True)
    walk = memory.walk(region.address + 0x123)
    assert (walk.physical, walk.writable, walk.executable) == (region.physical + 0x123, True, False)
    assert memory.walk(region.end).physical is None
    assert memory.walk(0x0000_8000_0000_0000).physical is None  # not canonical


def test_a_walk_knows_large_pages_and_rights_taken_away_on_the_way(memory):
    """Tables that the product never makes, written by hand at another root."""
    root, pdpt, pd = (memory.alloc_pages(1, f"t{n}") for n in range(3))
    memory.write_u64(root.address, pdpt.physical | 0b111)
    memory.write_u64(pdpt.address, pd.physical | 0b101 | NO_EXECUTE)  # no writing, no execution
    memory.write_u64(pd.address + 8, 0x4000_0000 | 1 << 7 | 0b111)  # 2 MiB
    memory.write_u64(pdpt.address + 8, 0x8000_0000 | 1 << 7 | 0b011)  # 1 GiB
    small = memory.walk(0x0020_1234, root.physical)
    assert (small.physical, small.writable) == (0x4000_1234, False)
    assert (small.executable, small.user) == (False, True)
    large = memory.walk(0x7654_3210, root.physical)
    assert (large.physical, large.writable) == (0x8000_0000 + 0x3654_3210, True)
    assert (large.executable, large.user) == (True, False)


def test_below_every_stack_there_is_nothing(mini_kernel_booted):
    memory = mini_kernel_booted.machine.memory
    entries = mapped_pages(memory)
    stacks = [region for region in memory.regions if "stack" in region.name]
    assert len(stacks) == 2 * 16
    for stack in stacks:
        below = [stack.address - n * PAGE_SIZE for n in (1, 2)]
        assert not [page for page in below if page in entries]


def test_a_stack_overflow_faults_in_the_guard():
    kernel = boot_guest("""
    ENTRY startup_64
    1:  push rax
        jmp 1b
    END startup_64
    """)
    stack = kernel.machine.memory.region("stack 0/0")
    with pytest.raises(GuestFault) as caught:
        kernel.machine.run(1.0)
    fault = caught.value
    assert (fault.vector, fault.error_code, fault.cr2) == (14, 2, stack.address - 8)
    assert "guard below stack 0/0" in kernel.describe(fault.cr2)


def test_an_access_to_a_page_without_ram_behind_it_is_a_bus_error():
    """A page table entry that names RAM nobody has, made by hand."""
    kernel = boot_guest("""
    ENTRY startup_64
        mov rax, [rip + where]
        mov rcx, [rax]
        OFFLINE
    END startup_64
    VARIABLE where
    """)
    memory = kernel.machine.memory
    neighbour = memory.alloc_pages(1, "neighbour").address
    tables = memory.ram.view("<u8")
    table = memory.root
    for shift in (39, 30, 21):
        table = int(tables[table // 8 + (neighbour >> shift & 511)]) & ADDRESS
    free = next(n for n in range(511, 0, -1) if not tables[table // 8 + n])
    tables[table // 8 + free] = NO_RAM_AT | 0b11 | NO_EXECUTE
    kernel.write("where", neighbour & ~0x1F_FFFF | free << 12)
    with pytest.raises(GuestFault, match="bus error") as caught:
        kernel.machine.run(1.0)
    assert caught.value.rip == kernel.image.address("startup_64") + 7
