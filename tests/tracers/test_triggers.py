"""Triggers on functions: fn:command[:count], on the global array and on an instance."""

from __future__ import annotations

import contextlib
import errno

import pytest

from dynftrace_emu.errors import ControlFileError, GuestFault
from dynftrace_emu.kernel.structs import EventId
from tests.tracers.call_tree import CallTree


class Place:
    """A trace array's files."""

    def __init__(self, tree: CallTree, name: str) -> None:
        self.tree, self.name = tree, name
        if name:
            tree.files.mkdir(f"instances/{name}")
        self.array = tree.tracing.instances[name] if name else tree.tracing.global_array

    def path(self, file: str) -> str:
        return f"instances/{self.name}/{file}" if self.name else file

    def read(self, file: str) -> str:
        return self.tree.files.read(self.path(file))

    def write(self, file: str, text: str, *, append: bool = False) -> None:
        self.tree.files.write(self.path(file), text, append=append)

    @property
    def on(self) -> bool:
        return self.read("tracing_on") == "1\n"

    @property
    def probes(self) -> list[str]:
        lines = self.read("set_ftrace_filter").splitlines()
        return [line for line in lines if not line.startswith("#") and ":" in line]


@pytest.fixture(params=["", "foo"], ids=["global", "instance"])
def place(request: pytest.FixtureRequest) -> Place:
    return Place(CallTree(vcpus=2), request.param)


def test_traceoff_stops_at_the_function(place: Place) -> None:
    place.write("current_tracer", "function")
    place.write("set_ftrace_filter", "do_sync_read:traceoff", append=True)
    place.tree.call("sys_read")
    assert not place.on
    names = place.tree.names(place.tree.events(place.array))
    # Whether the tracer still sees that very call depends, as in Linux, on who was called first.
    assert names in (["sys_read", "vfs_read"], ["sys_read", "vfs_read", "do_sync_read"])


def test_traceon_begins_behind_the_function(place: Place) -> None:
    place.write("current_tracer", "function")
    place.write("tracing_on", "0")
    place.write("set_ftrace_filter", "copy_to_user:traceon", append=True)
    place.tree.call("sys_read")
    assert place.on
    names = place.tree.names(place.tree.events(place.array))
    walk = list(place.tree.walk("sys_read"))
    behind = walk[walk.index("copy_to_user") + 1 :]
    assert names in (behind, ["copy_to_user", *behind])


def test_a_count_is_used_up_only_by_what_changes_something(place: Place) -> None:
    place.write("set_ftrace_filter", "lock:traceoff:2", append=True)
    assert place.probes == ["lock:traceoff:count=2"]
    place.tree.call("sys_read")  # calls lock more than once; the first has switched it off
    assert not place.on
    assert place.probes == ["lock:traceoff:count=1"]
    place.write("tracing_on", "1")
    place.tree.call("fput", cpu=1)
    assert not place.on
    assert place.probes == ["lock:traceoff:count=0"]
    place.write("tracing_on", "1")
    place.tree.call("fput")
    assert place.on


def test_each_function_has_its_own_count(place: Place) -> None:
    place.write("set_ftrace_filter", "copy_*:traceoff:1", append=True)
    assert sorted(place.probes) == [
        "copy_from_user:traceoff:count=1", "copy_to_user:traceoff:count=1",
    ]  # fmt: skip
    for root in ("sys_read", "sys_write"):
        place.write("tracing_on", "1")
        place.tree.call(root)
        assert not place.on
    assert {probe.rsplit(":", 1)[1] for probe in place.probes} == {"count=0"}


def test_stacktrace_tells_who_called(place: Place) -> None:
    place.write("set_ftrace_filter", "lock:stacktrace:3", append=True)
    place.tree.call("sys_read")
    place.tree.call("sys_write")
    events = place.tree.events(place.array)
    assert set(events.table["type"].tolist()) == {EventId.KERNEL_STACK}
    assert len(events) == 3
    expected = [
        list(chain)
        for root in ("sys_read", "sys_write")
        for chain in place.tree.chains(root)
        if chain[0] == "lock"
    ][:3]
    for row, chain in zip(events.table, expected, strict=True):
        callers = events.payloads[row["payload"]]
        assert [place.tree.tracing.name(ip) for ip in callers][: len(chain)] == chain
    assert place.probes == ["lock:stacktrace:count=0"]


def test_snapshot_takes_what_was_before(place: Place) -> None:
    place.write("current_tracer", "function")
    place.write("set_ftrace_filter", "fput:snapshot:1", append=True)
    place.tree.call("sys_read")
    walk = list(place.tree.walk("sys_read"))
    at = walk.index("fput")
    spare, _ = place.array.max_buffer.peek()
    assert place.tree.names(spare) == walk[:at]
    assert place.tree.names(place.tree.events(place.array)) == walk[at:]
    assert place.probes == ["fput:snapshot:count=0"]
    place.tree.call("fput")
    assert place.tree.names(place.array.max_buffer.peek()[0]) == walk[:at]


