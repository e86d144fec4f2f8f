"""What must hold while a guest is patched ("What must hold, always"), judged call by call.

A call of a traced function begins where its site is fetched and ends behind the site; in between it
is told to tracers. Whom it must and may be told to follows from what the site stands for before and
after the change, and whether the protocol had ended when it was fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dynftrace_emu.explore.findings import Finding, FindingClass, Found
from dynftrace_emu.explore.lab import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynftrace_emu.explore.text import Spot
    from dynftrace_emu.kernel.image import KernelImage

__all__ = ["Call", "Ops", "Site", "Watch"]

_INT3 = 0xCC
RECORD_SIZE = 16
"""Of the lab's ``ftrace_records``: the site, and what became of it."""


@dataclass(frozen=True, slots=True)
class Ops:
    """A tracer: where it is called, with which argument, for which sites before and after."""

    name: str
    callback: str
    argument: int
    before: frozenset[int] = frozenset()
    after: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Site:
    """A site of a change: five bytes before, five after.

    :param traced: a traced function's; else it is some other code that is patched.
    """

    address: int
    old: bytes
    new: bytes
    traced: bool = True


class Call(NamedTuple):
    """A call in progress: its site, and whom it must, may and has been told to.

    ``depth``: the interrupt frames it is in; who is interrupted in it may be called by the handler.
    Names are sorted: two calls that are equal must look equal, in any process.
    """

    site: int
    depth: int
    must: tuple[str, ...]
    may: tuple[str, ...]
    told: tuple[str, ...]


@dataclass(slots=True)
class Watch:
    """The rules for one scenario.

    :param nmi_rule: nothing may be traced in an NMI (S12).
    :param int3: the protocol may show an int3 in place of a site's first byte.
    """

    image: KernelImage
    spots: Sequence[Spot]
    sites: Sequence[Site]
    ops: Sequence[Ops]
    nmi_rule: bool = True
    int3: bool = False
    _starts: dict[tuple[int, bytes], dict[int, bytes]] = field(default_factory=dict)
    _by_callback: dict[int, Ops] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_callback = {self.image.address(op.callback): op for op in self.ops}

    @property
    def callbacks(self) -> Mapping[int, Ops]:
        """The tracers, by the address they are called at."""
        return self._by_callback

    # --- text (rule 1) ---

    def check_fetch(self, cpu: int, spot: int, offset: int, seen: bytes, ended: bool) -> None:
        """A CPU executes what it sees at ``offset`` of a spot.

        :raises Found: it is no whole instruction of the old text, the new text or the int3.
        """
        site = self.sites[spot]
        if offset == 0 and self.int3 and seen[0] == _INT3:
            return
        if self._is_instruction(site.address, site.new, offset, seen):
            return
        if self._is_instruction(site.address, site.old, offset, seen):
            if ended:
                what = f"executes the old {self._text(site, seen, offset)} after the end"
                raise self._found(FindingClass.STALE_TEXT, what, cpu, site.address + offset)
            return
        kind = FindingClass.TORN_FETCH if offset == 0 else FindingClass.MID_INSTRUCTION_RESUME
        what = f"executes {seen[offset:].hex(' ')}  {self._text(site, seen, offset)}"
        raise self._found(kind, what, cpu, site.address + offset)

    def _is_instruction(self, address: int, encoding: bytes, offset: int, seen: bytes) -> bool:
        whole = self._instructions(address, encoding).get(offset)
        return whole is not None and seen[offset : offset + len(whole)] == whole

    def _instructions(self, address: int, encoding: bytes) -> dict[int, bytes]:
        """The instructions that executing ``encoding`` goes through, by their offset."""
        key = address, encoding
        found = self._starts.get(key)
        if found is None:
            found = self._starts[key] = {}
            offset = 0
            while offset < len(encoding):
                insn = decode(encoding[offset:], address + offset)
                found[offset] = encoding[offset : offset + insn.size]
                if insn.branches and not insn.text.startswith("call"):
                    break  # never comes back
                offset += insn.size
        return found

    @staticmethod
    def _text(site: Site, seen: bytes, offset: int) -> str:
        return decode(seen[offset:], site.address + offset).text

    # --- calls (rules 5 and 6) ---

    def begin(self, spot: int, depth: int, ended: bool) -> Call:
        """A site is fetched."""
        address = self.sites[spot].address
        before = {op.name for op in self.ops if address in op.before}
        after = {op.name for op in self.ops if address in op.after}
        must, may = (after, after) if ended else (before & after, before | after)
        return Call(spot, depth, tuple(sorted(must)), tuple(sorted(may)), ())

    def tell(
        self, cpu: int, calls: tuple[Call, ...], ip: int, site: int, argument: int, in_nmi: bool
    ) -> tuple[Call, ...]:
        """A tracer is called; returns the calls with that noted.

        :raises Found: it must not have been.
        """
        op = self._by_callback[ip]
        where = self.image.symbolize(site)
        if in_nmi and self.nmi_rule:
            what = f"{op.name} is told of {where} in an NMI"
            raise self._found(FindingClass.NMI_IN_FTRACE, what, cpu, ip)
        if argument != op.argument:
            what = f"{op.name} is called with argument {argument:#x}, not its own {op.argument:#x}"
            raise self._found(FindingClass.WRONG_CALLBACK, what, cpu, ip)
        if not calls or self.sites[calls[-1].site].address != site:
            what = f"{op.name} is told of {where}, which nobody is in"
            raise self._found(FindingClass.WRONG_CALLBACK, what, cpu, ip)
        call = calls[-1]
        if op.name not in call.may:
            what = f"{op.name} is told of {where}, outside its filter"
            raise self._found(FindingClass.WRONG_CALLBACK, what, cpu, ip)
        return (*calls[:-1], call._replace(told=(*call.told, op.name)))

    def end(self, cpu: int, call: Call) -> None:
        """The call's site is behind.

        :raises Found: somebody who must be told of it was not, or twice.
        """
        where = self.image.symbolize(self.sites[call.site].address)
        ip = self.sites[call.site].address + 5
        for name in sorted(set(call.must) - set(call.told)):
            what = f"{name} wants {where} before and after, and is not told"
            raise self._found(FindingClass.MISSED_CALLBACK, what, cpu, ip)
        if len(set(call.told)) != len(call.told):
            raise self._found(FindingClass.WRONG_CALLBACK, f"{where} is told twice", cpu, ip)

    # --- records ---

    def check_records(self, read_word: Callable[[int], int]) -> None:
        """At the end each site has one record at most, if the guest keeps records.

        :raises Found: one has several: a record leaks.
        """
        if "ftrace_records" not in self.image.symbols:
            return
        first = self.image.address("ftrace_records")
        count = read_word(self.image.address("ftrace_record_count"))
        sites = [read_word(first + RECORD_SIZE * n) for n in range(count)]
        for site in sites:
            if site and sites.count(site) > 1:
                where = self.image.symbolize(site)
                what = f"{sites.count(site)} records of {where}: all but one leak"
                raise self._found(FindingClass.WRONG_RESULT, what, None, site)

    def _found(self, kind: FindingClass, what: str, cpu: int | None, ip: int) -> Found:
        return Found(Finding(kind, what, cpu, ip))
