"""The built-in images: the mini-kernel of ``firmware/``, in its variants."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ImageError, OptionError
from dynftrace_emu.kernel.elf.file import ELF_MAGIC
from dynftrace_emu.kernel.elf.image import load_elf
from dynftrace_emu.kernel.image import KernelImage, firmware_path
from dynftrace_emu.kernel.synthetic import SYNTHETIC, parse_synthetic, synthetic_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BUILTIN_IMAGES",
    "VARIANTS",
    "is_builtin",
    "is_elf",
    "load_image",
    "mini_kernel",
    "workloads",
]

# The order of the sources is the order of initcalls: the recorder's comes first.
_FOLDERS = ("arch", "lib", "mm", "kernel", "fs", "drivers", "workloads", "init")

VARIANTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "dynamic": ("CONFIG_FTRACE", "CONFIG_DYNAMIC_FTRACE"),
        "static": ("CONFIG_FTRACE",),
        "none": (),
    }
)
"""What each variant is configured with."""

BUILTIN_IMAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"mini-kernel": (), "mini-kernel-nmi-broken": ("CONFIG_NMI_BROKEN",)}
)
"""Built-in names, and what each defines beyond its variant."""

_NAMES = ", ".join([*BUILTIN_IMAGES, "synthetic:N"])
_SOURCES = {
    ".c": "gcc -pg -c",
    **dict.fromkeys((".cc", ".cpp", ".cxx", ".C"), "g++ -pg -c"),
    ".rs": "rustc --emit=obj",
}
_MAX_FILE = 256 << 20
_WORKLOAD_PREFIX = "workload_list_"


def is_builtin(name: str) -> bool:
    """Whether an image's name is one of ours, and no path."""
    return name in BUILTIN_IMAGES or name.startswith(SYNTHETIC)


def mini_kernel(variant: str = "dynamic", name: str = "mini-kernel") -> KernelImage:
    """Assemble a built-in image.

    :raises OptionError: an unknown variant.
    :raises ImageError: an unknown name.
    """
    if variant not in VARIANTS:
        raise OptionError(f"unknown variant {variant!r}: choose from {', '.join(VARIANTS)}")
    if (synthetic := parse_synthetic(name)) is not None:
        return synthetic_kernel(synthetic, name, variant, VARIANTS[variant])
    if name not in BUILTIN_IMAGES:
        raise ImageError(f"unknown image {name!r}: built in are {_NAMES}")
    root = firmware_path()
    sources = [
        (str(path.relative_to(root)), path.read_text())
        for folder in _FOLDERS
        for path in sorted((root / folder).glob("*.S"))
    ]
    defines = (*VARIANTS[variant], *BUILTIN_IMAGES[name])
    return KernelImage.from_assembly(sources, name=name, variant=variant, defines=defines)


def load_image(argument: str, variant: str = "dynamic") -> KernelImage:
    """The image an argument names: a built-in name, else a path to an ELF file or assembly text.

    :raises ImageError: there is no such image, or it cannot be read.
    """
    if is_builtin(argument):
        return mini_kernel(variant, argument)
    data = _read(argument)
    if data.startswith(ELF_MAGIC):
        return load_elf(data, argument)
    if not data.strip():
        raise ImageError(f"{argument} is empty: an ELF file or assembly text is needed")
    if (compiler := _SOURCES.get(Path(argument).suffix)) is not None:
        raise ImageError(f"{argument} is source: compile it first ({compiler}), see docs/elf.md")
    try:
        text = data.decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ImageError(f"{argument} is not assembly text, nor an ELF file") from None
    if "\0" in text:
        raise ImageError(f"{argument} is not assembly text, nor an ELF file")
    if variant not in VARIANTS:
        raise OptionError(f"unknown variant {variant!r}: choose from {', '.join(VARIANTS)}")
    return KernelImage.from_assembly(
        [(argument, text)], name=argument, variant=variant, defines=VARIANTS[variant]
    )


def is_elf(argument: str) -> bool:
    """Whether an argument names an ELF file that can be read."""
    if argument in BUILTIN_IMAGES:
        return False
    try:
        with Path(argument).open("rb") as file:
            return file.read(len(ELF_MAGIC)) == ELF_MAGIC
    except (OSError, ValueError):
        return False


def _read(argument: str) -> bytes:
    try:
        with Path(argument).open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        raise ImageError(f"no image {argument!r}: built in are {_NAMES}; else a path") from None
    except IsADirectoryError:
        raise ImageError(f"{argument} is a directory, not an image") from None
    except OSError as error:
        raise ImageError(f"cannot read {argument}: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise ImageError(f"{argument} is larger than {_MAX_FILE >> 20} MiB")
    return data


def workloads(image: KernelImage) -> dict[str, int]:
    """The workloads an image has: name to address of its list."""
    return {
        name.removeprefix(_WORKLOAD_PREFIX): symbol.address
        for name, symbol in image.symbols.items()
        if name.startswith(_WORKLOAD_PREFIX)
    }
