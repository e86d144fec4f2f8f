"""Warnings that several commands give, each in one line on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dynftrace_emu.kernel.image import KernelImage

__all__ = ["warn_of_debug_info"]


def warn_of_debug_info(image: KernelImage | None) -> None:
    """Say what was the matter with the debug information that has been used, if something was."""
    if image is not None and image.debug_complaint:
        click.echo(f"warning: {image.name}: {image.debug_complaint}; not used", err=True)
