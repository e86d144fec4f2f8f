"""The comments a trace starts with (``s_show`` of kernel/trace/trace.c, Linux 6.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynftrace_emu.export.text_fields import TextStyle

__all__ = ["header"]

_CORRUPTED = (
    "# WARNING: FUNCTION TRACING IS CORRUPTED",
    "#          MAY BE MISSING FUNCTION EVENTS",
)

_PLAIN_COLUMNS = (
    "#           TASK-PID     CPU#     TIMESTAMP  FUNCTION",
    "#              | |         |         |         |",
)
_PLAIN_COLUMNS_TGID = (
    "#           TASK-PID       TGID    CPU#     TIMESTAMP  FUNCTION",
    "#              | |           |       |         |         |",
)

# "%s" is as wide as what the thread group takes.
_IRQ_LEGEND = (
    "#                            %s  _-----=> irqs-off/BH-disabled",
    "#                            %s / _----=> need-resched",
    "#                            %s| / _---=> hardirq/softirq",
    "#                            %s|| / _--=> preempt-depth",
    "#                            %s||| / _-=> migrate-disable",
    "#                            %s|||| /     delay",
)
_IRQ_COLUMNS = (
    ("#           TASK-PID  %s CPU#  |||||  TIMESTAMP  FUNCTION", "     TGID   "),
    ("#              | |    %s   |   |||||     |         |", "       |    "),
)

_LATENCY_LEGEND = (
    "#                    _------=> CPU#            ",
    "#                   / _-----=> irqs-off/BH-disabled",
    "#                  | / _----=> need-resched    ",
    "#                  || / _---=> hardirq/softirq ",
    "#                  ||| / _--=> preempt-depth   ",
    "#                  |||| / _-=> migrate-disable ",
    "#                  ||||| /     delay           ",
    "#  cmd     pid     |||||| time  |   caller     ",
    "#     \\   /        ||||||  \\    |    /       ",
)

# Linux has not told the function_graph tracer of the fifth flag.
_GRAPH_LEGEND = (
    "  _-----=> irqs-off        ",
    " / _----=> need-resched    ",
    "| / _---=> hardirq/softirq ",
    "|| / _--=> preempt-depth   ",
    "||| /                      ",
)
_GRAPH_COLUMNS = (
    ("funcgraph-abstime", "     TIME       ", "      |         "),
    ("funcgraph-cpu", " CPU", " |  "),
    ("funcgraph-proc", "  TASK/PID       ", "   |    |        "),
    ("latency-format", "||||   ", "||||   "),
    ("funcgraph-duration", "  DURATION   ", "   |   |      "),
)
_GRAPH_LEGEND_MARGIN = {"funcgraph-abstime": 16, "funcgraph-cpu": 4, "funcgraph-proc": 17}


def header(
    style: TextStyle,
    *,
    entries: int,
    written: int,
    cpus: int,
    corrupted: bool = False,
    release: str = "6.1.0",
) -> Iterator[str]:
    """Comments above the trace of ``entries`` events that are left of ``written`` ones.

    After a call site was not what it should be, tracing is ``corrupted``; ``release`` is what the
    kernel calls itself.
    """
    yield f"# tracer: {style.tracer}"
    yield "#"
    if corrupted:
        yield from _CORRUPTED
    if not style.on("context-info"):
        return
    if style.on("latency-format"):
        if not entries:
            return  # "print nothing if the buffers are empty"
        yield from _latency_facts(style.tracer, entries, written, cpus, release)
    if style.tracer == "function_graph":
        yield from _graph_columns(style)
    elif style.on("latency-format"):
        yield from _LATENCY_LEGEND
    else:
        yield f"# entries-in-buffer/entries-written: {entries}/{written}   #P:{cpus}"
        yield "#"
        yield from _columns(style)


def _columns(style: TextStyle) -> Iterator[str]:
    """Names of the columns (``print_func_help_header``, ``print_func_help_header_irq``)."""
    tgid = style.on("record-tgid")
    if not style.on("irq-info"):
        yield from _PLAIN_COLUMNS_TGID if tgid else _PLAIN_COLUMNS
        return
    width = 12 if tgid else 2
    for line in _IRQ_LEGEND:
        yield line % (" " * width)
    for line, name in _IRQ_COLUMNS:
        yield line % name[:width]


def _latency_facts(
    tracer: str, entries: int, written: int, cpus: int, release: str
) -> Iterator[str]:
    """What ``print_trace_header`` knows when no tracer of latencies has run."""
    rule = "#    -----------------"
    yield f"# {tracer} latency trace v1.1.5 on {release}"
    yield "# " + "-" * 68
    yield (
        f"# latency: 0 us, #{entries}/{written}, CPU#0 | "
        f"(M:preempt VP:0, KP:0, SP:0 HP:0 #P:{cpus})"
    )
    yield rule
    yield "#    | task: -0 (uid:0 nice:0 policy:0 rt_prio:0)"
    yield rule
    yield "#"


def _graph_columns(style: TextStyle) -> Iterator[str]:
    """``__print_graph_headers_flags`` of kernel/trace/trace_functions_graph.c."""
    if style.on("latency-format"):
        margin = sum(width for name, width in _GRAPH_LEGEND_MARGIN.items() if style.on(name))
        for line in _GRAPH_LEGEND:
            yield f"#{' ' * margin}{line}"
    shown = [(name, art) for option, name, art in _GRAPH_COLUMNS if style.on(option)]
    yield f"#{''.join(name for name, _ in shown)}               FUNCTION CALLS"
    yield f"#{''.join(art for _, art in shown)}               |   |   |   |"
