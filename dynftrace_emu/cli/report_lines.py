"""Which image a trace is of, for ``report --lines``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dynftrace_emu.errors import ImageError, OptionError

if TYPE_CHECKING:
    from pathlib import Path

    from dynftrace_emu.export.trace_source import TraceInfo
    from dynftrace_emu.kernel.image import KernelImage

__all__ = ["image_of"]


def image_of(info: TraceInfo, trace: Path, argument: str | None) -> KernelImage:
    """The image that ``argument`` names, or else the one that the trace says it is of.

    :raises OptionError: neither does, or the image is not where it was, or the trace has names
        only.
    """
    from dynftrace_emu.kernel.mini_kernel import load_image

    note = info.image
    if not info.has_addresses:
        raise OptionError(f"--lines: {trace} holds names and no addresses: take the trace.dat")
    if argument is None and note is None:
        raise OptionError(f"--lines: {trace} does not say what was traced: say it with --image")
    variant = note.variant if note is not None else "dynamic"
    try:
        image = load_image(argument or (note.argument if note else ""), variant)
    except ImageError as error:
        if argument is not None:
            raise
        raise OptionError(
            f"--lines: what was traced is gone: {error}; say with --image where it is now"
        ) from None
    if note is not None and note.sha256 and image.sha256 != note.sha256:
        click.echo(
            f"warning: {image.name} is not what was traced (was it built again?): lines may be "
            "wrong",
            err=True,
        )
    return image
