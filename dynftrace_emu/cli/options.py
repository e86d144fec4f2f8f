"""Parameter types and options that more than one command has. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = [
    "SizeType",
    "TracingType",
    "checked_variant",
    "image_argument",
    "json_option",
    "variant_option",
]

VARIANTS = ("dynamic", "static", "none")


class TracingType(click.ParamType[tuple[float, float | None]]):
    """``FROM[:UNTIL]`` in seconds."""

    name = "from[:until]"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[float, float | None]:
        """Parse; whether FROM comes before UNTIL is checked with the other options."""
        if isinstance(value, tuple):
            return value
        begin, colon, end = str(value).partition(":")
        try:
            return float(begin), (float(end) if colon else None)
        except ValueError:
            self.fail(f"{value!r} is not FROM[:UNTIL] in seconds, as 2 or 2:3.5", param, ctx)


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class SizeType(click.ParamType[int]):
    """Bytes, as ``65536``, ``64K`` or ``16M``."""

    name = "size"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        """Parse; whether so much is allowed is checked with the other options."""
        if isinstance(value, int):
            return value
        from dynftrace_emu.kernel.elf.start import parse_size

        option = param.opts[0] if param is not None else "size"
        return parse_size(option, str(value))


def image_argument() -> Decorator:
    """The IMAGE argument."""
    return click.argument("image", default="mini-kernel")


def variant_option() -> Decorator:
    """``--variant``."""
    return click.option(
        "--variant",
        type=click.Choice(VARIANTS),
        help="Of our kernels: dynamic ftrace; calls that are never patched; or no calls at all. "
        "[default: dynamic]",
    )


def checked_variant(image: str, variant: str | None) -> str:
    """The variant of an image; only our kernels have others than the one they are.

    :raises OptionError: a variant was asked of an ELF image.
    """
    from dynftrace_emu.errors import OptionError
    from dynftrace_emu.kernel.mini_kernel import is_elf

    if variant is not None and is_elf(image):
        raise OptionError(f"--variant is for the mini-kernel; {image} is an ELF image")
    return variant or "dynamic"


def json_option(help_text: str) -> Decorator:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help=help_text)
