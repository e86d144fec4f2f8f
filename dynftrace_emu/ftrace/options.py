"""What a run is asked to be, and whether that is possible."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from dynftrace_emu.errors import OptionError
from dynftrace_emu.ftrace.encodings import DISABLED
from dynftrace_emu.kernel.mini_kernel import VARIANTS, is_builtin
from dynftrace_emu.machine.engine import Park
from dynftrace_emu.machine.machine import MAX_VCPUS

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DEFAULT_SECONDS", "DISCOVER", "EngineName", "RunOptions"]

DEFAULT_SECONDS = 5.0
DISCOVER = ("auto", "runtime", "table", "scan")
_MAX_BOOT_RECORDS = 1_000_000


class EngineName(Enum):
    """The two engines."""

    THREADED = "threaded"
    DETERMINISTIC = "deterministic"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of ``dynftrace-emu run``, by the same names. Times are in seconds.

    ``engine`` None: threaded where the image has safepoints, else deterministic. ``seconds`` None:
    no limit. ``workload`` None: ``default``, if the image has workloads. ``boot_records`` None: a
    page of them, or room for all call sites of ``synthetic:N``. ``discover`` None or
    ``auto``: ``table`` where the image has one, ``scan`` where ``set`` chooses functions before any
    has run or ``knows_all`` asks for it, else ``runtime``. ``set`` and ``at`` are writes to control
    files (:mod:`.tracefs.commands`), ``show`` names files. ``entry``, ``call``, ``secondary``,
    ``ram`` and ``stack`` are for ELF images (:mod:`.kernel.start`).
    """

    image: str = "mini-kernel"
    variant: str = "dynamic"
    workload: str | None = None
    engine: EngineName | None = None
    seed: int = 0
    vcpus: int = 2
    seconds: float | None = DEFAULT_SECONDS
    iterations: int | None = None
    period: float = 1.0
    boot_records: int | None = None
    site: str = "jmp"
    tracing: tuple[float, float | None] | None = None
    nmi_rate: float = 0.0
    park: Park | None = None
    virtual_hz: int | None = None
    discover: str | None = None
    knows_all: bool = False
    entry: str | None = None
    call: str | None = None
    secondary: str | None = None
    ram: int | None = None
    stack: int | None = None
    set: tuple[str, ...] = ()
    at: tuple[str, ...] = ()
    show: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        :raises OptionError: saying what is wrong and what is allowed.
        """
        self._check_types()
        self._check_names()
        self._check_numbers()
        self._check_tracing()
        if self.engine is EngineName.THREADED:
            self._check_threaded()

    def _check_types(self) -> None:
        """Options may come from a file that somebody wrote."""
        for names, allowed, what in _TYPES:
            for name in names:
                value = getattr(self, name)
                right = isinstance(value, allowed) and not isinstance(value, bool)
                _require(right, f"{name} must be {what}, not {value!r}")
        _require("\0" not in self.image, "the image's name holds a NUL")
        for text in (*self.set, *self.at, *self.show):
            _require(isinstance(text, str), f"set, at and show are lists of texts, not {text!r}")

    def _check_names(self) -> None:
        _one_of("--variant", self.variant, VARIANTS)
        _one_of("--site", self.site, DISABLED)
        if self.discover is not None:
            _one_of("--discover", self.discover, DISCOVER)

    def _check_numbers(self) -> None:
        _require(1 <= self.vcpus <= MAX_VCPUS, f"--vcpus {self.vcpus}: 1 to {MAX_VCPUS} allowed")
        _require(_is_positive(self.period), f"--period {self.period:g}: more than 0 seconds needed")
        _require(
            self.seconds is None or _is_positive(self.seconds),
            f"--seconds {self.seconds}: more than 0 needed",
        )
        _require(
            self.iterations is None or self.iterations > 0,
            f"--iterations {self.iterations}: 1 or more needed",
        )
        _require(
            self.boot_records is None or 0 <= self.boot_records <= _MAX_BOOT_RECORDS,
            f"--boot-records {self.boot_records}: 0 to {_MAX_BOOT_RECORDS} allowed",
        )
        _require(
            0 <= self.nmi_rate <= 100_000, f"--nmi-rate {self.nmi_rate:g}: 0 to 100000 Hz allowed"
        )
        _require(
            self.virtual_hz is None or 10_000 <= self.virtual_hz <= 1 << 40,
            f"--virtual-hz {self.virtual_hz}: 10000 to 2^40 instructions a second allowed",
        )

    def _check_tracing(self) -> None:
        if self.tracing is None:
            return
        begin, end = self.tracing
        _require(
            begin >= 0 and math.isfinite(begin), f"--tracing {begin:g}: FROM must be 0 or more"
        )
        if end is not None:
            _require(
                begin < end < math.inf, f"--tracing {begin:g}:{end:g}: FROM must be before UNTIL"
            )
        if self.variant == "none":
            raise OptionError("--tracing: the variant none has no calls to trace")

    def _check_threaded(self) -> None:
        for name, value in (("--park", self.park), ("--virtual-hz", self.virtual_hz)):
            if value is not None:
                raise OptionError(f"{name} needs --engine deterministic")
        if self.workload == "shared":
            raise OptionError(
                "--workload shared uses spinlocks, and LOCK-prefixed instructions are not atomic "
                "between vCPUs of the threaded engine: use --engine deterministic"
            )

    @property
    def is_builtin(self) -> bool:
        """Whether the image is one of ours."""
        return is_builtin(self.image)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file; :meth:`from_json` reads them back."""
        plain = asdict(self)
        plain["engine"] = self.engine.value if self.engine else None
        plain["park"] = self.park.value if self.park else None
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> RunOptions:
        """The inverse of :meth:`to_json`.

        :raises OptionError: something is missing, unknown or not allowed.
        """
        try:
            values = dict(plain)
            values["engine"] = EngineName(values["engine"]) if values.get("engine") else None
            values["park"] = Park(values["park"]) if values.get("park") else None
            if values.get("tracing"):
                begin, end = values["tracing"]
                values["tracing"] = (float(begin), None if end is None else float(end))
            for name in ("set", "at", "show"):
                values[name] = tuple(values.get(name, ()))
            return cls(**values)
        except (TypeError, ValueError, KeyError) as error:
            raise OptionError(f"the options in the file cannot be used: {error}") from None

    @property
    def chooses_functions(self) -> bool:
        """Whether ``set`` names functions, before any of them has run."""
        return any(_CHOOSES.match(text) for text in self.set)


# A non-empty value for one of the files that choose functions by name, also of an instance.
_CHOOSES = re.compile(
    r"(.*/)?(set_ftrace_(filter|notrace)|set_graph_(function|notrace)|stack_trace_filter)\+?=\s*\S"
)
_NOTHING = type(None)
_TYPES: tuple[tuple[tuple[str, ...], tuple[type, ...], str], ...] = (
    (("image", "variant", "site"), (str,), "text"),
    (("workload", "discover", "entry", "call", "secondary"), (str, _NOTHING), "text"),
    (("set", "at", "show"), (tuple,), "a list of texts"),
    (("seed", "vcpus"), (int,), "a whole number"),
    (
        ("iterations", "virtual_hz", "boot_records", "ram", "stack"),
        (int, _NOTHING),
        "a whole number",
    ),
    (("period", "nmi_rate"), (int, float), "a number"),
    (("seconds",), (int, float, _NOTHING), "a number"),
    (("tracing",), (tuple, _NOTHING), "FROM and UNTIL"),
)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise OptionError(message)


def _is_positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _one_of(option: str, value: str, names: Iterable[str]) -> None:
    _require(value in names, f"{option} {value}: choose from {', '.join(names)}")
