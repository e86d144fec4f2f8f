"""Scenarios that ship: a bug of live text patching, broken and mended.

Each names the finding it must give; a mended one must give none over the same schedules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynftrace_emu.explore.findings import FindingClass
    from dynftrace_emu.explore.setup import Setup
    from dynftrace_emu.explore.steps import Protocol

__all__ = ["Scenario", "scenario_named"]


@dataclass(frozen=True)
class Scenario:
    """One entry of ``explore --list``.

    :param title: one line.
    :param expects: the class of finding it must give; None: it is clean.
    :param mended: the name of the scenario that differs by the cure alone.
    :param story: what happened, where it is from.
    :param protocols: those it brings along, beside the built-in ones.
    """

    title: str
    setup: Setup
    expects: FindingClass | None = None
    mended: str | None = None
    story: str = ""
    protocols: tuple[tuple[str, Protocol], ...] = ()

    @property
    def name(self) -> str:
        """How it is called on the command line."""
        return self.setup.name


def scenario_named(name: str, scenarios: Mapping[str, Scenario]) -> Scenario:
    """The scenario of that name.

    :raises OptionError: there is none.
    """
    try:
        return scenarios[name]
    except KeyError:
        raise OptionError(f"no scenario {name!r}: explore --list shows them") from None
