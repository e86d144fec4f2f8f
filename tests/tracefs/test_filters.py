"""Exactly the functions that were chosen are calls, by Python's own glob; all others are jumps."""

from __future__ import annotations

import errno
from fnmatch import fnmatchcase

import pytest

from tests.tracefs.conftest import Session

TRACERS = ("function", "function_graph")

PATTERNS = {
    "whole name": ["vfs_read", "schedule", "__schedule", "e1000_xmit_frame", "rest_init"],
    "x*": ["vfs_*", "__*", "e1000_*", "sch*", "s*", "free*"],
    "*x": ["*_read", "*_init", "*lock", "*e", "*schedule", "*32"],
    "*x*": ["*read*", "*_*", "*schedule*", "*pin*", "*sort*", "*1000*"],
    "a*b": ["vfs*d", "sch*ule", "_*_*k*", "e*_w*e", "*pin*lock", "*e*e*e*", "s*d*", "k*free"],
    "?": ["vfs_rea?", "?get", "sch?dule", "????", "*_r??d", "?*?_?*?", "memc??"],
    "[]": [
        "[vi]*_read", "vfs_[rw]*", "*_[a-f]*", "[Ss]ys_*", "*[0-9]", "[_]*", "[!a-y_]*",
        "mem[cms]*", "*_[!i]*", "[a-c]*[x-z]", "crc32_[bl]e", "[]v]fs_*", "[a-]*",
    ],
    "several words": [
        "vfs_read vfs_write", "vfs_*  pipe_*\tschedule\n*_init", "e1000_* vfs_rea? [ks]*e",
        "vfs_read vfs_read", "vfs_* vfs_read", "schedule\n",
    ],
    "all": ["*", "**", "?*", "[!]]*"],
}  # fmt: skip
FORMS = [(form, pattern) for form, patterns in PATTERNS.items() for pattern in patterns]


