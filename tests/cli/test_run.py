"""What ``run`` tells people: lines, summary, messages of the guest, timeline; help and version."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from dynftrace_emu import __version__
from tests.cli.conftest import spawn

FAST = ("--engine", "deterministic", "--virtual-hz", "500000")


def test_the_summary_says_in_words_what_the_run_came_to(cli) -> None:
    arguments = ("--engine", "deterministic", "--vcpus", "1", "--boot-records", "1000")
    result = cli("run", *arguments, "--seconds", "5")
    assert (result.code, result.err) == (0, "")
    assert re.search(r"\d+ functions, \d+ with a call to mcount, \d+ notrace", result.out)
    recorded, jumps, calls, never = map(
        int,
        re.search(
            r"(\d+) call sites were recorded; at the end (\d+) are a jmp, (\d+) a call "
            r"\((\d+) never recorded\), 0 failed",
            result.out,
        ).groups(),
    )
    assert recorded == jumps > 200
    assert calls == never
    assert re.search(r"It settled at \d\.\d\d s", result.out)
    assert re.search(r"\d\.\d\d times as fast as before the first patch", result.out)
    assert re.search(r"The machine was stopped \d+ times?", result.out)
    assert re.search(r"^vCPU 0: [\d,]+ iterations, checksum 0x\w{16}$", result.out, re.MULTILINE)


def test_the_summary_tells_of_tracing_and_nmis(cli) -> None:
    result = cli("run", *FAST, "--seconds", "2", "--tracing", "0.5:1.5", "--nmi-rate", "20")
    assert re.search(r"Tracing went on at 0\.50 s: \d+ sites changed", result.out)
    assert re.search(r"Tracing went off at 1\.50 s", result.out)
    assert re.search(r"[\d,]+ calls were traced", result.out)
    assert re.search(r"\d+ NMIs were delivered", result.out)


def test_verbose_shows_the_guests_messages(cli) -> None:
    quiet = cli("run", *FAST, "--seconds", "0.2")
    assert quiet.err == ""
    result = cli("run", *FAST, "--seconds", "0.2", "-v")
    assert "mini-kernel 2.6.25" in result.err
    assert result.out == quiet.out


def test_verbose_shows_them_also_when_tracing_begins_with_the_boot(cli) -> None:
    result = cli("run", *FAST, "--seconds", "0.2", "-v", "--tracing", "0:0.1")
    assert result.code == 0
    assert "mini-kernel 2.6.25" in result.err


@pytest.mark.parametrize("site", ["jmp", "nop"])
def test_watch_tells_the_life_of_a_site(cli, site: str) -> None:
    arguments = ("--seconds", "2", "--boot-records", "1000", "--site", site)
    result = cli("run", *FAST, *arguments, "--watch", "vfs_read", "--tracing", "1.5:1.8")
    assert result.code == 0
    story = result.out[result.out.index("call site 0x") :]
    steps = ["first miss on vCPU", "hash bucket", "record page", "ftraced: machine stopped",
             "stands at", "before  e8", "after   ", "synced", "startup_code", "shutdown_code",
             "at the end"]  # fmt: skip
    places = [story.index(step) for step in steps]
    assert places == sorted(places)
    away = {"jmp": "eb 03", "nop": "0f 1f 44 00 00"}[site]
    assert f"after   {away}" in story
    assert re.search(rf"at the end +{away}[ 0-9a-f]+{site}", story)


def test_watch_shows_what_happened_at_boot_also_when_tracing_begins_there(cli) -> None:
    result = cli("run", *FAST, "--seconds", "0.4", "--tracing", "0:0.2", "--watch", "vfs_read")
    assert "tracing on" in result.out
    assert "tracing off" in result.out


@pytest.mark.parametrize("command", [[], ["run"], ["inspect"]], ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_has_an_example(cli, command: list[str], flag: str) -> None:
    result = cli(*command, flag)
    assert result.code == 0
    assert re.search(
        rf"Examples?: +dynftrace-emu {' '.join(command)}", " ".join(result.out.split())
    )


def test_every_example_of_the_help_is_a_command_that_parses(cli) -> None:
    """The examples themselves are run, cut short."""
    for command in ("run", "inspect"):
        text = cli(command, "--help").out
        examples = re.findall(r"dynftrace-emu (.+)", text[text.index("Example") :])
        assert examples
        for example in examples:
            arguments = shlex.split(example)
            if "run" in arguments:
                arguments += ["--iterations", "1", "--seconds", "0.1"]
            assert cli(*arguments).code in (0, 1)


def test_version(cli) -> None:
    result = cli("--version")
    assert result.code == 0
    assert result.out.strip() == f"dynftrace-emu, version {__version__}"


def test_python_dash_m_works() -> None:
    process = spawn("--version")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert __version__ in out


def test_the_help_loads_nothing_heavy() -> None:
    """So that it comes at once."""
    code = (
        "import sys; from dynftrace_emu.cli.main import run_cli; run_cli(['run', '--help']);"
        "heavy = {'unicorn', 'capstone', 'keystone', 'numpy', 'rich'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
