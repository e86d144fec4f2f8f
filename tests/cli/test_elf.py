"""ELF images on the command line."""

from __future__ import annotations

import json

import pytest

from tests.elf_builds import BARE, STYLES, compile_c, run
from tests.kernel.compiled import need
from tests.kernel.elf_mutations import fields


@pytest.fixture
def firmware(samples):
    return samples / "sample-record.elf"


def test_what_it_prints_is_output_and_what_it_returns_is_told(cli, firmware):
    result = cli("run", firmware)
    assert result.code == 0
    lines = result.out.splitlines()
    assert {"steps=186", "result=3537685447", "leaked=0"} <= set(lines)
    assert "The entry returned 71 (0x47)" in lines
    assert "note: " in result.err
    assert "using the deterministic engine" in result.err


def test_with_json_the_output_is_one_document_and_the_console_on_stderr(cli, firmware):
    result = cli("run", firmware, "--json")
    document = json.loads(result.out)
    assert document["returned"] == "0x47"
    assert document["ended"] == "offline"
    assert document["style"] == STYLES["record"]
    assert document["discover"] == "table"
    assert document["sites"]["jmp"] == document["call_sites"] == 27
    assert document["console"] == ["steps=186", "result=3537685447", "leaked=0"]
    assert "workload" not in document
    assert "steps=186" in result.err.splitlines()


def test_a_call_prints_its_result_and_its_trace(cli, samples):
    result = cli("run", samples / "sample-mcount.elf", "--call", "fold(0x811c9dc5, 0x61)")
    assert result.code == 0
    assert "fold(0x811c9dc5, 0x61) = " in result.out
    assert "# tracer: function_graph" in result.out
    assert " |  fold();" in result.out
    chosen = cli(
        "run",
        samples / "sample-mcount.elf",
        "--call",
        "main",
        "--set",
        "current_tracer=nop",
        "--show",
        "current_tracer",
    )
    assert "function_graph" not in chosen.out


def test_fold_is_the_fnv_it_says_it_is(cli, samples):
    expected = 0x811C9DC5
    for byte in (0x61, 0, 0, 0):
        expected = (expected ^ byte) * 0x01000193 & 0xFFFF_FFFF
    document = json.loads(
        cli("run", samples / "sample-nop.o", "--call", "fold(0x811c9dc5, 0x61)", "--json").out
    )
    assert int(document["returned"], 16) == expected
    assert document["call"] == "fold(0x811c9dc5, 0x61)"
    assert "fold();" in document["show"]["trace"]


@pytest.mark.parametrize("discover", ["auto", "table", "scan", "runtime"])
def test_discovery(cli, firmware, discover):
    document = json.loads(cli("run", firmware, "--json", "--discover", discover).out)
    assert document["discover"] == {"auto": "table"}.get(discover, discover)
    assert document["sites"]["jmp"] == (0 if discover == "runtime" else 27)
    assert document["returned"] == "0x47"


def test_auto_without_a_table_is_the_commands_own_default(cli, samples, tmp_path):
    path = samples / "sample-fentry.elf"
    assert json.loads(cli("run", path, "--json").out)["discover"] == "runtime"
    assert (
        json.loads(cli("run", "--json", "--discover", "auto", "--iterations", "1").out)["discover"]
        == "runtime"
    )
    recorded = cli("record", path, "--json", "-o", tmp_path / "t.dat")
    assert json.loads(recorded.out)["discover"] == "scan"
    assert cli("run", path, "--discover", "table").code == 2
    assert cli("run", "--discover", "table", "--iterations", "1").code == 2


def test_what_is_recorded_can_be_reported(cli, firmware, tmp_path):
    trace = tmp_path / "trace.dat"
    assert cli("record", firmware, "-p", "function_graph", "-o", trace).code == 0
    report = cli("report", trace)
    assert "parse() {" in report.out
    assert "before_main();" in report.out
    graph = cli("report", trace, "--graph")
    assert "sched_run" in graph.out


@pytest.mark.parametrize("style", STYLES)
def test_inspect_says_how_the_sites_were_made(cli, samples, style):
    path = samples / f"sample-{style}.elf"
    text = cli("inspect", path).out
    assert f"Compiled with: {STYLES[style]}" in text.splitlines()
    assert f"{path} (dynamic): 29 functions, 27 call sites, " in text
    document = json.loads(cli("inspect", path, "--json").out)
    assert document["style"] == STYLES[style]
    table = {
        "record": "__mcount_loc",
        "nop": "__mcount_loc",
        "patchable": "__patchable_function_entries",
    }.get(style)
    if table is None:
        assert document["table"] is None
        assert "No table lists the sites" in text
    else:
        assert document["table"] == {"name": table, "entries": 27, "sites": 27, "unlisted": []}
        assert f"{table} lists 27 sites" in text
    assert len(document["call_sites"]) == 27
    assert document["ignored"] == []


