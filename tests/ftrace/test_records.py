"""S3, and the part of S6 that is about memory: pages of records, read with struct."""

from __future__ import annotations

import pytest

from dynftrace_emu.ftrace.records import hash_long
from tests.ftrace.tiny_kernel import HEADER, RECORD, TinyKernel, own_hash_long

FUNCTIONS = [f"f{number}" for number in range(300)]


def test_the_layout_is_28_bytes_a_record_12_a_header_145_a_page() -> None:
    assert (RECORD.size, HEADER.size) == (28, 12)
    assert (4096 - HEADER.size) // RECORD.size == 145


@pytest.mark.parametrize("ip", [0, 1, 0xFFFF_FFFF_8100_0005, 0xFFFF_FFFF_FFFF_FFFF, 0x1234_5678])
def test_hash_long_is_the_one_of_2008(ip: int) -> None:
    assert hash_long(ip) == own_hash_long(ip)


@pytest.mark.parametrize(("wanted", "pages"), [(0, 0), (1, 1), (145, 1), (146, 2), (10_000, 69)])
def test_the_batch_at_boot_comes_in_whole_pages(wanted: int, pages: int) -> None:
    tiny = TinyKernel(boot_records=wanted, initcall=False)
    found = tiny.pages()
    assert len(found) == pages == len(set(found))
    assert all(address % 4096 == 0 and index == 0 for address, index in found)
    assert tiny.ftrace.arch.records.capacity == 145 * pages


def test_records_are_packed_behind_the_header_in_the_order_they_were_made() -> None:
    tiny = TinyKernel(300, boot_records=300)
    tiny.call_all(FUNCTIONS)
    pages = tiny.ftrace.arch.records.pages
    assert len(pages) == 3
    headers = [HEADER.unpack(tiny.memory.read(page, 12)) for page in pages]
    assert headers == [(pages[1], 145), (pages[2], 145), (0, 10)]
    for number, function in enumerate(FUNCTIONS):
        page, slot = divmod(number, 145)
        raw = tiny.memory.read(pages[page] + 12 + 28 * slot, 28)
        assert RECORD.unpack(raw)[2:] == (tiny.site(function) + 5, 0)


def test_ips_can_be_asked_for_at_any_time_and_from_any_record_on() -> None:
    tiny = TinyKernel(300, boot_records=300)
    records = tiny.ftrace.arch.records
    made: list[int] = []
    for begin, end in ((0, 3), (3, 145), (145, 146), (146, 146), (146, 300)):
        tiny.call_all(FUNCTIONS[begin:end])
        made += [tiny.site(function) + 5 for function in FUNCTIONS[begin:end]]
        assert records.ips().tolist() == [record.ip for record in tiny.records()] == made
        assert records.ips(begin).tolist() == made[begin:]
        assert records.ips(end).tolist() == []


def test_the_host_knows_what_is_in_the_hash_as_the_guest_does() -> None:
    tiny = TinyKernel(300, boot_records=300)
    nodes = tiny.ftrace.hash
    for begin, end in ((0, 200), (200, 300)):
        tiny.call_all(FUNCTIONS[begin:end])
        check_hash(tiny)
        tiny.poke(FUNCTIONS[begin], b"\x90" * 5)  # its record fails, and stays
        tiny.ftrace.ftraced_pass()
        check_hash(tiny)
    assert len(nodes) == 2


def check_hash(tiny: TinyKernel) -> None:
    nodes = tiny.ftrace.hash
    chains = [tiny.chain(bucket) for bucket in range(1024)]
    assert [nodes.length(bucket) for bucket in range(1024)] == [len(chain) for chain in chains]
    assert len(nodes) == sum(len(chain) for chain in chains)
    found = {record.ip: record.address for chain in chains for record in chain}
    ips = [record.ip for record in tiny.records()]
    assert [nodes.find(ip) for ip in ips] == [found.get(ip) for ip in ips]


def test_what_follows_the_last_record_of_a_page_stays_zero() -> None:
    tiny = TinyKernel(300, boot_records=300)
    tiny.call_all(FUNCTIONS)
    first, _, last = tiny.ftrace.arch.records.pages
    assert tiny.memory.read(first + 12 + 145 * 28, 4096 - 12 - 145 * 28) == bytes(24)
    assert tiny.memory.read(last + 12 + 10 * 28, 200) == bytes(200)


def test_the_guest_sees_the_page_that_slots_come_from() -> None:
    tiny = TinyKernel(300, boot_records=300)
    pages = tiny.ftrace.arch.records.pages
    tiny.call_all(FUNCTIONS[:145])
    assert tiny.kernel.read("ftrace_pages") == pages[0]
    tiny.call("f145")
    assert tiny.kernel.read("ftrace_pages") == pages[1]


def test_a_tick_adds_one_page_at_most_and_only_while_no_spare_is_ahead() -> None:
    tiny = TinyKernel(300, boot_records=0)
    added = [tiny.ftrace.ftraced_pass().pages_added for _ in range(4)]
    assert added == [1, 1, 0, 0]  # the first page, its spare, and then nothing is needed
    tiny.call_all(FUNCTIONS[:145])
    assert tiny.ftrace.ftraced_pass().pages_added == 0  # the page is full, but its spare is empty
    tiny.call_all(FUNCTIONS[145:150])  # into the spare: now that is in use
    assert [tiny.ftrace.ftraced_pass().pages_added for _ in range(2)] == [1, 0]
    assert len(tiny.ftrace.arch.records.pages) == 3
    assert [index for _, index in tiny.pages()] == [5, 0]


def test_records_that_leave_the_hash_keep_every_byte() -> None:
    """A look-up may be standing on one: it must find its way on through the old link."""
    tiny = TinyKernel(300, boot_records=300)
    tiny.call_all(FUNCTIONS)
    before = tiny.records()
    assert any(record.next for record in before)  # some are linked to others
    assert tiny.ftrace.ftraced_pass().patched == 300
    assert tiny.hashed() == set()
    assert tiny.records() == before


def test_slots_are_never_given_out_again() -> None:
    tiny = TinyKernel()
    tiny.call("f0")
    [old] = tiny.records()
    tiny.ftrace.ftraced_pass()
    tiny.call("f1")
    assert tiny.records()[0] == old
    assert tiny.recorded() == ["f0", "f1"]


def test_a_look_up_that_stands_on_a_node_ends_well_when_the_node_leaves() -> None:
    """vCPU 1 stands in a chain, on a node that is not its own, while a pass empties the hash."""
    tiny = TinyKernel(300, vcpus=2, boot_records=300)
    tiny.call_all(FUNCTIONS)
    chain = next(c for bucket in range(1024) if len(c := tiny.chain(bucket)) > 1)
    sought = tiny.image.function_at(chain[-1].site).name
    walker = tiny.begin(sought, vcpu=1)
    compare = tiny.address("ftrace_record_ip")
    code = tiny.memory.read(compare, tiny.image.symbols["ftrace_record_ip"].size)
    tiny.run_to(walker, compare + code.index(b"\x48\x39\x79\x10"))  # cmp [rcx + 0x10], rdi
    tiny.ftrace.ftraced_pass()
    tiny.finish(walker)
    assert tiny.traps == 300  # found, along the links of nodes that have left
    assert len(tiny.records()) == 300
    assert tiny.skipped() == {}
