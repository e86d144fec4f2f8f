"""Source lines where people read them: inspect, crash reports, traces; of ELF files of gcc's."""

import json
import re
import shutil
import subprocess

import pytest

from tests.kernel.compiled import FREESTANDING, MCOUNT, build, need

FIRMWARE = (
    MCOUNT
    + """#define NOINLINE __attribute__((noinline))
typedef unsigned long u64;
volatile u64 rounds;
static inline u64 step(u64 x) { x ^= x << 13;
    return x * 5 + 1; }
NOINLINE u64 leaf(u64 x)
{
    return step(step(x));
}
static inline void poke(u64 *at) { *at = leaf(1); }
NOINLINE u64 crash(u64 at)
{
    poke((u64 *)(at << 40));
    return 0;
}
u64 _start(void)
{
    u64 x = 1;
    for (int i = 0; i < 20; i++)
        x = leaf(x);
    rounds++;
#ifdef CRASH
    x += crash(0x800000);
#endif
    return x & 0xff;
}
"""
)
LINES = {text.strip(): number for number, text in enumerate(FIRMWARE.splitlines(), 1)}
LEAF, START = LINES["NOINLINE u64 leaf(u64 x)"] + 1, LINES["u64 _start(void)"] + 1
CALLS_LEAF = LINES["x = leaf(x);"]
DETERMINISTIC = ["--engine", "deterministic", "--vcpus", "1"]


@pytest.fixture(scope="module")
def firmware(tmp_path_factory):
    """Builds it; ``flags`` on top of the usual ones."""
    folder = tmp_path_factory.mktemp("firmware")

    def make(*flags):
        usual = ("-O2", "-g", "-pg", "-fno-optimize-sibling-calls", *FREESTANDING)
        return build(folder, {"fw.c": FIRMWARE}, *usual, *flags)

    return make


def line_of(path, address):
    """What binutils say of an address."""
    need("addr2line")
    done = subprocess.run(
        ["addr2line", "-e", path, hex(address)], capture_output=True, text=True, check=True
    )
    found = re.search(r"(fw\.c:\d+)", done.stdout)
    return found[1] if found else ""


def test_inspect_says_where_functions_and_sites_are_from(cli, firmware):
    path = firmware()
    contents = json.loads(cli("inspect", path, "--json").out)
    functions = {function["name"]: function["source"] for function in contents["functions"]}
    assert functions["leaf"] == f"fw.c:{LEAF}"
    assert functions["_start"] == f"fw.c:{START}"
    assert len(contents["call_sites"]) == 3
    for site in contents["call_sites"]:
        assert site["source"] == line_of(path, int(site["address"], 16)) != ""
    assert f"leaf  (fw.c:{LEAF})" in cli("inspect", path).out


@pytest.mark.parametrize("kind", ["executable", "object"])
def test_a_crash_report_names_lines_and_what_is_inlined(cli, firmware, kind):
    path = firmware("-DCRASH", *(["-c"] if kind == "object" else []))
    result = cli("run", path, *DETERMINISTIC)
    assert result.code == 1
    trace = result.err.partition("Call trace:\n")[2].partition("Code:")[0]
    frames = [line.partition("] ")[2] for line in trace.splitlines()]
    poke, calls_poke = (
        LINES["static inline void poke(u64 *at) { *at = leaf(1); }"],
        LINES["poke((u64 *)(at << 40));"],
    )
    assert frames[0] == f"poke  fw.c:{poke} (inlined)"
    assert re.fullmatch(rf"crash\+0x\w+/0x\w+  fw\.c:{calls_poke}", frames[1])
    assert re.fullmatch(rf"_start\+0x\w+/0x\w+  fw\.c:{LINES['x += crash(0x800000);']}", frames[2])
    assert re.search(rf"^RIP .* crash\+\S+  fw\.c:{poke}$", result.err, re.MULTILINE)


def test_run_shows_a_trace_with_lines(cli, firmware):
    path = firmware()
    run = ("run", path, *DETERMINISTIC, "--set", "current_tracer=function", "--show", "trace")
    plain, lines = cli(*run).out, cli(*run, "--lines").out
    assert "leaf <-_start" in plain
    assert "fw.c" not in plain
    call = f"leaf (fw.c:{LEAF}) <-_start (fw.c:{CALLS_LEAF})"
    assert lines.count(call) == plain.count("leaf <-_start") == 20


def test_run_draws_calls_with_lines(cli, firmware):
    options = ("--set", "current_tracer=function_graph", "--show", "trace", "--lines")
    out = cli("run", firmware(), *DETERMINISTIC, *options).out
    assert f"_start() {{ /* fw.c:{START} */" in out
    assert out.count(f"leaf(); /* fw.c:{LEAF} */") == 20


@pytest.fixture
def recorded(cli, firmware, tmp_path):
    """A recording, and a copy of the image that was recorded."""
    image = tmp_path / "its image.elf"
    shutil.copy(firmware(), image)
    assert cli("record", image, *DETERMINISTIC, "-o", "trace.dat").code == 0
    return tmp_path / "trace.dat", image


