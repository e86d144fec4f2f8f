"""Perfetto's protobuf, read again by Perfetto's own package."""

from __future__ import annotations

import io
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynftrace_emu.export import perfetto
from dynftrace_emu.export.call_tree import CallTree
from dynftrace_emu.export.missing_extra import MissingExtraError
from dynftrace_emu.export.perfetto import write_perfetto
from tests.export.call_sources import (
    HOST,
    IP,
    call,
    enter,
    leave,
    random_calls,
    real_trace,
    said,
    source,
    two_tasks,
)

BEGIN, END, INSTANT = 1, 2, 3


@pytest.fixture(scope="module")
def protos():
    return pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")


class Read:
    """What a trace says, with names put in: (track, type, name, ts), and the tracks."""

    def __init__(self, protos, data):
        self.trace = protos.Trace.FromString(data)
        self.tracks, self.paths, names, values = {}, {}, {}, {}
        self.events, self.annotations = [], []
        for packet in self.trace.packet:
            assert packet.trusted_packet_sequence_id == 1
            names |= {name.iid: name.name for name in packet.interned_data.event_names}
            found = packet.interned_data.debug_annotation_string_values
            values |= {value.iid: value.str.decode() for value in found}
            if packet.HasField("track_descriptor"):
                track = packet.track_descriptor
                self.tracks[track.uuid] = track.name
                parent = self.tracks.get(track.parent_uuid)
                self.paths[track.uuid] = parent, track.name
            elif packet.HasField("track_event"):
                event = packet.track_event
                name = event.name or names.get(event.name_iid, "")
                path = self.paths[event.track_uuid]
                self.events.append((path, event.type, name, packet.timestamp))
                self.annotations.append(
                    [values.get(note.string_value_iid) for note in event.debug_annotations]
                )


def read(protos, trace):
    out = io.BytesIO()
    write_perfetto(trace, out)
    return Read(protos, out.getvalue())


def check_nesting(events):
    stacks, times, names = {}, {}, Counter()
    for track, kind, name, ts in events:
        assert ts >= times.get(track, 0)
        times[track] = ts
        if kind == BEGIN:
            stacks.setdefault(track, []).append(name)
            names[name] += 1
        elif kind == END:
            begun = stacks[track].pop()
            assert name in ("", begun)
    assert not any(stacks.values())
    return names


def test_two_tasks(protos) -> None:
    found = read(protos, two_tasks(host_events=HOST))
    assert list(found.paths.values()) == [
        (None, "CPU 0"), (None, "CPU 1"), ("CPU 0", "bash-7"), ("CPU 0", "worker/0-8"),
        ("CPU 1", "<idle>-0"), (None, "host"), ("host", "ftraced"), ("host", "stop_machine"),
    ]  # fmt: skip
    bash = [event[1:] for event in found.events if event[0] == ("CPU 0", "bash-7")]
    assert bash == [
        (BEGIN, "main", 1000), (BEGIN, "a", 2000), (BEGIN, "schedule", 2500),
        (END, "schedule", 5000), (END, "a", 6000), (END, "main", 7500),
    ]  # fmt: skip
    assert [event for event in found.events if event[0][0] == "host"] == [
        (("host", "ftraced"), INSTANT, "tick", 1500),
        (("host", "stop_machine"), BEGIN, "stop", 1600),
        (("host", "stop_machine"), END, "", 2000),
        (("host", "ftraced"), INSTANT, "patched", 1700),
    ]
    check_nesting(event for event in found.events if event[0][0] != "host")


def test_a_packet_byte_by_byte() -> None:
    (packet,) = perfetto._stamp(perfetto._CALL, *map(perfetto.np.array, ([300], [BEGIN], [5])))
    assert packet.tobytes().hex(" ") == (
        "0a 1c 40 ac 82 80 80 80 80 80 80 00 50 01 68 02 5a 0c 48 01 58 85 80 80 00 50 00 00 00 00"
    )


def test_functions_are_moments_that_know_their_caller(protos) -> None:
    found = read(protos, source(call(5, "b", "a"), call(6, "b", "main"), tracer="function"))
    assert found.events == [
        (("CPU 0", "bash-7"), INSTANT, "b", 5), (("CPU 0", "bash-7"), INSTANT, "b", 6),
    ]  # fmt: skip
    assert found.annotations == [["a"], ["main"]]


def test_marks_are_moments(protos) -> None:
    found = read(protos, source(said(5, "hello")))
    assert found.events == [(("CPU 0", "bash-7"), INSTANT, "hello", 5)]


def test_names_are_said_once(protos) -> None:
    rows = [row for ts in range(0, 90, 2) for row in (enter(ts, "a"), leave(ts + 1, "a", ts))]
    found = read(protos, source(*rows, cut=10))
    interned = [n.name for p in found.trace.packet for n in p.interned_data.event_names]
    assert interned == ["a"]
    first, *rest = found.trace.packet
    assert first.sequence_flags == 1
    assert all(p.sequence_flags == 2 for p in rest if p.HasField("track_event"))


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5))
def test_any_time_is_kept(protos, times) -> None:
    times.sort()
    found = read(protos, source(*(call(ts, "a", "b") for ts in times)))
    assert [ts for *_, ts in found.events] == times


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 60))
def test_calls_nest(protos, rng, count) -> None:
    check_nesting(read(protos, source(*random_calls(rng, count), cut=7)).events)


def test_the_mini_kernel(protos, tmp_path) -> None:
    trace = real_trace("function_graph")
    write_perfetto(trace, tmp_path / "trace.pftrace")
    found = Read(protos, (tmp_path / "trace.pftrace").read_bytes())
    events = [event for event in found.events if event[0][0] != "host"]
    assert check_nesting(events) == {f.name: f.calls for f in CallTree(trace).functions()}


def test_without_the_package_nothing_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, perfetto._MODULE, None)
    with pytest.raises(
        MissingExtraError, match=r"pip install 'dynftrace-emu\[perfetto\]'"
    ) as error:
        write_perfetto(two_tasks(), tmp_path / "trace.pftrace")
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    assert not (tmp_path / "trace.pftrace").exists()


def test_addresses_without_a_name_are_shown_as_such(protos) -> None:
    found = read(protos, source({**enter(5, "a"), "ip": 0x1234}))
    assert found.events[0][2] == "0x1234"
    assert IP["a"] != 0x1234