class Model:
    """What ``set_ftrace_filter`` and ``set_ftrace_notrace`` say, over the names in their order."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.chosen: dict[str, set[str]] = {"set_ftrace_filter": set(), "set_ftrace_notrace": set()}

    def write(self, file: str, text: str, *, append: bool) -> None:
        chosen = set(self.chosen[file]) if append else set()
        for word in text.split():
            matching = self.matching(word.removeprefix("!"))
            assert matching, f"a test should not write {word!r}"
            chosen = chosen - matching if word.startswith("!") else chosen | matching
        self.chosen[file] = chosen

    def matching(self, word: str) -> set[str]:
        if word.isdigit():
            return {self.names[int(word) - 1]}
        return {name for name in self.names if fnmatchcase(name, word)}

    @property
    def wanted(self) -> set[str]:
        chosen = self.chosen["set_ftrace_filter"] or set(self.names)
        return chosen - self.chosen["set_ftrace_notrace"]

    def text(self, file: str) -> str:
        """What the file reads: names by address."""
        chosen = self.chosen[file]
        if chosen:
            return "".join(f"{name}\n" for name in self.names if name in chosen)
        if file == "set_ftrace_filter":
            return "#### all functions enabled ####\n"
        return "#### no functions disabled ####\n"


F, N = "set_ftrace_filter", "set_ftrace_notrace"
SCRIPTS: dict[str, list[tuple[str, str, str]]] = {
    "> replaces": [(F, ">", "vfs_*"), (F, ">", "pipe_*"), (F, ">", "pipe_read vfs_read")],
    ">> adds": [(F, ">", "vfs_*"), (F, ">>", "pipe_*"), (F, ">>", "schedule"), (F, ">>", "vfs_*")],
    ">> to nothing": [(F, ">>", "vfs_read"), (F, ">>", "vfs_write")],
    "> of nothing is all": [(F, ">", "vfs_*"), (F, ">", "")],
    ">> of nothing changes nothing": [(F, ">", "vfs_*"), (F, ">>", ""), (F, ">>", "\n")],
    "! removes": [(F, ">", "vfs_* pipe_*"), (F, ">>", "!*_read"), (F, ">>", "!pipe_*")],
    "! among words": [(F, ">", "vfs_* !vfs_read"), (F, ">", "!vfs_read vfs_*"), (F, ">", "* !*_*")],
    "! of what is not in it": [(F, ">", "vfs_read"), (F, ">>", "!schedule")],
    "! and > begins with nothing": [(F, ">", "vfs_*"), (F, ">", "!vfs_read")],
    "! of the last is all": [(F, ">", "vfs_read"), (F, ">>", "!vfs_read")],
    "! of everything is all": [(F, ">", "vfs_* *_init"), (F, ">>", "!*")],
    "! and globs": [(F, ">", "*"), (F, ">>", "!*[aeiou]"), (F, ">>", "!?????*_*")],
    "numbers": [(F, ">", "1"), (F, ">", "3 17 630"), (F, ">>", "100"), (F, ">>", "!17")],
    "numbers and names": [(F, ">", "vfs_read 5"), (F, ">>", "!5"), (F, ">>", "6 !vfs_read")],
    "notrace": [(N, ">", "vfs_*"), (N, ">", "pipe_*"), (N, ">>", "*read*"), (N, ">>", "!pipe_*")],
    "notrace by number": [(N, ">", "2 3 4"), (N, ">>", "!3")],
    "notrace of all": [(N, ">", "*"), (N, ">>", "!vfs_read"), (N, ">", "")],
    "notrace wins": [(F, ">", "vfs_*"), (N, ">", "vfs_read"), (F, ">>", "vfs_read schedule")],
    "both": [
        (F, ">", "*_read *_write"), (N, ">", "e1000_*"), (F, ">>", "schedule"), (N, ">>", "*null*"),
        (F, ">", "e1000_* vfs_*"), (N, ">", "[!v]*"), (N, ">", ""),
    ],
    "nothing is left": [(F, ">", "vfs_read"), (N, ">", "vfs_*"), (F, ">", "vfs_write pipe_read")],
}  # fmt: skip


@pytest.fixture(scope="module")
def scanned() -> Session:
    """One run for all tests, which leave it as nop without filters."""
    session = Session()
    session.go(0.3)
    return session


@pytest.fixture
def s(scanned: Session) -> Session:
    for file, text in (("current_tracer", "nop"), (F, ""), (N, "")):
        scanned.write(file, text)
    scanned.check_calls(set())
    return scanned


def write(session: Session, model: Model, step: tuple[str, str, str]) -> None:
    file, how, text = step
    session.files.write(file, text, append=how == ">>")
    model.write(file, text, append=how == ">>")
    assert session.lines(file) == model.text(file).splitlines()


def model_of(session: Session) -> Model:
    names = [session.name[site] for site in session.sites]
    assert session.lines("available_filter_functions") == names  # scan: every site, by address
    return Model(names)


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize(("form", "pattern"), FORMS)
def test_a_pattern_set_before_the_tracer(s: Session, form: str, pattern: str, tracer: str) -> None:
    model = model_of(s)
    with s.one_stop():
        write(s, model, (F, ">", pattern))
    s.check_calls(set())
    with s.one_stop():
        s.write("current_tracer", tracer)
    s.check_calls(model.wanted)
    s.go()
    s.check_calls(model.wanted)
    assert set(s.traced()) <= model.wanted
    assert set(s.lines("enabled_functions")) == {f"{name} (1)" for name in model.wanted}
    with s.one_stop():
        s.write("current_tracer", "nop")
    s.check_calls(set())


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize(("form", "pattern"), FORMS)
def test_a_pattern_while_the_tracer_is_set(
    s: Session, form: str, pattern: str, tracer: str
) -> None:
    """As filter, then as notrace."""
    model = model_of(s)
    s.write("current_tracer", tracer)
    s.check_calls(set(model.names))
    for step in ((F, ">", pattern), (N, ">", pattern), (F, ">", "")):
        with s.one_stop():
            write(s, model, step)
        s.check_calls(model.wanted)
    s.go()
    s.check_calls(model.wanted)


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_writes_one_after_the_other(s: Session, script: list, tracer: str) -> None:
    """With the tracer set; from one to the next only sites that differ are written, in one stop."""
    model = model_of(s)
    s.write("current_tracer", tracer)
    for step in script:
        with s.one_stop():
            write(s, model, step)
        s.check_calls(model.wanted)
        s.go(0.005)
        s.check_calls(model.wanted)
    with s.one_stop():
        s.write("current_tracer", "nop")
    s.check_calls(set())
    with s.one_stop():
        s.write("current_tracer", tracer)
    s.check_calls(model.wanted)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_writes_before_the_tracer_touch_no_text(s: Session, script: list) -> None:
    model = model_of(s)
    for step in script:
        text = s.text()
        write(s, model, step)
        assert s.text() == text
    s.write("current_tracer", "function")
    s.check_calls(model.wanted)


def test_from_one_tracer_to_the_other_no_site_is_written(s: Session) -> None:
    s.write(F, "vfs_*")
    s.write("current_tracer", "function")
    text = s.text()
    with s.one_stop():
        s.write("current_tracer", "function_graph")
    assert s.text() == text


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("pattern", ["vfs_*", "*_read", "[!s]*e", "schedule pick_next_task"])
def test_only_what_was_chosen_is_in_the_trace(s: Session, tracer: str, pattern: str) -> None:
    model = model_of(s)
    write(s, model, (F, ">", pattern))
    s.write("current_tracer", tracer)
    s.go(0.3)
    traced = set(s.traced())
    assert traced
    assert traced <= model.wanted


NOTHING = [
    "no_such_function", "no_such*", "*no_such", "*no_such*", "vfs_*_such", "VFS_READ", "Vfs_*",
    "vfs_rea", "fs_read", "vfs_read?", "?vfs_read", "[A-HJ-Z]*", "vfs_read[x]", "kfree*free", "0",
    "631", "99999999999999999999", "-1", "!no_such_function", "!*no_such*", "!0", "!631", "!",
    "vfs_.*", "^vfs_read$", "vfs_(read)", "vfs_read|vfs_write", "do_nmi", "mcount", "ftrace_caller",
    "vfs_read no_such_function", "no_such_function vfs_read", "vfs_* !no_such", "7 631",
    "vfs_read,",
    "9" * 5000, "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT THREE}", "7x", "7 7x",
]  # fmt: skip


@pytest.mark.parametrize("text", NOTHING, ids=lambda text: ascii(text)[:30])
def test_what_matches_nothing_is_refused(s: Session, text: str) -> None:
    """Also if only one of the words does: a failed write changes nothing."""
    s.write(F, "vfs_* pipe_*")
    s.write(N, "vfs_write")
    s.write("current_tracer", "function")
    for append in (False, True):
        s.refuse(errno.EINVAL, F, text, append=append)
    newest = s.read("error_log").split("\n[")[-1]
    assert f"{F}: error: " in newest


@pytest.mark.parametrize(
    "file", [N, "set_graph_function", "set_graph_notrace", "stack_trace_filter"]
)
@pytest.mark.parametrize(
    "text",
    ["no_such*", "vfs_read no_such", "!no_such", "do_nmi", "vfs_read:traceoff", "9" * 5000],
    ids=lambda text: text[:20],
)
def test_the_other_files_refuse_likewise(s: Session, file: str, text: str) -> None:
    s.write(file, "vfs_* pipe_*")
    s.write("current_tracer", "function_graph")
    for append in (False, True):
        s.refuse(errno.EINVAL, file, text, append=append)
    s.write(file, "")


def test_the_functions_of_the_graph_change_no_call_site(s: Session) -> None:
    """They are looked at in the tracer: the filter alone says what is a call."""
    s.write("current_tracer", "function_graph")
    for file in ("set_graph_function", "set_graph_notrace"):
        with s.one_stop():
            s.write(file, "vfs_* !vfs_write")
        s.check_calls(set(s.site))
        assert "vfs_read" in s.lines(file)
        assert "vfs_write" not in s.lines(file)
        s.append(file, "schedule")
        assert "schedule" in s.lines(file)
        s.append(file, "!vfs_*")
        assert s.lines(file) == ["schedule"]
        s.write(file, "")
        assert s.read(file).startswith("#### ")


# --- triggers ---


def test_a_trigger_makes_its_function_a_call_whatever_the_tracer(s: Session) -> None:
    with s.one_stop():
        s.write(F, "vfs_read:traceoff:3")
    s.check_calls({"vfs_read"})
    assert s.read(F) == "#### all functions enabled ####\nvfs_read:traceoff:count=3\n"
    with s.one_stop():
        s.append(F, "pipe_*:traceon")
    pipes = {name for name in s.site if name.startswith("pipe_")}
    s.check_calls({"vfs_read"} | pipes)
    with s.one_stop():
        s.append(F, "!pipe_*:traceon")
    s.check_calls({"vfs_read"})
    s.write(F, "schedule")  # a truncating write keeps the triggers, as in Linux
    s.check_calls({"vfs_read"})
    assert s.read(F) == "schedule\nvfs_read:traceoff:count=3\n"
    s.write(N, "vfs_read")  # ... and notrace is for tracers
    s.write("current_tracer", "function")
    s.check_calls({"vfs_read", "schedule"})
    s.append(F, "!vfs_read:traceoff:0")
    s.check_calls({"schedule"})
    assert s.read(F) == "schedule\n"


@pytest.mark.parametrize(
    "kind", ["traceon", "traceoff", "stacktrace", "snapshot", "dump", "cpudump"]
)
def test_every_trigger_is_set_by_glob_listed_and_removed(s: Session, kind: str) -> None:
    pattern = "*_suspend"  # run by nobody until later
    names = [s.name[site] for site in s.sites if fnmatchcase(s.name[site], pattern)]
    number = "count=1" if kind in ("dump", "cpudump") else "unlimited"
    s.append(F, f"{pattern}:{kind}")
    assert s.lines(F)[1:] == [f"{name}:{kind}:{number}" for name in names]
    s.check_calls(set(names))
    s.append(F, f"!{names[0]}:{kind}")
    s.check_calls(set(names[1:]))
    s.append(F, f"!*:{kind}")
    s.check_calls(set())
    assert s.lines(F) == ["#### all functions enabled ####"]
    s.write("snapshot", "0")


# --- what has not run yet ---


@pytest.fixture
def runtime() -> Session:
    session = Session(discover="runtime", period=0.1)
    session.go(0.3)
    return session


def names_of(session: Session, sites: set[int]) -> list[str]:
    return [session.name[site] for site in sorted(sites)]


def test_runtime_available_functions_are_those_that_have_run() -> None:
    """At first nothing; then what was recorded, which is what was run as a call to mcount."""
    session = Session(discover="runtime", period=0.1)
    watched, executed = set(session.sites[::8]), set()
    for vcpu in session.run.machine.vcpus:
        for site in watched:
            vcpu.hook_instruction(site, lambda vcpu: executed.add(vcpu.rip))
    assert session.read("available_filter_functions") == ""
    sizes = []
    for _ in range(4):
        session.go(0.1)
        available = session.lines("available_filter_functions")
        assert available == names_of(session, session.recorded)
        assert session.recorded & watched <= executed
        sizes.append(len(available))
    assert sizes == sorted(sizes)
    assert 100 < sizes[-1] < len(session.sites)
    executed.clear()
    session.go(0.1)
    assert executed
    assert executed <= session.recorded  # with room for all, whoever runs is recorded


@pytest.mark.parametrize("tracer", TRACERS)
def test_runtime_a_filter_on_what_has_not_run_is_refused(runtime: Session, tracer: str) -> None:
    """... and a line in error_log says why; once it has run, it is accepted."""
    late = "touch_inode"  # of the second wave
    assert late not in runtime.lines("available_filter_functions")
    assert len(runtime.recorded) > 100
    runtime.write(F, "schedule")
    runtime.write("current_tracer", tracer)
    runtime.check_calls({"schedule"})
    for text in (late, f"schedule {late}", f"!{late}", "touch_ino*"):
        for append in (False, True):
            error = runtime.refuse(errno.EINVAL, F, text, append=append)
            assert "not run" in error.reason
            newest = runtime.read("error_log").split("\n[")[-1]
            assert f"{F}: error: " in newest
            assert "not run" in newest
            assert f"Command: {text}" in newest
    runtime.check_calls({"schedule"})
    runtime.go(1.6)
    assert late in runtime.lines("available_filter_functions")
    runtime.write(F, late)
    runtime.check_calls({late})


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("pattern", ["*_*", "schedule"])
def test_runtime_a_glob_chooses_what_has_run(runtime: Session, pattern: str, tracer: str) -> None:
    """What runs for the first time later on was not chosen: recorded, patched, a jump."""
    before = set(runtime.recorded)
    model = Model(names_of(runtime, before))
    runtime.write("current_tracer", tracer)
    with runtime.one_stop():
        write(runtime, model, (F, ">", pattern))
    runtime.check_calls(model.wanted)
    runtime.go(1.6)  # also past the beginning of the second wave
    later = runtime.recorded - before
    assert len(later) > 20
    runtime.check_calls(model.wanted)
    kinds = runtime.text()
    assert {kinds[site] for site in later} == {"jump"}
    assert set(runtime.traced()) <= model.wanted
    runtime.write("current_tracer", "nop")
    runtime.check_calls(set())


def test_runtime_without_a_filter_what_runs_later_is_a_call(runtime: Session) -> None:
    runtime.write("current_tracer", "function")
    runtime.check_calls(set(names_of(runtime, runtime.recorded)))
    before = set(runtime.recorded)
    runtime.go(1.6)
    assert len(runtime.recorded - before) > 20
    runtime.check_calls(set(names_of(runtime, runtime.recorded)))
    runtime.write(N, "*_*")
    wanted = {name for name in names_of(runtime, runtime.recorded) if "_" not in name}
    runtime.check_calls(wanted)
    runtime.write("current_tracer", "nop")
    runtime.check_calls(set())


def test_runtime_numbers_count_what_has_run(runtime: Session) -> None:
    names = names_of(runtime, runtime.recorded)
    runtime.write("current_tracer", "function")
    runtime.write(F, f"1 {len(names)}")
    runtime.check_calls({names[0], names[-1]})
    runtime.refuse(errno.EINVAL, F, str(len(names) + 1))


@pytest.mark.parametrize("tracer", TRACERS)
def test_runtime_the_first_call_of_a_chosen_function_is_traced(tracer: str) -> None:
    """It is recorded and traced, though its site calls mcount."""
    session = Session(discover="runtime", period=0.1)
    session.write("current_tracer", tracer)
    session.go(0.36)  # some have run since the daemon's last pass
    once = {"smp_cpus_done", "workload_start", "worker_alloc", "rest_init", "schedule_tail"}
    assert once & set(session.traced())
    assert session.recorded
    assert set(session.traced()) <= set(names_of(session, session.recorded))
    first_runs = session.recorded - {
        site for site, kind in session.text().items() if kind == "tracer"
    }
    assert first_runs
    session.go(0.1)
    assert set(names_of(session, first_runs)) <= set(session.traced())


def test_scan_knows_every_site_at_boot_and_patches_it_away(session: Session) -> None:
    assert set(session.text().values()) == {"jump"}
    names = [session.name[site] for site in session.sites]
    assert session.lines("available_filter_functions") == names
    session.write(F, "start_kernel")
    session.write("current_tracer", "function")
    session.check_calls({"start_kernel"})
    session.go(0.3)
    assert session.traced() == ["start_kernel"]


# --- instances ---


def test_a_site_is_a_call_while_anybody_wants_it(s: Session) -> None:
    s.files.mkdir("instances/one")
    s.files.mkdir("instances/two")
    one, two = "instances/one/", "instances/two/"
    s.write(F, "vfs_*")
    s.write(one + F, "*_read")
    s.write(two + F, "vfs_read schedule")
    s.check_calls(set())

    def match(pattern: str) -> set[str]:
        return {name for name in s.site if fnmatchcase(name, pattern)}

    with s.one_stop():
        s.write(one + "current_tracer", "function")
    s.check_calls(match("*_read"))
    with s.one_stop():
        s.write(two + "current_tracer", "function")
    s.check_calls(match("*_read") | {"schedule"})
    with s.one_stop():
        s.write("current_tracer", "function_graph")
    s.check_calls(match("*_read") | {"schedule"} | match("vfs_*"))
    s.go(0.3)
    assert set(s.traced()) <= match("vfs_*")
    assert set(s.traced(one + "trace")) <= match("*_read")
    assert set(s.traced(two + "trace")) == {"vfs_read", "schedule"}
    assert "vfs_read (3)" in s.lines("enabled_functions")
    assert "schedule (1)" in s.lines("enabled_functions")
    with s.one_stop():
        s.files.rmdir("instances/one")
    s.check_calls(match("vfs_*") | {"schedule"})
    with s.one_stop():
        s.write("current_tracer", "nop")
    s.check_calls({"vfs_read", "schedule"})
    with s.one_stop():
        s.files.rmdir("instances/two")
    s.check_calls(set())


# --- as many functions as a real kernel has ---


def test_a_long_list_of_names_chooses_what_each_of_them_names() -> None:
    session = Session(image="synthetic:2000", boot_records=None)
    names = session.lines("available_filter_functions")
    wanted = [name for name in names if fnmatchcase(name, "*_e*")]
    assert len(wanted) > 100
    session.write("set_ftrace_filter", " ".join(reversed(wanted)))
    assert session.lines("set_ftrace_filter") == wanted
    session.append("set_ftrace_filter", " ".join(f"!{name}" for name in wanted[::2]))
    assert session.lines("set_ftrace_filter") == wanted[1::2]
    refused = session.refuse(errno.EINVAL, "set_ftrace_filter", f"{names[0]} {names[1]}_not")
    assert "no such function" in refused.reason