def test_report_knows_what_was_recorded(cli, recorded, monkeypatch):
    trace, _ = recorded
    monkeypatch.chdir("/")
    result = cli("report", trace, "--lines")
    assert result.err == ""
    assert result.out.count(f"leaf (fw.c:{LEAF}) <-_start (fw.c:{CALLS_LEAF})") == 20
    assert f"leaf (fw.c:{LEAF})" in cli("report", trace, "--lines", "--stat").out
    assert "fw.c" not in cli("report", trace).out
    events = json.loads(cli("report", trace, "--lines", "--json").out)["events"]
    leaf = next(event for event in events if event.get("function") == "leaf")
    assert leaf["source"] == f"fw.c:{LEAF}"
    assert leaf["parent_source"] == f"fw.c:{CALLS_LEAF}"


def test_report_says_so_when_the_image_is_gone_and_takes_another(cli, recorded, firmware):
    trace, image = recorded
    image.unlink()
    gone = cli("report", trace, "--lines")
    assert gone.code == 2
    assert "its image.elf" in gone.err
    assert "--image" in gone.err
    assert gone.err.count("\n") == 1
    again = cli("report", trace, "--lines", "--image", firmware())
    assert (again.code, again.err) == (0, "")
    assert f"leaf (fw.c:{LEAF})" in again.out


def test_report_warns_of_an_image_that_was_built_again(cli, recorded, firmware):
    trace, image = recorded
    shutil.copy(firmware("-O1"), image)
    result = cli("report", trace, "--lines")
    assert result.code == 0
    assert "is not what was traced" in result.err
    assert result.err.count("\n") == 1


def test_a_trace_that_does_not_say_what_was_traced_needs_an_image(cli, recorded, firmware):
    trace, _ = recorded
    foreign = trace.with_name("foreign.dat")
    foreign.write_bytes(trace.read_bytes().replace(b".dynftrace.image.", b".dynftrace.xxxxx."))
    refused = cli("report", foreign, "--lines")
    assert refused.code == 2
    assert "--image" in refused.err
    again = cli("report", foreign, "--lines", "--image", firmware())
    assert f"leaf (fw.c:{LEAF})" in again.out


def test_what_has_no_addresses_has_no_lines(cli, recorded, firmware):
    trace, _ = recorded
    assert cli("convert", trace, "trace.json").code == 0
    refused = cli("report", "trace.json", "--lines", "--image", firmware())
    assert refused.code == 2
    assert "no addresses" in refused.err
    unused = cli("report", trace, "--image", firmware())
    assert unused.code == 2
    assert "--lines" in unused.err


def test_the_mini_kernel_has_the_lines_of_its_functions(cli):
    cli("record", *DETERMINISTIC, "--seconds", "0.05", "-o", "trace.dat")
    result = cli("report", "trace.dat", "--lines", "--stat")
    assert result.err == ""
    assert re.search(r"ext2_\w+ \(fs/\w+\.S:\d+\)|vfs_\w+ \(fs/\w+\.S:\d+\)", result.out)


def test_damaged_debug_information_is_one_warning(cli, firmware, tmp_path):
    raw = bytearray(firmware().read_bytes())
    stripped = tmp_path / "damaged.elf"
    need("objcopy")
    at = raw.index(b"\x00.debug_info\x00")  # the name is there; then the section's own bytes
    assert at
    stripped.write_bytes(raw)
    (tmp_path / "junk").write_bytes(b"\xff" * 4000)
    subprocess.run(
        ["objcopy", "--update-section", f".debug_info={tmp_path}/junk", stripped], check=True
    )
    result = cli("inspect", stripped)
    assert result.code == 0
    assert "leaf" in result.out
    assert result.err.count("\n") == 1
    assert result.err.startswith("warning: ")
    assert "debug information is malformed" in result.err


CXX = """
extern "C" void mcount();
namespace shapes {
template <class T> struct Box { T v; __attribute__((noinline)) T twice() const { return 2 * v; } };
}
extern "C" int _start() { shapes::Box<int> box{3}; return box.twice(); }
"""


@pytest.fixture
def cxx(tmp_path):
    text = MCOUNT + CXX
    return build(tmp_path, {"fw.cc": text}, "-O1", "-g", "-pg", *FREESTANDING, compiler="g++")


def test_names_of_cxx_are_readable_where_people_read_them(cli, cxx):
    name = "shapes::Box<int>::twice() const"
    assert name in cli("inspect", cxx).out
    functions = json.loads(cli("inspect", cxx, "--json").out)["functions"]
    assert name in [function.get("demangled") for function in functions]
    cli("record", cxx, *DETERMINISTIC, "-o", "trace.dat")
    assert f"{name} <-_start" in cli("report", "trace.dat").out
    assert name in cli("report", "trace.dat", "--stat").out
    raw = cli("report", "trace.dat", "--no-demangle").out
    assert "_ZNK6shapes3BoxIiE5twiceEv <-_start" in raw


def test_an_image_returns_the_same_from_either_engine(cli, firmware):
    """It has no safepoints: threads are stopped between its blocks."""
    path = firmware()
    options = ("--discover", "runtime", "--vcpus", "1", "--json")
    results = [
        json.loads(cli("run", path, "--engine", engine, *options).out)
        for engine in ("deterministic", "threaded")
    ]
    assert results[0]["returned"] == results[1]["returned"]
