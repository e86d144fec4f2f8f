"""Every control file: what it reads at first, what it takes, and with which errno it refuses."""

from __future__ import annotations

import errno
import re
from itertools import pairwise

import pytest

from dynftrace_emu.errors import ControlFileError, ImageError
from dynftrace_emu.ftrace.page_pool import PagePool
from tests.tracefs.conftest import Session, events_in

OPTIONS = {  # TRACE_DEFAULT_FLAGS and the tracers' own
    "print-parent": "1", "sym-offset": "0", "sym-addr": "0", "annotate": "1", "context-info": "1",
    "latency-format": "0", "record-cmd": "1", "record-tgid": "0", "overwrite": "1",
    "disable_on_free": "0", "irq-info": "1", "markers": "1", "pause-on-trace": "0",
    "func_stack_trace": "0", "funcgraph-overrun": "0", "funcgraph-cpu": "1",
    "funcgraph-overhead": "1", "funcgraph-proc": "0", "funcgraph-duration": "1",
    "funcgraph-abstime": "0", "funcgraph-irqs": "1", "funcgraph-tail": "0",
}  # fmt: skip
OF_EVERY_ARRAY = {
    "available_tracers": None, "current_tracer": "nop\n", "tracing_on": "1\n",
    "tracing_cpumask": "3\n", "buffer_size_kb": "1408\n", "buffer_total_size_kb": "2816\n",
    "buffer_percent": "50\n", "trace_clock": "[local] counter\n", "trace_options": None,
    "trace": None, "trace_pipe": "", "snapshot": None, "error_log": "",
    "set_ftrace_filter": "#### all functions enabled ####\n",
    "set_ftrace_notrace": "#### no functions disabled ####\n",
    "set_ftrace_pid": "no pid\n", "set_ftrace_notrace_pid": "no pid\n",
    **{
        f"per_cpu/cpu{cpu}/{name}": text
        for cpu in (0, 1)
        for name, text in {
            "trace": None, "trace_pipe": "", "snapshot": None, "stats": None,
            "buffer_size_kb": "1408\n",
        }.items()
    },
    **{f"options/{name}": f"{value}\n" for name, value in OPTIONS.items() if "graph-" not in name},
}  # fmt: skip
GLOBAL = {
    "README": None, "printk_formats": "", "saved_cmdlines": None, "saved_cmdlines_size": "128\n",
    "saved_tgids": "", "tracing_thresh": "0\n", "max_graph_depth": "0\n",
    "function_profile_enabled": "0\n", "stack_trace": None, "stack_max_size": "0\n",
    "available_filter_functions": None, "enabled_functions": "", "touched_functions": "",
    "dyn_ftrace_total_info": None, "set_graph_function": "#### all functions enabled ####\n",
    "set_graph_notrace": "#### no functions disabled ####\n",
    "stack_trace_filter": "#### all functions enabled ####\n",
    "trace_stat/function0": None, "trace_stat/function1": None,
    **{f"options/{name}": f"{value}\n" for name, value in OPTIONS.items() if "graph-" in name},
}  # fmt: skip
WRITE_ONLY = ("trace_marker", "trace_marker_raw", "free_buffer")
READ_ONLY = (
    "README", "available_tracers", "available_filter_functions", "enabled_functions",
    "touched_functions", "dyn_ftrace_total_info", "buffer_total_size_kb", "printk_formats",
    "saved_cmdlines", "saved_tgids", "stack_trace", "trace_pipe", "trace_stat/function0",
    "per_cpu/cpu0/stats", "per_cpu/cpu1/trace_pipe",
)  # fmt: skip
INSTANCE = "instances/one/"


@pytest.fixture(scope="module")
def shared() -> Session:
    """Something is set everywhere, and traced; for tests that leave it as it is."""
    session = Session()
    session.files.mkdir("instances/one")
    session.go(0.3)
    session.write("set_ftrace_filter", "vfs_* pipe_*")
    session.append("set_ftrace_filter", "e1000_suspend:traceoff:3")
    session.write("set_ftrace_notrace", "vfs_write")
    session.write("set_graph_function", "vfs_read")
    session.write("current_tracer", "function")
    session.write("instances/one/set_ftrace_filter", "schedule")
    session.write("instances/one/current_tracer", "function")
    session.write("set_ftrace_notrace_pid", "1")
    session.go(0.03)
    session.write("snapshot", "1")
    session.go(0.03)
    return session


# --- what there is ---


@pytest.mark.parametrize("prefix", ["", INSTANCE], ids=["global", "instance"])
def test_every_file_is_there_and_reads_what_it_should_at_first(session: Session, prefix) -> None:
    session.files.mkdir("instances/one")
    for path, text in {**OF_EVERY_ARRAY, **({} if prefix else GLOBAL)}.items():
        found = session.read(prefix + path)
        assert text is None or found == text, path
        assert not found or found.endswith("\n")
    for path in WRITE_ONLY:
        with pytest.raises(ControlFileError) as error:
            session.read(prefix + path)
        assert error.value.errno == errno.EINVAL


def test_an_instance_has_none_of_the_global_files(session: Session) -> None:
    session.files.mkdir("instances/one")
    for path in GLOBAL:
        with pytest.raises(ControlFileError) as error:
            session.read(INSTANCE + path)
        assert error.value.errno == errno.ENOENT, path
    assert "instances" not in session.files.listdir("instances/one")


