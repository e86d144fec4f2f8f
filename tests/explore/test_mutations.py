"""Mutants: their names, what is wrong in them, what they are in steps."""

import numpy as np
import pytest

from dynftrace_emu.errors import OptionError
from dynftrace_emu.explore.job import Job, machine_of
from dynftrace_emu.explore.mutations import (
    Change,
    Mutation,
    in_words,
    mutant,
    mutations_of,
    name_of,
    split_name,
    step_groups,
)
from dynftrace_emu.explore.poke import Poke
from dynftrace_emu.explore.program import describe
from dynftrace_emu.explore.protocol_file import protocol_of
from dynftrace_emu.explore.protocols import PROTOCOLS
from dynftrace_emu.explore.setup import Setup, SiteSpec, change_of
from dynftrace_emu.explore.steps import Read, Store, Sync

ONE = Setup(sites=(SiteSpec(new="nop"),))
TWO = Setup(sites=(SiteSpec(new="nop"), SiteSpec("site_other", new="nop")))


def asked(setup):
    world, _ = machine_of(Job(setup))
    return change_of(world.watch), Poke(world.lab.image)


def words(protocol, setup=ONE):
    return [describe(step) for step in protocol(*asked(setup))]


def test_steps_are_the_same_for_any_number_of_sites():
    groups = [step_groups(PROTOCOLS["breakpoint"], *asked(setup)) for setup in (ONE, TWO)]
    assert [len(group) for group in groups[1]] == [2, *[1] * 11]
    assert len(groups[0]) == len(groups[1])
    assert list(mutations_of(groups[0])) == list(mutations_of(groups[1]))


def test_stores_of_one_site_after_the_other_are_one_step():
    def site_by_site(change, _poke):
        for offset in (0, 1):
            for site, row in zip(change.sites, change.new, strict=True):
                yield Store(np.array([site + np.uint64(offset)]), row[None, offset : offset + 1])
        yield Sync()

    groups = step_groups(site_by_site, *asked(TWO))
    assert [len(group) for group in groups] == [2, 2, 1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("~drop:4", ["stop", "exchange 5 bytes", "sync"]),
        ("~swap:2", ["stop", "sync", "exchange 5 bytes", "resume"]),
        ("~no-look:1", ["stop, not looking", "exchange 5 bytes", "sync", "resume"]),
        ("~no-wait:3", ["stop", "exchange 5 bytes", "sync, not waiting", "resume"]),
        ("~own-cpu:3", ["stop", "exchange 5 bytes", "sync this CPU", "resume"]),
        ("~bytes:2", ["stop", "store 0f 1f 44 00 00 by 1", "sync", "resume"]),
    ],
)
def test_what_a_mutant_does(name, expected):
    assert words(protocol_of(f"stop_machine{name}")) == expected


def test_every_mutant_has_a_name_of_its_own_and_differs():
    for protocol in ("breakpoint", "stop_machine", "live"):
        groups = step_groups(PROTOCOLS[protocol], *asked(ONE))
        names = [mutation.name(protocol) for mutation in mutations_of(groups)]
        assert len(set(names)) == len(names)
        for name in names:
            assert split_name(name)[0] == protocol
            assert words(protocol_of(name)) != words(PROTOCOLS[protocol]), name


def test_in_words():
    groups = step_groups(PROTOCOLS["stop_machine"], *asked(ONE))
    assert [name_of(group) for group in groups] == ["stop", "exchange 5 bytes", "sync", "resume"]
    assert in_words(Mutation(Change.SWAP, 3), groups) == "resume before sync"
    assert in_words(Mutation(Change.DROP, 1), groups) == "no stop"


@pytest.mark.parametrize("name", ["live~drop:0", "live~drop:", "live~fly:1", "live", "a/~b.py:f"])
def test_what_names_no_mutant(name):
    assert split_name(name) == (name, None)


def test_a_mutant_of_a_users_file():
    assert split_name("~/a.py:f~drop:1") == ("~/a.py:f", Mutation(Change.DROP, 1))
    source = (
        "from dynftrace_emu.explore.steps import Sync\ndef f(change, poke):\n    yield Sync()\n"
    )
    assert words(protocol_of("a.py:f~drop:1", source)) == []


@pytest.mark.parametrize("mutation", [Mutation(Change.DROP, 9), Mutation(Change.NO_WAIT, 1)])
def test_a_step_that_there_is_not(mutation):
    with pytest.raises(OptionError, match="no mutant"):
        words(mutant(PROTOCOLS["live"], mutation))


def test_a_protocol_that_reads_cannot_be_taken_apart():
    def reads(_change, poke):
        yield Read(poke.address("poke_refs"))

    with pytest.raises(OptionError, match="reads guest data"):
        step_groups(reads, *asked(ONE))
