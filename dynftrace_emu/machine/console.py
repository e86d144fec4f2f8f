"""The debug console at port 0xe9, as Bochs has it: a character an ``out``."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DebugConsole"]


class DebugConsole:
    """Collects what the guest prints, a line a vCPU at a time so that lines do not mix.

    :param on_line: called with each finished line, from the thread of the vCPU that wrote it.
    """

    def __init__(self, on_line: Callable[[int, str], None] | None = None) -> None:
        self.lines: list[tuple[int, str]] = []
        self.on_line = on_line
        self._partial: dict[int, bytearray] = {}
        self._lock = threading.Lock()  # a leaf: nothing else is taken under it but on_line's own

    def put(self, vcpu: int, character: int) -> None:
        """Take one character."""
        with self._lock:
            partial = self._partial.setdefault(vcpu, bytearray())
            if character != 0x0A:
                partial.append(character & 0xFF)
                return
            self._finish(vcpu)

    def line(self, vcpu: int, text: str) -> None:
        """Take a whole line, which no character of a vCPU comes between."""
        with self._lock:
            self._hand_out(vcpu, text)

    def flush(self) -> None:
        """Hand out what has no newline yet."""
        with self._lock:
            for vcpu in [vcpu for vcpu, partial in self._partial.items() if partial]:
                self._finish(vcpu)

    def _finish(self, vcpu: int) -> None:
        line = self._partial[vcpu].decode("utf-8", "replace")
        self._partial[vcpu].clear()
        self._hand_out(vcpu, line)

    def _hand_out(self, vcpu: int, line: str) -> None:
        self.lines.append((vcpu, line))
        if self.on_line is not None:
            self.on_line(vcpu, line)