def test_a_kernel_without_calls_has_no_filters() -> None:
    session = Session(variant="none", discover=None)
    assert session.read("available_tracers") == "nop\n"
    for path in ("set_ftrace_filter", "available_filter_functions", "max_graph_depth"):
        with pytest.raises(ControlFileError) as error:
            session.read(path)
        assert error.value.errno == errno.ENOENT
    session.write("trace_marker", "hello")
    assert "hello" in session.read("trace")


def test_directories(session: Session) -> None:
    session.files.mkdir("instances/one")
    listdir = session.files.listdir
    assert listdir("per_cpu") == ["cpu0", "cpu1"]
    assert listdir("trace_stat") == ["function0", "function1"]
    assert listdir("instances") == ["one"]
    assert sorted(listdir("options")) == sorted(OPTIONS)
    assert {"trace", "options", "per_cpu", "instances", "README"} <= set(listdir())
    assert {"trace", "options", "per_cpu"} <= set(listdir("instances/one"))
    for path, number in (("no_such", errno.ENOENT), ("trace", errno.ENOTDIR)):
        with pytest.raises(ControlFileError) as error:
            listdir(path)
        assert error.value.errno == number


@pytest.mark.parametrize("path", [
    "", "/", "options", "per_cpu", "per_cpu/cpu0/", "instances", "instances/one", "trace_stat",
    "instances/one/options",
])  # fmt: skip
def test_a_directory_is_no_file(shared: Session, path: str) -> None:
    with shared.nothing_changes(), pytest.raises(ControlFileError) as error:
        shared.read(path)
    assert error.value.errno == errno.EISDIR
    shared.refuse(errno.EISDIR, path, "1")


@pytest.mark.parametrize("path", [
    "no_such", "trac", "TRACE", "per_cpu/cpu2/trace", "options/no_such", "instances/two/trace",
    "per_cpu/cpu0/tracing_on", "trace_stat/function2", "instances/trace", "trace/trace",
    "instances/one/README", "\N{LATIN SMALL LETTER A WITH DIAERESIS}", "tracing_on\n",
])  # fmt: skip
def test_what_is_not_there_is_not_there(shared: Session, path: str) -> None:
    with shared.nothing_changes(), pytest.raises(ControlFileError) as error:
        shared.read(path)
    assert error.value.errno == errno.ENOENT
    shared.refuse(errno.ENOENT, path, "1")


@pytest.mark.parametrize("path", READ_ONLY)
def test_read_only_files_refuse_every_write(shared: Session, path: str) -> None:
    for append in (False, True):
        shared.refuse(errno.EINVAL, path, "1", append=append)


def test_readme_tells_of_every_file_it_should(session: Session) -> None:
    text = session.read("README")
    assert text.startswith("tracing mini-HOWTO:\n")
    for word in ("set_ftrace_filter", "glob-matching-pattern", "current_tracer", "trace_pipe",
                 "instances", "snapshot", "max_graph_depth", "saved_cmdlines_size"):  # fmt: skip
        assert word in text


# --- what is refused ---

BAD_NUMBERS = ["", "-1", "0x1", "1x"]
OTHER_BAD_NUMBERS = ["x", "1.5", "1 2", "1_0", "--1", "+", "+-1", "\N{ARABIC-INDIC DIGIT ONE}"]
HUGE = "99999999999999999999999"
NUMBERS = (
    "tracing_on", "buffer_size_kb", "per_cpu/cpu1/buffer_size_kb", "buffer_percent", "snapshot",
    "saved_cmdlines_size", "tracing_thresh", "max_graph_depth", "function_profile_enabled",
    "stack_max_size", "options/overwrite", "options/funcgraph-irqs",
)  # fmt: skip
REFUSED = [
    *((path, text, errno.EINVAL) for path in NUMBERS for text in BAD_NUMBERS),
    *((path, HUGE, errno.ERANGE) for path in NUMBERS),  # kstrtoul
    *(("current_tracer", text, errno.EINVAL) for text in
      ("", "blk", "functions", "FUNCTION", "function nop", "func*", "function\nnop")),
    *(("trace_clock", text, errno.EINVAL) for text in ("", "sundial", "[local]", "local counter")),
    ("buffer_size_kb", "0", errno.EINVAL),
    ("buffer_size_kb", "99999999", errno.ENOMEM),
    ("per_cpu/cpu0/buffer_size_kb", "0", errno.EINVAL),
    ("per_cpu/cpu0/buffer_size_kb", "99999999", errno.ENOMEM),
    ("buffer_percent", "101", errno.EINVAL),
    *(("buffer_percent", text, errno.EINVAL) for text in OTHER_BAD_NUMBERS),
    ("set_ftrace_pid", "\N{ARABIC-INDIC DIGIT ONE}", errno.EINVAL),
    ("tracing_cpumask", "4", errno.EOVERFLOW),
    ("tracing_cpumask", "ff", errno.EOVERFLOW),
    ("tracing_cpumask", "1,00000001", errno.EOVERFLOW),
    *(("tracing_cpumask", text, errno.EINVAL) for text in ("g", "-1", "0x3", "3 1", "1_1")),
    *(("trace_options", text, errno.EINVAL) for text in
      ("", "no", "no_such", "nono_such", "noverwrite", "overwrite no_such", "OVERWRITE")),
    ("options/overwrite", "2", errno.EINVAL),
    ("per_cpu/cpu0/snapshot", "x", errno.EINVAL),
    ("per_cpu/cpu0/snapshot", "0", errno.EINVAL),
    ("saved_cmdlines_size", "0", errno.EINVAL),
    ("saved_cmdlines_size", "32769", errno.EINVAL),  # PID_MAX_DEFAULT
    *((path, text, errno.EINVAL) for path in ("set_ftrace_pid", "set_ftrace_notrace_pid")
      for text in ("x", "-1", "1 x", "1,2", "1.5", HUGE, "5 99999999")),
    ("trace_marker_raw", "abc", errno.EINVAL),
    ("trace_marker_raw", "", errno.EINVAL),
    ("set_ftrace_filter", "vfs_read:no_such", errno.EINVAL),
    ("set_ftrace_filter", "vfs_read:", errno.EINVAL),
    ("set_ftrace_filter", ":traceoff", errno.EINVAL),
    ("set_ftrace_filter", "no_such:traceoff", errno.EINVAL),
    ("set_ftrace_filter", "vfs_read:traceoff:x", errno.EINVAL),
    ("set_ftrace_filter", "vfs_read:traceoff:-1", errno.EINVAL),
    ("set_ftrace_filter", "vfs_read:traceoff:\N{SUPERSCRIPT TWO}", errno.EINVAL),
    ("set_ftrace_filter", "vfs_read:traceoff:" + "9" * 5000, None),
    ("set_ftrace_filter", "schedule vfs_read:no_such", errno.EINVAL),
    ("set_ftrace_filter", "vfs_read:traceoff vfs_read:no_such", errno.EINVAL),
    ("set_ftrace_filter", "!vfs_read:traceon", errno.ENODEV),  # no such trigger anywhere
    ("set_ftrace_filter", "!vfs_read:traceoff", errno.EINVAL),  # ... but not here
    ("set_ftrace_filter", "e1000_suspend:traceoff:7", errno.EINVAL),  # there already
    ("set_ftrace_notrace", "vfs_read:traceoff", errno.EINVAL),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text", "number"), REFUSED, ids=[f"{path}-{ascii(t)[:30]}" for path, t, _ in REFUSED]
)
def test_what_is_refused_changes_nothing(
    shared: Session, path: str, text: str, number: int | None
) -> None:
    if number is not None:
        shared.refuse(number, path, text, append=path == "set_ftrace_filter")
        return
    with shared.nothing_changes(), pytest.raises(ControlFileError) as error:  # either will do
        shared.append(path, text)
    assert error.value.errno in (errno.EINVAL, errno.ERANGE)


