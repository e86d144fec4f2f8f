"""Perfetto's protobuf: a track for each task below that of its vCPU, and tracks for the host.

Tracks and names are few, and made with Perfetto's own package (the extra ``[perfetto]``). Events
are many, and stamped out of a template: every packet of a kind has the same length, its numbers
being varints that are padded to a fixed width, which every reader of protobufs must accept.
Left out: stack traces and raw data.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dynftrace_emu.export.calls import Calls
from dynftrace_emu.export.destination import opened
from dynftrace_emu.export.host_tracks import DAEMON, STOPS, host_marks
from dynftrace_emu.export.missing_extra import MissingExtraError
from dynftrace_emu.kernel.structs import EventId

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynftrace_emu.export.calls import CallBatch
    from dynftrace_emu.export.destination import Destination
    from dynftrace_emu.export.host_tracks import HostMark
    from dynftrace_emu.export.trace_source import TraceSource

__all__ = ["write_perfetto"]

_MODULE = "perfetto.protos.perfetto.trace.perfetto_trace_pb2"
_SEQUENCE = 1
_PARENT = 1  # iid of the annotation's name
_SLICE_BEGIN, _SLICE_END, _INSTANT = 1, 2, 3
_EXPLICIT = 3  # TrackDescriptor.child_ordering

_TS_BYTES, _UUID_BYTES, _IID_BYTES = 9, 4, 4
"""Widths of varints, 7 bits a byte."""

# perfetto_trace.proto: a key is the field number << 3, and 2 for what has a length, 0 for a varint
_PACKET, _TIMESTAMP, _SEQUENCE_ID, _FLAGS, _TRACK_EVENT = (
    b"\x0a",
    b"\x40",
    b"\x50",
    b"\x68",
    b"\x5a",
)
_TYPE, _TRACK_UUID, _NAME_IID, _ANNOTATION = b"\x48", b"\x58", b"\x50", b"\x22"
_ANNOTATION_NAME, _ANNOTATION_VALUE = b"\x08", b"\x88\x01"
_NEEDS_STATE = 2  # sequence_flags: SEQ_NEEDS_INCREMENTAL_STATE
_CLEARED = 1  # ... SEQ_INCREMENTAL_STATE_CLEARED


def write_perfetto(source: TraceSource, destination: Destination) -> None:
    """Write all of a trace.

    :raises MissingExtraError: Perfetto's package is not installed.
    """
    protos = _protos()
    calls = Calls(source)
    with opened(destination) as out:
        writer = _Writer(protos, out, source, calls)
        writer.describe()
        for batch in calls:
            writer.batch(batch)
        for mark in host_marks(source):
            writer.host(mark)


def _protos() -> Any:
    try:
        return importlib.import_module(_MODULE)
    except ImportError as error:
        raise MissingExtraError("a .pftrace", "perfetto") from error


class _Writer:
    """One sequence of packets."""

    def __init__(self, protos: Any, out: BinaryIO, source: TraceSource, calls: Calls) -> None:
        self._protos, self._out, self._source, self._lanes = protos, out, source, calls.lanes
        self._iids: dict[int, int] = {}
        cpus = {lane.cpu for lane in calls.lanes} | set(range(source.info.nr_cpus))
        self._cpu_uuids = {cpu: 1 + index for index, cpu in enumerate(sorted(cpus))}
        self._first_uuid = 1 + len(cpus)  # of a lane's track
        self._host_uuid = self._first_uuid + len(self._lanes)
        self._host_uuids = {DAEMON: self._host_uuid + 1, STOPS: self._host_uuid + 2}

    def _write(self, packet: Any) -> None:
        packet.trusted_packet_sequence_id = _SEQUENCE
        self._out.write(self._protos.Trace(packet=[packet]).SerializeToString())

    # --- tracks ---

    def describe(self) -> None:
        """Say which tracks there are."""
        first = self._protos.TracePacket(sequence_flags=_CLEARED, first_packet_on_sequence=True)
        first.interned_data.debug_annotation_names.add(iid=_PARENT, name="parent")
        self._write(first)
        for cpu, uuid in self._cpu_uuids.items():
            self._track(uuid, f"CPU {cpu}", rank=cpu)
        for lane in self._lanes:
            uuid, parent = self._first_uuid + lane.index, self._cpu_uuids[lane.cpu]
            self._track(uuid, lane.name(self._source.info), rank=lane.index, parent=parent)
        self._track(self._host_uuid, "host", rank=len(self._cpu_uuids))
        for name, uuid in self._host_uuids.items():
            self._track(uuid, name, rank=uuid, parent=self._host_uuid)

    def _track(self, uuid: int, name: str, *, rank: int, parent: int | None = None) -> None:
        packet = self._protos.TracePacket()
        track = packet.track_descriptor
        track.uuid, track.name, track.sibling_order_rank = uuid, name, rank
        if parent is None:
            track.child_ordering = _EXPLICIT
        else:
            track.parent_uuid = parent
        self._write(packet)

    # --- events ---

    def batch(self, batch: CallBatch) -> None:
        """Write the events of a batch."""
        table, others = batch.calls, batch.others.table
        rows = np.flatnonzero(others["type"] == EventId.FUNCTION)
        functions = others[rows]
        self._intern(table["ip"], functions["ip"], functions["parent_ip"])
        kinds = np.where(table["begin"], _SLICE_BEGIN, _SLICE_END)
        packets = _stamp(_CALL, table["ts"], kinds, self._first_uuid + table["lane"])
        packets["name"] = _varints(self._names(table["ip"]), _IID_BYTES)
        self._out.write(packets.tobytes())
        kinds = np.full(len(rows), _INSTANT)
        uuids = self._first_uuid + batch.other_lanes[rows]
        packets = _stamp(_FUNCTION, functions["ts"], kinds, uuids)
        packets["name"] = _varints(self._names(functions["ip"]), _IID_BYTES)
        packets["parent"] = _varints(self._names(functions["parent_ip"]), _IID_BYTES)
        self._out.write(packets.tobytes())
        self._marks(batch)

    def _names(self, ips: NDArray[np.uint64]) -> NDArray[np.uint64]:
        iids = self._iids
        return np.array([iids[ip] for ip in ips.tolist()], np.uint64)

    def _intern(self, *columns: NDArray[np.uint64]) -> None:
        """Say which numbers the names have that are new."""
        new = sorted(set().union(*(column.tolist() for column in columns)) - self._iids.keys())
        if not new:
            return
        packet = self._protos.TracePacket(sequence_flags=_NEEDS_STATE)
        for ip in new:
            iid = self._iids[ip] = len(self._iids) + 1
            name = self._source.info.symbols.name(ip)
            packet.interned_data.event_names.add(iid=iid, name=name)
            packet.interned_data.debug_annotation_string_values.add(iid=iid, str=name.encode())
        self._write(packet)

    def _marks(self, batch: CallBatch) -> None:
        table = batch.others.table
        for row in np.flatnonzero(table["type"] == EventId.PRINT).tolist():
            uuid = self._first_uuid + int(batch.other_lanes[row])
            name = str(batch.others.payloads[table["payload"][row]])
            self._write(self._event(int(table["ts"][row]), _INSTANT, uuid, name))

    def host(self, mark: HostMark) -> None:
        """Write what the host did."""
        uuid = self._host_uuids[mark.track]
        kind = _SLICE_BEGIN if mark.track == STOPS else _INSTANT
        packet = self._event(mark.ts, kind, uuid, mark.name)
        for name, value in mark.args.items():
            note = packet.track_event.debug_annotations.add(name=name)
            if isinstance(value, str):
                note.string_value = value
            else:
                note.int_value = value
        self._write(packet)
        if mark.track == STOPS:
            self._write(self._event(mark.ts + mark.duration, _SLICE_END, uuid))

    def _event(self, ts: int, kind: int, uuid: int, name: str = "") -> Any:
        packet = self._protos.TracePacket(timestamp=ts, sequence_flags=_NEEDS_STATE)
        packet.track_event.type, packet.track_event.track_uuid = kind, uuid
        if name:
            packet.track_event.name = name
        return packet


# --- the template ---


def _template(*, parent: bool) -> NDArray[Any]:
    """A packet with gaps: of dtype (constant bytes, ``ts``, ...), one row."""
    annotation = _ANNOTATION_NAME + bytes([_PARENT]) + _ANNOTATION_VALUE
    after_name = b""
    if parent:
        after_name = _ANNOTATION + bytes([len(annotation) + _IID_BYTES]) + annotation
    event_bytes = len(_TYPE) + 1 + len(_TRACK_UUID) + _UUID_BYTES + len(_NAME_IID) + _IID_BYTES
    if parent:
        event_bytes += len(after_name) + _IID_BYTES
    after_ts = _SEQUENCE_ID + bytes([_SEQUENCE]) + _FLAGS + bytes([_NEEDS_STATE])
    after_ts += _TRACK_EVENT + bytes([event_bytes]) + _TYPE
    packet_bytes = len(_TIMESTAMP) + _TS_BYTES + len(after_ts) + event_bytes - len(_TYPE)
    parts: list[tuple[str, bytes | int]] = [
        ("head", _PACKET + bytes([packet_bytes]) + _TIMESTAMP), ("ts", _TS_BYTES),
        ("middle", after_ts), ("kind", 1),
        ("track", _TRACK_UUID), ("uuid", _UUID_BYTES),
        ("name_iid", _NAME_IID), ("name", _IID_BYTES),
    ]  # fmt: skip
    if parent:
        parts += [("note", after_name), ("parent", _IID_BYTES)]
    return _row(parts)


def _row(parts: list[tuple[str, bytes | int]]) -> NDArray[Any]:
    sizes = [part if isinstance(part, int) else len(part) for _, part in parts]
    dtype = np.dtype([(name, "u1", (size,)) for (name, _), size in zip(parts, sizes, strict=True)])
    filled = [bytes(part) for _, part in parts]  # a number makes so many zeros
    return np.frombuffer(b"".join(filled), dtype)


_CALL = _template(parent=False)
_FUNCTION = _template(parent=True)


def _stamp(
    template: NDArray[Any], ts: NDArray[Any], kinds: NDArray[Any], uuids: NDArray[Any]
) -> NDArray[Any]:
    packets = np.repeat(template, len(ts))
    packets["ts"] = _varints(ts, _TS_BYTES)
    packets["kind"][:, 0] = kinds
    packets["uuid"] = _varints(uuids, _UUID_BYTES)
    return packets


def _varints(numbers: NDArray[Any], width: int) -> NDArray[np.uint8]:
    """Varints of ``width`` bytes: in each but the last the top bit says that there are more."""
    shifts = np.arange(width, dtype=np.uint64) * np.uint64(7)
    digits = (numbers.astype(np.uint64)[:, None] >> shifts & np.uint64(0x7F)).astype(np.uint8)
    digits[:, :-1] |= np.uint8(0x80)
    return digits
