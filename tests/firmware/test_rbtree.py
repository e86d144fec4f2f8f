"""lib/rbtree.S: the red-black invariants after every change, order against a sorted list."""

import random
import struct

import pytest

from tests.firmware.kernel_lib import SCRATCH, guest_fixture

guest = guest_fixture()
ROOT, NODES = SCRATCH, SCRATCH + 64


def node(key):
    return NODES + 24 * key


class Tree:
    def __init__(self, guest):
        self.guest = guest
        self.keys: set[int] = set()
        guest.write_u64(ROOT, 0)

    def fields(self, at):
        parent_color, right, left = struct.unpack("<3Q", self.guest.read(at, 24))
        return parent_color & ~3, parent_color & 1, left, right

    def insert(self, key):
        parent, link = 0, ROOT
        while at := self.guest.read_u64(link):
            parent, link = at, at + (16 if node(key) < at else 8)
        self.guest.call("rb_link_node", node(key), parent, link)
        self.guest.call("rb_insert_color", node(key), ROOT)
        self.keys.add(key)

    def erase(self, key):
        self.guest.call("rb_erase", node(key), ROOT)
        self.keys.remove(key)

    def check(self):
        def visit(at, above, red_above):
            """In-order nodes and black height."""
            if not at:
                return [], 1
            parent, black, left, right = self.fields(at)
            assert parent == above
            assert black or not red_above, "two red nodes in a row"
            before, left_height = visit(left, at, not black)
            after, right_height = visit(right, at, not black)
            assert left_height == right_height, "black heights differ"
            return [*before, at, *after], left_height + black

        root = self.guest.read_u64(ROOT)
        assert not root or self.fields(root)[1], "the root is red"
        order, _ = visit(root, 0, False)
        assert order == [node(key) for key in sorted(self.keys)]

    def check_walks(self):
        order = [node(key) for key in sorted(self.keys)]
        for first, step, wanted in (
            ("rb_first", "rb_next", order),
            ("rb_last", "rb_prev", order[::-1]),
        ):
            seen, at = [], self.guest.call(first, ROOT)
            while at:
                seen.append(at)
                at = self.guest.call(step, at)
            assert seen == wanted


@pytest.mark.parametrize("seed", range(4))
def test_random_changes(guest, seed):
    rng = random.Random(seed)
    tree = Tree(guest)
    for count in range(300):
        growing = count % 100 < 55
        if tree.keys and (rng.random() < (0.2 if growing else 0.8)):
            tree.erase(rng.choice(sorted(tree.keys)))
        else:
            key = rng.randrange(64)
            if key not in tree.keys:
                tree.insert(key)
        tree.check()
        if count % 25 == 0:
            tree.check_walks()


@pytest.mark.parametrize("step", [1, -1])
def test_in_order_and_back(guest, step):
    tree = Tree(guest)
    for key in range(40)[::step]:
        tree.insert(key)
        tree.check()
    tree.check_walks()
    for key in range(40)[::step]:
        tree.erase(key)
        tree.check()
    assert guest.read_u64(ROOT) == 0
    assert guest.call("rb_first", ROOT) == guest.call("rb_last", ROOT) == 0


def test_replace_node(guest):
    for victim in range(7):
        tree = Tree(guest)
        for key in range(0, 14, 2):
            tree.insert(key)
        guest.call("rb_replace_node", node(2 * victim), node(2 * victim + 1), ROOT)
        tree.keys ^= {2 * victim, 2 * victim + 1}
        tree.check()