@pytest.mark.parametrize(("path", "text", "number"), [
    ("current_tracer", "function_graph", errno.EINVAL),
    ("current_tracer", "blk", errno.EINVAL),
    ("tracing_on", "x", errno.EINVAL),
    ("buffer_size_kb", "0", errno.EINVAL),
    ("set_ftrace_filter", "no_such", errno.EINVAL),
    ("trace_options", "nofuncgraph-irqs", errno.EINVAL),
    ("available_tracers", "nop", errno.EINVAL),
    ("max_graph_depth", "1", errno.ENOENT),
    ("no_such", "1", errno.ENOENT),
])  # fmt: skip
def test_an_instance_refuses_likewise_and_logs_it_itself(
    shared: Session, path: str, text: str, number: int
) -> None:
    before = shared.read("error_log")
    shared.refuse(number, INSTANCE + path, text)
    assert shared.read("error_log") == before
    if number != errno.ENOENT:
        assert f"{path}: error: " in shared.read(INSTANCE + "error_log").split("\n[")[-1]


@pytest.mark.parametrize("path", ["trace_marker", "trace_marker_raw"])
def test_a_marker_is_refused_while_it_cannot_be_written(session: Session, path: str) -> None:
    session.write("tracing_on", "0")
    session.refuse(errno.EBADF, path, "hello")
    session.write("tracing_on", "1")
    session.write("options/markers", "0")
    session.refuse(errno.EINVAL, path, "hello")
    session.write("options/markers", "1")
    session.write(path, "hello")
    assert len(events_in(session.read("trace"))) == 1


# --- what is accepted ---

ACCEPTED = [
    ("current_tracer", "function", "function\n"),
    ("current_tracer", " function_graph\n", "function_graph\n"),
    ("current_tracer", "nop\n", "nop\n"),
    ("tracing_on", "0", "0\n"),
    ("tracing_on", "0\n", "0\n"),
    ("tracing_on", "17", "1\n"),
    ("tracing_cpumask", "1", "1\n"),
    ("tracing_cpumask", "02\n", "2\n"),
    ("tracing_cpumask", "00000000,00000003", "3\n"),
    ("tracing_cpumask", "0", "0\n"),
    ("buffer_size_kb", "704", "704\n"),
    ("buffer_size_kb", "2816", "2816\n"),
    ("buffer_size_kb", "100", "100\n"),
    ("buffer_size_kb", "010", "10\n"),
    ("per_cpu/cpu1/buffer_size_kb", "64", "64\n"),
    ("buffer_percent", "0", "0\n"),
    ("buffer_percent", "100\n", "100\n"),
    ("buffer_percent", "+25", "25\n"),  # kstrtoul takes a plus sign
    ("trace_clock", "counter\n", "local [counter]\n"),
    ("trace_clock", "local", "[local] counter\n"),
    ("saved_cmdlines_size", "1", "1\n"),
    ("saved_cmdlines_size", "32768", "32768\n"),
    ("tracing_thresh", "100", "100\n"),
    ("max_graph_depth", "3", "3\n"),
    ("function_profile_enabled", "1", "1\n"),
    ("function_profile_enabled", "2", "1\n"),  # val = !!val
    ("stack_max_size", "100", "100\n"),
    ("set_ftrace_pid", "12 3\n12", "3\n12\n"),
    ("set_ftrace_pid", "0", "0\n"),
    ("set_ftrace_notrace_pid", "7\n", "7\n"),
    ("set_graph_function", "vfs_read vfs_write", "vfs_read\nvfs_write\n"),
    ("set_graph_notrace", "schedule", "schedule\n"),
    ("stack_trace_filter", "schedule", "schedule\n"),
    ("set_ftrace_notrace", "schedule", "schedule\n"),
    ("set_ftrace_filter", "sch?dule:traceon:2",
     "#### all functions enabled ####\nschedule:traceon:count=2\n"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "text", "reads"), ACCEPTED)
