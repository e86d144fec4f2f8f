"""The modes that are compared: how the same kernel does the same work, one way or another."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from dynftrace_emu.ftrace.options import EngineName, RunOptions

if TYPE_CHECKING:
    from dynftrace_emu.kernel.image import KernelImage

__all__ = ["MODES", "MODE_NAMES", "YARDSTICK", "Filter", "Hook", "Mode", "traceable"]

NEVER_S = 1e6
"""A period of the daemon in which it does not wake up."""
PASS_S = 0.02


class Filter(Enum):
    """Which functions a tracer is to see."""

    ALL = "all"
    UNRELATED = "one the workload never calls"
    TENTH = "some that have a tenth of its calls"


class Hook(Enum):
    """What people hook from Python where they have no tracer."""

    ENTRY = "a hook on each function's entry"
    MCOUNT = "one hook, on mcount"
    BLOCK = "a hook on every block, which looks the function up"
    INSTRUCTION = "a hook on every instruction"


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to run a kernel.

    :param counts: the field of ``struct pcpu`` that counts its events, if it has some.
    :param records: whether there are records for call sites.
    :param passes: whether the daemon patches them.
    """

    name: str
    what: str
    variant: str = "dynamic"
    site: str = "jmp"
    records: bool = True
    passes: bool = True
    tracer: str = ""
    filter: Filter = Filter.ALL
    hook: Hook | None = None
    counts: str | None = None

    @property
    def has_cost(self) -> bool:
        """Whether all it adds is because of its events: so it can be said what one costs."""
        return (self.counts is not None and self.filter is Filter.ALL) or self.hook is not None

    def options(self, image: str, workload: str | None, vcpus: int, sites: int) -> RunOptions:
        """For the threaded engine.

        :param sites: call sites of the image, for which there are to be records.
        """
        return RunOptions(
            image=image,
            variant=self.variant,
            workload=workload,
            engine=EngineName.THREADED,
            vcpus=vcpus,
            seconds=None,
            period=PASS_S if self.passes else NEVER_S,
            boot_records=sites if self.records else 0,
            site=self.site,
            discover="scan" if self.tracer else None,
        )


YARDSTICK = Mode("none", "built without calls", variant="none")

MODES: tuple[Mode, ...] = (
    YARDSTICK,
    Mode("static", "calls, never patched; tracer off", variant="static", counts="mcount_calls"),
    Mode("recording", "sites recorded, not patched yet", passes=False, counts="mcount_calls"),
    Mode("patched-jmp", "sites are jumps"),
    Mode("patched-nop", "sites are nops", site="nop"),
    Mode("function", "function tracer, all sites", tracer="function", counts="traced_calls"),
    Mode("graph", "function_graph, all sites", tracer="function_graph", counts="traced_calls"),
    Mode(
        "function-one",
        "function tracer, one function that is not called",
        tracer="function",
        filter=Filter.UNRELATED,
    ),
    Mode(
        "function-tenth",
        "function tracer, 10 % of the calls",
        tracer="function",
        filter=Filter.TENTH,
        counts="traced_calls",
    ),
    Mode("hook-entry", "Python hook on each function's entry", variant="none", hook=Hook.ENTRY),
    Mode("hook-mcount", "Python hook on mcount", variant="static", hook=Hook.MCOUNT),
    Mode("hook-block", "Python hook on every block", variant="none", hook=Hook.BLOCK),
    Mode(
        "hook-instruction",
        "Python hook on every instruction",
        variant="none",
        hook=Hook.INSTRUCTION,
    ),
)
MODE_NAMES = tuple(mode.name for mode in MODES)


def traceable(image: KernelImage) -> list[str]:
    """The functions of an image that have a call site, by address."""
    functions = (image.function_at(site) for site in image.call_sites.tolist())
    return [function.name for function in functions if function is not None]
