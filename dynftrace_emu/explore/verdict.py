"""What an exploration has come to, together with everything it holds under."""

from __future__ import annotations

import hashlib
import math
import textwrap
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from dynftrace_emu._version import __version__
from dynftrace_emu.errors import OptionError
from dynftrace_emu.explore.counterexample import Counterexample
from dynftrace_emu.explore.findings import Found
from dynftrace_emu.explore.foreign import shown
from dynftrace_emu.explore.job import machine_of
from dynftrace_emu.explore.model import Text
from dynftrace_emu.explore.program import StoreText
from dynftrace_emu.explore.search import run_random
from dynftrace_emu.explore.setup import reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.explore.explorer import Limits, Strategy
    from dynftrace_emu.explore.findings import Finding
    from dynftrace_emu.explore.job import Job
    from dynftrace_emu.explore.search import Outcome
    from dynftrace_emu.explore.state import Action, State
    from dynftrace_emu.explore.world import World

__all__ = ["Ending", "Measured", "Verdict", "measure"]

_WIDTH = 80
_LABEL = 14
_MAX_ALONE = 1_000_000
_DRAWN = 50
_LINE = 64
_TEXT = {
    Text.COHERENT: "coherent: each next fetch sees a store",
    Text.STALE: "stale: a vCPU sees a store when it syncs, no sooner",
    Text.RELAXED: "relaxed: a vCPU sees each store at any time, in any order, at the latest when "
    "it syncs",
}
_MEMORY = "sequentially consistent; x86 is TSO: store buffers are not modelled"
_MANY = 1000
_MAX_STEPS_OF_POKER = 2000
_NESTING = "never nested until an iret, which lets the next one in"


class Ending(Enum):
    """Why an exploration has ended."""

    DONE = "done"
    TIME_LIMIT = "time limit"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Measured:
    """What is found out about a job before it is explored.

    :param first: the state it begins in.
    :param window: instructions of each task, in a run that is never patched.
    :param places: of each site, the byte of its 64-byte line that it begins at.
    :param stores: bytes that become visible together, of each store to text, in order.
    :param codes: the bytes of each site before and after.
    :param threads: tasks, the patcher, and each kind of interrupt on each CPU.
    :param length: actions of the longest of some schedules that are drawn at random.
    """

    first: State
    window: tuple[int, ...]
    places: tuple[int, ...]
    stores: tuple[int, ...]
    codes: tuple[tuple[bytes, bytes], ...]
    threads: int
    length: int


def measure(job: Job, seed: int, *, draws: bool) -> Measured:
    """Run each task alone, look through the protocol.

    :param draws: draw some schedules, too, to see how long they are.

    :raises DynftraceError: the machine cannot be made of the job.
    :raises OptionError: a task never ends when nothing else happens.
    """
    never = reference(job.setup)
    window = tuple(_instructions(never, task) for task in range(never.idle))
    world, first = machine_of(job)
    stores = (
        _stores_of_guest(job)
        if job.setup.guest is not None
        else tuple(
            len(operation.piece.data)
            for operation in world.program.operations(())
            if isinstance(operation, StoreText)
        )
    )
    places = tuple(spot.address % _LINE for spot in world.spots)
    length = _longest(job, seed) if draws else 0
    codes = tuple((site.old, site.new) for site in world.watch.sites)
    return Measured(first, window, places, stores, codes, _threads(job), length)


def _stores_of_guest(job: Job) -> tuple[int, ...]:
    """What a poker stores, piece by piece, in a schedule in which it goes first."""
    world, first = machine_of(job)
    world.load(first)
    world.shim.poked.clear()
    try:
        for _ in range(_MAX_STEPS_OF_POKER):
            actions = world.actions()
            if not actions or world.tasks[world.idle].done:
                break
            world.act(max(actions, key=lambda a: (a.kind == "run" and a.who == world.idle, a.kind)))
    except Found:
        pass  # it is found again when that is explored
    world.load(first)
    return tuple(world.shim.poked)


def _longest(job: Job, seed: int) -> int:
    world, first = machine_of(job)
    longest = 0
    for number in range(_DRAWN):
        world.load(first)
        seeds = iter([seed << 32 | number])
        drawn = run_random(world, job.setup.bounds, seeds, lambda _: True)
        longest = max(longest, drawn.actions)
    return longest


def _instructions(world: World, task: int) -> int:
    count = 0

    def one_more(_task: int, _ip: int, _seen: bytes | None) -> None:
        nonlocal count
        count += 1

    world.on_instruction = one_more
    try:
        while not world.tasks[task].done:
            world.run_alone(task)
            if count > _MAX_ALONE:
                raise OptionError(f"task {task} does not end when nothing else happens")
    finally:
        world.on_instruction = None
    return count


def _threads(job: Job) -> int:
    """What pct gives a priority: tasks, the patcher; acks, parks, NMIs and timers of each CPU."""
    setup = job.setup
    cpus = setup.nr_cpus + 1
    kinds = 2 + bool(setup.bounds.nmis) + bool(setup.bounds.timers)
    return len(setup.tasks) + 1 + kinds * cpus