def test_what_is_accepted_is_read_back(session: Session, path: str, text: str, reads: str) -> None:
    session.write(path, text)
    assert session.read(path) == reads
    assert session.read("error_log") == ""


@pytest.mark.parametrize("path", ["set_ftrace_pid", "set_ftrace_notrace_pid"])
def test_pids_are_added_replaced_and_taken_away(session: Session, path: str) -> None:
    session.write(path, "3 4")
    session.append(path, "9")
    assert session.read(path) == "3\n4\n9\n"
    session.write(path, "5")
    assert session.read(path) == "5\n"
    session.write(path, "")
    assert session.read(path) == "no pid\n"


# --- tracers, on and off ---


def test_the_tracers(session: Session) -> None:
    session.files.mkdir("instances/one")
    assert set(session.read("available_tracers").split()) == {"function_graph", "function", "nop"}
    assert set(session.read(INSTANCE + "available_tracers").split()) == {"function", "nop"}
    for tracer in session.read("available_tracers").split():
        session.write("current_tracer", tracer)
        assert session.read("current_tracer") == f"{tracer}\n"
        assert session.read("trace").startswith(f"# tracer: {tracer}\n#\n")


def test_setting_another_tracer_empties_the_buffer(ran: Session) -> None:
    for tracer in ("function", "function_graph", "nop"):
        ran.write("trace_marker", "before")
        assert "before" in ran.read("trace")
        ran.write("current_tracer", tracer)
        assert events_in(ran.read("trace")) == []
        ran.write("trace_marker", "after")
        ran.write("current_tracer", tracer)  # the same: nothing happens
        assert "after" in ran.read("trace")


def test_tracing_on_costs_no_stop_and_writes_no_text(ran: Session) -> None:
    ran.write("current_tracer", "function")
    ran.go()
    text, stops = ran.text(), ran.stops
    ran.write("tracing_on", "0")
    trace = ran.read("trace")
    ran.go()
    assert ran.read("trace") == trace
    ran.write("tracing_on", "1")
    ran.go()
    assert len(events_in(ran.read("trace"))) > len(events_in(trace)) > 0
    assert (ran.text(), ran.stops) == (text, stops)


def test_a_truncating_write_empties_the_trace(ran: Session) -> None:
    ran.write("current_tracer", "function")
    ran.go()
    ran.write("tracing_on", "0")
    trace = ran.read("trace")
    assert ran.read("trace") == trace  # nothing is consumed
    ran.append("trace", "")
    assert ran.read("trace") == trace
    ran.write("per_cpu/cpu0/trace", "")
    assert events_in(ran.read("per_cpu/cpu0/trace")) == []
    assert len(events_in(ran.read("trace"))) == len(events_in(ran.read("per_cpu/cpu1/trace"))) > 0
    ran.write("trace", "\n")
    assert events_in(ran.read("trace")) == []


def test_the_cpus_of_the_mask_are_traced(ran: Session) -> None:
    ran.write("current_tracer", "function")
    for mask, cpus in (("1", {0}), ("2", {1}), ("3", {0, 1}), ("0", set())):
        ran.write("tracing_cpumask", mask)
        ran.write("trace", "")
        ran.go(0.02)
        found = {int(cpu) for cpu in re.findall(r" \[(\d{3})\] ", ran.read("trace"))}
        assert found == cpus
        assert {cpu for cpu in (0, 1) if events_in(ran.read(f"per_cpu/cpu{cpu}/trace"))} == cpus


def pids_in(text: str) -> set[int]:
    return {int(pid) for pid in re.findall(r"-(\d+) +\[\d{3}\] ", text)}


def test_only_the_tasks_of_set_ftrace_pid_are_traced(ran: Session) -> None:
    ran.write("current_tracer", "function")
    ran.go(0.1)
    everyone = pids_in(ran.read("trace"))
    assert len(everyone) > 6
    pid = max(everyone)
    for file, some, expected in (
        ("set_ftrace_pid", f"{pid}", lambda found: found == {pid}),
        ("set_ftrace_notrace_pid", f"{pid}", lambda found: found and pid not in found),
    ):
        ran.write(file, some)
        ran.write("trace", "")
        ran.go(0.2)
        assert expected(pids_in(ran.read("trace")))
        ran.write(file, "")


# --- buffers ---


