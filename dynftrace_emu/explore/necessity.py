"""What each step of a protocol is needed for: it is left out, and what breaks is looked for.

Every mutant (:mod:`.mutations`) is run in the setups of :mod:`.battery`, in each text model. A
mutant that theory says is wrong and that no setup shows would mean that the explorer is blind; one
that is right and shown, that it lies. So the table tests the explorer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from dynftrace_emu.errors import OptionError
from dynftrace_emu.explore.battery import setups_for
from dynftrace_emu.explore.levels import LevelSearch, expand
from dynftrace_emu.explore.model import Text
from dynftrace_emu.explore.mutations import (
    Mutation,
    in_words,
    mutations_of,
    name_of,
    step_groups,
)
from dynftrace_emu.explore.poke import Poke
from dynftrace_emu.explore.protocol_file import protocol_of
from dynftrace_emu.explore.protocols import none
from dynftrace_emu.explore.setup import build, change_of, equip
from dynftrace_emu.explore.steps import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynftrace_emu.explore.findings import Finding
    from dynftrace_emu.explore.search import Outcome
    from dynftrace_emu.explore.setup import Setup
    from dynftrace_emu.explore.state import Action, State
    from dynftrace_emu.explore.steps import Step
    from dynftrace_emu.explore.workers import Workers
    from dynftrace_emu.explore.world import World

__all__ = ["Necessity", "Row", "Shown", "necessity"]

_MOST_STATES = 1_000_000


@dataclass(frozen=True, slots=True)
class Shown:
    """The shortest counterexample there is, and the first setup that has one of its length."""

    setup: str
    finding: Finding
    schedule: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A mutant, and what shows it in each model; None: it is not distinguishable there.

    :param mutation: None: the protocol as it is.
    """

    mutation: Mutation | None
    words: str
    shown: dict[Text, Shown | None]

    @property
    def weakest(self) -> Text | None:
        """The least adversarial model that shows it."""
        return next((text for text in Text if self.shown[text]), None)


@dataclass(frozen=True, slots=True)
class Necessity:
    """The table.

    :param steps: of the protocol, in words.
    :param itself: the protocol as it is; what is shown of it means that it is wrong itself.
    :param interrupted: rows are missing.
    """

    protocol: str
    steps: tuple[str, ...]
    setups: tuple[str, ...]
    itself: Row
    rows: tuple[Row, ...]
    interrupted: bool = False


def necessity(
    protocol: str,
    source: str | None,
    workers: Workers,
    on_row: Callable[[Row, int], None] = lambda _row, _of: None,
    setups: Sequence[Setup] | None = None,
) -> Necessity:
    """Try every mutant of a protocol.

    :param source: the text of a user's file that has it.
    :param on_row: called with each row and how many there will be.
    :param setups: to try it in; None: all that suit it.
    Ctrl-C ends it early.

    :raises OptionError: there is no such protocol, or its steps cannot be told beforehand.
    :raises ProtocolError: it does not run.
    """
    groups = _groups(protocol, source)
    if setups is None:
        setups = tuple(setups_for(stops=any(isinstance(group[0], Stop) for group in groups)))
    mutations = [None, *mutations_of(groups)]
    rows: list[Row] = []
    interrupted = False
    try:
        shown = workers.map(partial(_show, protocol, source, setups), mutations)
        for mutation, found in zip(mutations, shown, strict=True):
            words = "nothing changed" if mutation is None else in_words(mutation, groups)
            rows.append(Row(mutation, words, found))
            on_row(rows[-1], len(mutations))
    except KeyboardInterrupt:
        if not rows:
            raise
        interrupted = True
    steps, names = tuple(map(name_of, groups)), tuple(setup.name for setup in setups)
    return Necessity(protocol, steps, names, rows[0], tuple(rows[1:]), interrupted)


def _groups(protocol: str, source: str | None) -> list[list[Step]]:
    world, _ = _machine(next(setups_for(stops=False)))
    change, poke = change_of(world.watch), Poke(world.lab.image)
    return step_groups(protocol_of(protocol, source), change, poke)


# What workers do.


def _show(
    protocol: str, source: str | None, setups: Sequence[Setup], mutation: Mutation | None
) -> dict[Text, Shown | None]:
    """What shows a mutant, in each model.

    In the relaxed model a CPU may see everything that it may see in the others: what is not found
    there is found nowhere, and is not looked for again; but for the protocol as it is, it is.
    """
    name = protocol if mutation is None else mutation.name(protocol)
    named = [dataclasses.replace(setup, protocol=name) for setup in setups]
    shown: dict[Text, Shown | None] = dict.fromkeys(Text)
    shown[Text.RELAXED] = _shortest(named, source, Text.RELAXED)
    if shown[Text.RELAXED] or mutation is None:
        for text in (Text.COHERENT, Text.STALE):
            shown[text] = _shortest(named, source, text)
    return shown


def _shortest(setups: Sequence[Setup], source: str | None, text: Text) -> Shown | None:
    best: Shown | None = None
    for setup in setups:
        most = None if best is None else len(best.schedule) - 1
        outcome = _search(setup, source, text, most)
        if outcome.found is not None:
            best = Shown(setup.name, *outcome.found)
        elif best is None and outcome.truncated:
            what = f"{setup.protocol} in the setup {setup.name}: too much to be searched through"
            raise OptionError(what)
    return best


def _search(setup: Setup, source: str | None, text: Text, most: int | None) -> Outcome:
    """Look for the shortest schedule of at most ``most`` actions that ends in a finding."""
    world, first = _machine(dataclasses.replace(setup, protocol="none"))
    model = dataclasses.replace(setup.model, text=text)
    equip(world, dataclasses.replace(setup, model=model), protocol_of(setup.protocol, source))
    bounds = setup.bounds if most is None else dataclasses.replace(setup.bounds, steps=max(most, 1))
    search = LevelSearch(
        first, bounds, lambda nodes, spare: iter((expand(world, nodes, spare),)), _MOST_STATES
    )
    return search.run()


@lru_cache(maxsize=32)
def _machine(setup: Setup) -> tuple[World, State]:
    """A machine for the setup, which is given its protocol later."""
    world = build(setup, none)
    return world, world.save()
