"""The life of one call site as a timeline (``run --watch FUNC``)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.errors import OptionError
from dynftrace_emu.ftrace.encodings import MCOUNT_INSN_SIZE
from dynftrace_emu.ftrace.events import (
    FtraceEvent,
    PageAdded,
    SiteRecorded,
    TextChanged,
    TracingSwitched,
)
from dynftrace_emu.kernel.disassembly import disassemble

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.ftrace.run import Run

__all__ = ["Watch"]


class Watch:
    """Listens to a run and keeps what concerns the call site of one function.

    :raises OptionError: the image has no such function, or it is notrace.
    """

    def __init__(self, run: Run, function: str) -> None:
        self._image = run.image
        self.site = _site_of(run, function)
        self._lock = threading.Lock()  # a leaf: events come from vCPU threads and the daemon's
        self._lines: list[tuple[float, str]] = []
        self._run = run
        run.observe(self._on_event)

    def lines(self) -> Iterator[str]:
        """The timeline: text, a line each."""
        where = self._image.symbolize(self.site)
        yield f"call site {self.site:#x}  {where}"
        with self._lock:
            entries = list(self._lines)
        for time, text in entries:
            head, *more = text.splitlines()
            yield f"  {time:10.6f} s  {head}"
            for line in more:
                yield " " * 16 + line
        if not any("first miss" in text for _, text in entries):
            yield "  never recorded: it has not run since the recorder was registered"
        yield f"  at the end     {self._bytes_now()}"

    def _on_event(self, event: FtraceEvent) -> None:
        text = self._tell(event)
        if text is not None:
            with self._lock:
                self._lines.append((event.time, text))

    def _tell(self, event: FtraceEvent) -> str | None:
        match event:
            case SiteRecorded() if event.ip - MCOUNT_INSN_SIZE == self.site:
                return self._recorded(event)
            case TextChanged() if self.site in event.sites:
                return self._changed(event)
            case TracingSwitched():
                return f"tracing {'on' if event.enabled else 'off'}: {event.sites} sites changed"
            case PageAdded() if not self._lines:
                return f"a page of records is added: room for {event.capacity}"
        return None

    def _recorded(self, event: SiteRecorded) -> str:
        return "\n".join(
            [
                f"first miss on vCPU {event.vcpu}, called from "
                f"{self._image.symbolize(event.parent_ip)}",
                f"hash bucket {event.bucket}, {event.chain} in its chain; "
                f"record page {event.page}, slot {event.slot}",
            ]
        )

    def _changed(self, event: TextChanged) -> str:
        row = int(np.flatnonzero(event.sites == np.uint64(self.site))[0])
        if event.failed[row]:
            return f"{event.why}: the bytes are not what they should be; marked failed"
        before, after = event.before[row].tobytes(), event.after[row].tobytes()
        lines = [f"{event.why}: machine stopped, {len(event.sites)} sites in this pass"]
        lines += [f"vCPU {vcpu} stands at {self._image.symbolize(ip)}" for vcpu, ip in event.parked]
        if before == after:
            lines.append(f"already {self._text(after)}: nothing to write")
        else:
            lines += [f"before  {self._text(before)}", f"after   {self._text(after)}"]
        lines.append(f"synced: {len(event.parked)} vCPUs")
        return "\n".join(lines)

    def _text(self, code: bytes) -> str:
        first = disassemble(code, self.site, 1)[0]
        return f"{code.hex(' ')}  {first[2]}"

    def _bytes_now(self) -> str:
        code = self._run.machine.memory.read(self.site, MCOUNT_INSN_SIZE) or b""
        return self._text(code)


def _site_of(run: Run, function: str) -> int:
    symbol = run.image.symbols.get(function)
    if symbol is None or not symbol.is_function:
        raise OptionError(f"--watch {function}: {run.image.name} has no such function")
    for site in run.image.call_sites.tolist():
        if symbol.address <= site < symbol.address + symbol.size:
            return int(site)
    raise OptionError(f"--watch {function}: it is notrace, so it has no call site")
