"""``dynftrace-emu report``."""

from __future__ import annotations

import json
import os
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynftrace_emu.cli.options import json_option
from dynftrace_emu.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.export.call_tree import CallNode, CallTree
    from dynftrace_emu.export.trace_source import TraceSource
    from dynftrace_emu.kernel.image import KernelImage

__all__ = ["report"]

SCHEMA = 1
_LINES_AT_ONCE = 1 << 12
_FLAME_LINES = 60


@click.command(
    epilog="\b\nExamples:\n  dynftrace-emu report trace.dat\n"
    "  dynftrace-emu report --stat trace.dat\n"
    "  dynftrace-emu report --lines --image fw.elf trace.dat"
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--stat", "what", flag_value="stat", help="A table: calls, total, self, min, max.")
@click.option("--graph", "what", flag_value="graph", help="All calls merged into one tree.")
@click.option("--flame", "what", flag_value="flame", help="The same as bars, the widest first.")
@click.option("--lines", "show_lines", is_flag=True, help="With file:line of functions and calls.")
@click.option(
    "--image",
    metavar="IMAGE",
    help="What was traced, for --lines. [default: what a trace.dat says]",
)
@click.option("--no-demangle", is_flag=True, help="Names of C++ and Rust as the linker has them.")
@json_option("Print one JSON document.")
def report(
    file: Path,
    what: str | None,
    show_lines: bool,
    image: str | None,
    no_demangle: bool,
    as_json: bool,
) -> None:
    """Show the trace in FILE: a trace.dat, or JSON that convert wrote.

    Without an option it is text, as the control file trace shows it.
    """
    from dynftrace_emu.cli.report_lines import image_of
    from dynftrace_emu.cli.warnings import warn_of_debug_info
    from dynftrace_emu.export.open_trace import open_trace
    from dynftrace_emu.export.readable import ReadableTrace

    if image is not None and not show_lines:
        raise OptionError("--image is for --lines")
    source = open_trace(file)
    places = image_of(source.info, file, image) if show_lines else None
    in_names = None if what is None else places  # text and events have places of their own
    if not no_demangle or in_names is not None:
        source = ReadableTrace(source, in_names, demangled=not no_demangle)
    try:
        _show(file, source, what, places, as_json=as_json)
    finally:
        warn_of_debug_info(places)


def _show(
    file: Path, source: TraceSource, what: str | None, places: KernelImage | None, *, as_json: bool
) -> None:
    from dynftrace_emu.export.call_tree import CallTree

    if what is None:
        _print_json(_events(source, places)) if as_json else _print_text(source, places)
        return
    tree = CallTree(source)
    if tree.timed and source.info.clock == "counter":
        raise OptionError(f"{file}: its clock counts, so there are no durations to show")
    if what == "stat":
        _print_json(_stat(tree)) if as_json else _print(_stat_lines(tree))
    elif as_json:
        _print_json({"schema": SCHEMA, "timed": tree.timed, "calls": _node(tree.root)["calls_to"]})
    elif what == "graph":
        _print(_graph_lines(tree))
    else:
        _print(_flame_lines(tree))


def _print(lines: Iterator[str]) -> None:
    """Many lines at a time, and in colour where somebody can see it."""
    while part := list(islice(lines, _LINES_AT_ONCE)):
        click.echo("\n".join(part), color=_in_colour())


def _in_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))


def _print_text(source: TraceSource, places: KernelImage | None) -> None:
    from dynftrace_emu.export.text_file import text_lines

    lines = text_lines(source, places)
    _print(
        (click.style(line, dim=True) if line.startswith("#") else line for line in lines)
        if _in_colour()
        else lines
    )


