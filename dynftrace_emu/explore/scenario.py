"""Scenarios that ship: a bug of live text patching, broken and mended.

Each names the finding it must give; a mended one must give none over the same schedules.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynftrace_emu.errors import OptionError
from dynftrace_emu.explore.protocols import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynftrace_emu.explore.findings import FindingClass
    from dynftrace_emu.explore.setup import Setup
    from dynftrace_emu.explore.steps import Protocol

__all__ = ["Scenario", "own_protocol", "scenario_named"]


@dataclass(frozen=True)
class Scenario:
    """One entry of ``explore --list``.

    :param title: one line.
    :param expects: the class of finding it must give; None: it is clean.
    :param mended: the name of the scenario that differs by the cure alone.
    :param story: what happened, where it is from.
    :param own: its protocol, if that is none of the built-in ones.
    """

    title: str
    setup: Setup
    expects: FindingClass | None = None
    mended: str | None = None
    story: str = ""
    own: Protocol | None = None

    @property
    def name(self) -> str:
        """How it is called on the command line."""
        return self.setup.name

    @property
    def protocol(self) -> Protocol:
        """What patches."""
        return self.own or PROTOCOLS[self.setup.protocol]

    @property
    def protocols(self) -> tuple[tuple[str, Protocol], ...]:
        """Those it brings along, beside the built-in ones: names and generators."""
        return ((self.setup.protocol, self.own),) if self.own else ()


def own_protocol(title: str, setup: Setup, protocol: Protocol, **rest: Any) -> Scenario:
    """A scenario with a protocol of its own, which is called as its function is."""
    name = protocol.__name__.replace("_", "-")
    return Scenario(title, dataclasses.replace(setup, protocol=name), own=protocol, **rest)


def scenario_named(name: str, scenarios: Mapping[str, Scenario]) -> Scenario:
    """The scenario of that name.

    :raises OptionError: there is none.
    """
    try:
        return scenarios[name]
    except KeyError:
        raise OptionError(f"no scenario {name!r}: explore --list shows them") from None
