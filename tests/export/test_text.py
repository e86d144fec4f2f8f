"""The text of traces, against what Linux 6.1 prints for the same events."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynftrace_emu.export.text import DEFAULT_OPTIONS, TextStyle, TraceText, header
from dynftrace_emu.export.text_batch import Row
from dynftrace_emu.export.text_fields import find_mark, latency_flags, ns2usecs
from dynftrace_emu.ftrace.trace_events import EVENT, Events, TraceFlag
from dynftrace_emu.kernel.structs import EventId

SCHEDULE, PICK, IDLE, LEAF, RETRY = range(0xFFFF_0000, 0xFFFF_0500, 0x100)
UNKNOWN = 0xAB_C123
SYMBOLS = {
    SCHEDULE: "schedule",
    PICK: "pick_next_task",
    IDLE: "do_idle",
    LEAF: "get_jiffies",
    RETRY: "retry",
}
COMMS = {0: "<idle>", 7: "bash", 1234: "kworker/0:1"}


class FakeNames:
    """Functions of 0x100 bytes each; ``lookups`` are the addresses and pids asked for."""

    def __init__(self, *, sizes=False):
        self.comms = dict(COMMS)
        self.sizes = sizes
        self.lookups = []

    def function(self, address):
        self.lookups.append(address)
        name = SYMBOLS.get(address & ~0xFF)
        if name is None:
            return None
        offset = address & 0xFF
        return (name, offset, 0x100) if self.sizes else (name, offset)

    def comm(self, pid):
        self.lookups.append(pid)
        return self.comms.get(pid, "<...>")

    def tgid(self, pid):
        return {7: 7, 1234: 2}.get(pid)


def events(*rows):
    """A table of ``rows``, dicts with the fields that are not 0 and perhaps a payload itself."""
    table, payloads = np.zeros(len(rows), EVENT), []
    table["payload"] = -1
    for index, row in enumerate(rows):
        for name, value in row.items():
            if name == "payload":
                payloads.append(value)
                value = len(payloads) - 1
            table[name][index] = value
    return Events(table, tuple(payloads))


def call(ts, ip=SCHEDULE, parent_ip=IDLE + 0x1B, **fields):
    row = {"type": EventId.FUNCTION, "pid": 7, "ts": ts, "ip": ip, "parent_ip": parent_ip}
    return {**row, **fields}


def enter(ts, ip, depth=0, **fields):
    return {"type": EventId.GRAPH_ENTRY, "pid": 7, "ts": ts, "ip": ip, "depth": depth, **fields}


def leave(ts, ip, depth=0, took=500, **fields):
    times = {"calltime": 1000, "rettime": 1000 + took}
    row = {"type": EventId.GRAPH_EXIT, "pid": 7, "ts": ts, "ip": ip, "depth": depth}
    return {**row, **times, **fields}


def said(ts, text, **fields):
    return {"type": EventId.PRINT, "pid": 7, "ts": ts, "payload": text, **fields}


def style(tracer="function", on="", off="", **fields):
    options = (DEFAULT_OPTIONS | set(on.split())) - set(off.split())
    return TextStyle(tracer, frozenset(options), **fields)


def graph(on="", off="", **fields):
    return style("function_graph", on, off, **fields)


def text(style, *rows, lost=None, **options):
    return list(TraceText(style, FakeNames(), **options).lines(events(*rows), lost))


def lines(block):
    """Golden text: as long as its lines begin with a blank, a bar says where they do."""
    return [line.removeprefix("|") for line in dedent(block).strip("\n").split("\n")]


def test_rows_have_the_fields_of_an_event() -> None:
    assert Row._fields == EVENT.names


# The headers.


def test_header_of_the_function_tracer() -> None:
    assert list(header(style(), entries=12, written=345, cpus=4)) == lines("""
        # tracer: function
        #
        # entries-in-buffer/entries-written: 12/345   #P:4
        #
        #                                _-----=> irqs-off/BH-disabled
        #                               / _----=> need-resched
        #                              | / _---=> hardirq/softirq
        #                              || / _--=> preempt-depth
        #                              ||| / _-=> migrate-disable
        #                              |||| /     delay
        #           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
        #              | |         |   |||||     |         |
        """)


def test_header_with_thread_groups() -> None:
    assert list(header(style("nop", "record-tgid"), entries=0, written=0, cpus=1)) == lines("""
        # tracer: nop
        #
        # entries-in-buffer/entries-written: 0/0   #P:1
        #
        #                                          _-----=> irqs-off/BH-disabled
        #                                         / _----=> need-resched
        #                                        | / _---=> hardirq/softirq
        #                                        || / _--=> preempt-depth
        #                                        ||| / _-=> migrate-disable
        #                                        |||| /     delay
        #           TASK-PID       TGID    CPU#  |||||  TIMESTAMP  FUNCTION
        #              | |           |       |   |||||     |         |
        """)


@pytest.mark.parametrize(
    ("on", "columns"),
    [
        (
            "",
            """
            #           TASK-PID     CPU#     TIMESTAMP  FUNCTION
            #              | |         |         |         |
            """,
        ),
        (
            "record-tgid",
            """
            #           TASK-PID       TGID    CPU#     TIMESTAMP  FUNCTION
            #              | |           |       |         |         |
            """,
        ),
    ],
)
def test_header_without_flags(on, columns) -> None:
    assert list(header(style(on=on, off="irq-info"), entries=1, written=1, cpus=2))[4:] == lines(
        columns
    )


def test_header_without_context() -> None:
    for chosen in (style(off="context-info"), graph(off="context-info")):
        assert list(header(chosen, entries=1, written=1, cpus=2)) == [
            f"# tracer: {chosen.tracer}",
            "#",
        ]


def test_header_of_a_corrupted_trace() -> None:
    found = list(header(graph(), entries=1, written=1, cpus=2, corrupted=True))
    assert found == lines("""
        # tracer: function_graph
        #
        # WARNING: FUNCTION TRACING IS CORRUPTED
        #          MAY BE MISSING FUNCTION EVENTS
        # CPU  DURATION                  FUNCTION CALLS
        # |     |   |                     |   |   |   |
        """)


def test_header_of_latencies() -> None:
    chosen = style(on="latency-format")
    found = list(header(chosen, entries=3, written=9, cpus=2, release="6.1.0-x"))
    golden = """
        # tracer: function
        #
        # function latency trace v1.1.5 on 6.1.0-x
        # --------------------------------------------------------------------
        # latency: 0 us, #3/9, CPU#0 | (M:preempt VP:0, KP:0, SP:0 HP:0 #P:2)
        #    -----------------
        #    | task: -0 (uid:0 nice:0 policy:0 rt_prio:0)
        #    -----------------
        #
        #                    _------=> CPU#
        #                   / _-----=> irqs-off/BH-disabled
        #                  | / _----=> need-resched
        #                  || / _---=> hardirq/softirq
        #                  ||| / _--=> preempt-depth
        #                  |||| / _-=> migrate-disable
        #                  ||||| /     delay
        #  cmd     pid     |||||| time  |   caller
        #     \\   /        ||||||  \\    |    /
        """
    assert [line.rstrip() for line in found] == lines(golden)
    assert list(header(chosen, entries=0, written=9, cpus=2)) == ["# tracer: function", "#"]


def test_header_of_the_graph_tracer_with_all_columns() -> None:
    chosen = graph("funcgraph-abstime funcgraph-proc latency-format")
    found = list(header(chosen, entries=1, written=1, cpus=2))
    assert [line.rstrip() for line in found[9:]] == lines("""
        #                                       _-----=> irqs-off
        #                                      / _----=> need-resched
        #                                     | / _---=> hardirq/softirq
        #                                     || / _--=> preempt-depth
        #                                     ||| /
        #     TIME        CPU  TASK/PID       ||||     DURATION                  FUNCTION CALLS
        #      |          |     |    |        ||||      |   |                     |   |   |   |
        """)


def test_header_of_the_graph_tracer_without_columns() -> None:
    chosen = graph(off="funcgraph-cpu funcgraph-duration")
    assert list(header(chosen, entries=1, written=1, cpus=2))[2:] == lines("""
        #               FUNCTION CALLS
        #               |   |   |   |
        """)


# The usual format.


def test_calls_with_their_callers() -> None:
    rows = [
        call(1_000_001_499, SCHEDULE, IDLE + 0x1B, pid=0),
        call(1_000_001_500, PICK, SCHEDULE + 2, cpu=1, flags=TraceFlag.IRQS_OFF, preempt=1),
        call(12_345_999_999_999, LEAF, 0, pid=1234, cpu=12),
        call(2_000_000_000, LEAF, UNKNOWN, pid=99999),
    ]
    assert text(style(), *rows) == lines("""
        |          <idle>-0       [000] .....     1.000001: schedule <-do_idle
        |            bash-7       [001] d..1.     1.000002: pick_next_task <-schedule
        |     kworker/0:1-1234    [012] ..... 12346.000000: get_jiffies
        |           <...>-99999   [000] .....     2.000000: get_jiffies <-0x00abc123
        """)


@pytest.mark.parametrize(
    ("on", "off", "golden"),
    [
        ("", "print-parent", "            bash-7       [000] .....     0.000003: schedule"),
        ("", "irq-info", "            bash-7       [000]      0.000003: schedule <-do_idle"),
        ("", "context-info", "schedule <-do_idle"),
        (
            "record-tgid",
            "",
            "            bash-7       (      7) [000] .....     0.000003: schedule <-do_idle",
        ),
        ("sym-offset", "context-info", "schedule+0x0 <-do_idle+0x1b"),
        ("sym-addr", "context-info", f"schedule <{SCHEDULE:016x}> <-do_idle <{IDLE + 27:016x}>"),
        (
            "sym-addr sym-offset",
            "context-info",
            "schedule+0x0 <00000000ffff0000> <-do_idle+0x1b <00000000ffff021b>",
        ),
    ],
)
def test_options_of_the_usual_format(on, off, golden) -> None:
    assert text(style(on=on, off=off), call(3000)) == [golden]


def test_a_task_of_no_known_thread_group() -> None:
    (line,) = text(style(on="record-tgid"), call(3000, pid=5))
    assert line.startswith("           <...>-5       (-------) [000] ")


def test_offsets_with_the_size_of_the_function() -> None:
    writer = TraceText(style(on="sym-offset", off="context-info"), FakeNames(sizes=True))
    assert list(writer.lines(events(call(0)))) == ["schedule+0x0/0x100 <-do_idle+0x1b/0x100"]


def test_addresses_without_a_symbol() -> None:
    row = call(0, UNKNOWN, 0)
    assert text(style(off="context-info"), row) == ["0x00abc123"]
    assert text(style(on="sym-offset", off="context-info"), row) == ["0xabc123"]
    assert text(style(off="context-info"), call(0, 0, 0)) == ["0"]


def test_a_clock_that_counts() -> None:
    rows = [call(5), call(1_234_567_890_123)]
    assert text(style(counter=True), *rows) == lines("""
        |            bash-7       [000] .....            5: schedule <-do_idle
        |            bash-7       [000] ..... 1234567890123: schedule <-do_idle
        """)


def test_other_events_in_the_usual_format() -> None:
    rows = [
        call(1000),
        {"type": EventId.KERNEL_STACK, "pid": 7, "ts": 2000, "payload": (PICK + 1, IDLE, UNKNOWN)},
        said(3000, "hello\n"),
        said(4000, "two\nlines\n", cpu=1),
        {"type": EventId.RAW_DATA, "pid": 7, "ts": 5000, "payload": b"\x2a\0\0\0\x01\xff"},
        {"type": 77, "pid": 7, "ts": 6000},
        call(7000),
    ]
    assert text(style(), *rows) == lines("""
        |            bash-7       [000] .....     0.000001: schedule <-do_idle
        |            bash-7       [000] .....     0.000002: <stack trace>
        | => pick_next_task
        | => do_idle
        | => 0x00abc123
        |            bash-7       [000] .....     0.000003: tracing_mark_write: hello
        |            bash-7       [001] .....     0.000004: tracing_mark_write: two
        |lines
        |            bash-7       [000] .....     0.000005: # 2a buf: 01 ff
        |            bash-7       [000] .....     0.000006: Unknown type 77
        |            bash-7       [000] .....     0.000007: schedule <-do_idle
        """)


def test_stacks_honour_the_options_of_symbols_and_end_at_the_last_address() -> None:
    row = {"type": EventId.KERNEL_STACK, "payload": (PICK + 1, 2**64 - 1, IDLE)}
    assert text(style(on="sym-offset", off="context-info"), row) == lines("""
        |<stack trace>
        | => pick_next_task+0x1
        """)


@pytest.mark.parametrize(
    ("flags", "preempt", "golden"),
    [
        (0, 0, "....."),
        (TraceFlag.IRQS_OFF, 0, "d...."),
        (0x80, 0, "b...."),
        (0x81, 0, "D...."),
        (0x02, 0, "X...."),
        (TraceFlag.NEED_RESCHED, 0, ".n..."),
        (0x20, 0, ".p..."),
        (0x24, 0, ".N..."),
        (TraceFlag.HARDIRQ, 0, "..h.."),
        (TraceFlag.SOFTIRQ, 0, "..s.."),
        (TraceFlag.HARDIRQ | TraceFlag.SOFTIRQ, 0, "..H.."),
        (TraceFlag.NMI, 0, "..z.."),
        (TraceFlag.NMI | TraceFlag.HARDIRQ, 0, "..Z.."),
        (TraceFlag.NMI | TraceFlag.SOFTIRQ, 0, "..z.."),
        (TraceFlag.IRQS_OFF | TraceFlag.NEED_RESCHED | TraceFlag.HARDIRQ, 0x2A, "dnha2"),
    ],
)
def test_flags(flags, preempt, golden) -> None:
    assert latency_flags(flags, preempt) == golden
    (line,) = text(style(), call(0, flags=int(flags), preempt=preempt))
    assert f"[000] {golden}     0.000000: " in line


def test_microseconds_are_rounded() -> None:
    assert [ns2usecs(ns) for ns in (0, 499, 500, 1499, 1500)] == [0, 0, 1, 1, 2]


def test_marks() -> None:
    limits = [10**4, 10**5, 10**6, 10**7, 10**8, 10**9]
    assert "".join(find_mark(limit) for limit in limits) == " +!#*@"
    assert "".join(find_mark(limit + 1) for limit in limits) == "+!#*@$"


def test_latency_format() -> None:
    rows = [
        call(1_000_000, pid=1234, flags=5),
        call(1_002_000, PICK, SCHEDULE, cpu=3, preempt=2),
        call(1_152_600, pid=0),
    ]
    assert text(style(on="latency-format"), *rows) == lines("""
        |kworker/-1234      0dn...    0us : schedule <-do_idle
        |    bash-7         3...2.    2us!: pick_next_task <-schedule
        |  <idle>-0         0.....  153us : schedule <-do_idle
        """)
    (line,) = text(style(on="latency-format"), rows[0], time_start=0)
    assert line == "kworker/-1234      0dn... 1000us : schedule <-do_idle"
    (line,) = text(style(on="latency-format", counter=True), call(7), time_start=2)
    assert line == "    bash-7         0.....    5: schedule <-do_idle"


def test_lost_events_come_before_the_first_of_their_cpu() -> None:
    rows = [call(1000), call(2000, cpu=1), call(3000), call(4000, cpu=2)]
    found = text(style(off="context-info print-parent"), *rows, lost={1: 12, 2: -1, 0: 0})
    assert found == lines("""
        schedule
        CPU:1 [LOST 12 EVENTS]
        schedule
        schedule
        CPU:2 [LOST EVENTS]
        schedule
        """)


def test_lost_events_of_a_cpu_that_is_silent_for_now() -> None:
    writer = TraceText(style(off="context-info print-parent"), FakeNames())
    assert list(writer.lines(events(call(1)), {1: 2})) == ["schedule"]
    found = list(writer.lines(events(call(2, cpu=1), call(3, cpu=1)), {1: 3}))
    assert found == ["CPU:1 [LOST 5 EVENTS]", "schedule", "schedule"]


def test_where_buffers_start_that_overran() -> None:
    rows = [call(1000), call(2000, cpu=1), said(3000, "x", cpu=2), call(4000, cpu=1)]
    bare = style(off="context-info print-parent")
    assert text(bare, *rows, lost={1: 1}, annotate_start=True) == lines("""
        schedule
        CPU:1 [LOST 1 EVENTS]
        ##### CPU 1 buffer started ####
        schedule
        ##### CPU 2 buffer started ####
        tracing_mark_write: x
        schedule
        """)
    quiet = ["schedule", "schedule", "tracing_mark_write: x", "schedule"]
    assert text(bare, *rows) == quiet
    assert text(bare, *rows, annotate_start=True, buffers=False) == quiet
    off = style(off="context-info print-parent annotate")
    assert text(off, *rows, annotate_start=True) == quiet


def test_buffers_start_once_in_a_stream() -> None:
    writer = TraceText(style(off="context-info print-parent"), FakeNames(), annotate_start=True)
    assert list(writer.lines(events(call(1)))) == ["schedule"]
    started = ["##### CPU 1 buffer started ####", "schedule"]
    assert list(writer.lines(events(call(2, cpu=1)))) == started
    assert list(writer.lines(events(call(3, cpu=1), call(4)))) == ["schedule"] * 2


def test_names_are_looked_up_once_but_tasks_again_in_each_call() -> None:
    names = FakeNames()
    writer = TraceText(style(), names)
    many = events(*[call(ts, pid=55) for ts in range(50)])
    assert "<...>-55" in next(writer.lines(many))
    names.comms[55] = "late"
    assert "late-55" in next(writer.lines(many))
    assert sorted(names.lookups) == [55, 55, SCHEDULE, IDLE + 0x1B]


def test_no_events() -> None:
    for chosen in (style(), graph(), style(on="latency-format")):
        assert text(chosen) == []
        assert list(TraceText(chosen, FakeNames()).lines(events(), {0: 3}, last=False)) == []


def test_more_events_than_are_made_at_a_time() -> None:
    rows = [call(1000 * ts, LEAF if ts % 7 else PICK, cpu=ts % 3) for ts in range(20_000)]
    rows[9000] = said(9000_000, "here")
    found = text(style(off="context-info print-parent"), *rows)
    assert len(found) == 20_000
    assert found[8999:9002] == ["get_jiffies", "tracing_mark_write: here", "get_jiffies"]
    assert found[7] == found[8190] == found[8197] == "pick_next_task"


# function_graph.


def test_nested_calls() -> None:
    rows = [
        enter(0, SCHEDULE),
        enter(1, LEAF, 1),
        leave(2, LEAF, 1, 500),
        enter(3, PICK, 1),
        enter(4, LEAF, 2),
        leave(5, LEAF, 2, 1234),
        leave(6, PICK, 1, 10_001),
        leave(7, SCHEDULE, 0, 12_500),
    ]
    assert text(graph(), *rows) == lines("""
        | 0)               |  schedule() {
        | 0)   0.500 us    |    get_jiffies();
        | 0)               |    pick_next_task() {
        | 0)   1.234 us    |      get_jiffies();
        | 0) + 10.001 us   |    }
        | 0) + 12.500 us   |  }
        """)


@pytest.mark.parametrize(
    ("took", "column"),
    [
        (0, "  0.000 us    |"),
        (9_999, "  9.999 us    |"),
        (10_000, "  10.000 us   |"),
        (100_001, "! 100.001 us  |"),
        (1_000_001, "# 1000.001 us |"),
        (12_345_678, "* 12345.67 us |"),
        (123_456_789, "@ 123456.7 us |"),
        (1_234_567_890, "$ 1234567 us  |"),
        (123_456_789_012, "$ 123456789 us |"),
    ],
)
def test_durations(took, column) -> None:
    (line,) = text(graph(off="funcgraph-cpu"), enter(0, LEAF), leave(1, LEAF, 0, took))
    assert line == f"{column}  get_jiffies();"


@pytest.mark.parametrize(
    ("on", "off", "golden"),
    [
        ("", "funcgraph-overhead", " 0)   20.000 us   |  get_jiffies();"),
        ("", "funcgraph-duration", " 0) get_jiffies();"),
        ("", "funcgraph-cpu", "+ 20.000 us   |  get_jiffies();"),
        ("", "context-info", "get_jiffies();"),
        ("funcgraph-abstime", "", "    3.000009 |   0) + 20.000 us   |  get_jiffies();"),
        ("funcgraph-proc", "", " 0)     bash-7     | + 20.000 us   |  get_jiffies();"),
        ("latency-format", "", " 0)  d..1. | + 20.000 us   |  get_jiffies();"),
        ("sym-offset sym-addr", "", " 0) + 20.000 us   |  get_jiffies();"),
    ],
)
def test_columns_of_the_graph(on, off, golden) -> None:
    rows = [enter(3_000_009_999, LEAF, flags=1, preempt=1), leave(3_000_029_999, LEAF, 0, 20_000)]
    assert text(graph(on, off), *rows) == [golden]


def test_the_width_of_cpu_numbers() -> None:
    rows = [enter(0, SCHEDULE, cpu=3), enter(1, SCHEDULE, cpu=11)]
    assert text(graph(), *rows, cpus=12) == [
        "  3)               |  schedule() {",
        " 11)               |  schedule() {",
    ]


def test_exits_that_nobody_can_tell_apart_are_named() -> None:
    rows = [
        leave(0, SCHEDULE, 0),  # never entered here
        enter(1, PICK),
        leave(2, IDLE, 0),  # another function's
        enter(3, UNKNOWN),
        said(4, "x"),
        leave(5, UNKNOWN, 0),
        leave(6, UNKNOWN, 0),  # left already
        leave(7, IDLE, 60),  # deeper than Linux looks
    ]
    assert text(graph(off="funcgraph-duration funcgraph-cpu"), *rows[:-1]) == lines("""
        } /* schedule */
        pick_next_task() {
        } /* do_idle */
        0xabc123() {
        /* x */
        }
        } /* 0xabc123 */
        """)
    assert text(graph(), rows[-1]) == [f" 0)   0.500 us    |  {' ' * 120}}}"]


def test_tails_and_overruns() -> None:
    rows = [enter(0, SCHEDULE), enter(1, LEAF, 1), leave(2, LEAF, 1), leave(3, SCHEDULE)]
    chosen = graph("funcgraph-tail funcgraph-overrun", "funcgraph-duration funcgraph-cpu")
    assert text(chosen, *rows) == lines("""
        schedule() {
          get_jiffies();
        } /* schedule */
        | (Overruns: 0)
        """)


def test_only_the_next_event_of_the_same_cpu_makes_a_leaf() -> None:
    """CPU 1 comes in between without harm; another pid, function or event on CPU 0 does not."""
    bare = graph(off="funcgraph-duration")
    between = [enter(0, LEAF), enter(1, IDLE, cpu=1), leave(2, LEAF), leave(3, IDLE, cpu=1)]
    assert text(bare, *between) == [" 0) get_jiffies();", " 1) do_idle();"]
    assert text(bare, enter(0, LEAF), leave(1, PICK)) == [
        " 0) get_jiffies() {",
        " 0) } /* pick_next_task */",
    ]
    assert text(bare, enter(0, LEAF), leave(1, LEAF), lost={0: 3}) == [
        "CPU:0 [LOST 3 EVENTS]",
        " 0) get_jiffies();",
    ]
    assert len(text(bare, enter(0, LEAF), said(1, "x"), leave(2, LEAF))) == 3
    assert text(bare, enter(0, LEAF), leave(1, LEAF, pid=0))[0] == " 0) get_jiffies() {"


def test_another_task_on_a_cpu() -> None:
    """The idle task's call at the same depth makes Linux forget what kworker's was, too."""
    rows = [
        enter(0, SCHEDULE, pid=1234),
        enter(1, SCHEDULE, pid=0, cpu=1),
        enter(2, LEAF, pid=0),
        leave(3, LEAF, pid=0),
        leave(4, SCHEDULE, pid=1234),
        enter(5, SCHEDULE, pid=0, cpu=1),
    ]
    assert text(graph(), *rows) == lines("""
        | 0)               |  schedule() {
        | 1)               |  schedule() {
        | ------------------------------------------
        | 0)  kworker-1234  =>    <idle>-0  \x20
        | ------------------------------------------
        |
        | 0)   0.500 us    |  get_jiffies();
        | ------------------------------------------
        | 0)    <idle>-0    =>  kworker-1234\x20
        | ------------------------------------------
        |
        | 0)   0.500 us    |  } /* schedule */
        | 1)               |  schedule() {
        """)


def test_other_events_are_comments_one_level_deeper() -> None:
    rows = [
        said(0, "outside\n"),
        enter(1, SCHEDULE),
        said(2, "at depth 0\n"),
        enter(3, PICK, 1),
        said(4, "two\nlines\n"),
        {"type": EventId.RAW_DATA, "pid": 7, "ts": 5, "payload": b"\x01\0\0\0\x02"},
        enter(6, LEAF, 2),
        leave(7, LEAF, 2),
        said(8, "beside a leaf"),
        leave(9, PICK, 1),
    ]
    assert text(graph(), *rows) == lines("""
        | 0)               |  /* outside */
        | 0)               |  schedule() {
        | 0)               |  /* at depth 0 */
        | 0)               |    pick_next_task() {
        | 0)               |      /* two
        |lines */
        | 0)               |      /* # 1 buf: 02 */
        | 0)   0.500 us    |      get_jiffies();
        | 0)               |      /* beside a leaf */
        | 0)   0.500 us    |    }
        """)


def test_functions_and_stacks_keep_their_usual_format_in_a_graph() -> None:
    stack = {"type": EventId.KERNEL_STACK, "pid": 7, "ts": 2000, "cpu": 1, "payload": (IDLE,)}
    rows = [enter(0, SCHEDULE), call(1000), stack, leave(3, SCHEDULE)]
    assert text(graph(), *rows, annotate_start=True) == lines("""
        | 0)               |  schedule() {
        |##### CPU 0 buffer started ####
        |            bash-7       [000] .....     0.000001: schedule <-do_idle
        |##### CPU 1 buffer started ####
        |            bash-7       [001] .....     0.000002: <stack trace>
        | => do_idle
        | 0)   0.500 us    |  }
        """)


def test_calls_left_over_from_the_graph_tracer() -> None:
    rows = [
        enter(0, LEAF),
        leave(0, LEAF),
        enter(1000, SCHEDULE, 1, pid=0),
        leave(2000, PICK, 1, pid=0),
    ]
    assert text(style("nop"), *rows) == lines("""
        |            bash-7       [000] .....     0.000000:  0)   0.500 us    |  get_jiffies();
        |          <idle>-0       [000] .....     0.000001:  0)               |    schedule() {
        |          <idle>-0       [000] .....     0.000002:  0)   0.500 us    |    }
        """)


def test_lost_events_in_a_graph() -> None:
    writer = TraceText(graph(), FakeNames())
    assert list(writer.lines(events(enter(0, LEAF)), last=False)) == []
    assert list(writer.lines(events(leave(9, LEAF)), {0: 4})) == lines("""
        | 0)               |  get_jiffies() {
        |CPU:0 [LOST 4 EVENTS]
        | 0)   0.500 us    |  }
        """)


# Streams.


def test_an_entry_waits_for_what_follows_it() -> None:
    writer = TraceText(graph(), FakeNames())
    assert list(writer.lines(events(enter(0, SCHEDULE), enter(1, LEAF, 1)), last=False)) == [
        " 0)               |  schedule() {"
    ]
    # CPU 1 waits with it, or the lines would change places.
    assert list(writer.lines(events(said(2, "one", cpu=1)), last=False)) == []
    assert list(writer.lines(events(leave(3, LEAF, 1), said(4, "two", cpu=1)), last=False)) == [
        " 0)   0.500 us    |    get_jiffies();",
        " 1)               |  /* one */",
        " 1)               |  /* two */",
    ]
    assert list(writer.lines(events(leave(5, SCHEDULE)))) == [" 0)   0.500 us    |  }"]


def test_the_last_entry_waits_for_nothing_and_is_remembered() -> None:
    writer = TraceText(graph(), FakeNames())
    assert list(writer.lines(events(enter(0, LEAF)), last=False)) == []
    assert list(writer.lines(events())) == [" 0)               |  get_jiffies() {"]
    assert list(writer.lines(events(leave(1, LEAF)))) == [" 0)   0.500 us    |  }"]


def test_a_cpu_that_keeps_silent_does_not_hold_up_the_others_forever() -> None:
    writer = TraceText(graph(), FakeNames())
    assert list(writer.lines(events(enter(0, LEAF, cpu=1)), last=False)) == []
    table = np.zeros(70_000, EVENT)
    table["type"], table["payload"] = EventId.PRINT, -1
    found = list(writer.lines(Events(table), last=False))
    assert found[0] == " 1)               |  get_jiffies() {"
    assert len(found) == 70_001


@st.composite
def streams(draw):
    """Events of two CPUs and tasks, cut somewhere, with losses at the cuts."""
    fields = {"cpu": st.integers(0, 1), "pid": st.sampled_from([0, 7])}
    step = st.tuples(
        st.sampled_from(["enter", "leave", "said", "call", "stack"]),
        st.sampled_from([LEAF, PICK]),
        st.integers(0, 2),
        st.fixed_dictionaries(fields),
    )
    make = {
        "enter": lambda ts, ip, depth, more: enter(ts, ip, depth, **more),
        "leave": lambda ts, ip, depth, more: leave(ts, ip, depth, **more),
        "said": lambda ts, ip, depth, more: said(ts, f"at {ts}", **more),
        "call": lambda ts, ip, depth, more: call(ts, ip, **more),
        "stack": lambda ts, ip, depth, more: {
            "type": EventId.KERNEL_STACK,
            "ts": ts,
            "payload": (ip,),
            **more,
        },
    }
    steps = draw(st.lists(step, max_size=25))
    rows = [make[kind](1000 * at, *rest) for at, (kind, *rest) in enumerate(steps)]
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    return rows, cuts


@given(streams(), st.sampled_from([graph(), style(), style(on="latency-format")]))
def test_lines_do_not_depend_on_how_the_stream_is_cut(stream, chosen) -> None:
    rows, cuts = stream
    writer = TraceText(chosen, FakeNames(), annotate_start=True)
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        found += writer.lines(events(*rows[start:stop]), last=False)
    found += writer.lines(events())
    assert found == text(chosen, *rows, annotate_start=True)
