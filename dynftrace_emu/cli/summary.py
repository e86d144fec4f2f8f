"""A run in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynftrace_emu.kernel.mini_kernel import workloads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.ftrace.run import Run

__all__ = ["summary", "value_text"]

_ENDS = {
    "shutdown": "It ended the machine through the exit port.",
    "idle": "It ended: every vCPU halted, and nothing will ever wake one.",
    "time": "The time was up before it came to an end.",
}


def summary(run: Run, result: dict[str, Any]) -> Iterator[str]:
    """What ``result`` (the JSON document of ``run``) says, for people, line by line."""
    yield ""
    yield (
        f"{result['functions']} functions, {result['call_sites']} with a call to mcount, "
        f"{result['notrace']} notrace."
    )
    if run.dynamic is not None:
        yield from _sites(result)
        yield _equilibrium(result)
        yield from _speed(run)
        yield _stops(result)
    yield from _tracing(result)
    if run.image.elf is not None:
        yield from _end_of_image(result)
    if not workloads(run.image):
        return
    work = result["workload"]
    for cpu, (count, checksum) in enumerate(zip(work["iterations"], work["checksum"], strict=True)):
        yield f"vCPU {cpu}: {count:,} iterations, checksum {checksum}"


def _end_of_image(result: dict[str, Any]) -> Iterator[str]:
    """How an ELF image came to its end, and what it returned."""
    what = result["call"] or "The entry"
    if result["returned"] is not None:
        sign = " =" if result["call"] else " returned"
        yield f"{what}{sign} {value_text(int(result['returned'], 16))}"
    elif result["call"]:
        yield f"{what} did not return."
    if result["ended"] in _ENDS:
        yield _ENDS[result["ended"]]


def value_text(value: int) -> str:
    """A 64-bit return value: hexadecimal, and what else it may mean."""
    texts = [f"{value:#x}"]
    if value >> 63:
        texts.append(f"{value - (1 << 64)}")
    elif value >> 31 == 1:
        texts.append(f"{value - (1 << 32)} as an int")
    return f"{value} ({', '.join(texts)})"


def _sites(result: dict[str, Any]) -> Iterator[str]:
    sites, records = result["sites"], result["records"]
    kind = result["site"]
    yield (
        f"{records['used']} call sites were recorded; at the end {sites[kind]} are a {kind}, "
        f"{sites['call']} a call ({sites['never_recorded']} never recorded), "
        f"{records['failed']} failed."
    )
    skipped = records["skipped"]
    reasons = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in skipped.items())
    yield (
        f"{records['pages']} record pages, {records['used']} of {records['capacity']} slots used; "
        f"skipped calls: {reasons}."
    )


def _equilibrium(result: dict[str, Any]) -> str:
    settled = result["equilibrium_s"]
    if settled is None:
        return "It has not settled: the last tick still found something (or there was none)."
    return f"It settled at {settled:.2f} s: from then on nothing was left to patch."


def _speed(run: Run) -> Iterator[str]:
    """How the rate after settling compares with that before the first patch."""
    ticks = run.daemon.ticks
    if len(ticks) < 2 or not ticks[0].found or ticks[-1].found:
        return
    if any(event.enabled for event in run.switches):
        return  # tracing was on in between: the comparison would be of something else
    first = ticks[0].iterations / ticks[0].t
    last = ticks[-1].iterations / (ticks[-1].t - ticks[-2].t)
    if first > 0:
        yield (
            f"{last / first:.2f} times as fast as before the first patch: "
            f"{first:,.0f} iterations/s then, {last:,.0f} at the end."
        )


def _stops(result: dict[str, Any]) -> str:
    stops = result["stops"]
    if not stops["count"]:
        return "The machine was never stopped."
    times = f"{stops['count']} time{'s' if stops['count'] > 1 else ''}"
    if result["engine"] == "deterministic":
        return f"The machine was stopped {times} (a stop takes no virtual time)."
    return (
        f"The machine was stopped {times}: "
        f"median pause {stops['median_us']:,.0f} us, worst {stops['worst_us']:,.0f} us."
    )


def _tracing(result: dict[str, Any]) -> Iterator[str]:
    for event in result["tracing"]:
        state = "on" if event["enabled"] else "off"
        yield f"Tracing went {state} at {event['t']:.2f} s: {event['sites']} sites changed."
    if result["tracing"]:
        yield f"{result['traced_calls']:,} calls were traced."
    if result["nmis"]:
        yield f"{result['nmis']:,} NMIs were delivered."