def test_a_stripped_image_is_traced_by_addresses(cli, firmware, tmp_path):
    run("strip", "-o", tmp_path / "stripped.elf", firmware)
    result = cli(
        "run", tmp_path / "stripped.elf", "--set", "current_tracer=function", "--show", "trace"
    )
    assert result.code == 0
    assert "The entry returned 71 (0x47)" in result.out
    assert ": 0x40" in result.out
    one = json.loads(cli("inspect", tmp_path / "stripped.elf", "--json").out)["functions"][3][
        "name"
    ]
    filtered = cli(
        "run",
        tmp_path / "stripped.elf",
        "--set",
        f"set_ftrace_filter={one}",
        "--set",
        "current_tracer=function",
        "--show",
        "set_ftrace_filter",
    )
    assert filtered.out.rstrip().endswith(one)


@pytest.mark.parametrize("command", ["run", "record", "inspect"])
def test_options_of_the_mini_kernel_are_refused(cli, firmware, command):
    for variant in ("dynamic", "static", "none"):
        result = cli(command, firmware, "--variant", variant)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("dynftrace-emu: --variant is for the mini-kernel; ")
        assert len(result.err.splitlines()) == 1
    if command != "inspect":
        for option in (("--workload", "leaf"), ("--iterations", "5")):
            result = cli(command, firmware, *option)
            assert result.code == 2
            assert f"{option[0]} is for the mini-kernel" in result.err


@pytest.mark.parametrize("command", ["run", "record", "inspect"])
def test_a_bad_image_is_one_line(cli, firmware, tmp_path, command):
    data = firmware.read_bytes()
    offset, width = fields(data)[3]
    assert (offset, width) == (18, 2)  # e_machine
    (tmp_path / "arm.elf").write_bytes(data[:18] + b"\xb7\0" + data[20:])
    (tmp_path / "torn.elf").write_bytes(data[:5000])
    (tmp_path / "tiny.elf").write_bytes(data[:8])
    for name, message in (("arm", "machine 183"), ("torn", "truncated"), ("tiny", "truncated")):
        result = cli(command, tmp_path / f"{name}.elf")
        assert (result.code, result.out) == (2, "")
        assert message in result.err
        assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("size", ["1Q", "-1", "", "1.5M", "99999999999999999999999"])
def test_a_size_is_a_number_with_a_unit(cli, firmware, size):
    result = cli("run", firmware, "--ram", size)
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert "--ram" in result.err


def test_sizes_have_units(cli, firmware):
    assert cli("run", firmware, "--ram", "1M", "--stack", "0x4000").code == 0
    assert cli("run", firmware, "--ram", "0", "--stack", "16KiB").code == 0


def test_a_crash_is_reported_with_the_images_own_names(cli, tmp_path):
    source = "int fall(int *p) { return *p; } int main(void) { return fall((int *)8); }"
    result = cli("run", compile_c(tmp_path, source, "-pg -O0"))
    assert result.code == 1
    assert "guest fault on vCPU 0" in result.err
    assert "CR2 0x0000000000000008  not mapped" in result.err
    assert "fall+0x" in result.err
    assert "main+0x" in result.err


def test_functions_that_cannot_be_traced_are_told(cli, tmp_path):
    source = "int f(int x) { return x; } int main(void) { return f(1); }"
    few = cli("run", compile_c(tmp_path, source, "-fpatchable-function-entry=3"))
    assert "2 of 2 places that __patchable_function_entries lists cannot be traced" in few.err
    assert "has 3 bytes of nops at its entry; a call takes 5" in few.err
    none = cli("run", compile_c(tmp_path, source, "-O1"))
    assert "has no call sites: compile it with -pg" in none.err
    assert none.code == few.code == 0
    assert cli("run", compile_c(tmp_path, source, "-O1"), "--tracing", "1").code == 2


@pytest.mark.parametrize(
    "write",
    [
        "function_profile_enabled=1", "current_tracer=function", "stack_tracer_enabled=1",
        "set_ftrace_filter=main", "current_tracer=function_graph",
    ],
)  # fmt: skip
def test_what_cannot_be_traced_is_said_to_have_no_call_site(cli, tmp_path, write):
    path = compile_c(tmp_path, "int main(void) { return 0; }", "")
    result = cli("run", path, "--set", write)
    assert result.code == 2
    assert result.err.strip().endswith(f"{path} has no call site that can be traced")
    unknown = cli("run", path, "--set", "no_such_file=1").err
    assert "call site" not in unknown


NOT_IMAGES = {"prog.c": "compile it first", "prog.cpp": "compile it first", "empty": "is empty"}


@pytest.mark.parametrize("name", NOT_IMAGES)
def test_what_is_no_image_is_said_to_be_what_it_is(cli, tmp_path, name):
    path = tmp_path / name
    path.write_text("" if name == "empty" else "int main(void) { return 0; }")
    result = cli("run", path)
    assert result.code == 2
    assert NOT_IMAGES[name] in result.err
    assert len(result.err.splitlines()) == 1


