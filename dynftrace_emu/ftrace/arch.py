"""The arch half of the seed: what its ``include/linux/ftrace.h`` says is "defined in arch" (S13).

Each public method is one of the six functions declared there, under its name without ``ftrace_``.
A site calls mcount until it is dealt with for the first time; from then on it is disabled, or calls
``ftrace_caller`` because some tracer wants it (two legal targets, as Linux has since d61f82d06672).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.ftrace.encodings import CALL, MCOUNT_INSN_SIZE, Encoding
from dynftrace_emu.ftrace.patcher import Outcome, Patcher
from dynftrace_emu.ftrace.protocols import Protocol, TextChange, stop_machine_protocol
from dynftrace_emu.ftrace.records import RecordPages
from dynftrace_emu.kernel.structs import ENTRIES_PER_PAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynftrace_emu.kernel.guest import GuestKernel

__all__ = ["FtraceArch", "SiteState"]


class SiteState(IntEnum):
    """What the text of a recorded site is."""

    NEW = 0  # the call to mcount
    DISABLED = 1
    TRACED = 2  # a call to ftrace_caller


class FtraceArch:
    """Records and their bytes. What changes text is called with the machine stopped.

    :param disabled: how a disabled site reads.
    """

    def __init__(
        self,
        kernel: GuestKernel,
        disabled: Encoding,
        protocol: Protocol = stop_machine_protocol,
    ) -> None:
        self._kernel = kernel
        self._mcount = kernel.image.address("mcount")
        self._caller = kernel.image.address("ftrace_caller")
        self.disabled = disabled
        self.records = RecordPages(kernel)
        self.patcher = Patcher(kernel, protocol)
        # A disabled site's first two bytes, which no call begins with.
        row = disabled.rows(np.zeros(1, dtype=np.uint64), self._mcount)[0]
        self._disabled_insn: bytes = row[:2].tobytes()
        self._order = np.zeros(0, dtype=np.int64)
        # Of each record: its SiteState, and whether it has ever been TRACED.
        self._states = np.zeros(0, dtype=np.uint8)
        self._touched = np.zeros(0, dtype=np.bool_)

    def shutdown_arch_init(self, boot_records: int) -> None:
        """``ftrace_shutdown_arch_init``: the large batch at boot (S3), in whole pages.

        :param boot_records: records wanted at least; 0 gives no page.
        """
        self._kernel.write("ftrace_disabled_insn", int.from_bytes(self._disabled_insn, "little"))
        for _ in range(-(-boot_records // ENTRIES_PER_PAGE)):
            self.records.add_page()

    def alloc_shutdown_node(self, ip: int) -> int | None:
        """``ftrace_alloc_shutdown_node``: a record, or None: that call is simply skipped (S4)."""
        return self.records.take_slot(ip)

    def shutdown_replenish(self) -> int:
        """``ftrace_shutdown_replenish``: add a page if needed; returns how many were (S3)."""
        if not self.records.needs_page:
            return 0
        self.records.add_page()
        return 1

    def code_disable(self, start: int, wanted: NDArray[np.bool_] | None = None) -> Outcome:
        """``ftrace_code_disable``, for the records from number ``start`` on (S6, S7).

        Those that a tracer ``wanted`` call it instead. A record whose site does not read as it was
        left is marked failed.
        """
        return self._replace_code(start, self._none(start) if wanted is None else wanted)

    def startup_code(self, wanted: NDArray[np.bool_] | None = None) -> Outcome:
        """``ftrace_startup_code``: recorded sites become calls (S9).

        :param wanted: of each record, whether; None: all.
        """
        return self._replace_code(0, ~self._none(0) if wanted is None else wanted)

    def shutdown_code(self, wanted: NDArray[np.bool_] | None = None) -> Outcome:
        """``ftrace_shutdown_code``: those nobody ``wanted`` any more are disabled again (S10)."""
        return self._replace_code(0, self._none(0) if wanted is None else wanted)

    def sites(self, start: int = 0) -> NDArray[np.uint64]:
        """The recorded sites from record ``start`` on, in the order they were recorded."""
        return self.records.ips(start) - np.uint64(MCOUNT_INSN_SIZE)

    def good_sites(self) -> NDArray[np.uint64]:
        """The sites whose records are not marked failed, ascending; from any thread."""
        sites = self.sites()
        order = self._ascending(0, sites)
        return sites[order[~self.records.failed()[order]]]

    def is_disabled(self, site: int) -> bool:
        """Whether a site reads as one that is patched away."""
        return self._kernel.machine.memory.read(site, 2) == self._disabled_insn

    def states(self, start: int = 0) -> NDArray[np.uint8]:
        """Of each record from ``start`` on, the :class:`SiteState` its site was left in."""
        used = self.records.used
        if len(self._states) < used:
            grown = np.zeros(max(2 * len(self._states), used), dtype=np.uint8)
            grown[: len(self._states)] = self._states
            self._states = grown
            self._touched = np.concatenate(
                [self._touched, np.zeros(len(grown) - len(self._touched), dtype=np.bool_)]
            )
        return self._states[start:used]

    def touched(self) -> NDArray[np.uint64]:
        """The sites that have ever called the tracers."""
        self.states()  # sees to it that there is a row for each record
        return self.sites()[self._touched[: self.records.used]]

    def changing(self, start: int, wanted: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """The sites, ascending, that are not in the state they should be in."""
        sites = self.sites(start)
        return sites[self._changing(start, wanted, sites)]

    def _changing(
        self, start: int, wanted: NDArray[np.bool_], sites: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """Which they are, counted from ``start``, in the order of their addresses."""
        mask = (self.states(start) != _targets(wanted)) & ~self.records.failed(start)
        order = self._ascending(start, sites)
        found: NDArray[np.int64] = order[mask[order]]
        return found

    def _none(self, start: int) -> NDArray[np.bool_]:
        return np.zeros(self.records.used - start, dtype=np.bool_)

    def _replace_code(self, start: int, wanted: NDArray[np.bool_]) -> Outcome:
        """Change the sites that differ, and mark those that fail; masks are in record order.

        Only what is in its place already without a look at its bytes counts as such.
        """
        sites, states = self.sites(start), self.states(start)
        order = self._changing(start, wanted, sites)
        targets = _targets(wanted)
        ascending = sites[order]
        change = TextChange(
            ascending, self._rows(ascending, states[order]), self._rows(ascending, targets[order])
        )
        outcome = self.patcher.apply(change)
        self.records.mark_failed(start + order[outcome.failed])
        done = order[~outcome.failed]
        states[done] = targets[done]
        self._touched[start + done] |= targets[done] == SiteState.TRACED
        masks = np.zeros((3, len(sites)), dtype=bool)
        masks[1] = ~self.records.failed(start)
        masks[:, order] = outcome.patched, outcome.already, outcome.failed
        return Outcome(masks[0], masks[1], masks[2])

    def _ascending(self, start: int, sites: NDArray[np.uint64]) -> NDArray[np.int64]:
        """What puts the sites in order; that of all records is kept: one never moves."""
        if start:
            return np.argsort(sites)
        order = self._order
        if len(order) != len(sites):
            order = self._order = np.argsort(sites)
        return order

    def _rows(self, sites: NDArray[np.uint64], states: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rows = np.empty((len(sites), MCOUNT_INSN_SIZE), dtype=np.uint8)
        for state, encoding, target in (
            (SiteState.NEW, CALL, self._mcount),
            (SiteState.DISABLED, self.disabled, self._mcount),
            (SiteState.TRACED, CALL, self._caller),
        ):
            mask = states == state
            if mask.all():
                return encoding.rows(sites, target)
            rows[mask] = encoding.rows(sites[mask], target)
        return rows


def _targets(wanted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(wanted, SiteState.TRACED, SiteState.DISABLED).astype(np.uint8)
