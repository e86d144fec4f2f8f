"""Used wrongly: one line that says what is wrong and what is allowed, exit 2, nothing on stdout."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Result, spawn

BAD = {
    "unknown image": (["run", "maxi-kernel"], "mini-kernel"),
    "a path that is not there": (["run", "./mini-kernel"], "./mini-kernel"),
    "a name that is too long": (["run", "x" * 5000], "x"),
    "a directory": (["run", "/"], "directory"),
    "not even a name": (["run", ""], "directory"),
    "a file that cannot be read": (["run", "/proc/self/mem"], "cannot read /proc/self/mem"),
    "no vCPUs": (["run", "--vcpus", "0"], "1 to 64"),
    "65 vCPUs": (["run", "--vcpus", "65"], "1 to 64"),
    "vCPUs in words": (["run", "--vcpus", "two"], "two"),
    "period 0": (["run", "--period", "0"], "more than 0"),
    "period nan": (["run", "--period", "nan"], "more than 0"),
    "period inf": (["run", "--period", "inf"], "more than 0"),
    "negative period": (["run", "--period", "-1"], "more than 0"),
    "seconds 0": (["run", "--seconds", "0"], "more than 0"),
    "seconds inf": (["run", "--seconds", "inf"], "more than 0"),
    "iterations 0": (["run", "--iterations", "0"], "1 or more"),
    "unknown engine": (["run", "--engine", "quantum"], "deterministic"),
    "unknown variant": (["run", "--variant", "both"], "static"),
    "unknown site": (["run", "--site", "int3"], "nop"),
    "unknown workload": (["run", "--workload", "lazy"], "compute, default, leaf"),
    "unknown park rule": (["run", "--park", "here"], "anywhere"),
    "FROM after UNTIL": (["run", "--tracing", "3:1"], "before"),
    "FROM is UNTIL": (["run", "--tracing", "2:2"], "before"),
    "negative FROM": (["run", "--tracing=-1:2"], "0 or more"),
    "garbage for FROM": (["run", "--tracing", "soon"], "FROM[:UNTIL]"),
    "no UNTIL behind the colon": (["run", "--tracing", "1:"], "FROM[:UNTIL]"),
    "three times": (["run", "--tracing", "1:2:3"], "FROM[:UNTIL]"),
    "tracing nan": (["run", "--tracing", "nan"], "0 or more"),
    "tracing of no calls": (["run", "--tracing", "1", "--variant", "none"], "none"),
    "negative boot records": (["run", "--boot-records", "-1"], "0 to"),
    "too many boot records": (["run", "--boot-records", "1000001"], "0 to"),
    "negative NMI rate": (["run", "--nmi-rate", "-5"], "0 to"),
    "too low a virtual clock": (
        ["run", "--engine", "deterministic", "--virtual-hz", "5"],
        "10000",
    ),
    "park with threaded": (["run", "--engine", "threaded", "--park", "anywhere"], "deterministic"),
    "park alone": (["run", "--park", "anywhere"], "deterministic"),
    "shared with threaded": (
        ["run", "--engine", "threaded", "--workload", "shared"],
        "deterministic",
    ),
    "shared alone": (["run", "--workload", "shared"], "deterministic"),
    "no such function": (["run", "--watch", "no_such_function"], "no_such_function"),
    "a notrace function": (["run", "--watch", "do_nmi"], "notrace"),
    "nothing to watch": (["run", "--watch", "vfs_read", "--variant", "none"], "vfs_read"),
    "repro that is not there": (["run", "--repro", "nowhere.json"], "nowhere.json"),
    "unknown option": (["run", "--turbo"], "--turbo"),
    "two images": (["run", "mini-kernel", "mini-kernel"], "mini-kernel"),
    "unknown command": (["walk"], "walk"),
    "inspect: unknown image": (["inspect", "maxi-kernel"], "mini-kernel"),
    "inspect: unknown NMI entry": (["inspect", "--nmi-check", "--nmi-entry", "nmo"], "nmo"),
    "inspect: unknown variant": (["inspect", "--variant", "both"], "static"),
}


def check_refusal(result, says: str) -> None:
    assert result.code == 2, result
    assert result.out == ""
    [line] = result.err.splitlines()
    assert line.startswith("dynftrace-emu")
    assert says in line


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD.keys())
def test_it_is_refused(cli, arguments: list[str], says: str) -> None:
    check_refusal(cli(*arguments), says)


FILES = {
    "binary": (bytes(range(256)), "not assembly text"),
    "zeroes": (bytes(64), "image"),
    "empty": (b"", "./image"),
    "no entry": (b"foo:\n ret\n", "startup_64"),
    "an unknown instruction": (b"startup_64:\n  move rax, rbx\n", "image:2:"),
    "an unknown include": (b'.include "nothing.inc"\nstartup_64:\n hlt\n', "nothing.inc"),
}


@pytest.mark.parametrize("command", ["run", "inspect"])
@pytest.mark.parametrize(("content", "says"), FILES.values(), ids=FILES.keys())
def test_a_file_that_is_no_image_is_refused(cli, tmp_path, command, content, says) -> None:
    (tmp_path / "image").write_bytes(content)
    check_refusal(cli(command, "./image"), says)


@pytest.mark.parametrize("command", ["run", "inspect", "record"])
@pytest.mark.parametrize("image", ["synthetic:0", "synthetic:abc", "synthetic:60000"])
def test_a_generated_kernel_that_cannot_be_is_refused(cli, command, image) -> None:
    check_refusal(cli(command, image), f"image '{image}'")


ENDLESS = {
    "an ELF file": b"\x7fELF\x02\x01\x01" + bytes(57),
    "a control character": b"startup_64:\n\x01 hlt\n",
    "a stray parenthesis": b"startup_64:\n ) hlt\n",
    "an open string": b'startup_64:\n .ascii "abc\n hlt\n',
    "an open comment": b"startup_64:\n hlt\n/* and so on\n",
}


@pytest.mark.parametrize("content", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_the_assembler_would_read_for_ever_is_refused(tmp_path, content: bytes) -> None:
    """Keystone does not come back from some texts; so in a process that can be ended."""
    (tmp_path / "image").write_bytes(content)
    process = spawn("inspect", "./image", cwd=tmp_path)
    try:
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
    check_refusal(Result(process.returncode, out, err), "image")


DAMAGED = {
    "not JSON": "# hello",
    "not text": b"\xff\xfe\x00",
    "a list": "[1, 2]",
    "another schema": '{"schema": 99, "options": {}}',
    "no options": '{"schema": 1}',
    "options are a list": '{"schema": 1, "options": [1]}',
    "options are null": '{"schema": 1, "options": null}',
    "an unknown option": '{"schema": 1, "options": {"turbo": 1}}',
    "an image that is a number": '{"schema": 1, "options": {"image": 5}}',
    "an image that is a list": '{"schema": 1, "options": {"image": ["mini-kernel"]}}',
    "an image with a NUL": '{"schema": 1, "options": {"image": "a\\u0000b"}}',
    "2.5 vCPUs": '{"schema": 1, "options": {"vcpus": 2.5}}',
    "vCPUs null": '{"schema": 1, "options": {"vcpus": null}}',
    "1.5 boot records": '{"schema": 1, "options": {"boot_records": 1.5}}',
    "1.5 iterations": '{"schema": 1, "options": {"iterations": 1.5, "seconds": 0.01}}',
    "a seed that is a list": (
        '{"schema": 1, "options": {"seed": [1], "engine": "deterministic", "seconds": 0.01}}'
    ),
    "a workload that is a number": '{"schema": 1, "options": {"workload": 7}}',
    "tracing that is a number": '{"schema": 1, "options": {"tracing": 5}}',
    "tracing three times": '{"schema": 1, "options": {"tracing": [1, 2, 3]}}',
    "a period in words": '{"schema": 1, "options": {"period": "one"}}',
    "an unknown engine": '{"schema": 1, "options": {"engine": "quantum"}}',
    "zero vCPUs": '{"schema": 1, "options": {"vcpus": 0}}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_repro_file_is_refused(cli, tmp_path, content) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "damaged.json").write_bytes(data)
    check_refusal(cli("run", "--repro", "damaged.json"), "")


def test_repro_takes_no_other_options(cli, tmp_path) -> None:
    (tmp_path / "fine.json").write_text('{"schema": 1, "options": {}}')
    check_refusal(cli("run", "--repro", "fine.json", "--vcpus", "3"), "alone")
    check_refusal(cli("run", "mini-kernel", "--repro", "fine.json"), "alone")


def test_no_command_shows_the_help(cli) -> None:
    result = cli()
    assert result.code == 2
    assert "inspect" in result.out
    assert "run" in result.out


def test_iterations_of_an_image_without_a_workload_are_refused(cli, tmp_path) -> None:
    """They would be without end."""
    (tmp_path / "loop.S").write_text(
        '.include "linkage.inc"\nENTRY startup_64\n1: jmp 1b\nEND startup_64\n'
    )
    check_refusal(cli("run", "./loop.S", "--iterations", "5"), "workload")
