"""A setup with some of what it says said otherwise: what the command line's options do."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from dynftrace_emu.errors import OptionError
from dynftrace_emu.explore.model import Text
from dynftrace_emu.explore.setup import OpsSpec, Setup, SiteSpec
from dynftrace_emu.machine.engine import Park

if TYPE_CHECKING:
    from dynftrace_emu.explore.lab import TaskSpec

__all__ = ["ANY", "FUNCTIONS", "Overrides", "overrides_from"]

E = TypeVar("E", bound=Enum)

ANY = -1
"""Preemptions without a bound."""
FUNCTIONS = ("work", "other")
"""The lab's traced functions; each has the site ``site_NAME``."""
_SITE_IN_WORK = 4
_PAGE = 4096
_TOLD = {
    "ftrace_caller": ("tracer_a", 1),
    "mcount": ("tracer_a", 1),
    "trampoline_a": ("tracer_a", 1),
    "trampoline_b": ("tracer_b", 2),
}
"""Who is told of a call to what, with which argument."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What is different; None: nothing.

    :param preemptions: :data:`ANY`: without a bound.
    :param sites: how many of :data:`FUNCTIONS` are called, and have their sites changed.
    :param old: the encoding of every site before, ``new``: after; ``call`` is
        ``call:ftrace_caller``.
    :param site_offset: of the first site in its page, in bytes.
    """

    protocol: str | None = None
    text: Text | None = None
    chunk: int | None = None
    park: Park | None = None
    serializing: frozenset[str] | None = None
    preemptions: int | None = None
    nmis: int | None = None
    timers: int | None = None
    vcpus: int | None = None
    rounds: int | None = None
    sites: int | None = None
    old: str | None = None
    new: str | None = None
    site_offset: int | None = None

    def apply(self, setup: Setup) -> Setup:
        """The setup with them.

        :raises OptionError: they do not fit together.
        """
        model = replace(setup.model, **_given(
            text=self.text, chunk=self.chunk, park=self.park, serializing=self.serializing
        ))  # fmt: skip
        bounds = replace(setup.bounds, **_given(nmis=self.nmis, timers=self.timers))
        if self.preemptions is not None:
            bounds = replace(bounds, preemptions=_bound(self.preemptions))
        changed = replace(setup, model=model, bounds=bounds)
        if self.protocol is not None:
            changed = replace(changed, protocol=self.protocol)
        if self.site_offset is not None:
            changed = replace(changed, pad=(self.site_offset - _SITE_IN_WORK) % _PAGE)
        changed = replace(changed, tasks=self._tasks(changed))
        if (self.sites, self.old, self.new) != (None, None, None):
            sites = self._sites(changed)
            changed = replace(changed, sites=sites, ops=_ops(sites))
        return changed

    def _tasks(self, setup: Setup) -> tuple[TaskSpec, ...]:
        tasks = setup.tasks
        if self.vcpus is not None:
            first = tasks[0]
            tasks = tuple(replace(first, cpu=cpu) for cpu in range(self.vcpus))
        if self.sites is not None:
            tasks = tuple(replace(task, functions=FUNCTIONS[: self.sites]) for task in tasks)
        if self.rounds is not None:
            tasks = tuple(replace(task, rounds=self.rounds) for task in tasks)
        return tasks

    def _sites(self, setup: Setup) -> tuple[SiteSpec, ...]:
        sites = setup.sites
        if self.sites is not None:
            sites = tuple(
                replace(sites[0], symbol=f"site_{name}") for name in FUNCTIONS[: self.sites]
            )
        given = _given(old=_encoding(self.old), new=_encoding(self.new))
        return tuple(replace(site, **given) for site in sites)


def overrides_from(values: dict[str, Any]) -> Overrides:
    """Overrides by the words of the command line: ``model``, ``park`` and the like are text.

    :param values: None: not given; ``preemptions`` may be ``"none"``: without a bound.
    :raises OptionError: a name or a word is none of ours.
    """
    given = {name: value for name, value in values.items() if value is not None}
    known = {field.name for field in fields(Overrides)} - {"text"} | {"model"}
    for name in given.keys() - known:
        raise OptionError(f"{name!r} is no option: choose from {', '.join(sorted(known))}")
    if "model" in given:
        given["text"] = _word(Text, "model", given.pop("model"))
    if "park" in given:
        given["park"] = _word(Park, "park", given["park"])
    if given.get("preemptions") == "none":
        given["preemptions"] = ANY
    if "serializing" in given:
        given["serializing"] = frozenset(given["serializing"])
    return Overrides(**given)


def _word(kind: type[E], name: str, value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(member.value for member in kind)
        raise OptionError(f"{name} {value!r}: choose from {choices}") from None


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _bound(preemptions: int) -> int | None:
    return None if preemptions == ANY else preemptions


def _encoding(text: str | None) -> str | None:
    return "call:ftrace_caller" if text == "call" else text


def _ops(sites: tuple[SiteSpec, ...]) -> tuple[OpsSpec, ...]:
    """Whoever the calls before and after are told to wants just these sites."""
    told = dict.fromkeys(
        who for site in sites for text in (site.old, site.new) if (who := _told_by(text))
    )
    if not told:
        told = {_TOLD["ftrace_caller"]: None}
    return tuple(
        OpsSpec(
            name,
            argument,
            tuple(site.symbol for site in sites if _told_by(site.old) == (name, argument)),
            tuple(site.symbol for site in sites if _told_by(site.new) == (name, argument)),
        )
        for name, argument in told
    )


def _told_by(encoding: str) -> tuple[str, int] | None:
    kind, _, symbol = encoding.partition(":")
    if kind != "call":
        return None
    try:
        return _TOLD[symbol]
    except KeyError:
        choices = ", ".join(_TOLD)
        raise OptionError(f"call:{symbol}: a site calls one of {choices}") from None
