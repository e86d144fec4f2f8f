"""The command line. Nobody imports this package."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run ``dynftrace-emu`` and leave with its exit code."""
    from dynftrace_emu.cli.main import run_cli

    sys.exit(run_cli(sys.argv[1:]))
