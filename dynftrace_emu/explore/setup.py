"""What is explored, as a value, and the machine that is made of it.

A :class:`Setup` names everything by symbols and words; :func:`build` makes a
:class:`~.world.World` of it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dynftrace_emu.errors import OptionError
from dynftrace_emu.explore.findings import Found
from dynftrace_emu.explore.foreign import Foreign, function_symbol, site_symbol
from dynftrace_emu.explore.guest_code import POKER, GuestCode, compile_guest
from dynftrace_emu.explore.lab import Lab, LabImage, Registers, TaskSpec
from dynftrace_emu.explore.model import Bounds, Model
from dynftrace_emu.explore.poke import Poke, word
from dynftrace_emu.explore.program import Program
from dynftrace_emu.explore.protocols import none
from dynftrace_emu.explore.text import Spot
from dynftrace_emu.explore.watch import Ops, Site, Watch
from dynftrace_emu.explore.world import World
from dynftrace_emu.ftrace.encodings import CALL, JMP, NOP
from dynftrace_emu.ftrace.protocols import TextChange
from dynftrace_emu.kernel.elf.start import FunctionCall
from dynftrace_emu.machine.vcpu import Reg

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from dynftrace_emu.explore.steps import Protocol, Step
    from dynftrace_emu.kernel.image import KernelImage

__all__ = [
    "OpsSpec",
    "Setup",
    "SiteSpec",
    "build",
    "change_of",
    "encode",
    "equip",
    "reference",
    "small_default",
    "with_guest",
    "with_image",
]

# What firmware/explore/lab.S has room for, beside the patcher's.
MAX_TASKS, MAX_CPUS, MAX_SITES = 8, 8, 4
MAX_PAD, MAX_ROUNDS = 1 << 16, 1000
_LONGEST = 100_000
"""Steps of a task that runs alone; what is longer is not for exploring."""
_SHOWN = 8
_FIXED = {
    "nops": bytes([0x90] * 5),  # five instructions
    "nop3+2": bytes([0x66, 0x66, 0x90, 0x66, 0x90]),  # two (K8_NOP3, K8_NOP2)
}


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """A site and what it reads before and after.

    That is ``call:SYMBOL``, ``jmp``, ``jmp:SYMBOL``, ``nop``, ``nops`` (five of one byte),
    ``nop3+2`` (two instructions), or ten hex digits. A site that reads the same before and after is
    watched, and left alone.

    :param traced: a function's, whose calls tracers want; else it is some code that is patched.
    """

    symbol: str = "site_work"
    old: str = "call:ftrace_caller"
    new: str = "jmp"
    traced: bool = True


@dataclass(frozen=True, slots=True)
class OpsSpec:
    """A tracer: its function, its argument, the sites it wants before and after."""

    name: str = "tracer_a"
    argument: int = 1
    before: tuple[str, ...] = ("site_work",)
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setup:
    """Everything that determines what an exploration can meet.

    :param protocol: a built-in one's name.
    :param pad: bytes in front of ``work``, which begins a page otherwise; its site is 4 bytes in.
    :param words: guest variables set at first: a number, or a symbol whose address it is.
    :param nmi_rule: nothing may be traced in an NMI (S12).
    :param foreign: an ELF image that the tasks' functions and the sites are in.
    :param guest: guest code whose ``poker`` is the patcher; then ``protocol`` is ``none``.
    :param offline: CPUs that come online some time later.
    """

    name: str = "site"
    protocol: str = "stop_machine"
    defines: tuple[str, ...] = ()
    pad: int = 0
    tasks: tuple[TaskSpec, ...] = (TaskSpec(0), TaskSpec(1))
    sites: tuple[SiteSpec, ...] = (SiteSpec(),)
    ops: tuple[OpsSpec, ...] = (OpsSpec(),)
    words: tuple[tuple[str, int | str], ...] = ()
    model: Model = field(default_factory=Model)
    bounds: Bounds = field(default_factory=Bounds)
    nmi_rule: bool = True
    guest: GuestCode | None = None
    foreign: Foreign | None = None
    offline: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check("tasks", len(self.tasks), 0, MAX_TASKS)
        _check("sites", len(self.sites), 1, MAX_SITES)
        _check("pad", self.pad, 0, MAX_PAD)
        for task in self.tasks:
            _check("a task's cpu", task.cpu, 0, MAX_CPUS - 1)
            _check("a task's rounds", task.rounds, 1, MAX_ROUNDS)
            _check("a task's functions", len(task.functions), 1, 2)

    @property
    def image(self) -> KernelImage:
        """The guest.

        :raises ImageError: it cannot be made.
        """
        return LabImage(self.defines, self.pad, self.guest, self.foreign).image

    @property
    def nr_cpus(self) -> int:
        """Of the tasks; the patcher has one more."""
        return max((task.cpu for task in self.tasks), default=-1) + 1


def _check(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise OptionError(f"{what}: {value} is not from {least} to {most}")


def small_default() -> Setup:
    """What is explored where nothing else is said: a call becomes a nop, so every byte changes."""
    return Setup(sites=(SiteSpec(new="nop"),))


def encode(text: str, address: int, image: KernelImage) -> bytes:
    """The five bytes that a :class:`SiteSpec` calls ``text``, at ``address``.

    :raises OptionError: it is no encoding.
    """
    site = np.array([address], dtype=np.uint64)
    kind, _, symbol = text.partition(":")
    if kind == "call" and symbol:
        return bytes(CALL.rows(site, image.address(symbol))[0])
    if kind == "jmp" and symbol:
        return b"\xe9" + CALL.rows(site, image.address(symbol))[0, 1:].tobytes()
    if text == "jmp":
        # The three bytes behind it are those of the call it stands for.
        return bytes(JMP.rows(site, image.address("ftrace_caller"))[0])
    if text == "nop":
        return bytes(NOP.rows(site, 0)[0])
    if text in _FIXED:
        return _FIXED[text]
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != 5:
        raise OptionError(
            f"{text!r} is no encoding of a site: call:SYMBOL, jmp, jmp:SYMBOL, nop, nops, nop3+2 "
            "or ten hex digits are"
        )
    return found


def build(setup: Setup, protocol: Protocol) -> World:
    """Make the machine, with the reference results of a run that is never patched.

    :raises OptionError: the setup does not fit together.
    """
    world = _assemble(setup, protocol)
    world.results = _results(reference(setup))
    return world


def reference(setup: Setup) -> World:
    """The machine, in which nothing is ever patched.

    :raises OptionError: the setup does not fit together.
    """
    return _assemble(_never_patched(setup), none, never=True)


def with_guest(setup: Setup, path: Path) -> Setup:
    """The setup with the guest code of a file as the patcher, linked against its lab.

    :raises DynftraceError: as :func:`~.guest_code.compile_guest`.
    """
    lab = LabImage((*setup.defines, "LAB_GUEST"), setup.pad, foreign=setup.foreign).image
    return dataclasses.replace(setup, protocol="none", guest=compile_guest(path, lab))


def with_image(name: str, data: bytes, call: str | None) -> Setup:
    """The small default with a function of an ELF image, and its site, in place of ``work``.

    :param call: ``FUNCTION(1, 0x20, "text")``, as ``run --call`` takes it.
    :raises DynftraceError: the image cannot be used, or has no such function with a call site.
    """
    foreign = Foreign(name, data)
    if call is None:
        raise OptionError(
            f"{name}: say what to call, as in --call 'FUNCTION(1, \"text\")'; "
            f"functions with call sites are {_some(foreign.traced())}"
        )
    parsed = FunctionCall.parse(call)
    foreign.site_of(parsed.symbol)
    arguments = tuple(
        a if isinstance(a, int) else a.removesuffix(b"\0").decode("latin-1")
        for a in parsed.arguments
    )
    function, site = function_symbol(parsed.symbol), site_symbol(parsed.symbol)
    return Setup(
        name=parsed.symbol,
        tasks=tuple(TaskSpec(cpu, (function,), 1, arguments) for cpu in range(2)),
        sites=(SiteSpec(site, new="nop"),),
        ops=(OpsSpec(before=(site,)),),
        foreign=foreign,
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "there are none"
    return f"{shown}, and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _never_patched(setup: Setup) -> Setup:
    return dataclasses.replace(
        setup,
        sites=tuple(dataclasses.replace(site, new=site.old) for site in setup.sites),
        ops=tuple(dataclasses.replace(op, after=op.before) for op in setup.ops),
    )


def _assemble(setup: Setup, protocol: Protocol, *, never: bool = False) -> World:
    image = setup.image
    poker = POKER if setup.guest is not None and not never else None
    lab = Lab(image, setup.nr_cpus + 1, setup.tasks, poker)
    for symbol, value in setup.words:
        number = image.address(value) if isinstance(value, str) else value
        if not lab.start <= image.address(symbol) <= lab.end - 8:
            raise OptionError(f"{symbol} is no variable of the guest")
        lab.write_data(image.address(symbol), word(number))
    sites = [_site(spec, image) for spec in setup.sites]
    spots = [Spot(site.address, 5, lab.physical(site.address, 5)) for site in sites]
    ops = [_ops(spec, image) for spec in setup.ops]
    watch = Watch(image, spots, sites, ops, nmi_rule=setup.nmi_rule)
    if poker:
        _write_changes(lab, Poke(image), change_of(watch))
    program = _program(lab, watch, setup, protocol)
    watch.int3 = program.stores_int3 or poker is not None
    return World(
        lab, program, watch, setup.model,
        placed=[task.cpu for task in setup.tasks],
        nmis=setup.bounds.nmis, timers=setup.bounds.timers, poker=poker is not None,
        offline=setup.offline,
    )  # fmt: skip


def equip(world: World, setup: Setup, protocol: Protocol) -> None:
    """Give a machine the protocol and the model of ``setup``, which is its own otherwise.

    :raises ProtocolError: the protocol does not run.
    """
    world.program, world.model = _program(world.lab, world.watch, setup, protocol), setup.model
    world.watch.int3 = world.program.stores_int3


def change_of(watch: Watch) -> TextChange:
    """What a protocol is asked for: the sites that read something else afterwards."""
    sites = [site for site in watch.sites if site.old != site.new]

    def rows(codes: list[bytes]) -> NDArray[np.uint8]:
        return np.frombuffer(b"".join(codes), dtype=np.uint8).reshape(-1, 5)

    addresses = np.array([site.address for site in sites], dtype=np.uint64)
    return TextChange(addresses, rows([s.old for s in sites]), rows([s.new for s in sites]))


def _program(lab: Lab, watch: Watch, setup: Setup, protocol: Protocol) -> Program:
    change, poke = change_of(watch), Poke(lab.image)
    for array in (change.sites, change.old, change.new):
        array.flags.writeable = False  # a protocol is run again and again

    def make() -> Iterator[Step]:
        return protocol(change, poke)

    data = lab.start, lab.end
    return Program(setup.protocol, make, watch.spots, setup.model.chunk, data, setup.nr_cpus + 1)


def _write_changes(lab: Lab, poke: Poke, change: TextChange) -> None:
    """What the poker is asked for: ``struct poke_change`` of ``firmware/explore/lab.h``."""
    address = lab.image.address("lab_changes")
    for site, old, new in zip(change.sites.tolist(), change.old, change.new, strict=True):
        kind, target = poke.meaning(site, new.tobytes())
        entry = [word(site), bytes(old).ljust(8, b"\0"), bytes(new).ljust(8, b"\0"), word(kind)]
        entry.append(word(target))
        lab.write_data(address, b"".join(entry))
        address += sum(map(len, entry))
    lab.write_data(lab.image.address("lab_nr_changes"), word(len(change.sites)))


def _site(spec: SiteSpec, image: KernelImage) -> Site:
    address = image.address(spec.symbol)
    begin, end = image.text_range
    if not begin <= address <= end - 5:
        raise OptionError(f"site {spec.symbol} is not in the guest's text")
    old, new = (encode(text, address, image) for text in (spec.old, spec.new))
    return Site(address, old, new, spec.traced)


def _ops(spec: OpsSpec, image: KernelImage) -> Ops:
    def addresses(symbols: tuple[str, ...]) -> frozenset[int]:
        return frozenset(map(image.address, symbols))

    return Ops(spec.name, spec.name, spec.argument, addresses(spec.before), addresses(spec.after))


def _results(world: World) -> list[int]:
    """RBX of each task at its end; they run one after the other, nothing else happens."""
    for number in range(world.idle):
        try:
            _run_to_end(world, number)
        except Found as found:
            raise OptionError(
                f"task {number} fails when nothing is patched: {found.finding.what}"
            ) from None
    return [Registers.get(task.registers, Reg.RBX) for task in world.tasks[: world.idle]]


def _run_to_end(world: World, number: int) -> None:
    for _ in range(_LONGEST):
        if world.tasks[number].done:
            return
        world.run_alone(number)
    raise OptionError(f"task {number} does not end within {_LONGEST} steps when it runs alone")
