"""Where an exporter writes to: a path, or a stream that is open already."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Destination", "opened"]

Destination = Path | BinaryIO


@contextmanager
def opened(destination: Destination) -> Iterator[BinaryIO]:
    """The stream to write to; one that was open before stays open."""
    if isinstance(destination, Path):
        with destination.open("wb") as out:
            yield out
    else:
        yield destination
