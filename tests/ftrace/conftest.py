from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest

from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.kernel.mini_kernel import mini_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynftrace_emu.kernel.image import KernelImage

FAST_HZ = 200_000
"""Instructions in a virtual second where only the order of things matters, not the work done."""


@cache
def assembled(variant: str, name: str) -> KernelImage:
    return mini_kernel(variant, name)


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """Makes runs of the mini-kernel in the deterministic engine; the image is assembled once."""

    def make(**options) -> Run:
        options.setdefault("engine", EngineName.DETERMINISTIC)
        if "iterations" in options:
            options.setdefault("seconds", None)
        options = RunOptions(**options)
        return Run(options, image=assembled(options.variant, options.image))

    return make
