"""The arch half of the seed: what its ``include/linux/ftrace.h`` says is "defined in arch" (S13).

Each method is one of the six functions declared there, under its name without ``ftrace_``.
"""

from __future__ import annotations

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

__all__ = ["FtraceArch"]


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
        self.disabled = disabled
        self.records = RecordPages(kernel)
        self.patcher = Patcher(kernel, protocol)

    def shutdown_arch_init(self, boot_records: int) -> None:
        """``ftrace_shutdown_arch_init``: the large batch at boot (S3), in whole pages.

        :param boot_records: records wanted at least; 0 gives no page.
        """
        site = np.zeros(1, dtype=np.uint64)
        insn = self.disabled.rows(site, self._mcount)[0, :2]
        self._kernel.write("ftrace_disabled_insn", int(insn[0]) | int(insn[1]) << 8)
        for _ in range(-(-boot_records // ENTRIES_PER_PAGE)):
            self.records.add_page()

    def alloc_shutdown_node(self) -> int | None:
        """``ftrace_alloc_shutdown_node``: a record, or None: that call is simply skipped (S4)."""
        return self.records.take_slot()

    def shutdown_replenish(self) -> int:
        """``ftrace_shutdown_replenish``: add a page if needed; returns how many were (S3)."""
        if not self.records.needs_page:
            return 0
        self.records.add_page()
        return 1

    def code_disable(self, start: int) -> Outcome:
        """``ftrace_code_disable``, for all records from number ``start`` on (S6, S7).

        A record whose site holds neither the call nor the disabled bytes is marked failed.
        """
        return self._convert(start, CALL, self.disabled)

    def startup_code(self) -> Outcome:
        """``ftrace_startup_code``: every recorded site is a call again (S9)."""
        return self._convert(0, self.disabled, CALL)

    def shutdown_code(self) -> Outcome:
        """``ftrace_shutdown_code``: every recorded site is disabled again (S10)."""
        return self._convert(0, CALL, self.disabled)

    def sites(self, start: int = 0) -> NDArray[np.uint64]:
        """The recorded sites from record ``start`` on, in the order they were recorded."""
        return self.records.ips(start) - np.uint64(MCOUNT_INSN_SIZE)

    def _convert(self, start: int, old: Encoding, new: Encoding) -> Outcome:
        """Change the sites of records that never failed; mark those that fail now.

        The masks of the outcome are in record order.
        """
        sites, failed = self.sites(start), self.records.failed(start)
        order = np.argsort(sites)
        order = order[~failed[order]]
        ascending = sites[order]
        change = TextChange(
            ascending, old.rows(ascending, self._mcount), new.rows(ascending, self._mcount)
        )
        outcome = self.patcher.apply(change)
        self.records.mark_failed(start + order[outcome.failed])
        masks = np.zeros((3, len(sites)), dtype=bool)
        masks[:, order] = outcome.patched, outcome.already, outcome.failed
        return Outcome(masks[0], masks[1], masks[2])
