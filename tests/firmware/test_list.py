"""lib/list.S against Python lists."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.firmware.guest import GuestFault
from tests.firmware.kernel_lib import SCRATCH, guest_fixture

# struct { struct list_head; u64 key; }, and priv must come through.
EXTRA = """
cmp_keys:
        cmp rdi, 0x77
        jne 1f
        xor eax, eax
        mov rcx, [rsi+16]
        cmp rcx, [rdx+16]
        seta al
        sbb eax, 0
        test rsp, rsp
        ret
1:      ud2
"""
guest = guest_fixture(extra=EXTRA)
HEAD, OTHER, NODES = SCRATCH, SCRATCH + 16, SCRATCH + 64


def node(number):
    return NODES + 24 * number


def walk(guest, head):
    """The nodes' numbers, forwards; the way back must be the same."""
    forward, at = [], guest.read_u64(head)
    while at != head:
        forward.append((at - NODES) // 24)
        at = guest.read_u64(at)
        assert len(forward) < 1000, "a loop that misses the head"
    backward, at = [], guest.read_u64(head + 8)
    while at != head:
        backward.append((at - NODES) // 24)
        at = guest.read_u64(at + 8)
        assert len(backward) < 1000, "a loop that misses the head"
    assert backward == forward[::-1]
    return forward


def make(guest, head, numbers):
    guest.call("INIT_LIST_HEAD", head)
    for number in numbers:
        guest.call("list_add_tail", node(number), head)


def test_against_a_model(guest):
    rng = random.Random(7)
    lists = {HEAD: [], OTHER: []}
    free = list(range(20))
    make(guest, HEAD, [])
    make(guest, OTHER, [])
    for _ in range(500):
        head = rng.choice([HEAD, OTHER])
        model = lists[head]
        action = rng.choice(["add", "add_tail", "del", "move", "splice"])
        if action.startswith("add") and free:
            number = free.pop()
            guest.call(f"list_{action}", node(number), head)
            model.insert(0 if action == "add" else len(model), number)
        elif action in ("del", "move") and model:
            number = model.pop(rng.randrange(len(model)))
            if action == "del":
                guest.call("list_del", node(number))
                free.append(number)
            else:
                to = rng.choice([HEAD, OTHER])
                guest.call("list_move", node(number), to)
                lists[to].insert(0, number)
        elif action == "splice":
            to = OTHER if head == HEAD else HEAD
            guest.call("list_splice_init", head, to)
            lists[to] = model + lists[to]
            lists[head] = []
        for at, model in lists.items():
            assert walk(guest, at) == model
            assert guest.call("list_empty", at) == (not model)


def test_a_deleted_entry_is_poisoned(guest):
    make(guest, HEAD, [0])
    guest.call("list_del", node(0))
    with pytest.raises(GuestFault):
        guest.call("list_del", node(0))


@settings(max_examples=80, deadline=None)
@given(keys=st.lists(st.integers(0, 12), max_size=40))
def test_list_sort_is_stable(guest, keys):
    make(guest, HEAD, range(len(keys)))
    for number, key in enumerate(keys):
        guest.write(node(number) + 16, struct.pack("<Q", key))
    guest.call("list_sort", 0x77, HEAD, guest.address("cmp_keys"))
    assert walk(guest, HEAD) == sorted(range(len(keys)), key=keys.__getitem__)
