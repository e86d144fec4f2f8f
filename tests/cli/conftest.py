from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import pytest

from dynftrace_emu.cli.main import run_cli
from dynftrace_emu.kernel import mini_kernel as images

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = (sys.executable, "-m", "dynftrace_emu")


@dataclass(frozen=True)
class Result:
    """What a command line came to."""

    code: int
    out: str
    err: str


assemble_once = cache(images.mini_kernel)


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path) -> Callable[..., Result]:
    """Runs a command line in this process, in an empty directory; images are assembled once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "mini_kernel", assemble_once)

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = run_cli([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Result(code, out, err)

    return run


def spawn(*arguments: str, **options) -> subprocess.Popen:
    """The command in a process of its own, its output line by line."""
    environment = {**os.environ, **options.pop("env", {})}
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], env=environment, **{**settings, **options}
    )