def _bytes_of_change(old: bytes, new: bytes) -> str:
    """Both, and of which of them a verdict says nothing."""
    same = [str(n) for n, (a, b) in enumerate(zip(old, new, strict=True)) if a == b]
    said = f"{old.hex(' ')} -> {new.hex(' ')}"
    if not same or old == new:
        return said
    which = f"byte {same[0]} does" if len(same) == 1 else f"bytes {', '.join(same)} do"
    return f"{said} ({which} not change)"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome, and everything it holds under."""

    job: Job
    strategy: Strategy
    limits: Limits
    measured: Measured
    outcome: Outcome
    ending: Ending
    seconds: float
    jobs: int

    @property
    def finding(self) -> Finding | None:
        """What was found, if anything."""
        return self.outcome.found[0] if self.outcome.found else None

    @property
    def schedule(self) -> tuple[Action, ...]:
        """The schedule that ends in the finding."""
        return self.outcome.found[1] if self.outcome.found else ()

    def counterexample(self) -> Counterexample:
        """The schedule, with all that is needed to run it again."""
        assert self.outcome.found is not None
        finding, schedule = self.outcome.found
        drawn = self.strategy.kind.value != "exhaustive"
        return Counterexample(self.job, schedule, finding, self.strategy.seed if drawn else None)

    @property
    def is_exhaustive(self) -> bool:
        """Whether every schedule within the bounds was run, or joins one that was."""
        return (
            self.strategy.kind.value == "exhaustive"
            and self.ending is Ending.DONE
            and not self.outcome.truncated
            and not self.outcome.found
        )

    @property
    def is_pct(self) -> bool:
        """Whether schedules were drawn with a guarantee."""
        return self.strategy.kind.value == "pct"

    @property
    def runs(self) -> int:
        """Schedules that were run, to their end or into a state met before."""
        return self.outcome.schedules + self.outcome.joined

    @property
    def rate(self) -> float:
        """Schedules a second, by all workers together."""
        return self.runs / max(self.seconds, 1e-9)

    @property
    def guarantee(self) -> float:
        """The probability, at least, that one schedule of pct finds a bug of its depth."""
        moments = math.pow(self.measured.length, self.strategy.depth - 1)
        return 1 / (self.measured.threads * moments)

    def to_json(self) -> dict[str, Any]:
        """The verdict for machines."""
        outcome, bounds, model = self.outcome, self.job.setup.bounds, self.job.setup.model
        finding = self.finding
        return {
            "name": self.job.setup.name,
            "version": __version__,
            "protocol": self.job.setup.protocol,
            "vcpus": self.job.setup.nr_cpus,
            "tasks": len(self.job.setup.tasks),
            "sites": [
                {"symbol": site.symbol, "old": site.old, "new": site.new}
                for site in self.job.setup.sites
            ],
            "start_states": outcome.starts,
            "window": list(self.measured.window),
            "preemptions": bounds.preemptions,
            "nmis": bounds.nmis,
            "timers": bounds.timers,
            "store_widths": list(self.measured.stores),
            "text": model.text.value,
            "chunk": model.chunk,
            "memory": "sequentially-consistent",
            "park": model.park.value,
            "serializing": sorted(model.serializing),
            "reductions": self._reductions(),
            "strategy": self.strategy.kind.value,
            "depth": self.strategy.depth if self.is_pct else None,
            "guarantee": self.guarantee if self.is_pct else None,
            "seed": self.strategy.seed,
            "schedules": self.runs,
            "ended": outcome.schedules,
            "joined": outcome.joined,
            "truncated": outcome.truncated,
            "states": outcome.states,
            "actions": outcome.actions,
            "seconds": round(self.seconds, 3),
            "schedules_per_second": round(self.rate, 1),
            "jobs": self.jobs,
            "ending": self.ending.value,
            "exhaustive": self.is_exhaustive,
            "finding": finding
            and {"class": finding.kind.value, "what": finding.what, "cpu": finding.cpu},
        }

    def lines(self) -> Iterator[str]:
        """The verdict for people, at most 80 columns wide."""
        for label, text in self._rows():
            yield from textwrap.wrap(
                text, _WIDTH, initial_indent=f"  {label:{_LABEL}}",
                subsequent_indent=" " * (_LABEL + 2), break_on_hyphens=False,
            )  # fmt: skip
        yield from textwrap.wrap(self.sentence, _WIDTH, break_on_hyphens=False)

    @property
    def sentence(self) -> str:
        """What it comes to."""
        if self.finding is not None:
            return f"FOUND {self.finding.kind.value}: {self.finding.what}"
        if self.is_exhaustive:
            return "PROVEN within these bounds: no schedule ends in a finding."
        return f"NOTHING FOUND in {self.runs:,} schedules; {self._why_no_proof()}"

    def _why_no_proof(self) -> str:
        if self.ending is Ending.INTERRUPTED:
            return "interrupted: not exhaustive."
        if self.ending is Ending.TIME_LIMIT:
            return "the time limit ended it: not exhaustive."
        if self.outcome.truncated:
            return f"{self.outcome.truncated:,} were cut off: not exhaustive."
        return f"they were drawn ({self.strategy.kind.value}): not exhaustive."

    def _rows(self) -> Iterator[tuple[str, str]]:
        setup, outcome = self.job.setup, self.outcome
        model, bounds = setup.model, setup.bounds
        yield "protocol", setup.protocol
        if setup.guest is not None:
            digest = hashlib.sha256(setup.guest.text + setup.guest.data).hexdigest()
            yield "guest code", f"{setup.guest.name}, compiled: sha256 {digest[:16]}"
        yield "vCPUs", f"{setup.nr_cpus}, and one that patches"
        yield "tasks", self._tasks()
        yield "sites", self._sites()
        yield "start states", f"{outcome.starts:,} in which patching begins"
        yield "window", self._window()
        yield "preemptions", self._preemptions()
        yield "NMIs", self._nmis()
        yield "timers", f"up to {bounds.timers}, whenever IF=1" if bounds.timers else "none"
        yield "stores", self._stores()
        yield "text", f"{_TEXT[model.text]}; chunks of {model.chunk} bytes"
        yield "memory", _MEMORY
        yield "park rule", model.park.value
        yield "serializing", self._serializing()
        yield "reductions", ", ".join(self._reductions())
        yield "strategy", self._strategy()
        yield (
            "schedules",
            (
                f"{self.runs:,} run ({outcome.schedules:,} to an end, {outcome.joined:,} into a "
                f"state met before), {outcome.truncated:,} truncated"
            ),
        )
        yield (
            "work",
            (
                f"{outcome.states:,} states, {outcome.actions:,} actions in {self.seconds:.1f} s, "
                f"{self._rate()}jobs {self.jobs}"
            ),
        )
        yield "version", f"{__version__}, seed {self.strategy.seed}"

    def _rate(self) -> str:
        """Of a few schedules it would be that of the start."""
        return f"{self.rate:,.0f} schedules/s, " if self.runs >= _MANY else ""

    def _nmis(self) -> str:
        setup = self.job.setup
        if not setup.bounds.nmis:
            return "none"
        calls = any(name.startswith("LAB_NMI") for name in setup.defines)
        handler = "" if calls else "; the handler calls no site"
        return f"up to {setup.bounds.nmis}, at any time; {_NESTING}{handler}"

    def _tasks(self) -> str:
        return "; ".join(
            f"{number}: {', '.join(map(shown, task.functions))}"
            + (f" x{task.rounds}" if task.rounds > 1 else "")
            + f" on vCPU {task.cpu}"
            for number, task in enumerate(self.job.setup.tasks)
        )

    def _sites(self) -> str:
        sites = self.job.setup.sites
        return f"{len(sites)}: " + "; ".join(
            f"{shown(site.symbol)} (byte {place} of {_LINE}): {site.old} -> {site.new}, "
            + _bytes_of_change(*codes)
            for site, place, codes in zip(
                sites, self.measured.places, self.measured.codes, strict=True
            )
        )

    def _window(self) -> str:
        counts = ", ".join(f"{count:,} of task {n}" for n, count in enumerate(self.measured.window))
        return f"instructions: {counts} (a run never patched); all of them are in it"

    def _preemptions(self) -> str:
        bound = self.job.setup.bounds.preemptions
        return "no bound: every interleaving" if bound is None else f"up to {bound}"

    def _stores(self) -> str:
        if not self.measured.stores:
            return "none by the protocol itself"
        widths = " + ".join(map(str, self.measured.stores))
        return f"{widths} bytes to text, as cut at chunks; each of these is whole"

    def _serializing(self) -> str:
        chosen = ", ".join(sorted(self.job.setup.model.serializing))
        base = "an interrupt acknowledged with IF=1 outside an NMI"
        return f"{base}; {chosen}" if chosen else f"{base}; no instruction"

    def _reductions(self) -> list[str]:
        if not self.job.quiet:
            return ["none"]
        found = ["quiet instructions", "dead stack"]
        if self.strategy.kind.value == "exhaustive":
            found.insert(1, "state joining (128-bit fingerprints)")
        return found

    def _strategy(self) -> str:
        strategy = self.strategy
        if not self.is_pct:
            return strategy.kind.value
        n, k, d = self.measured.threads, self.measured.length, strategy.depth
        least = self.guarantee
        everything = -math.expm1(self.outcome.schedules * math.log1p(-least))
        return (
            f"pct, depth {d}: a schedule finds a bug of that depth with probability at least "
            f"1/(n k^(d-1)) = 1/({n} * {k}^{d - 1}) = {least:.2g}, all {self.outcome.schedules:,} "
            f"together with {everything:.2g} (n: tasks, patcher, interrupts of each CPU; k: "
            f"actions of the longest of {_DRAWN} schedules drawn)"
        )
