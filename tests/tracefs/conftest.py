from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dynftrace_emu.errors import ControlFileError
from dynftrace_emu.ftrace.events import SiteRecorded, TextChanged
from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.tracefs import TraceFs
from tests.cli.conftest import cli  # noqa: F401
from tests.ftrace.conftest import assembled

if TYPE_CHECKING:
    from collections.abc import Iterator

HZ = 1_000_000
"""Instructions in a virtual second. With fewer, the timer's interrupts come faster than they can be
served while every function of them is traced."""


class Session:
    """A run that is moved on by hand, its control files, and what can be seen from outside."""

    def __init__(self, **options) -> None:
        options = {
            "engine": EngineName.DETERMINISTIC,
            "discover": "scan",
            "virtual_hz": HZ,
            "seconds": None,
            "iterations": 1_000_000,
            "boot_records": 1000,
            **options,
        }
        options = RunOptions(**options)
        self.run = Run(options, image=assembled(options.variant, options.image))
        self.files = TraceFs(self.run.tracing)
        self.events: list = []
        self.run.observe(self.events.append)
        image = self.run.image
        self.sites = image.call_sites.tolist()
        self.name = {site: image.function_at(site).name for site in self.sites}
        self.site = {name: site for site, name in self.name.items()}

    def go(self, seconds: float = 0.01) -> None:
        """Let the vCPUs run for some virtual time."""
        self.run.machine.run(seconds)

    # --- files ---

    def read(self, path: str) -> str:
        return self.files.read(path)

    def lines(self, path: str) -> list[str]:
        return self.files.read(path).splitlines()

    def write(self, path: str, text: str) -> None:
        """``echo text > path``."""
        self.files.write(path, text)

    def append(self, path: str, text: str) -> None:
        """``echo text >> path``."""
        self.files.write(path, text, append=True)

    def dump(self) -> dict[str, str]:
        """Every file's text; but ``trace_pipe``, whose reading changes it, and ``error_log``."""
        return dict(self._dump(""))

    def _dump(self, directory: str) -> Iterator[tuple[str, str]]:
        for name in self.files.listdir(directory):
            path = f"{directory}/{name}".lstrip("/")
            if self.files.is_directory(path):
                yield path, "a directory"
                yield from self._dump(path)
            elif name not in ("trace_pipe", "error_log"):
                try:
                    yield path, self.files.read(path)
                except ControlFileError:
                    yield path, "not readable"

    def refuse(self, errno: int, path: str, text: str, *, append: bool = False) -> ControlFileError:
        """A write that must be refused, and change nothing."""
        with self.nothing_changes(), pytest.raises(ControlFileError) as error:
            self.files.write(path, text, append=append)
        assert error.value.errno == errno, error.value
        assert error.value.reason
        assert "\n" not in error.value.reason
        return error.value

    @contextmanager
    def nothing_changes(self) -> Iterator[None]:
        files, text, stops = self.dump(), self.text(), self.stops
        yield
        after = self.dump()
        assert [path for path in {**files, **after} if files.get(path) != after.get(path)] == []
        now = self.text()
        assert [self.name[site] for site in text if text[site] != now[site]] == []
        assert self.stops == stops

    # --- the guest ---

    @property
    def stops(self) -> int:
        return len(self.run.machine.stops)

    @property
    def recorded(self) -> set[int]:
        """The sites that were heard of, or all where disassembly found them at boot."""
        if self.run.options.discover == "scan":
            return set(self.sites)
        return {event.ip - 5 for event in self.events if isinstance(event, SiteRecorded)}

    def text(self) -> dict[int, str]:
        """What each call site is, by its five bytes in guest memory: tracer, mcount or jump."""
        address = self.run.image.address
        targets = {address("ftrace_caller"): "tracer", address("mcount"): "mcount"}
        sites = np.array(self.sites, dtype=np.uint64)
        rows = self.run.machine.memory.gather(sites, 5).tolist()
        kinds = {}
        for site, row in zip(self.sites, rows, strict=True):
            if row[0] == 0xE8:
                rel32 = int.from_bytes(bytes(row[1:]), "little", signed=True)
                kinds[site] = targets[site + 5 + rel32]
            else:
                assert row[:2] == [0xEB, 0x03], f"{site:#x}: {bytes(row).hex(' ')}"
                kinds[site] = "jump"
        return kinds

    def check_calls(self, wanted: set[str]) -> None:
        """Exactly these functions call the tracer; every other recorded site is a jump."""
        kinds, recorded = self.text(), self.recorded
        calls = {self.name[site] for site, kind in kinds.items() if kind == "tracer"}
        assert sorted(calls - wanted) == []
        assert sorted(wanted - calls) == []
        assert [site for site, kind in kinds.items() if site in recorded and kind == "mcount"] == []

    @contextmanager
    def one_stop(self) -> Iterator[None]:
        """What the body writes takes one stop, in which only sites that differ are written."""
        before, stops, seen = self.text(), self.stops, len(self.events)
        yield
        after = self.text()
        differ = {site for site in before if before[site] != after[site]}
        changes = [event for event in self.events[seen:] if isinstance(event, TextChanged)]
        written = [site for event in changes for site in event.sites.tolist()]
        assert len(written) == len(set(written)), "a site was written twice"
        assert sorted(set(written) ^ differ) == []
        if differ:
            assert self.stops - stops == 1
            assert sum(1 for event in changes if len(event.sites)) == 1
        else:
            assert self.stops - stops <= 1

    # --- traces ---

    def traced(self, path: str = "trace") -> list[str]:
        """The functions a trace tells of, in its order, of either tracer."""
        return functions_in(self.read(path))


def events_in(text: str) -> list[str]:
    """The lines of a trace that are not its header."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def functions_in(text: str) -> list[str]:
    """The functions a trace tells of, in its order, of either tracer."""
    return [one or other for one, other in re.findall(r": (\w+) <-|\| +(\w+)\(\)", text)]


@pytest.fixture
def session() -> Session:
    """Booted, not run yet."""
    return Session()


@pytest.fixture
def ran() -> Session:
    """Run until the workload is at work."""
    session = Session()
    session.go(0.3)
    return session