def test_sizes_of_all_and_of_one_cpu(ran: Session) -> None:
    ran.write("buffer_size_kb", "704")
    assert ran.read("buffer_total_size_kb") == "1408\n"
    ran.write("per_cpu/cpu1/buffer_size_kb", "100")
    assert ran.read("per_cpu/cpu0/buffer_size_kb") == "704\n"
    assert ran.read("buffer_size_kb") == "X\n"
    assert ran.read("buffer_total_size_kb") == "804\n"
    ran.write("current_tracer", "function")
    ran.go(0.1)
    assert all(events_in(ran.read(f"per_cpu/cpu{cpu}/trace")) for cpu in (0, 1))
    ran.write("buffer_size_kb", "1408")
    assert ran.read("per_cpu/cpu1/buffer_size_kb") == "1408\n"
    assert ran.read("buffer_total_size_kb") == "2816\n"


@pytest.mark.parametrize("stops", ["0", "1"])
def test_free_buffer_leaves_next_to_nothing(ran: Session, stops: str) -> None:
    ran.write("options/disable_on_free", stops)
    ran.write("current_tracer", "function")
    ran.go()
    ran.write("free_buffer", "")
    assert events_in(ran.read("trace")) == []
    assert int(ran.read("buffer_size_kb")) < 16
    assert ran.read("tracing_on") == ("0\n" if stops == "1" else "1\n")
    ran.go()
    assert bool(events_in(ran.read("trace"))) == (stops == "0")


def stats(session: Session, cpu: int, prefix: str = "") -> dict[str, float]:
    text = session.read(f"{prefix}per_cpu/cpu{cpu}/stats")
    return {key: float(value) for key, value in re.findall(r"^([\w ]+): +([\d.]+)$", text, re.M)}


def test_stats_account_for_every_event(ran: Session) -> None:
    ran.write("buffer_size_kb", "4")
    ran.write("current_tracer", "function")
    ran.go(0.3)
    ran.write("tracing_on", "0")
    for cpu in (0, 1):
        before = stats(ran, cpu)
        assert list(before) == [
            "entries", "overrun", "commit overrun", "bytes", "oldest event ts", "now ts",
            "dropped events", "read events",
        ]  # fmt: skip
        assert before["entries"] == len(events_in(ran.read(f"per_cpu/cpu{cpu}/trace"))) > 0
        assert before["overrun"] > 0
        assert 0 < before["bytes"] < 16 * 1024
        assert 0 < before["oldest event ts"] < before["now ts"]
        consumed = len(events_in(ran.read(f"per_cpu/cpu{cpu}/trace_pipe")))
        after = stats(ran, cpu)
        lost = ran.read("trace").count("LOST")
        assert lost == 0
        assert after["entries"] == 0
        assert after["read events"] == before["entries"] <= consumed <= before["entries"] + 1
        assert after["overrun"] == before["overrun"]
    header = re.search(r"entries-in-buffer/entries-written: (\d+)/(\d+) ", ran.read("trace"))
    assert header.group(1) == "0"


def test_trace_pipe_consumes_and_has_no_header(ran: Session) -> None:
    ran.write("current_tracer", "function")
    ran.go()
    ran.write("tracing_on", "0")
    trace = events_in(ran.read("trace"))
    first = ran.read("trace_pipe")
    assert not first.startswith("# tracer")
    assert [line for line in first.splitlines() if " <-" in line] == [
        line for line in trace if " <-" in line
    ]
    assert ran.read("trace_pipe") == ""
    assert events_in(ran.read("trace")) == []
    ran.write("tracing_on", "1")
    ran.go()
    assert " [001] " in ran.read("per_cpu/cpu1/trace_pipe")
    assert " [000] " in ran.read("trace_pipe")


def test_clocks(ran: Session) -> None:
    """Another clock empties the buffer; counter gives every event a number of its own."""
    ran.write("trace_marker", "before")
    ran.write("trace_clock", "counter")
    assert events_in(ran.read("trace")) == []
    ran.write("current_tracer", "function")
    ran.go()
    numbers = [int(number) for number in re.findall(r" (\d+): \w+ <-", ran.read("trace"))]
    assert len(numbers) > 100
    assert all(first < second for first, second in pairwise(numbers))
    ran.write("trace_clock", "local")
    assert events_in(ran.read("trace")) == []


# --- options ---


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_by_either_file(session: Session, option: str) -> None:
    def listed(name: str) -> bool:
        return name in session.lines("trace_options")

    for on in (OPTIONS[option] == "0", OPTIONS[option] == "1"):
        session.write(f"options/{option}", str(int(on)))
        assert session.read(f"options/{option}") == f"{int(on)}\n"
        assert (listed(option), listed(f"no{option}")) == (on, not on)
    for on in (OPTIONS[option] == "0", OPTIONS[option] == "1"):
        session.write("trace_options", option if on else f"no{option}")
        assert session.read(f"options/{option}") == f"{int(on)}\n"
        assert (listed(option), listed(f"no{option}")) == (on, not on)
    others = {name: session.read(f"options/{name}").strip() for name in OPTIONS}
    assert others == OPTIONS


def test_options_of_an_instance_are_its_own(session: Session) -> None:
    session.files.mkdir("instances/one")
    session.write(INSTANCE + "options/overwrite", "0")
    assert session.read("options/overwrite") == "1\n"
    assert "nooverwrite" in session.lines(INSTANCE + "trace_options")
    session.write("options/markers", "0")
    assert session.read(INSTANCE + "options/markers") == "1\n"


# --- the snapshot ---


