"""Guest code of the user's own, linked into the lab: a poker and an int3 handler, in C or assembly.

gcc compiles it and links it at fixed addresses against the lab's functions; its data goes where a
snapshot of the lab has room for it. What comes out is bytes and symbols, so a counterexample that
carries them needs no compiler.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from dynftrace_emu.errors import AssemblyError, ImageError, OptionError
from dynftrace_emu.kernel.image import Segment, Symbol, firmware_path

if TYPE_CHECKING:
    from dynftrace_emu.kernel.image import KernelImage

__all__ = ["GuestCode", "compile_guest"]

TEXT_ADDRESS = 0xFFFF_FFFF_8200_0000
DATA_SIZE = 1024
"""Room for its data in the lab (``lab_guest_data``)."""
POKER, HANDLER = "poker", "poke_int3_handler"
_TIMEOUT_S = 60
_SUFFIXES = (".c", ".S", ".s")
_SHIM = ("text_poke", "text_poke_sync", "mutex_lock", "mutex_unlock")
_FLAGS = (
    "-O2", "-g0", "-ffreestanding", "-fno-pic", "-no-pie", "-mcmodel=kernel", "-mno-red-zone",
    "-fcf-protection=none", "-mgeneral-regs-only", "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables", "-nostdlib", "-static", "-Wall", "-Wextra", "-Werror",
    "-Wno-unused",
)  # fmt: skip
_SCRIPT = """\
{symbols}
ENTRY(poker)
SECTIONS {{
  . = {text:#x};
  .text : {{ *(.text*) *(.rodata*) }}
  . = {data:#x};
  .data : {{ *(.data*) *(.bss*) *(COMMON) }}
  /DISCARD/ : {{ *(.note*) *(.comment*) *(.eh_frame*) }}
}}
"""


@dataclass(frozen=True, slots=True)
class GuestCode:
    """Linked guest code: its bytes at :data:`TEXT_ADDRESS`, its first data, its symbols.

    :param lab: digest of the lab that it was linked against.
    """

    name: str
    text: bytes
    data: bytes
    symbols: tuple[tuple[str, int, int], ...]  # name, address, size
    lab: str

    def address(self, name: str) -> int:
        """The address of one of its functions.

        :raises OptionError: there is none of that name.
        """
        for symbol, address, _ in self.symbols:
            if symbol == name:
                return address
        raise OptionError(f"{self.name}: it defines no {name}()")

    def link_into(self, lab: KernelImage) -> KernelImage:
        """The lab with this code in it.

        :raises ImageError: this is another lab than the one it was linked against.
        """
        if lab.sha256 != self.lab:
            raise ImageError(f"{self.name} was linked against another lab: compile it again")
        text = Segment(
            f"{self.name}.text", TEXT_ADDRESS, self.text, writable=False, executable=True
        )
        data = bytearray(next(s.data for s in lab.segments if s.name == ".data"))
        base = next(s.address for s in lab.segments if s.name == ".data")
        for address, value in (
            (lab.address("lab_guest_data"), self.data),
            (lab.address("lab_int3_handler"), self.address(HANDLER).to_bytes(8, "little")),
        ):
            data[address - base : address - base + len(value)] = value
        segments = tuple(
            replace(s, data=bytes(data)) if s.name == ".data" else s for s in lab.segments
        )
        symbols = {
            name: Symbol(name, address, size, address >= TEXT_ADDRESS, self.name)
            for name, address, size in self.symbols
        }
        return replace(lab, segments=(*segments, text), symbols={**lab.symbols, **symbols})


def compile_guest(path: Path, lab: KernelImage) -> GuestCode:
    """Compile and link a ``.c`` or ``.S`` file against ``lab``.

    :raises AssemblyError: gcc refuses it; the message is gcc's first one.
    :raises OptionError: there is no gcc, or it lacks one of the two functions.
    :raises ImageError: it cannot be read, or is too large.
    """
    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    if path.suffix not in _SUFFIXES:
        raise OptionError(f"{path}: guest code is C or assembly: {', '.join(_SUFFIXES)}")
    with tempfile.TemporaryDirectory() as folder:
        script, out = Path(folder, "lab.ld"), Path(folder, "guest")
        script.write_text(
            _SCRIPT.format(
                symbols="\n".join(f"{name} = {lab.address(name):#x};" for name in _SHIM),
                text=TEXT_ADDRESS,
                data=lab.address("lab_guest_data"),
            )
        )
        _gcc(
            [*_FLAGS, f"-I{firmware_path() / 'explore'}", f"-T{script}", "-o", str(out), str(path)]
        )
        code = _read(out, path.name, lab.sha256)
    for function in (POKER, HANDLER):
        code.address(function)
    return code


def _gcc(arguments: list[str]) -> None:
    try:
        done = subprocess.run(
            ["gcc", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise OptionError("gcc is needed to compile guest code, and is not installed") from None
    except subprocess.TimeoutExpired:
        raise AssemblyError(f"gcc has not ended within {_TIMEOUT_S} s") from None
    if done.returncode:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if "error:" in line or "undefined reference" in line]
        raise AssemblyError((errors or lines or ["gcc failed"])[0])


def _read(path: Path, name: str, lab: str) -> GuestCode:
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            sections = {s.name: s for s in elf.iter_sections()}
            symtab = sections[".symtab"]
            assert isinstance(symtab, SymbolTableSection)
            text = sections[".text"].data()
            data = sections[".data"].data() if ".data" in sections else b""
            symbols = tuple(
                (s.name, s["st_value"], s["st_size"])
                for s in symtab.iter_symbols()
                if s["st_info"]["type"] in ("STT_FUNC", "STT_OBJECT")
            )
    except (ELFError, KeyError) as error:
        raise ImageError(f"{name}: what gcc made of it is not understood: {error}") from None
    if len(data) > DATA_SIZE:
        raise ImageError(f"{name}: {len(data)} bytes of data; the lab has room for {DATA_SIZE}")
    return GuestCode(name, text, data, symbols, lab)