def _events(source: TraceSource, places: KernelImage | None) -> dict[str, Any]:
    from dynftrace_emu.kernel.structs import EventId

    info = source.info
    names = {int(kind): kind.name.lower() for kind in EventId}
    events = []
    for batch, _ in source.batches():
        for row in batch.table.tolist():
            ts, _number, cpu, kind, flags, preempt, pid, ip, parent, depth, call, ret, _payload = (
                row
            )
            event = {
                "ts": ts, "cpu": cpu, "event": names.get(kind, str(kind)), "pid": pid,
                "comm": info.comm(pid), "flags": flags, "preempt": preempt,
            }  # fmt: skip
            if ip:
                event["function"] = info.symbols.name(ip)
                if places is not None:
                    event["source"] = places.where(ip)
            if kind == EventId.FUNCTION:
                event["parent"] = info.symbols.name(parent)
                if places is not None:
                    event["parent_source"] = places.where_return(parent)
            if kind in (EventId.GRAPH_ENTRY, EventId.GRAPH_EXIT):
                event["depth"] = depth
            if kind == EventId.GRAPH_EXIT:
                event["duration_ns"] = ret - call
            events.append(event)
    host = [{"ts": e.ts, "event": f"ftraced:{e.name}", **e.fields} for e in source.host_events]
    return {
        "schema": SCHEMA, "tracer": info.tracer, "clock": info.clock, "vcpus": info.nr_cpus,
        "events": events, "host_events": host,
    }  # fmt: skip


# --- --stat ---


def _stat(tree: CallTree) -> dict[str, Any]:
    functions = [
        {
            "name": f.name, "calls": f.calls, "total_ns": f.total_ns, "self_ns": f.self_ns,
            "min_ns": f.min_ns, "max_ns": f.max_ns,
        }
        for f in tree.functions()
    ]  # fmt: skip
    return {"schema": SCHEMA, "functions": functions}


def _stat_lines(tree: CallTree) -> Iterator[str]:
    functions = tree.functions()
    if not tree.timed:
        yield f"{'calls':>12}  function"
        for function in functions:
            yield f"{function.calls:>12,}  {function.name}"
        return
    heads = ("calls", "total us", "self us", "min us", "max us")
    yield "  ".join(f"{head:>12}" for head in heads) + "  function"
    for f in functions:
        times = (f.total_ns, f.self_ns, f.min_ns, f.max_ns)
        columns = "  ".join(f"{ns / 1000:>12,.3f}" for ns in times)
        yield f"{f.calls:>12,}  {columns}  {f.name}"


# --- --graph and --flame ---


def _children(tree: CallTree, node: CallNode) -> list[CallNode]:
    return sorted(node.children.values(), key=lambda c: (-_width(tree, c), c.name))


def _width(tree: CallTree, node: CallNode) -> int:
    """What a node and all below it come to: ns, or calls."""
    if tree.timed:
        return node.total_ns
    return node.calls + sum(_width(tree, child) for child in node.children.values())


def _graph_lines(tree: CallTree) -> Iterator[str]:
    unit = "total us" if tree.timed else ""
    yield f"{'calls':>10}  {unit:>14}  function" if unit else f"{'calls':>10}  function"
    waiting = [(0, child) for child in reversed(_children(tree, tree.root))]
    while waiting:
        depth, node = waiting.pop()
        time = f"  {node.total_ns / 1000:>14,.3f}" if tree.timed else ""
        yield f"{node.calls or '':>10}{time}  {'  ' * depth}{node.name}"
        waiting += [(depth + 1, child) for child in reversed(_children(tree, node))]


def _flame_lines(tree: CallTree) -> Iterator[str]:
    """Each line a bar as wide as its share; what is narrower than a character is left out."""
    whole = sum(_width(tree, child) for child in tree.root.children.values()) or 1
    waiting = [(0, child) for child in reversed(_children(tree, tree.root))]
    while waiting:
        depth, node = waiting.pop()
        share = _width(tree, node) / whole
        bar = "#" * max(1, round(share * _FLAME_LINES))
        if share * _FLAME_LINES < 0.5:
            continue
        yield f"{share:7.1%}  {bar:<{_FLAME_LINES}}  {'  ' * depth}{node.name}"
        waiting += [(depth + 1, child) for child in reversed(_children(tree, node))]


def _node(node: CallNode) -> dict[str, Any]:
    return {
        "name": node.name,
        "calls": node.calls,
        "total_ns": node.total_ns,
        "self_ns": node.self_ns,
        "calls_to": [_node(child) for child in node.children.values()],
    }
