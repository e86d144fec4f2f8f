"""The explorer against an enumeration of all interleavings that shares no code with it."""

import dataclasses
from functools import cache

import pytest

from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.levels import LevelSearch, expand
from dynftrace_emu.explore.model import Bounds, Model, Text
from dynftrace_emu.explore.mutations import mutations_of, step_groups
from dynftrace_emu.explore.poke import Poke
from dynftrace_emu.explore.protocol_file import protocol_of
from dynftrace_emu.explore.protocols import PROTOCOLS
from dynftrace_emu.explore.setup import OpsSpec, Setup, SiteSpec, build, change_of, equip

from . import brute_force

BEFORE, AFTER = OpsSpec(), OpsSpec(before=(), after=("site_work",))
BOTH = OpsSpec(after=("site_work",))
CALL = "call:ftrace_caller"
ENCODINGS = {
    "call->nop": (CALL, "nop", (BEFORE,)),
    "call->jmp": (CALL, "jmp", (BEFORE,)),
    "nop->call": ("nop", CALL, (AFTER,)),
    "jmp->call": ("jmp", CALL, (AFTER,)),
    "nops->call": ("nops", CALL, (AFTER,)),
    "A->A": ("call:trampoline_a", CALL, (BOTH,)),
    "A->B": (
        "call:trampoline_a",
        "call:trampoline_b",
        (BEFORE, OpsSpec("tracer_b", 2, (), ("site_work",))),
    ),
}
SHIPPED = sorted(set(PROTOCOLS) - {"none"})
CROSSING = 59


def setup_of(encoding, pad, text=Text.RELAXED):
    old, new, ops = ENCODINGS[encoding]
    site = (SiteSpec(old=old, new=new),)
    return Setup("none", "none", (), pad, (TaskSpec(0),), site, ops, model=Model(text))


@cache
def machine(encoding, pad):
    world = build(setup_of(encoding, pad), PROTOCOLS["none"])
    return world, world.save()


def mutants(protocol):
    world, _ = machine("call->nop", 0)
    groups = step_groups(PROTOCOLS[protocol], change_of(world.watch), Poke(world.lab.image))
    return [mutation.name(protocol) for mutation in mutations_of(groups)]


def expected(world, protocol, text):
    """What the oracle says."""
    image, site = world.lab.image, world.watch.sites[0]
    names = {op.name: op for op in world.watch.ops}
    tellers = {
        image.address("ftrace_caller"): "tracer_a",
        image.address("trampoline_a"): "tracer_a",
        image.address("trampoline_b"): "tracer_b",
    }
    return brute_force.classes(
        brute_force.Site(
            site.address,
            site.old,
            site.new,
            tellers,
            frozenset(n for n, op in names.items() if op.before),
            frozenset(n for n, op in names.items() if op.after),
            {n: image.address(n) for n in ("poke_refs", "poke_count", "poke_vector")},
        ),
        list(protocol_of(protocol)(change_of(world.watch), Poke(image))),
        text.value,
        world.model.chunk,
    )


def search(protocol, encoding, pad, text, only=None):
    """What the explorer finds, of one class or of any."""
    world, first = machine(encoding, pad)
    setup = dataclasses.replace(setup_of(encoding, pad, text), protocol=protocol)
    equip(world, setup, protocol_of(protocol))
    search = LevelSearch(
        first, Bounds(), lambda nodes, spare: iter((expand(world, nodes, spare, only),)), 10**6
    )
    outcome = search.run()
    assert not outcome.truncated
    return outcome.found and outcome.found[0].kind.value


def check(protocol, encoding, pad, text):
    world, _ = machine(encoding, pad)
    possible = expected(world, protocol, text)
    found = search(protocol, encoding, pad, text)
    assert (found in possible) if possible else (found is None), (encoding, pad, text, possible)


@pytest.mark.parametrize("text", Text)
@pytest.mark.parametrize("protocol", SHIPPED)
def test_each_protocol_on_each_encoding(protocol, text):
    for encoding in ENCODINGS:
        for pad in (0, CROSSING):
            check(protocol, encoding, pad, text)


@pytest.mark.parametrize("text", Text)
@pytest.mark.parametrize("protocol", ["breakpoint", "stop_machine"])
def test_each_mutant(protocol, text):
    for mutant in mutants(protocol):
        for encoding, pad in (("call->nop", 0), ("nops->call", CROSSING)):
            check(mutant, encoding, pad, text)


@pytest.mark.parametrize(
    ("protocol", "encoding"),
    [
        ("live", "nop->call"),
        ("live-unsynced", "nops->call"),
        ("breakpoint~drop:5", "call->nop"),
        ("breakpoint~drop:9", "A->A"),
        ("breakpoint~drop:8", "A->B"),
        ("stop_machine~drop:3", "nops->call"),
        ("stop_machine~drop:4", "call->jmp"),
    ],
)
def test_each_class_is_found_if_and_only_if_it_is_possible(protocol, encoding):
    for pad in (0, CROSSING):
        world, _ = machine(encoding, pad)
        found = {
            kind.value
            for kind in FindingClass
            if search(protocol, encoding, pad, Text.RELAXED, only=kind)
        }
        assert found == expected(world, protocol, Text.RELAXED), pad