def test_a_device_without_anything_in_it_is_empty(cli):
    assert "/dev/null is empty" in cli("run", "/dev/null").err


CPP = """
namespace ns {
template <class T> struct V {
    T a;
    __attribute__((noinline)) T get(int k) const { return a + k; }
};
__attribute__((noinline)) int twice(int x) { return 2 * x; }
namespace { __attribute__((noinline)) int hidden(int x) { return x + 1; } }
__attribute__((noinline)) int calls(int x) { return hidden(x); }
}
__attribute__((noinline)) int use(ns::V<int> *v) { return v->get(2) + ns::twice(5); }
ns::V<int> v = {7};
int main() { return use(&v) + ns::calls(1); }
"""


@pytest.fixture
def cpp(tmp_path):
    need("g++")
    bare = [
        flag
        for flag in BARE.split()
        if flag != "-static" and "Wl" not in flag and "std" not in flag
    ]
    (tmp_path / "cpp.cpp").write_text(CPP)
    run("g++", *bare, "-O2", "-pg", "-c", "-o", tmp_path / "cpp.o", tmp_path / "cpp.cpp")
    return tmp_path / "cpp.o"


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("ns::*", {"get", "twice", "calls", "hidden"}),
        ("use(ns::V<int>*)", {"use"}),
        ("use", {"use"}),
        ("ns::V<int>::get", {"get"}),
        ("ns::twice(int)", {"twice"}),
        ("_ZN2ns5twiceEi", {"twice"}),
        ("*hidden", {"hidden"}),
    ],
)
def test_functions_of_cpp_are_chosen_by_either_name(cli, cpp, pattern, named):
    writes = ("--set", f"set_ftrace_filter={pattern}", "--set", "current_tracer=function")
    result = cli("run", cpp, *writes, "--show", "trace")
    assert result.code == 0
    calls = [line.split(": ", 1)[1] for line in result.out.splitlines() if " <-" in line]
    short = {call.split(" <-")[0].split("(int)")[0].split("(ns::V")[0] for call in calls}
    assert {name.split("::")[-1].split("(")[0] for name in short} == named
    assert all("_Z" not in call for call in calls)


def test_a_trigger_on_a_function_of_cpp_is_told_from_its_name(cli, cpp):
    writes = ("--set", "set_ftrace_filter=ns::twice:traceoff", "--show", "set_ftrace_filter")
    assert "_ZN2ns5twiceEi:traceoff:unlimited" in cli("run", cpp, *writes).out


def test_functions_of_cpp_are_called_by_either_name(cli, cpp):
    for name in ("ns::twice", "_ZN2ns5twiceEi"):
        assert f"{name}(21) = 42 " in cli("run", cpp, "--call", f"{name}(21)").out
    wrong = cli("run", cpp, "--call", "ns::thrice(21)")
    assert wrong.code == 2
    assert "mangled name does, which `inspect` shows" in wrong.err
    assert "ns::twice(int)  [_ZN2ns5twiceEi]" in cli("inspect", cpp).out


STATICS = {
    "a.c": "static int __attribute__((noinline)) same(int x) { return x + 1; }\n"
    "int a(int x) { return same(x); }",
    "b.c": "static int __attribute__((noinline)) same(int x) { return x + 2; }\n"
    "int a(int); int main(void) { return same(1) + a(1); }",
}


def test_of_functions_with_one_name_none_is_taken_silently(cli, tmp_path):
    bare = [flag for flag in BARE.split() if flag != "-static" and "Wl" not in flag]
    for name, text in STATICS.items():
        (tmp_path / name).write_text(text)
    path = tmp_path / "both.o"
    run("gcc", *bare, "-pg", "-r", "-o", path, *(tmp_path / name for name in STATICS))
    for option in ("--call", "--entry"):
        result = cli("run", path, option, "same")
        assert result.code == 2
        assert "has 2 functions called same" in result.err
        assert "a.c:1" in result.err
        assert "b.c:1" in result.err
    addresses = [word for word in result.err.split() if word.startswith("0x")]
    results = {cli("run", path, "--call", f"{a}(5)").out.split(" = ")[1][0] for a in addresses}
    assert results == {"6", "7"}
    both = cli(
        "run", path, "--set", "set_ftrace_filter=same", "--show", "set_ftrace_filter"
    )  # as in Linux
    assert both.out.splitlines().count("same") == 2


def test_the_nmi_check_begins_at_any_label_and_says_how_to_name_it(cli, tmp_path):
    asm = """
    int traced(void) { return 1; }
    __asm__(".text\\nnmi_label: call traced\\niretq");
    int main(void) { return 0; }
    """
    path = compile_c(tmp_path, asm, "-pg")
    missing = cli("inspect", path, "--nmi-check")
    assert missing.code == 2
    assert "--nmi-entry SYMBOL" in missing.err
    found = cli("inspect", path, "--nmi-check", "--nmi-entry", "nmi_label")
    assert found.code == 1
    assert "nmi_label\n  traced\n    mcount" in found.out
