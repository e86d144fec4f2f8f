"""A protocol with one thing wrong in it: a step left out, two swapped, a sync not waited for.

Mutants have names, ``breakpoint~drop:4``, so whoever takes a protocol's name takes theirs. Steps
are counted as people do: what is done once for each site is one step (:func:`step_groups`).
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from dynftrace_emu.errors import OptionError
from dynftrace_emu.explore import steps
from dynftrace_emu.explore.program import describe
from dynftrace_emu.ftrace import protocols

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dynftrace_emu.explore.poke import Poke
    from dynftrace_emu.explore.steps import Protocol, Step
    from dynftrace_emu.ftrace.protocols import TextChange

__all__ = [
    "Change",
    "Mutation",
    "in_words",
    "mutant",
    "mutations_of",
    "name_of",
    "split_name",
    "step_groups",
]

SITE_SIZE = 5
_NAME = re.compile(r"(?P<base>.+)~(?P<change>[a-z-]+):(?P<step>[1-9]\d{0,3})")
_MAX_STEPS = 4096


class Change(Enum):
    """What is wrong."""

    DROP = "drop"
    SWAP = "swap"  # with the step behind it
    NO_WAIT = "no-wait"  # a sync is sent, and nobody waits for it
    OWN_CPU = "own-cpu"  # only the patching CPU syncs
    NO_LOOK = "no-look"  # stop_machine does not look for an ip inside a site
    BYTES = "bytes"  # a store of several bytes is as many stores


@dataclass(frozen=True, slots=True)
class Mutation:
    """A change of the step number ``step``, counted from 1."""

    change: Change
    step: int

    def name(self, protocol: str) -> str:
        """What the mutant of a protocol is called."""
        return f"{protocol}~{self.change.value}:{self.step}"


def split_name(name: str) -> tuple[str, Mutation | None]:
    """A protocol's name, and which mutant of it is meant, if one is."""
    match = _NAME.fullmatch(name)
    if match is None or match["change"] not in {change.value for change in Change}:
        return name, None
    return match["base"], Mutation(Change(match["change"]), int(match["step"]))


def step_groups(protocol: Protocol, change: TextChange, poke: Poke) -> list[list[Step]]:
    """The steps of a protocol; those that do the same at one site after the other are one.

    :raises OptionError: it reads guest data, so its steps cannot be told beforehand; or has no end.
    """
    groups: list[list[Step]] = []
    for step in protocol(change, poke):
        if isinstance(step, steps.Read):
            raise OptionError("a protocol that reads guest data cannot be taken apart into steps")
        if groups and _belongs(groups[-1], step):
            groups[-1].append(step)
        else:
            groups.append([step])
        if len(groups) > _MAX_STEPS:
            raise OptionError(f"more than {_MAX_STEPS} steps: no end")
    return groups


def _belongs(group: Sequence[Step], step: Step) -> bool:
    """Whether a step does at another site what those of ``group`` do."""
    first = group[0]
    if type(first) is not type(step):
        return False
    if isinstance(first, steps.WriteData) and isinstance(step, steps.WriteData):
        array, bracket, _ = step.what.partition("[")
        return bool(bracket) and first.what.startswith(f"{array}[")
    if isinstance(first, steps.Store) and isinstance(step, steps.Store):
        done = {int(a) for s in group if isinstance(s, steps.Store) for a in s.addresses}
        alike = first.rows.shape[1] == step.rows.shape[1] and first.width == step.width
        return alike and all(abs(int(a) - b) >= SITE_SIZE for a in step.addresses for b in done)
    return False


def mutations_of(groups: Sequence[Sequence[Step]]) -> Iterator[Mutation]:
    """Everything that can be made wrong, in the order of the steps."""
    for number, group in enumerate(groups, 1):
        yield Mutation(Change.DROP, number)
        first = group[0]
        if isinstance(first, (steps.Sync, protocols.Sync)):
            yield Mutation(Change.NO_WAIT, number)
            yield Mutation(Change.OWN_CPU, number)
        if isinstance(first, steps.Stop):
            yield Mutation(Change.NO_LOOK, number)
        if isinstance(first, (steps.Store, protocols.CompareExchange)) and _size(first) > 1:
            yield Mutation(Change.BYTES, number)
        if number < len(groups):
            yield Mutation(Change.SWAP, number)


def _size(step: steps.Store | protocols.CompareExchange) -> int:
    return int((step.rows if isinstance(step, steps.Store) else step.new).shape[1])


def mutant(protocol: Protocol, mutation: Mutation) -> Protocol:
    """The protocol with that wrong in it.

    It raises :class:`OptionError` when it is run and has no such step.
    """

    def mutated(change: TextChange, poke: Poke) -> Iterator[Step]:
        groups = step_groups(protocol, change, poke)
        index = mutation.step - 1
        if mutation not in list(mutations_of(groups)):
            raise OptionError(f"no mutant {mutation.name('')}: there are {len(groups)} steps")
        if mutation.change is Change.DROP:
            groups[index] = []
        elif mutation.change is Change.SWAP:
            groups[index], groups[index + 1] = groups[index + 1], groups[index]
        else:
            groups[index] = [_wrong(step, mutation.change) for step in groups[index]]
        yield from (step for group in groups for step in group)

    return mutated


def _wrong(step: Step, change: Change) -> Step:
    match step:
        case protocols.Sync() if change is Change.NO_WAIT:
            return steps.Sync(wait=False)
        case steps.Sync() if change is Change.NO_WAIT:
            return dataclasses.replace(step, wait=False)
        case protocols.Sync() | steps.Sync():
            return steps.Sync(cpus=())
        case steps.Stop():
            return steps.Stop(look=False)
        case steps.Store():
            return dataclasses.replace(step, width=1)
        case protocols.CompareExchange(addresses, _, new):
            return steps.Store(addresses, new, width=1)
    raise AssertionError(step)


def in_words(mutation: Mutation, groups: Sequence[Sequence[Step]]) -> str:
    """What is wrong, by the steps it concerns."""
    names = [name_of(group) for group in groups]
    name = names[mutation.step - 1]
    match mutation.change:
        case Change.DROP:
            return f"no {name}"
        case Change.SWAP:
            return f"{names[mutation.step]} before {name}"
        case Change.NO_WAIT:
            return f"{name}, not waiting"
        case Change.OWN_CPU:
            return f"{name} of the patching CPU only"
        case Change.NO_LOOK:
            return f"{name}, not looking"
        case Change.BYTES:
            return f"{name}, byte by byte"


def name_of(group: Sequence[Step]) -> str:
    """A step in a few words."""
    text = describe(group[0])
    array, bracket, _ = text.partition("[")
    return f"{array}[]" if bracket else text
