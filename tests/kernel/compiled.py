"""Small programs built with gcc for tests of what compilers leave behind."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

FREESTANDING = (
    "-ffreestanding", "-fno-pic", "-no-pie", "-mno-red-zone", "-fcf-protection=none",
    "-mgeneral-regs-only", "-nostdlib", "-static",
)  # fmt: skip

MCOUNT = '__asm__(".globl mcount\\nmcount: ret\\n");\n'
"""What a traced executable must bring along for the linker; ours takes its place."""


def need(*programs: str) -> None:
    """Skip the test where one of them is missing, and say which."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def build(folder: Path, sources: dict[str, str], *flags: str, compiler: str = "gcc") -> Path:
    """Compile and link (or with ``-c`` only compile) ``sources``, by name; returns the output."""
    need(compiler)
    for name, text in sources.items():
        (folder / name).write_text(text)
    inputs = [name for name in sources if not name.endswith(".h")]
    output = folder / f"out-{len(list(folder.iterdir()))}"
    subprocess.run([compiler, *flags, *inputs, "-o", output.name], cwd=folder, check=True)
    return output
