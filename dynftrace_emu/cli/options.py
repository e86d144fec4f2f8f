"""Parameter types and options that more than one command has. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["TracingType", "image_argument", "json_option", "variant_option"]

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


def image_argument() -> Decorator:
    """The IMAGE argument."""
    return click.argument("image", default="mini-kernel")


def variant_option() -> Decorator:
    """``--variant``."""
    return click.option(
        "--variant",
        type=click.Choice(VARIANTS),
        default="dynamic",
        show_default=True,
        help="dynamic ftrace; calls that are never patched; or no calls at all.",
    )


def json_option(help_text: str) -> Decorator:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help=help_text)
