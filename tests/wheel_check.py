"""Builds the wheel, installs it into an environment of its own, and runs what it installed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = ("run", "--engine", "deterministic", "--seconds", "1", "--json")


def _call(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def main() -> None:
    """Exit with an error unless the installed command records and patches call sites."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
        _call(*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
        (wheel,) = folder.glob("*.whl")
        environment = folder / "venv"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        _call(
            python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", wheel,
            cwd=folder,
        )  # fmt: skip
        result = json.loads(_call(environment / "bin" / "dynftrace-emu", *RUN, cwd=folder))
        assert result["sites"]["jmp"] > 0, result["sites"]
        show = "import dynftrace_emu; print(dynftrace_emu.__file__)"
        where = _call(python, "-c", show, cwd=folder)
        assert str(environment) in where, where
    sys.stdout.write(f"{wheel.name}: installed and run, {result['sites']['jmp']} sites patched\n")


if __name__ == "__main__":
    main()
