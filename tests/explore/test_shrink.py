"""Shrinking: still the same class, shorter, and nothing can be left out."""

import pytest

from dynftrace_emu.explore.job import machine_of
from dynftrace_emu.explore.schedule import play
from dynftrace_emu.explore.shrink import shrink

from .conftest import lengthened


@pytest.fixture(params=[1, 2])
def long(broken, counterexample_of, request):
    """A counterexample, a longer schedule for it, and its machine as it is first."""
    found = counterexample_of(broken)
    schedule = lengthened(found, request.param)
    world, first = machine_of(found.job)
    world.load(first)
    return found, schedule, world


def test_what_comes_out_is_minimal(long):
    found, schedule, world = long
    kind, first = found.finding.kind, world.save()
    finding, short = shrink(world, schedule, kind)
    assert finding.kind is kind
    assert play(world, short) == (finding, short)
    for index in range(len(short)):
        world.load(first)
        without = play(world, short[:index] + short[index + 1 :]).finding
        assert without is None or without.kind is not kind, index


def test_it_is_as_short_as_what_a_search_finds(long):
    found, schedule, world = long
    assert len(schedule) >= len(found.schedule)
    short = shrink(world, schedule, found.finding.kind).schedule
    assert len(short) == len(found.schedule)


def test_the_same_schedule_gives_the_same_and_the_world_is_left_as_it_was(long):
    found, schedule, world = long
    before, kind = world.save(), found.finding.kind
    first = shrink(world, schedule, kind)
    assert world.save() == before
    assert shrink(world, schedule, kind) == first
    assert shrink(world, first.schedule, kind) == first
