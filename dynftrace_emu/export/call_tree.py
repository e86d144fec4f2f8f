"""Calls added up: by the path of calls that leads to each, and by function."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dynftrace_emu.export.calls import Calls
from dynftrace_emu.export.lanes import rows_by_lane
from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dynftrace_emu.export.trace_source import TraceSource

__all__ = ["CallNode", "CallTree", "FunctionStats"]


@dataclass(slots=True)
class CallNode:
    """A function, called along one path. A call that did not end ends with the trace."""

    name: str
    calls: int = 0
    total_ns: int = 0
    min_ns: int = 0
    max_ns: int = 0
    children: dict[str, CallNode] = field(default_factory=dict)

    @property
    def self_ns(self) -> int:
        """Without what it called."""
        return max(self.total_ns - sum(child.total_ns for child in self.children.values()), 0)

    def child(self, name: str) -> CallNode:
        """The node of a function called from here."""
        found = self.children.get(name)
        if found is None:
            found = self.children[name] = CallNode(name)
        return found


@dataclass(slots=True)
class FunctionStats:
    """A function, wherever it was called from. Of a recursion only the outermost call is total."""

    name: str
    calls: int = 0
    total_ns: int = 0
    self_ns: int = 0
    min_ns: int = 0
    max_ns: int = 0

    def add(self, node: CallNode, *, nested: bool) -> None:
        """Add the calls along one path; ``nested``: inside a call of this very function."""
        if not node.calls:
            return
        self.min_ns = min(self.min_ns, node.min_ns) if self.calls else node.min_ns
        self.max_ns = max(self.max_ns, node.max_ns)
        self.calls += node.calls
        self.self_ns += node.self_ns
        if not nested:
            self.total_ns += node.total_ns


class CallTree:
    """All calls of a trace, those of all tasks together.

    A function trace has calls without durations (``timed`` is false): each function below the one
    that called it, which has no calls itself there.
    """

    def __init__(self, source: TraceSource) -> None:
        self.root = CallNode("")
        calls = Calls(source)
        self.timed = calls.outline.graph > 0
        self._names = _Names(source.info.symbols.name)
        self._stacks: list[list[CallNode]] = [[self.root] for _ in calls.lanes]
        for batch in calls:
            if self.timed:
                self._add_calls(batch.calls)
            else:
                self._count(batch.others.table)

    def _add_calls(self, table: NDArray[Any]) -> None:
        if not len(table):
            return
        order, begins = rows_by_lane(table["lane"].astype(np.uint16))
        names = self._names.of(table["ip"])
        for rows in np.split(order, begins[1:]):
            part = table[rows]
            functions = [names[row] for row in rows.tolist()]
            self._add_lane(self._stacks[part["lane"][0]], part, functions)

    @staticmethod
    def _add_lane(stack: list[CallNode], part: NDArray[Any], functions: list[str]) -> None:
        node = stack.pop()
        columns = zip(part["begin"].tolist(), functions, part["ns"].tolist(), strict=True)
        for begin, function, ns in columns:
            if begin:
                stack.append(node)
                node = node.child(function)
                continue
            if not node.calls or ns < node.min_ns:
                node.min_ns = ns
            if ns > node.max_ns:
                node.max_ns = ns
            node.calls += 1
            node.total_ns += ns
            node = stack.pop()
        stack.append(node)

    def _count(self, table: NDArray[Any]) -> None:
        table = table[table["type"] == EventId.FUNCTION]
        if not len(table):
            return
        pairs = np.empty(len(table), np.dtype([("parent", "<u8"), ("ip", "<u8")]))
        pairs["parent"], pairs["ip"] = table["parent_ip"], table["ip"]
        name = self._names.name
        found, counts = np.unique(pairs, return_counts=True)
        for (parent, ip), count in zip(found.tolist(), counts.tolist(), strict=True):
            self.root.child(name(parent)).child(name(ip)).calls += count

    def walk(self) -> Iterator[tuple[tuple[str, ...], CallNode]]:
        """Every node but the root, with its path (itself included): a caller before its callees."""
        waiting: list[tuple[tuple[str, ...], CallNode]] = [((), self.root)]
        while waiting:
            path, node = waiting.pop()
            if path:
                yield path, node
            waiting += [((*path, c.name), c) for c in reversed(node.children.values())]

    def functions(self) -> list[FunctionStats]:
        """By function: most total time first, or where there are no times, most calls."""
        found: dict[str, FunctionStats] = {}
        for path, node in self.walk():
            stats = found.setdefault(node.name, FunctionStats(node.name))
            stats.add(node, nested=node.name in path[:-1])
        return sorted(
            (stats for stats in found.values() if stats.calls),
            key=lambda stats: (-stats.total_ns, -stats.calls, stats.name),
        )

    def weight(self, node: CallNode) -> int:
        """What a node contributes itself: ns, or calls where there are no times."""
        return node.self_ns if self.timed else node.calls


class _Names:
    """Names of functions, each looked up once."""

    def __init__(self, look_up: Callable[[int], str]) -> None:
        self._look_up = look_up
        self._known: dict[int, str] = {}

    def name(self, ip: int) -> str:
        name = self._known.get(ip)
        if name is None:
            name = self._known[ip] = self._look_up(ip)
        return name

    def of(self, ips: NDArray[np.uint64]) -> list[str]:
        """The names for a column."""
        name = self._known
        column = ips.tolist()
        for ip in set(column) - name.keys():
            self.name(ip)
        return [name[ip] for ip in column]
