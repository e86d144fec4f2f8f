"""``synthetic:N``: a kernel of N generated functions, for what must be seen at a real one's scale.

Entry, scheduler, mcount and tracers are the mini-kernel's. Behind its text lie N functions in call
trees, which one worker goes through, a tree a step: an iteration is one round, in which each of
them is called once. What is generated follows from N and the seed alone.

*Sizes* have the quantiles of the 61,695 functions of a Linux 6.18 for x86-64 (differences of the
addresses in its ``/proc/kallsyms``): median 128 bytes, mean 290, one in a hundred above 2.3 KiB.
*Call trees* are of up to 128 functions. One that calls at all calls 1 to 4 others, 2.25 in the
mean, so a tree is about 7 deep and more than half of it are leaves. Most of a long function is its
cold part, behind branches that are never taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.image import LINK_ADDRESS, KernelImage, Segment, Symbol, firmware_path
from dynftrace_emu.kernel.structs import PAGE_SIZE
from dynftrace_emu.kernel.synthetic_names import function_names
from dynftrace_emu.kernel.synthetic_text import TREE, SyntheticText

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MAX_FUNCTIONS", "SYNTHETIC", "SyntheticName", "parse_synthetic", "synthetic_kernel"]

MAX_FUNCTIONS = 50_000
SYNTHETIC = "synthetic:"
"""How the names of these images begin."""

_FORM = re.compile(r"synthetic:(\d{1,9})(?:,seed=(\d{1,9}))?", re.ASCII)
_TEXT = LINK_ADDRESS + (1 << 20)
_FOLDERS = ("arch", "kernel", "synthetic")
_FILES = ("lib/ctype.S", "lib/string.S", "lib/checksum.S", "workloads/workload.S", "init/main.S")


@dataclass(frozen=True, slots=True)
class SyntheticName:
    """What ``synthetic:N`` or ``synthetic:N,seed=S`` asks for."""

    functions: int
    seed: int = 0


def parse_synthetic(argument: str) -> SyntheticName | None:
    """What an image's name asks for, or None if it does not begin like one of these.

    :raises ImageError: it does, and cannot be had.
    """
    if not argument.startswith(SYNTHETIC):
        return None
    match = _FORM.fullmatch(argument)
    if match is None:
        raise ImageError(
            f"image {argument!r}: write synthetic:N or synthetic:N,seed=S, as synthetic:1000"
        )
    functions = int(match[1])
    if not 1 <= functions <= MAX_FUNCTIONS:
        raise ImageError(f"image {argument!r}: 1 to {MAX_FUNCTIONS} functions are possible")
    return SyntheticName(functions, int(match[2] or 0))


def synthetic_kernel(
    wanted: SyntheticName, name: str, variant: str, defines: Iterable[str]
) -> KernelImage:
    """Assemble what the mini-kernel gives, and generate the rest.

    :param defines: the configuration; without ``CONFIG_FTRACE`` nothing calls mcount.
    """
    defines = tuple(defines)
    place = SyntheticText(wanted.functions, wanted.seed, _TEXT, None)
    roots = _TEXT + -(-place.size // PAGE_SIZE) * PAGE_SIZE
    constants = f".set SYNTHETIC_ROOTS, {roots:#x}\n.set SYNTHETIC_TREES, {place.trees}\n"
    core = KernelImage.from_assembly(
        [("synthetic", constants), *_sources()], name=name, variant=variant, defines=defines
    )
    assert core.segments[-1].address + len(core.segments[-1].data) <= _TEXT
    mcount = core.address("mcount") if "CONFIG_FTRACE" in defines else None
    text = SyntheticText(wanted.functions, wanted.seed, _TEXT, mcount)
    code, scan = text.code()
    segments = (
        Segment(".text.synthetic", _TEXT, code, writable=False, executable=True, scan=scan),
        Segment(".rodata.synthetic", roots, text.roots.tobytes(), writable=False, executable=False),
    )
    return replace(
        core, segments=(*core.segments, *segments), symbols={**core.symbols, **_symbols(text)}
    )


def _sources() -> list[tuple[str, str]]:
    root = firmware_path()
    paths = [path for folder in _FOLDERS for path in sorted((root / folder).glob("*.S"))]
    paths += [root / file for file in _FILES]
    return [(str(path.relative_to(root)), path.read_text()) for path in paths]


def _symbols(text: SyntheticText) -> dict[str, Symbol]:
    names = function_names(text.parents.tolist(), text.calls.tolist(), TREE)
    places = zip(names, text.entries.tolist(), text.sizes.tolist(), strict=True)
    return {
        name: Symbol(name, address, size, True, f"synthetic:{number}")
        for number, (name, address, size) in enumerate(places, 1)
    }
