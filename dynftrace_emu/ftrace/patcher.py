"""The one path by which text changes: check every site's old bytes, write, sync."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.errors import PatchMismatch
from dynftrace_emu.ftrace.encodings import matches
from dynftrace_emu.ftrace.protocols import (
    CompareExchange,
    Protocol,
    Sync,
    TextChange,
    stop_machine_protocol,
)
from dynftrace_emu.kernel.disassembly import disassemble

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["Outcome", "PatchLogEntry", "Patcher", "ftrace_bug"]

_LOG_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of each site of a change: masks over its sites."""

    patched: NDArray[np.bool_]
    already: NDArray[np.bool_]
    failed: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PatchLogEntry:
    """One change: ``time`` in seconds; the first sites stand for all."""

    time: float
    count: int
    first_sites: tuple[int, ...]
    old: bytes
    new: bytes


class Patcher:
    """Changes text and keeps a log of it. The caller sees to it that nobody executes it."""

    def __init__(self, kernel: GuestKernel, protocol: Protocol = stop_machine_protocol) -> None:
        self._kernel = kernel
        self._machine = kernel.machine
        self._protocol = protocol
        self.log: deque[PatchLogEntry] = deque(maxlen=_LOG_LENGTH)
        self.mismatches: list[PatchMismatch] = []

    def apply(self, change: TextChange) -> Outcome:
        """Change the sites that hold their old bytes.

        One that holds the new ones already is done; any other is left as it is and reported in
        :attr:`mismatches`.
        """
        found = self._machine.memory.gather(change.sites, change.old.shape[1])
        already = matches(found, change.new)
        right = matches(found, change.old) & ~already
        if right.any():
            right[right] = self._run(change.select(right))
        failed = ~right & ~already
        if failed.any():
            found = self._machine.memory.gather(change.sites, change.old.shape[1])
        for index in np.flatnonzero(failed).tolist():
            self._report(change, found, index)
        return Outcome(right, already, failed)

    def _run(self, change: TextChange) -> NDArray[np.bool_]:
        """Carry out the protocol's steps; returns which sites every exchange has changed."""
        changed = np.ones(len(change.sites), dtype=np.bool_)
        for step in self._protocol(change):
            match step:
                case CompareExchange(addresses, old, new):
                    current = self._machine.memory.gather(addresses, old.shape[1])
                    mask = matches(current, old)
                    if not mask.all():
                        addresses, new = addresses[mask], new[mask]
                    self._machine.poke_text(addresses, new)
                    if addresses is not change.sites:
                        changed &= np.isin(change.sites, addresses)
                case Sync():
                    self._machine.sync_text()
        self.log.append(
            PatchLogEntry(
                self._machine.now(),
                len(change.sites),
                tuple(change.sites[:4].tolist()),
                change.old[0].tobytes(),
                change.new[0].tobytes(),
            )
        )
        return changed

    def _report(self, change: TextChange, found: NDArray[np.uint8], index: int) -> None:
        site = int(change.sites[index])
        where = self._kernel.image.symbolize(site)
        self.mismatches.append(
            PatchMismatch(site, where, change.old[index].tobytes(), found[index].tobytes())
        )


def ftrace_bug(mismatch: PatchMismatch, where: str) -> str:
    """A report in the spirit of Linux's ``ftrace_bug()``: what was there, what should have been."""
    return "\n".join(
        [
            "------------[ ftrace bug ]------------",
            f"ftrace failed to modify [<{mismatch.ip:016x}>] {where}",
            *_bytes_line("actual:  ", mismatch.found, mismatch.ip),
            *_bytes_line("expected:", mismatch.expected, mismatch.ip),
            "nothing was written there; the record is marked failed and never tried again",
        ]
    )


def _bytes_line(label: str, code: bytes, address: int) -> list[str]:
    text = "; ".join(line for _, _, line in disassemble(code, address))
    return [f" {label} {code.hex(':')}  {text}"]