def test_a_snapshot_is_taken_emptied_and_freed(ran: Session) -> None:
    assert "# * Snapshot is freed *\n" in ran.read("snapshot")
    ran.write("current_tracer", "function")
    ran.go()
    trace = events_in(ran.read("trace"))
    ran.write("snapshot", "1")
    assert events_in(ran.read("snapshot")) == trace
    assert events_in(ran.read("trace")) == []
    for cpu in (0, 1):
        part = [line for line in trace if f"[00{cpu}]" in line]
        assert [x for x in ran.lines(f"per_cpu/cpu{cpu}/snapshot") if " <-" in x] == [
            line for line in part if " <-" in line
        ]
    ran.go()
    assert events_in(ran.read("snapshot")) == trace  # what goes on does not change it
    assert events_in(ran.read("trace"))
    ran.write("per_cpu/cpu0/snapshot", "2")
    assert not [line for line in events_in(ran.read("snapshot")) if "[000]" in line]
    ran.write("snapshot", "2")
    assert "# * Snapshot is allocated *\n" in ran.read("snapshot")
    ran.write("snapshot", "1")
    assert events_in(ran.read("snapshot"))
    ran.write("snapshot", "0")
    assert "# * Snapshot is freed *\n" in ran.read("snapshot")
    ran.write("snapshot", "2")  # any other number neither allocates nor frees
    assert "# * Snapshot is freed *\n" in ran.read("snapshot")


def test_snapshots_of_instances_are_their_own(session: Session) -> None:
    session.files.mkdir("instances/one")
    session.write(INSTANCE + "trace_marker", "hello")
    session.write(INSTANCE + "snapshot", "1")
    assert "hello" in session.read(INSTANCE + "snapshot")
    assert "is freed" in session.read("snapshot")


# --- tasks ---


def test_names_of_tasks(ran: Session) -> None:
    lines = ran.lines("saved_cmdlines")
    assert all(re.fullmatch(r"\d+ \S+", line) for line in lines)
    names = {line.split()[1] for line in lines}
    assert {"workload", "fs", "pipe_writer", "pipe_reader"} <= names
    ran.write("saved_cmdlines_size", "3")
    assert len(ran.lines("saved_cmdlines")) <= 3


def test_tgids_are_saved_while_the_option_is_on(ran: Session) -> None:
    assert ran.read("saved_tgids") == ""
    ran.write("options/record-tgid", "1")
    ran.write("current_tracer", "function")
    ran.go(0.1)
    pids = pids_in(ran.read("trace").replace(" (", "  ("))
    lines = ran.lines("saved_tgids")
    assert lines
    assert all(re.fullmatch(r"(\d+) \1", line) for line in lines)
    assert pids <= {0, *(int(line.split()[0]) for line in lines)}


# --- the profiler and the stack tracer ---

STAT = re.compile(r"  (\w+) +(\d+)    (\S+) us +(\S+) us +(\S+) us *")


def test_the_profile(ran: Session) -> None:
    ran.write("set_ftrace_filter", "vfs_* schedule pipe_*")
    ran.write("function_profile_enabled", "1")
    ran.check_calls({name for name in ran.site if re.match(r"vfs_|pipe_|schedule$", name)})
    ran.go(0.3)
    text = ran.read("trace_stat/function0")
    header, rule, *rows = text.splitlines()
    assert header.split() == ["Function", "Hit", "Time", "Avg", "s^2"]
    assert set(rule) == {" ", "-"}
    found = [STAT.fullmatch(row) for row in rows]
    assert all(found)
    assert {match[1] for match in found} >= {"vfs_read", "vfs_write", "schedule"}
    times = [float(match[3]) for match in found]
    assert times == sorted(times, reverse=True)
    for match in found:
        assert float(match[4]) == pytest.approx(float(match[3]) / int(match[2]), abs=0.011)
    assert ran.read("trace_stat/function1") != text
    ran.write("function_profile_enabled", "0")
    ran.check_calls(set())
    before = ran.read("trace_stat/function0")
    ran.go()
    assert ran.read("trace_stat/function0") == before  # kept until it begins anew
    ran.write("function_profile_enabled", "1")
    assert len(ran.lines("trace_stat/function0")) == 2


def test_the_profile_goes_with_a_tracer(ran: Session) -> None:
    ran.write("set_ftrace_filter", "vfs_*")
    ran.write("function_profile_enabled", "1")
    ran.write("current_tracer", "function")
    ran.go(0.3)
    calls = ran.traced("per_cpu/cpu0/trace").count("vfs_read")
    assert calls > 0
    [hits] = re.findall(r"  vfs_read +(\d+) ", ran.read("trace_stat/function0"))
    assert abs(int(hits) - calls) <= 1  # one may not have returned yet


STACK = re.compile(r" *(\d+)\) +(\d+) +(\d+)   (\w+)\+0x\w+/0x\w+.*")


def test_the_deepest_stack(ran: Session) -> None:
    header = "        Depth    Size   Location    (0 entries)\n        -----    ----   --------\n"
    disabled = ran.read("stack_trace")
    assert disabled.startswith(header)  # t_show: the header, then that it is disabled
    assert "#  Stack tracer disabled\n" in disabled


