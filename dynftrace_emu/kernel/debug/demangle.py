"""Names of C++ and Rust as people wrote them (pydemumble: LLVM's demanglers)."""

from __future__ import annotations

from functools import lru_cache

import pydemumble

__all__ = ["demangle"]

_MANGLED = ("_Z", "_R", "__Z")


@lru_cache(maxsize=1 << 16)
def demangle(name: str) -> str:
    """What ``name`` stands for; itself if it is not mangled.

    Of Rust's older scheme the hash at the end is left out.
    """
    if not name.startswith(_MANGLED):
        return name
    return pydemumble.demangle(name) or name
