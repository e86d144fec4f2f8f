"""ELF images for tests, built by gcc: firmware/samples, and programs of a few lines."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

STYLES = {
    "mcount": "-pg",
    "fentry": "-pg -mfentry",
    "record": "-pg -mfentry -mrecord-mcount",
    "nop": "-pg -mfentry -mrecord-mcount -mnop-mcount",
    "patchable": "-fpatchable-function-entry=5",
}
WITH_TABLE = ("record", "nop", "patchable")
SOURCES = Path(__file__).parents[1] / "firmware" / "samples"
BARE = (
    "-std=gnu11 -O1 -g -ffreestanding -nostdlib -static -fno-pic -no-pie -mno-red-zone "
    "-fcf-protection=none -mgeneral-regs-only -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -Wl,--build-id=none"
)
# An mcount of the image's own, and a start that returns what main does.
START = """
__asm__(".globl mcount, __fentry__, _start\\n.type _start, @function\\nmcount: __fentry__: ret\\n"
        "_start: jmp main\\n.size _start, . - _start");
"""


def require_gcc() -> None:
    """Skip, unless there is a compiler."""
    for program in ("gcc", "make"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def samples(tmp_path_factory) -> Path:
    """Where the samples are, built once for all workers of a test run."""
    require_gcc()
    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith("popen-"):
        shared = shared.parent
    target = shared / "samples"
    with (shared / "samples.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("make", "-s", "-C", SOURCES, f"BUILD={target}")
    return target


def run(*command: object) -> str:
    """A command's output; a failure shows what it said."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compile_c(
    folder: Path, source: str, flags: str, *, bare: str = BARE, start: str = START
) -> Path:
    """An executable of a C text; ``flags`` come last, so they win."""
    require_gcc()
    name = f"image-{abs(hash((source, flags))):x}"
    (folder / f"{name}.c").write_text(source + start)
    target = folder / f"{name}.elf"
    run("gcc", *bare.split(), *flags.split(), "-o", target, folder / f"{name}.c")
    return target


def compile_object(folder: Path, source: str, flags: str = "") -> Path:
    """A relocatable object of a C text, with nothing of ours in it."""
    bare = " ".join(flag for flag in BARE.split() if flag != "-static" and "Wl" not in flag)
    return compile_c(folder, source, f"-c {flags}", bare=bare, start="")
