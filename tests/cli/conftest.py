from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
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


def on_a_terminal(
    *arguments: str, interrupt_at: str | None = None, **environment: str
) -> tuple[int, str]:
    """Run on a pseudo-terminal; returns the exit code and all that was written to it.

    :param interrupt_at: what is written when Ctrl-C is pressed, as a regular expression.
    """
    master, slave = pty.openpty()
    settings = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={**settings, "TERM": "xterm-256color", "COLUMNS": "110", **environment},
    )
    os.close(slave)
    written = b""
    with contextlib.suppress(OSError):  # EIO: the other side has closed
        while part := os.read(master, 4096):
            written += part
            if interrupt_at and re.search(interrupt_at, written.decode(errors="replace")):
                interrupt_at = None
                os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    os.close(master)
    return process.wait(timeout=20), written.decode()