@pytest.mark.parametrize("command", ["dump", "cpudump"])
def test_dump_goes_to_the_console_once(place: Place, command: str) -> None:
    place.write("current_tracer", "function")
    place.write("set_ftrace_filter", f"fput:{command}", append=True)
    assert place.probes == [f"fput:{command}:count=1"]
    place.tree.call("vfs_write", cpu=1)
    place.tree.call("sys_read", cpu=0)
    lines = console(place.tree)
    text = "\n".join(lines)
    before_fput = list(place.tree.walk("vfs_read"))
    for name in before_fput:
        assert f"{name} <-" in text
    assert ("vfs_write <-" in text) == (command == "dump")
    assert text.count("fput <-") <= 1  # the call that came may still be told
    place.write("tracing_on", "1")
    count = len(lines)
    place.tree.call("sys_read")
    assert len(console(place.tree)) == count
    assert place.probes == [f"fput:{command}:count=0"]


def console(tree: CallTree) -> list[str]:
    """What is on the console once host threads have done what they were given."""
    with contextlib.suppress(GuestFault):  # they come first; then vCPUs that rest for ever
        tree.machine.run(0.0001)
    return [str(line) for line in tree.machine.console.lines]


def test_removal_and_listing(place: Place) -> None:
    place.write("set_ftrace_filter", "lock:traceoff", append=True)
    place.write("set_ftrace_filter", "fput:stacktrace:5", append=True)
    place.write("set_ftrace_filter", "vfs_*:traceon:7", append=True)
    assert sorted(place.probes) == [
        "fput:stacktrace:count=5", "lock:traceoff:unlimited", "vfs_read:traceon:count=7",
        "vfs_write:traceon:count=7",
    ]  # fmt: skip
    assert "#### all functions enabled ####" in place.read("set_ftrace_filter")
    assert sorted(enabled(place.tree)) == ["fput", "lock", "vfs_read", "vfs_write"]
    place.write("set_ftrace_filter", "!lock:traceoff", append=True)
    place.write("set_ftrace_filter", "!vfs_read:traceon", append=True)
    assert sorted(place.probes) == ["fput:stacktrace:count=5", "vfs_write:traceon:count=7"]
    assert sorted(enabled(place.tree)) == ["fput", "vfs_write"]
    place.write("set_ftrace_filter", "!*:traceon", append=True)
    place.write("set_ftrace_filter", "!fput:stacktrace", append=True)
    assert place.probes == []
    assert enabled(place.tree) == []
    place.tree.call("sys_read")
    assert place.on


def enabled(tree: CallTree) -> list[str]:
    return [line.split()[0] for line in tree.files.read("enabled_functions").splitlines()]


@pytest.mark.parametrize(
    "bad",
    ["lock:nothing", "lock:traceoff:x", "nosuch:traceoff", "!fput:traceoff", "lock:traceoff:1:2"],
)
def test_a_refused_trigger_changes_nothing(place: Place, bad: str) -> None:
    place.write("set_ftrace_filter", "lock:traceoff:3", append=True)
    before = place.read("set_ftrace_filter")
    with pytest.raises(ControlFileError):
        place.write("set_ftrace_filter", bad, append=True)
    assert place.read("set_ftrace_filter") == before


def test_triggers_are_no_tracers(place: Place) -> None:
    """A function with a trigger is a call, and in no trace of those who did not choose it."""
    place.write("set_ftrace_filter", "vfs_read")
    place.write("set_ftrace_filter", "lock:traceon", append=True)
    place.write("current_tracer", "function")
    place.tree.call("sys_read")
    assert place.tree.names(place.tree.events(place.array)) == ["vfs_read"]
    assert sorted(enabled(place.tree)) == ["lock", "vfs_read"]


def test_a_trigger_acts_on_its_own_array_only() -> None:
    tree = CallTree()
    top, foo = Place(tree, ""), Place(tree, "foo")
    for place in (top, foo):
        place.write("current_tracer", "function")
    foo.write("set_ftrace_filter", "fput:traceoff", append=True)
    tree.call("sys_read")
    assert (top.on, foo.on) == (True, False)
    walk = list(tree.walk("sys_read"))
    assert tree.names(tree.events(top.array)) == walk
    at = walk.index("fput")
    assert tree.names(tree.events(foo.array)) in (walk[:at], walk[: at + 1])


def test_a_snapshot_trigger_without_memory_for_it_is_refused() -> None:
    tree = CallTree()
    size = 1408
    while True:  # until there is no room for as much again
        size += 4000
        try:
            tree.files.write("buffer_size_kb", str(size))
        except ControlFileError:
            break
    with pytest.raises(ControlFileError) as caught:
        tree.files.write("set_ftrace_filter", "lock:snapshot", append=True)
    assert caught.value.errno == errno.ENOMEM
    assert "snapshot" not in tree.files.read("set_ftrace_filter")
