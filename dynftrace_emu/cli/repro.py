"""The file that a failed run leaves behind, and how to run it again."""

from __future__ import annotations

import json
import platform
import shlex
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynftrace_emu._version import __version__
from dynftrace_emu.errors import OptionError
from dynftrace_emu.ftrace.options import EngineName, RunOptions

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.run import Run

__all__ = ["patch_lines", "read_repro", "repeat_command", "write_repro"]

SCHEMA = 1
_PACKAGES = ("unicorn", "capstone", "keystone-engine", "numpy")


def write_repro(run: Run, error: str) -> Path | None:
    """Write the file, to the current directory or, failing that, the temporary one."""
    text = json.dumps(_contents(run, error), indent=2) + "\n"
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            with tempfile.NamedTemporaryFile(
                "w", dir=folder, prefix="dynftrace-emu-", suffix=".repro.json", delete=False
            ) as file:
                file.write(text)
                return Path(file.name)
        except OSError:
            continue
    return None


def repeat_command(run: Run, path: Path | None) -> list[str]:
    """What to tell the user: the command, and how far it can be relied on."""
    if path is None:
        return ["the file to repeat this run could not be written"]
    lines = [f"repeat with: dynftrace-emu run --repro {shlex.quote(str(path))}"]
    if run.options.engine is EngineName.THREADED:
        lines.append("(threaded engine: not exact; the file holds each stop's ips and the patches)")
    return lines


def read_repro(path: Path) -> tuple[RunOptions, str | None]:
    """The options in a file, and the digest of the image that failed.

    :raises OptionError: it is not such a file.
    """
    try:
        plain = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OptionError(f"--repro {path}: not a repro file ({error})") from None
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA or "options" not in plain:
        raise OptionError(f"--repro {path}: not a repro file of schema {SCHEMA}")
    digest = plain.get("image_sha256")
    return RunOptions.from_json(plain["options"]), digest if isinstance(digest, str) else None


def patch_lines(run: Run) -> list[str]:
    """The last changes of text, oldest first, for people."""
    if run.dynamic is None:
        return []
    lines = []
    for entry in run.dynamic.arch.patcher.log:
        first = ", ".join(run.image.symbolize(site) for site in entry.first_sites)
        more = ", ..." if entry.count > len(entry.first_sites) else ""
        lines.append(
            f"{entry.time:.6f} s: {entry.count} sites {entry.old.hex(' ')} -> "
            f"{entry.new.hex(' ')}: {first}{more}"
        )
    return lines


def _contents(run: Run, error: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "error": error,
        "image": run.image.name,
        "image_sha256": run.image.sha256,
        "options": run.options.to_json(),
        "t": run.machine.now(),
        "vcpus": [
            {"vcpu": vcpu.index, "ip": f"{vcpu.rip:#x}", "at": run.image.symbolize(vcpu.rip)}
            for vcpu in run.machine.vcpus
        ],
        "stops": [
            {
                "t": stop.time,
                "pause_us": stop.pause_us,
                "ips": {str(vcpu): f"{ip:#x}" for vcpu, ip in stop.parked},
            }
            for stop in run.machine.stops
        ],
        "patches": patch_lines(run),
        "console": [line for _, line in run.machine.console.lines[-20:]],
        "versions": {
            "dynftrace-emu": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
