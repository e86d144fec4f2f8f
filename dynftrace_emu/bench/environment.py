"""Where and with what a result was made."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dynftrace_emu._version import __version__

__all__ = ["describe"]

_PACKAGES = ("unicorn", "capstone", "keystone-engine", "numpy")


def describe() -> dict[str, Any]:
    """The machine, how busy it is, and versions."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
            "load_before": round(os.getloadavg()[0], 2),
            "kernel": platform.release(),
        },
        "versions": {
            "dynftrace-emu": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
