"""How an ELF image is started: which function, with what arguments, stack and memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.errors import OptionError

if TYPE_CHECKING:
    from dynftrace_emu.kernel.elf.image import ElfImage

__all__ = [
    "DEFAULT_RAM",
    "DEFAULT_STACK",
    "MAX_RAM",
    "SECONDARY_START",
    "FunctionCall",
    "Start",
    "parse_size",
    "plan_start",
]

DEFAULT_RAM, MAX_RAM = 16 << 20, 1 << 30
DEFAULT_STACK, _MIN_STACK, _MAX_STACK = 64 << 10, 4 << 10, 64 << 20
SECONDARY_START = "secondary_start"
_REGISTERS = 6  # that arguments are passed in
_CALL = re.compile(r"\s*(?P<name>[^\s()]+)\s*(?:\((?P<arguments>.*)\)\s*)?\Z", re.DOTALL)
_ARGUMENT = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<character>\'(?:[^\'\\]|\\.)\')|(?P<number>[^\s,"]+))\s*',
    re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\", '"': '"', "'": "'"}
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|\d+)\s*([kKmMgG]?)(?:i?[bB])?\Z")
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30}


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """``SYMBOL(1, 0x20, "text")``: arguments are numbers, modulo 2^64, and NUL-ended texts."""

    symbol: str
    arguments: tuple[int | bytes, ...]
    text: str

    @classmethod
    def parse(cls, text: str) -> FunctionCall:
        """Parse it; without parentheses there are no arguments.

        :raises OptionError: it is not that, or there are more than six arguments.
        """
        found = _CALL.match(text)
        if found is None:
            raise OptionError(f"--call {text!r}: SYMBOL(ARGUMENT, ...) is needed")
        arguments = tuple(_arguments(text, found["arguments"] or ""))
        if len(arguments) > _REGISTERS:
            raise OptionError(f"--call {text!r}: {_REGISTERS} arguments at most")
        return cls(found["name"], arguments, text.strip())


def _arguments(call: str, text: str) -> list[int | bytes]:
    if not text.strip():
        return []
    found: list[int | bytes] = []
    position = 0
    while True:
        match = _ARGUMENT.match(text, position)
        if match is None:
            raise OptionError(f"--call {call!r}: no argument at {text[position:]!r}")
        found.append(_argument(call, match))
        position = match.end()
        if position == len(text):
            return found
        if text[position] != ",":
            raise OptionError(f"--call {call!r}: a comma is missing at {text[position:]!r}")
        position += 1


def _argument(call: str, match: re.Match[str]) -> int | bytes:
    if match["text"] is not None:
        return _unescape(match["text"][1:-1]).encode() + b"\0"
    if match["character"] is not None:
        return ord(_unescape(match["character"][1:-1]))
    try:
        number = int(match["number"], 0)
    except ValueError:
        raise OptionError(
            f'--call {call!r}: {match["number"]!r} is neither a number nor a "text"'
        ) from None
    if not -(1 << 63) <= number < 1 << 64:
        raise OptionError(f"--call {call!r}: {match['number']} does not fit in 64 bits")
    return number


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text, flags=re.DOTALL)


def parse_size(option: str, text: str) -> int:
    """Bytes of ``65536``, ``64K``, ``16M`` or ``1G``.

    :raises OptionError: it is none of these.
    """
    found = _SIZE.match(text.strip())
    if found is None or len(found[1]) > 20:
        raise OptionError(f"{option} {text}: a size is needed, as 65536, 64K or 16M")
    return int(found[1], 0) << _UNITS[found[2].lower()]


@dataclass(frozen=True, slots=True)
class Start:
    """What the loader and the runtime are to do; sizes in bytes.

    ``ram`` is free memory behind the image, ``secondary`` None: the other vCPUs are not started.
    """

    entry: int
    arguments: tuple[int | bytes, ...]
    secondary: int | None
    init_array: tuple[int, int]
    ram: int
    stack: int


def plan_start(
    image: ElfImage,
    *,
    entry: str | None = None,
    call: str | None = None,
    secondary: str | None = None,
    ram: int | None = None,
    stack: int | None = None,
) -> Start:
    """Work it out from the options of the same names.

    :raises OptionError: an option names what is not there, or is out of range.
    """
    _require_range("--ram", ram, 0, MAX_RAM)
    _require_range("--stack", stack, _MIN_STACK, _MAX_STACK)
    if entry is not None and call is not None:
        raise OptionError("--entry and --call: both say where to start; give one")
    arguments: tuple[int | bytes, ...] = ()
    if call is not None:
        parsed = FunctionCall.parse(call)
        address, arguments = _text_address(image, "--call", parsed.symbol), parsed.arguments
    elif entry is not None:
        address = _text_address(image, "--entry", entry)
    elif image.file_entry is None:
        raise OptionError(
            f"{image.name} has no entry: say where to start with --entry SYMBOL or --call "
            "'SYMBOL(...)'"
        )
    else:
        address = image.file_entry
    own = address == image.file_entry and image.has_own_init
    return Start(
        address,
        arguments,
        _secondary(image, secondary),
        (0, 0) if own else image.init_array,
        DEFAULT_RAM if ram is None else ram,
        DEFAULT_STACK if stack is None else stack,
    )


def _require_range(option: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise OptionError(f"{option} {value}: {low} to {high} bytes allowed")


def _secondary(image: ElfImage, symbol: str | None) -> int | None:
    if symbol is not None:
        return _text_address(image, "--secondary", symbol)
    found = image.symbols.get(SECONDARY_START)
    return found.address if found else None


def _text_address(image: ElfImage, option: str, name: str) -> int:
    """Of a symbol in text, or a number."""
    found = image.named(name)
    if len(found) > 1:
        places = (f"{f.address:#x} {image.source_line(f.address)}".strip() for f in found)
        raise OptionError(
            f"{option}: {image.name} has {len(found)} functions called {name}; give the address of "
            f"one: {', '.join(places)}"
        )
    if found:
        address = found[0].address
    else:
        try:
            address = int(name, 0)
        except ValueError:
            raise OptionError(
                f"{option}: {image.name} has no function {name}{_hint(name)}"
            ) from None
    if not any(part <= address < part + len(data) for part, data in image.text):
        raise OptionError(f"{option}: {name} is not in {image.name}'s text")
    return address


def _hint(name: str) -> str:
    """For names that C++ and Rust mangle."""
    return " (its mangled name does, which `inspect` shows)" if set(name) & set(":<") else ""
