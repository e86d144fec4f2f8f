"""Makes options and an image go together: fills in what depends on the image, refuses the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ImageError, OptionError
from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.kernel.elf.image import ElfImage
from dynftrace_emu.kernel.elf.start import Start, plan_start
from dynftrace_emu.kernel.mini_kernel import workloads
from dynftrace_emu.kernel.structs import ENTRIES_PER_PAGE
from dynftrace_emu.kernel.synthetic import SYNTHETIC
from dynftrace_emu.machine.engine import Park
from dynftrace_emu.machine.native_hook import why_no_native_hooks

if TYPE_CHECKING:
    from dynftrace_emu.kernel.image import KernelImage

__all__ = ["find_start", "find_workload", "resolve", "why_not_threaded"]

DEFAULT_WORKLOAD = "default"
_ONLY_ELF = ("entry", "call", "secondary", "ram", "stack")


def resolve(options: RunOptions, image: KernelImage) -> tuple[RunOptions, str]:
    """Fill in what depends on the image; the note says what was chosen and why.

    :raises OptionError: the options do not go with the image.
    """
    _refuse_foreign_options(options, image)
    if options.tracing is not None and image.mcount is None:
        raise OptionError(f"--tracing: {image.name} has no call sites")
    if options.boot_records is None:
        options = replace(options, boot_records=_default_boot_records(image))
    options, note = _resolve_discover(options, image)
    options, engine_note = _resolve_engine(options, image)
    return options, "; ".join(filter(None, (_site_note(image), note, engine_note)))


def _refuse_foreign_options(options: RunOptions, image: KernelImage) -> None:
    """Options that only our kernels have, or only ELF images."""
    if not isinstance(image, ElfImage):
        for name in _ONLY_ELF:
            if getattr(options, name) is not None:
                raise OptionError(f"--{name}: {image.name} is no ELF image")
        return
    given = {
        "variant": options.variant != "dynamic",
        "workload": options.workload is not None,
        "iterations": options.iterations is not None,
    }
    for name, is_given in given.items():
        if is_given:
            raise OptionError(f"--{name} is for the mini-kernel; {image.name} is an ELF image")


def _site_note(image: KernelImage) -> str:
    """Why there is less to trace than a person may expect."""
    if not isinstance(image, ElfImage):
        return ""
    sites = image.sites
    if sites.ignored:
        first = sites.ignored[0]
        return (
            f"{len(sites.ignored)} of {len(sites.ignored) + len(sites.calls)} places that "
            f"{sites.table.name if sites.table else 'a table'} lists cannot be traced: "
            f"{image.symbolize(first.address)} has {first.reason}"
        )
    if not sites.calls:
        return (
            f"{image.name} has no call sites: compile it with -pg, -pg -mfentry or "
            "-fpatchable-function-entry=5"
        )
    return ""


def _default_boot_records(image: KernelImage) -> int:
    """One page; for an image that is there for its many sites, room for all of them."""
    if image.name.startswith(SYNTHETIC):
        return len(image.call_sites)
    return ENTRIES_PER_PAGE


def _resolve_discover(options: RunOptions, image: KernelImage) -> tuple[RunOptions, str]:
    wanted = None if options.discover == "auto" else options.discover
    if options.variant != "dynamic":
        if wanted is not None:
            raise OptionError("--discover: only the variant dynamic has call sites to find")
        return replace(options, discover=None), ""
    has_table = len(image.table_sites) > 0
    if wanted == "table" and not has_table:
        raise OptionError(f"--discover table: {image.name} has no table of call sites")
    if wanted is not None:
        return options, ""
    if has_table:
        return replace(options, discover="table"), ""
    if options.chooses_functions and not options.knows_all:
        note = "--set names functions before any has run: using --discover scan"
        return replace(options, discover="scan"), note
    return replace(options, discover="scan" if options.knows_all else "runtime"), ""


def _resolve_engine(options: RunOptions, image: KernelImage) -> tuple[RunOptions, str]:
    if options.engine is EngineName.DETERMINISTIC:
        return _park_anywhere(options, image), ""
    why_not = why_not_threaded(options, image)
    if options.engine is EngineName.THREADED:
        if why_not:
            raise OptionError(f"--engine threaded: {why_not}; use --engine deterministic")
        return options, ""
    if why_not:
        note = f"{why_not}: using the deterministic engine"
        return _park_anywhere(replace(options, engine=EngineName.DETERMINISTIC), image), note
    if options.park is not None or options.virtual_hz is not None or options.workload == "shared":
        raise OptionError("--park, --virtual-hz and --workload shared need --engine deterministic")
    return replace(options, engine=EngineName.THREADED), ""


def _park_anywhere(options: RunOptions, image: KernelImage) -> RunOptions:
    """An ELF image need never turn interrupts on, so that is no condition for stopping it."""
    if isinstance(image, ElfImage) and options.park is None:
        return replace(options, park=Park.ANYWHERE)
    return options


def why_not_threaded(options: RunOptions, image: KernelImage) -> str:
    """What keeps an image from running on a thread a vCPU; empty if nothing does.

    LOCK-prefixed instructions are not atomic between threads. And a stop must be exact: a vCPU
    leaves the engine at a safepoint, or, if one asks for it, wherever a native hook stops it.
    """
    if image.scan.locked and not options.is_builtin and options.vcpus > 1:
        where = image.symbolize(image.scan.locked[0])
        return (
            f"{image.name} has LOCK-prefixed instructions, which need --vcpus 1 there; the first "
            f"is at {where}"
        )
    if image.scan.safepoints and image.elf is None:
        return ""
    why = f"{image.name} polls no request word at safepoints"
    if options.engine is None:
        return why
    absent = why_no_native_hooks()
    return f"{why}, so only a native hook can stop it exactly, and {absent}" if absent else ""


def find_workload(options: RunOptions, image: KernelImage) -> int:
    """Where the workload's list is, or 0.

    :raises OptionError: the image has no such workload.
    """
    known = workloads(image)
    if options.iterations is not None and not known:
        raise OptionError(f"--iterations: {image.name} has no workload whose iterations count")
    if options.workload is None:
        return known.get(DEFAULT_WORKLOAD, 0)
    if options.workload not in known:
        choice = f"choose from {', '.join(sorted(known))}" if known else "this image has none"
        raise OptionError(f"--workload {options.workload}: {choice}")
    return known[options.workload]


def find_start(options: RunOptions, image: KernelImage) -> Start | None:
    """How an ELF image is started; None for a kernel of ours.

    :raises OptionError: an option names what is not there.
    :raises ImageError: it uses what is ours.
    """
    if not isinstance(image, ElfImage):
        return None
    if image.scan.gs_uses:
        where = image.symbolize(image.scan.gs_uses[0])
        raise ImageError(
            f"{image.name} uses GS, at {where}: the tracers keep each CPU's own state there; use FS"
        )
    return plan_start(
        image,
        entry=options.entry,
        call=options.call,
        secondary=options.secondary,
        ram=options.ram,
        stack=options.stack,
    )