def test_the_deepest_stack_seen_is_shown(ran: Session) -> None:
    ran.write("stack_tracer_enabled", "1")
    ran.check_calls(set(ran.site))
    ran.go(0.1)
    header, rule, *rows = ran.lines("stack_trace")
    assert header == f"        Depth    Size   Location    ({len(rows)} entries)"
    assert rule == "        -----    ----   --------"
    found = [STACK.fullmatch(row) for row in rows]
    assert all(found)
    assert len(found) > 3
    assert [int(match[1]) for match in found] == list(range(len(found)))
    depths = [int(match[2]) for match in found]
    assert depths == sorted(depths, reverse=True)
    sizes = [int(match[3]) for match in found]
    assert sizes == [a - b for a, b in zip(depths, [*depths[1:], 0], strict=True)]
    assert ran.read("stack_max_size") == f"{depths[0]}\n"
    assert depths[0] < 16384
    ran.write("stack_max_size", "0")
    ran.write("stack_trace_filter", "vfs_*")
    ran.check_calls({name for name in ran.site if name.startswith("vfs_")})
    ran.go(0.3)
    assert int(ran.read("stack_max_size")) > 0
    ran.write("stack_tracer_enabled", "0")
    ran.check_calls(set())
    shown = ran.read("stack_trace")
    ran.go()
    assert ran.read("stack_trace") == shown


# --- who is traced ---


def test_enabled_and_touched_functions(ran: Session) -> None:
    ran.files.mkdir("instances/one")
    ran.write("set_ftrace_filter", "vfs_read schedule")
    ran.write("current_tracer", "function")
    ran.write(INSTANCE + "set_ftrace_filter", "vfs_read kfree")
    ran.write(INSTANCE + "current_tracer", "function")
    counts = {"vfs_read (2)", "schedule (1)", "kfree (1)"}
    assert set(ran.lines("enabled_functions")) == set(ran.lines("touched_functions")) == counts
    ran.write("current_tracer", "nop")
    assert set(ran.lines("enabled_functions")) == {"vfs_read (1)", "kfree (1)"}
    ran.files.rmdir("instances/one")
    assert ran.read("enabled_functions") == ""
    touched = [line.split()[0] for line in ran.lines("touched_functions")]
    assert touched == [ran.name[site] for site in sorted(map(ran.site.get, touched))]
    assert set(touched) == {"vfs_read", "schedule", "kfree"}


def test_triggers_count_among_who_listens(ran: Session) -> None:
    """Each trigger and array is an ops of its own in Linux."""
    ran.write("set_ftrace_filter", "vfs_read:traceoff:0 vfs_read:stacktrace:0")
    assert ran.read("enabled_functions") == "vfs_read (2)\n"


def test_total_info(session: Session) -> None:
    total, pages, groups = re.fullmatch(
        r"(\d+) pages:(\d+) groups: (\d+)\n", session.read("dyn_ftrace_total_info")
    ).groups()
    assert int(total) == len(session.lines("available_filter_functions"))
    assert int(pages) >= int(groups) > 0


# --- markers ---


def test_a_marker_is_among_the_events(ran: Session) -> None:
    ran.write("trace_marker", "hello world")
    ran.write("trace_marker", "with a newline\n")
    ran.append("trace_marker", "\N{GREEK SMALL LETTER LAMDA}")
    events = events_in(ran.read("trace"))
    assert [event.split(": ", 2)[1:] for event in events] == [
        ["tracing_mark_write", text]
        for text in ("hello world", "with a newline", "\N{GREEK SMALL LETTER LAMDA}")
    ]


def test_a_long_marker_loses_nothing(ran: Session) -> None:
    """Linux takes so much of it, and who writes goes on with the rest."""
    text = "".join(f"<{number}>" for number in range(500))
    ran.write("trace_marker", text)
    texts = [event.split("tracing_mark_write: ")[1] for event in events_in(ran.read("trace"))]
    assert "".join(texts) == text


def test_a_raw_marker_is_bytes_with_an_id(ran: Session) -> None:
    ran.write("trace_marker_raw", "\x2a\0\0\0abc")
    [event] = events_in(ran.read("trace"))
    assert event.rpartition("# ")[2].split()[:5] == ["2a", "buf:", "61", "62", "63"]


def test_a_marker_of_an_instance_is_its_own(ran: Session) -> None:
    ran.files.mkdir("instances/one")
    ran.write(INSTANCE + "trace_marker", "hello")
    assert "hello" in ran.read(INSTANCE + "trace")
    assert "hello" not in ran.read("trace")


# --- the error log ---


def test_the_error_log(session: Session) -> None:
    assert session.read("error_log") == ""
    for number in range(10):
        with pytest.raises(ControlFileError):
            session.write("current_tracer", f"tracer{number}\n")
    entries = re.findall(
        r"\[ *\d+\.\d{6}\] current_tracer: error: (.+)\n  Command: (.+)\n( +\^)\n",
        session.read("error_log"),
    )
    assert [command for _, command, _ in entries] == [f"tracer{n}" for n in range(2, 10)]  # 8 kept
    assert session.read("error_log").count("\n") == 3 * 8
    with pytest.raises(ControlFileError):
        session.write("set_ftrace_filter", "vfs_read\nno_such")
    # One line for the command, whatever it is.
    assert session.read("error_log").count("\n") == 3 * 8
    session.write("error_log", "")
    assert session.read("error_log") == ""


# --- instances ---


def errno_of(call, path: str) -> int:
    with pytest.raises(ControlFileError) as error:
        call(path)
    return error.value.errno


def errno_if_refused(call, *arguments: str) -> int:
    try:
        call(*arguments)
    except ControlFileError as error:
        return error.errno
    return 0


