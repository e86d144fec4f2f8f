"""What is to be measured: decided before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dynftrace_emu.bench.modes import MODES, YARDSTICK, Mode
from dynftrace_emu.bench.program import KIND as PROGRAM
from dynftrace_emu.bench.program import PROGRAM_MODES, PROGRAM_YARDSTICK
from dynftrace_emu.errors import OptionError
from dynftrace_emu.kernel import mini_kernel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from dynftrace_emu.bench.lab import Lab

__all__ = ["KINDS", "WORKLOADS", "Plan", "make_plan"]

KINDS = {
    "modes": "how fast the same work is done in each mode, against a build without calls",
    "instructions": "how many instructions it takes, exactly",
    "patching": "recording, patching and switching of 100 to 50,000 sites",
    "vcpus": "throughput and pauses with 1 to 8 vCPUs",
    "record": "what recording costs a call: hit, miss, skipped",
}
"""The measurements, in the order they are made, and what each says."""

WORKLOADS = {
    "default": "a kernel's day: files, a pipe, drivers, sorting, hashing",
    "leaf": "tiny functions called in a loop: the worst case",
    "compute": "a loop that rarely calls",
}
SIZES = (100, 1_000, 10_000, 50_000)
VCPUS = (1, 2, 4, 8)
_MAX_ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the bench.

    :param rounds: of modes, vCPUs and recording.
    :param sizes: of ``patching``: functions, and how many rounds of each.
    :param chosen: what it was restricted to: the names given to ``only``, ``modes``, ``workloads``.
    """

    image: str
    kinds: tuple[str, ...]
    modes: tuple[Mode, ...]
    workloads: tuple[str, ...]
    quick: bool
    rounds: int
    sizes: tuple[tuple[int, int], ...]
    vcpus: tuple[int, ...]
    warm_up_s: float
    window_s: float
    chosen: dict[str, list[str]] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """For the document."""
        return {**asdict(self), "modes": [mode.name for mode in self.modes]}


def make_plan(
    lab: Lab,
    image: str,
    *,
    quick: bool = False,
    only: Collection[str] = (),
    modes: Collection[str] = (),
    workloads: Sequence[str] = (),
    rounds: int | None = None,
) -> Plan:
    """Choose what to measure; what is not chosen is measured as far as the image has it.

    :raises OptionError: something is asked for that is not there.
    :raises ImageError: there is no such image.
    """
    if lab.image(image, YARDSTICK.variant).elf is not None:
        return _plan_program(image, only, modes, workloads, rounds)
    if rounds is not None and not 1 <= rounds <= _MAX_ROUNDS:
        raise OptionError(f"--rounds {rounds}: 1 to {_MAX_ROUNDS} allowed")
    kinds = _chosen("--only", only, KINDS)
    _check_used(kinds, modes, workloads)
    chosen = set(_chosen("--mode", modes, [mode.name for mode in MODES])) | {YARDSTICK.name}
    default_rounds = 2 if quick else 11
    return Plan(
        image=image,
        kinds=kinds,
        modes=tuple(mode for mode in MODES if mode.name in chosen),
        workloads=_workloads(lab, image, workloads) if _runs_image(kinds) else (),
        quick=quick,
        rounds=rounds or default_rounds,
        sizes=tuple((size, rounds or _size_rounds(size, quick)) for size in _sizes(quick)),
        vcpus=VCPUS[:2] if quick else VCPUS,
        warm_up_s=0.08 if quick else 0.12,
        window_s=0.12 if quick else 0.2,
        chosen=_restrictions(only, modes, workloads),
    )


def _plan_program(
    image: str,
    only: Collection[str],
    modes: Collection[str],
    workloads: Sequence[str],
    rounds: int | None,
) -> Plan:
    """An ELF image is run from its start to its end, once a mode: figures without noise."""
    for option, is_given in (("only", only), ("workload", workloads), ("rounds", rounds)):
        if is_given:
            raise OptionError(f"--{option} is for our kernels; {image} is an ELF image")
    names = _chosen("--mode", modes, [mode.name for mode in PROGRAM_MODES])
    chosen = {*names, PROGRAM_YARDSTICK.name}
    return Plan(
        image=image,
        kinds=(PROGRAM,),
        modes=tuple(mode for mode in PROGRAM_MODES if mode.name in chosen),
        workloads=(),
        quick=False,
        rounds=1,
        sizes=(),
        vcpus=(1,),
        warm_up_s=0.0,
        window_s=0.0,
        chosen=_restrictions(only, modes, workloads),
    )


def _restrictions(*names: Collection[str]) -> dict[str, list[str]]:
    return {
        option: sorted(given)
        for option, given in zip(("only", "modes", "workloads"), names, strict=True)
        if given
    }


def _check_used(kinds: Sequence[str], modes: Collection[str], workloads: Collection[str]) -> None:
    """:raises OptionError: a name is given that none of the measurements uses."""
    only = f"is not used by --only {', '.join(kinds)}"
    hooks = {mode.name for mode in MODES if mode.hook is not None}
    for mode in modes:
        if not {"modes", "instructions"} & set(kinds) or (mode in hooks and "modes" not in kinds):
            raise OptionError(f"--mode {mode} {only}")
    if workloads and not _runs_image(kinds):
        raise OptionError(f"--workload {min(workloads)} {only}")
    if len(set(workloads)) > 1 and not {"modes", "instructions"} & set(kinds):
        raise OptionError("--only vcpus measures one --workload")


def _runs_image(kinds: Iterable[str]) -> bool:
    return bool({"modes", "instructions", "vcpus"} & set(kinds))


def _sizes(quick: bool) -> tuple[int, ...]:
    return SIZES[:2] if quick else SIZES


def _size_rounds(size: int, quick: bool) -> int:
    if quick:
        return 2
    return 5 if size <= 10_000 else 3


def _chosen(option: str, wanted: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Those of ``known`` that are wanted, in its order; nothing wanted is all.

    :raises OptionError: one is not known.
    """
    known, wanted = tuple(known), tuple(wanted)
    for name in wanted:
        if name not in known:
            raise OptionError(f"{option} {name}: choose from {', '.join(known)}")
    return tuple(name for name in known if name in wanted) if wanted else known


def _workloads(lab: Lab, image: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """:raises OptionError: the image has none whose iterations could be counted."""
    loaded = lab.image(image, YARDSTICK.variant)
    has = [name for name in WORKLOADS if name in mini_kernel.workloads(loaded)]
    if not has:
        raise OptionError(f"{image} has no workload whose iterations can be counted")
    return _chosen("--workload", wanted, has)
