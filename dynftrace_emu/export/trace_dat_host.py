"""HostEvents as events of system ``ftraced``: written, and read back."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from dynftrace_emu.export.trace_dat_format import COMMON_SIZE, HOST_EVENTS, HostFormat
from dynftrace_emu.export.trace_source import HostEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HOST_NAMES", "host_body", "host_event"]

HOST_NAMES = {kind.number: name for name, kind in HOST_EVENTS.items()}


def host_body(event: HostEvent) -> bytes:
    """What follows the common fields."""
    kind = HOST_EVENTS[event.name]
    kept = {name: event.fields[name] for name in kind.fields if _fits(event.fields.get(name))}
    values = [kept.get(name, 0) for name in kind.fields]
    present = sum(1 << bit for bit, name in enumerate(kind.fields) if name in kept)
    others = {name: value for name, value in event.fields.items() if name not in kept}
    text = "".join(f" {name}={value}" for name, value in others.items())
    return struct.pack(f"<{len(values)}QI", *values, present) + text.encode() + b"\0"


def _fits(value: int | None) -> bool:
    return value is not None and 0 <= value < 1 << 64


def host_event(number: int, ts: int, data: bytes) -> HostEvent | None:
    """The event whose data are these, common fields included; None: they are not whole."""
    name = HOST_NAMES[number]
    kind = HOST_EVENTS[name]
    if len(data) < kind.extra:
        return None
    return HostEvent(ts, name, dict(_fields(kind, data)))


def _fields(kind: HostFormat, data: bytes) -> Iterator[tuple[str, int]]:
    *values, present = struct.unpack_from(f"<{len(kind.fields)}QI", data, COMMON_SIZE)
    for bit, (name, value) in enumerate(zip(kind.fields, values, strict=True)):
        if present >> bit & 1:
            yield name, value
    text = data[kind.extra :].split(b"\0", 1)[0].decode("utf-8", "replace")
    for word in text.split():
        name, _, number = word.rpartition("=")
        if name and number.removeprefix("-").isdecimal() and len(number) <= 40:
            yield name, int(number)
