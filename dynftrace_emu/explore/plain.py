"""Dataclasses as plain JSON values and back, by their type hints.

What comes back is checked as strictly as it was written: every key, no other, each of its type. A
field's key is its name, or its metadata's ``key``.
"""

from __future__ import annotations

import base64
import dataclasses
import types
import typing
from enum import Enum
from functools import lru_cache
from typing import Any

from dynftrace_emu.errors import ImageError

__all__ = ["from_plain", "to_plain"]

_WORD = 1 << 64
_NAMES = {int: "a number", str: "text", bool: "true or false", types.NoneType: "null"}


def to_plain(value: Any) -> Any:
    """Dataclasses become objects, tuples and sets lists, enumerations values, bytes base64."""
    if dataclasses.is_dataclass(value):
        return {_key(f): to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(hint: Any, value: Any, where: str) -> Any:
    """The opposite: a value of type ``hint``.

    :param where: what ``value`` is called in an error.
    :raises ImageError: it is not of that type. Numbers are those of 64 bits.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is types.NoneType:
        return None
    if origin in (types.UnionType, typing.Union):
        return _one_of(arguments, value, where)
    if origin in (tuple, frozenset):
        return _several(origin, arguments, value, where)
    if dataclasses.is_dataclass(hint):
        return _object(hint, value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _member(hint, value, where)
    if hint is bytes:
        return _bytes(value, where)
    if type(value) is not hint:
        raise ImageError(f"{where} is {_short(value)}, not {_NAMES[hint]}")
    if hint is int and not -_WORD < value < _WORD:
        raise ImageError(f"{where} is {_short(value)}: too big")
    return value


def _object(hint: Any, value: Any, where: str) -> Any:
    fields = _fields(hint)
    if not isinstance(value, dict):
        raise ImageError(f"{where or 'it'} is {_short(value)}, not an object")
    keys = {key for _, key, _ in fields}
    for key in sorted(keys - value.keys()):
        raise ImageError(f"{where or 'it'} has no {key!r}")
    for key in sorted(value.keys() - keys):
        raise ImageError(f"{where or 'it'} has {_short(key)}, which is not known")
    inside = f"{where}." if where else ""
    return hint(**{name: from_plain(h, value[key], inside + key) for name, key, h in fields})


@lru_cache
def _fields(hint: Any) -> tuple[tuple[str, str, Any], ...]:
    """Name, key and type of each field."""
    resolved = typing.get_type_hints(hint)
    return tuple((f.name, _key(f), resolved[f.name]) for f in dataclasses.fields(hint))


def _key(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("key", field.name))


def _several(origin: Any, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list):
        raise ImageError(f"{where} is {_short(value)}, not a list")
    if arguments[-1] is Ellipsis or origin is frozenset:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise ImageError(f"{where} has {len(value)} items, not {len(arguments)}")
    pairs = zip(arguments, value, strict=True)
    return origin(from_plain(h, item, f"{where}[{n}]") for n, (h, item) in enumerate(pairs))


def _bytes(value: Any, where: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError):
        raise ImageError(f"{where} is {_short(value)}, not base64") from None


def _one_of(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    for hint in arguments:
        if type(value) is hint or (isinstance(value, dict) and dataclasses.is_dataclass(hint)):
            return from_plain(hint, value, where)
    expected = " or ".join(_NAMES.get(a, "an object") for a in arguments)
    raise ImageError(f"{where} is {_short(value)}, not {expected}")


def _member(hint: type[Enum], value: Any, where: str) -> Enum:
    for member in hint:
        if value == member.value:
            return member
    choices = ", ".join(str(member.value) for member in hint)
    raise ImageError(f"{where} is {_short(value)}, not one of {choices}")


def _short(value: Any) -> str:
    text = ascii(value) if not isinstance(value, int) or value.bit_length() < 256 else "huge"
    return text if len(text) <= 40 else f"{text[:37]}..."
