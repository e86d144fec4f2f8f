"""Pages that are given back are given out again, joined and split as need be."""

import pytest

from dynftrace_emu.errors import ImageError
from dynftrace_emu.ftrace.page_pool import PagePool
from dynftrace_emu.machine.memory import GuestMemory

PAGE = 4096


@pytest.fixture
def pool() -> PagePool:
    return PagePool(GuestMemory(1 << 20), "for a test")


def test_parts_of_a_run_become_the_run_again(pool) -> None:
    whole = pool.alloc(10)
    pool.free(whole, 10)
    parts = [(pool.alloc(pages), pages) for pages in (3, 5, 2)]
    assert sorted(at for at, _ in parts) == [whole, whole + 3 * PAGE, whole + 8 * PAGE]
    for at, pages in (parts[2], parts[0], parts[1]):
        pool.free(at, pages)
    assert pool.alloc(10) == whole


def test_runs_of_two_regions_stay_apart(pool) -> None:
    first, second = pool.alloc(4), pool.alloc(4)
    pool.free(first, 4)
    pool.free(second, 4)
    third = pool.alloc(8)  # one region holds it, whatever lies beside it
    assert third not in (first, second)


def test_what_is_given_out_again_is_zeroed(pool) -> None:
    at = pool.alloc(2)
    memory = pool._memory
    memory.write_u64(at + 8, 7)
    pool.free(at, 2)
    assert pool.alloc(2) == at
    assert memory.read_u64(at + 8) == 0


def test_all_or_nothing(pool) -> None:
    with pytest.raises(ImageError):
        pool.alloc_all([20, 20, 1000])
    assert pool.alloc_all([20, 20])