def test_mkdir_and_rmdir(session: Session) -> None:
    mkdir, rmdir = session.files.mkdir, session.files.rmdir
    with session.nothing_changes():
        assert errno_of(rmdir, "instances/one") == errno.ENOENT
        for path in ("one", "options/one", "per_cpu/cpu2", "trace/one"):
            assert errno_of(mkdir, path) == errno.EPERM
        for path in ("options", "per_cpu/cpu0", "trace_stat"):
            assert errno_of(rmdir, path) == errno.EPERM
    mkdir("instances/one")
    with session.nothing_changes():
        assert errno_of(mkdir, "instances/one") == errno.EEXIST
        assert errno_of(mkdir, "/instances//one/") == errno.EEXIST
        assert errno_of(mkdir, "instances") in (errno.EEXIST, errno.EPERM)
        assert errno_of(mkdir, "instances/.") in (errno.EEXIST, errno.EPERM)
        assert errno_of(mkdir, "instances/one/options/x") == errno.EPERM
    rmdir("instances/one")
    assert session.files.listdir("instances") == []
    assert errno_of(session.read, "instances/one/trace") == errno.ENOENT


def test_names_that_no_file_system_would_take(session: Session) -> None:
    with session.nothing_changes():
        assert errno_of(session.files.mkdir, "instances/..") == errno.EEXIST
        assert errno_of(session.files.mkdir, f"instances/{'x' * 256}") == errno.ENAMETOOLONG


def test_a_busy_instance_is_removed(ran: Session) -> None:
    """With its tracer, its triggers, its filter, its snapshot and its tasks."""
    files = ran.dump()
    ran.files.mkdir("instances/one")
    for file, text in (
        ("set_ftrace_filter", "vfs_* pipe_*"), ("set_ftrace_notrace", "vfs_write"),
        ("current_tracer", "function"), ("set_ftrace_pid", "3 4 5"), ("snapshot", "1"),
        ("buffer_size_kb", "64"), ("trace_clock", "counter"), ("options/overwrite", "0"),
        ("tracing_on", "0"), ("tracing_cpumask", "1"),
    ):  # fmt: skip
        ran.write(INSTANCE + file, text)
    ran.append(INSTANCE + "set_ftrace_filter", "schedule:traceon kfree:snapshot kfree:traceoff:3")
    ran.go()
    with ran.one_stop():
        ran.files.rmdir("instances/one")
    ran.check_calls(set())
    ran.files.mkdir("instances/one")  # a new one has nothing of the old
    for path, text in OF_EVERY_ARRAY.items():
        assert text is None or ran.read(INSTANCE + path) == text, path
    ran.write(INSTANCE + "set_ftrace_filter", "schedule")
    ran.write(INSTANCE + "current_tracer", "function")
    ran.go(0.1)
    assert set(ran.traced(INSTANCE + "trace")) == {"schedule"}
    ran.files.rmdir("instances/one")
    after = ran.dump()
    changing = ("stats", "touched_functions")
    assert [
        path for path in files if files[path] != after[path] and not path.endswith(changing)
    ] == []


def test_instances_until_there_is_no_room(session: Session) -> None:
    made = 0
    while not (number := errno_if_refused(session.files.mkdir, f"instances/i{made}")):
        made += 1
    assert number == errno.ENOMEM
    assert made > 8
    assert len(session.files.listdir("instances")) == made
    for number in range(made):
        session.write(f"instances/i{number}/set_ftrace_filter", str(number + 1))
        session.write(f"instances/i{number}/current_tracer", "function")
    session.check_calls({session.name[site] for site in session.sites[:made]})
    for number in range(made):
        session.files.rmdir(f"instances/i{number}")
    session.check_calls(set())
    session.files.mkdir("instances/again")


@pytest.fixture
def full() -> Session:
    """A guest whose memory is used up by ring buffers."""
    session = Session()
    names = [f"instances/i{number}" for number in range(20)]
    for name in names:
        session.files.mkdir(name)
        session.write(f"{name}/buffer_size_kb", "8")
    size = 1 << 19
    while size >= 16:
        path = f"{names[0]}/per_cpu/cpu0/buffer_size_kb"
        if number := errno_if_refused(session.write, path, str(size)):
            assert number == errno.ENOMEM
            size //= 2
        else:
            names.pop(0)
    return session


def test_without_memory_no_instance_is_made(full: Session) -> None:
    with full.nothing_changes():
        assert errno_of(full.files.mkdir, "instances/another") == errno.ENOMEM


@pytest.mark.parametrize(("path", "text"), [
    ("buffer_size_kb", "3000"),
    ("snapshot", "1"),
    ("set_ftrace_filter", "kfree:snapshot"),
    ("set_ftrace_filter", "*:traceon"),
    ("function_profile_enabled", "1"),
])  # fmt: skip
def test_without_memory_what_needs_some_is_refused(full: Session, path: str, text: str) -> None:
    full.refuse(errno.ENOMEM, path, text)
    full.files.rmdir("instances/i0")
    full.write("snapshot", "1")
    full.write(path, text)


def test_function_graph_needs_no_memory(full: Session) -> None:
    full.write("current_tracer", "function_graph")


def test_a_trigger_refused_for_want_of_memory_leaves_the_others_at_work(
    ran: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their table is made anew with each: nothing may change before there is room for it."""
    ran.append("set_ftrace_filter", "schedule:traceoff")

    def no_room(*_arguments: object) -> None:
        raise ImageError("guest RAM is used up")

    with monkeypatch.context() as patch:
        patch.setattr(PagePool, "alloc", no_room)
        ran.refuse(errno.ENOMEM, "set_ftrace_filter", "*:stacktrace", append=True)
    ran.check_calls({"schedule"})
    assert ran.read("tracing_on") == "1\n"
    ran.go(0.1)
    assert ran.read("tracing_on") == "0\n"
