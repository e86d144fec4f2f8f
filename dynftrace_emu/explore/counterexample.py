"""A schedule that ends in a finding, as a file: the same file gives the same end on any machine.

docs/counterexample.md describes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dynftrace_emu import __version__
from dynftrace_emu.errors import DynftraceError, ImageError
from dynftrace_emu.explore.findings import Finding, FindingClass
from dynftrace_emu.explore.job import Job
from dynftrace_emu.explore.plain import from_plain, to_plain
from dynftrace_emu.explore.schedule import parse, to_text
from dynftrace_emu.explore.setup import Setup  # noqa: TC001 - its type hint is read
from dynftrace_emu.explore.state import Action, Kind

if TYPE_CHECKING:
    from pathlib import Path


__all__ = ["SCHEMA", "Counterexample", "load"]

SCHEMA = "dynftrace-emu/counterexample/1"
_MAX_BYTES = 16 << 20
_MAX_VIEWS = 1 << 8


@dataclass(frozen=True)
class Counterexample:
    """A job, the schedule to run in its machine, and what that ends in.

    :param seed: of the search that found it; None: it needs none.
    :param image: sha256 of the guest it was found with; None: of the one that it makes now.
    :param version: of the program that found it.
    """

    job: Job
    schedule: tuple[Action, ...]
    finding: Finding
    seed: int | None = None
    image: str | None = None
    version: str = __version__

    def dump(self) -> str:
        """As JSON text."""
        finding = self.finding
        ip = None if finding.ip is None else f"{finding.ip:#x}"
        document = _File(
            SCHEMA,
            self.version,
            self.image or self.job.setup.image.sha256,
            self.seed,
            _Found(finding.kind, finding.what, finding.cpu, ip),
            tuple(map(to_text, self.schedule)),
            self.job.quiet,
            self.job.setup,
            self.job.source,
        )
        return json.dumps(to_plain(document), indent=1) + "\n"


@dataclass(frozen=True)
class _Found:
    """A finding, as the file has it."""

    kind: FindingClass = field(metadata={"key": "class"})
    what: str
    cpu: int | None
    ip: str | None

    def finding(self) -> Finding:
        """As everybody else has it.

        :raises ImageError: ``ip`` is no address.
        """
        try:
            ip = None if self.ip is None else int(self.ip, 16)
        except ValueError:
            raise ImageError(f"finding.ip is {ascii(self.ip)[:40]}, not an address") from None
        return Finding(self.kind, self.what, self.cpu, ip)


@dataclass(frozen=True)
class _File:
    """The file's keys, in their order."""

    schema: str
    version: str
    image: str
    seed: int | None
    finding: _Found
    schedule: tuple[str, ...]
    quiet: bool
    setup: Setup
    source: str | None


def load(path: Path) -> Counterexample:
    """Read a file that :meth:`Counterexample.dump` has made.

    :raises ImageError: it cannot be read, or is none; one line says what is wrong where.
    """
    try:
        return _from_document(_read(path))
    except DynftraceError as error:
        raise ImageError(f"{path}: {error}") from None


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ImageError("too big for a counterexample")
        return json.loads(data)
    except OSError as error:
        raise ImageError(error.strerror or type(error).__name__) from None
    except (ValueError, RecursionError) as error:
        raise ImageError(f"no JSON: {error}") from None


def _from_document(document: Any) -> Counterexample:
    if not isinstance(document, dict) or "schema" not in document:
        raise ImageError(f"no counterexample: it has no schema {SCHEMA!r}")
    if document["schema"] != SCHEMA:
        raise ImageError(f"its schema is {ascii(document['schema'])[:60]}; I know {SCHEMA!r}")
    fields = from_plain(_File, document, "")
    schedule = tuple(parse(line, f"schedule[{n}]") for n, line in enumerate(fields.schedule))
    _check_schedule(fields.setup, schedule)
    job = Job(fields.setup, fields.source, fields.quiet)
    return Counterexample(
        job, schedule, fields.finding.finding(), fields.seed, fields.image, fields.version
    )


def _check_schedule(setup: Setup, schedule: tuple[Action, ...]) -> None:
    """That its actions could exist in the setup: whether one is possible is for a replay to say."""
    if not schedule:
        raise ImageError("its schedule is empty")
    for number, action in enumerate(schedule):
        most = len(setup.tasks) if action.kind == Kind.RUN else setup.nr_cpus
        if action.who > most or action.view >= _MAX_VIEWS:
            raise ImageError(f"schedule[{number}]: there is no {to_text(action)!r} in its setup")
