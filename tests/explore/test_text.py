"""What a CPU's fetch may see of stores to text: pieces, and the views of a relaxed fetch."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynftrace_emu.explore.text import Piece, apply, pieces, views

OLD = bytes([0xE8, 1, 2, 3, 4])


@pytest.mark.parametrize("chunk", [8, 16, 32, 64])
@given(
    offset=st.integers(0, 4), address=st.integers(0, 200), data=st.binary(min_size=1, max_size=5)
)
def test_a_store_is_cut_where_a_chunk_ends_and_nowhere_else(chunk, address, offset, data):
    data = data[: 5 - offset] or data[:1]
    cut = pieces(3, address, offset, data, chunk)
    assert b"".join(piece.data for piece in cut) == data
    for piece in cut:
        first, last = address + piece.offset, address + piece.offset + len(piece.data) - 1
        assert first // chunk == last // chunk
        assert piece.spot == 3
    for a, b in itertools.pairwise(cut):
        assert a.offset + len(a.data) == b.offset
        assert (address + b.offset) % chunk == 0


def reference_views(seen, pending):
    """Every order in which a prefix of every permutation of the stores may arrive, byte by byte.

    A byte keeps the newest store that has arrived.
    """
    found = set()
    numbers = range(len(pending))
    for arrived in itertools.chain.from_iterable(
        itertools.combinations(numbers, size) for size in range(len(pending) + 1)
    ):
        now = bytearray(seen)
        for index in sorted(arrived):
            piece = pending[index]
            now[piece.offset : piece.offset + len(piece.data)] = piece.data
        found.add(bytes(now))
    return found


store = st.integers(0, 4).flatmap(
    lambda offset: st.binary(min_size=1, max_size=5 - offset).map(
        lambda data: Piece(0, offset, data)
    )
)


@given(st.lists(store, max_size=4))
def test_a_fetch_may_see_any_set_of_the_stores_before_it(stores):
    found = views(OLD, tuple(stores), 0)
    assert {seen for seen, _ in found} == reference_views(OLD, stores)
    assert len(set(found)) == len(found)


@given(st.lists(store, max_size=4))
def test_the_first_view_has_every_store_and_nothing_pends_after_it(stores):
    everything = OLD
    for piece in stores:
        everything = apply(everything, piece)
    assert views(OLD, tuple(stores), 0)[0] == (everything, ())


@given(st.lists(store, min_size=1, max_size=3))
def test_what_has_been_seen_is_never_unseen_by_an_older_store(stores):
    """After any view, the views of what still pends hold no byte older than one seen."""
    everything = OLD
    for piece in stores:
        everything = apply(everything, piece)
    for seen, later in views(OLD, tuple(stores), 0):
        last = seen
        for piece in later:
            last = apply(last, piece)
        assert last == everything  # in whatever order the rest comes, it ends as memory has it


def test_stores_to_another_spot_change_nothing_and_stay_pending():
    other = Piece(1, 0, b"\xcc")
    assert views(OLD, (other, Piece(0, 0, b"\xeb")), 0) == (
        (b"\xeb\x01\x02\x03\x04", (other,)),
        (OLD, (other, Piece(0, 0, b"\xeb"))),
    )
