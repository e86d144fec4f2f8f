"""A guest that cannot go on: a report, exit 1, and a file that repeats it."""

from __future__ import annotations

import json
import re

import pytest

from dynftrace_emu.machine import deterministic, machine, threaded

# Calls a traced function a thousand times, so that it gets patched, then does what each test says.
TRACED = """
.include "arch/mcount.S"
FUNC worker
        RETURN
END worker
ENTRY startup_64
        xor ebp, ebp
        call ftrace_dynamic_init
        mov ebx, 10000
.Lagain:
        call worker
        dec ebx
        jnz .Lagain
        call culprit
        hlt
END startup_64
ENTRY culprit
        nop
{}
END culprit
"""
DETERMINISTIC = [
    *("--engine", "deterministic", "--park", "anywhere", "--virtual-hz", "100000"),
    *("--period", "0.05", "--vcpus", "1", "--seed", "3"),
]

ENDS = {
    "reads nothing": ("        mov rcx, [0x10]\n", "page fault", "culprit+0x1/"),
    "writes to its text": ("        mov byte ptr [rip + culprit], 1\n", "page fault", "culprit"),
    "no instruction": ("        ud2\n", "invalid opcode", "culprit+0x1/"),
    "divides by zero": ("        xor ecx, ecx\n        div ecx\n", "divide", "culprit"),
    "runs wild": ("        mov rax, 0x123456789000\n        jmp rax\n", "page fault", "0x12345"),
    "dead CPU": ("        cli\n        hlt\n", "interrupts off", "culprit"),
    "gives up": ("        mov al, 3\n        out 0xf4, al\n        hlt\n", "code 3", ""),
}


def write_image(tmp_path, text: str) -> str:
    (tmp_path / "guest.S").write_text(text)
    return "./guest.S"


def repro_file(tmp_path):
    [path] = tmp_path.glob("*.repro.json")
    return path


@pytest.mark.parametrize(("end", "what", "where"), ENDS.values(), ids=ENDS.keys())
def test_the_report_says_what_happened_and_where(cli, tmp_path, end, what, where) -> None:
    image = write_image(tmp_path, TRACED.format(end))
    result = cli("run", image, *DETERMINISTIC)
    assert result.code == 1
    last = next(line for line in result.err.splitlines() if line.startswith("dynftrace-emu: "))
    assert what in last
    assert where in last
    assert f"repeat with: dynftrace-emu run --repro {repro_file(tmp_path)}" in result.err
    assert "recorded" in result.out  # what was reached before is shown all the same


def test_the_crash_report_has_all_that_one_needs(cli, tmp_path) -> None:
    image = write_image(tmp_path, TRACED.format("        mov rcx, [0x10]\n"))
    report = cli("run", image, *DETERMINISTIC).err
    assert "guest fault on vCPU 0" in report
    assert re.search(r"vector 14 .*error code 0x0000.*read.*not present", report)
    assert re.search(r"CR2 0x0000000000000010", report)
    assert re.search(r"RIP 0xffffffff81\w{6}  culprit\+0x1/", report)
    trace = report[report.index("Call trace:") : report.index("Code:")]
    assert "culprit+0x1/" in trace
    assert "mov rcx, qword ptr [0x10]" in report
    assert re.search(r"RBX 0{16}", report)
    assert re.search(r"e8 .* -> eb 03 .*: worker\+0x4/", report)


def test_the_file_says_what_ran_where_it_was_and_repeats_the_failure(cli, tmp_path) -> None:
    image = write_image(tmp_path, TRACED.format("        ud2\n"))
    first = cli("run", image, *DETERMINISTIC, "--json")
    assert first.code == 1
    assert "invalid opcode" in json.loads(first.out)["error"]
    path = repro_file(tmp_path)
    contents = json.loads(path.read_text())
    assert re.fullmatch("[0-9a-f]{64}", contents["image_sha256"])
    assert contents["options"]["seed"] == 3
    assert contents["options"]["image"] == "./guest.S"
    assert "culprit" in contents["vcpus"][0]["at"]
    assert any("worker+0x4" in line for line in contents["patches"])
    assert {"dynftrace-emu", "python", "unicorn", "capstone", "keystone-engine", "numpy"} <= set(
        contents["versions"]
    )
    assert "unknown" not in contents["versions"].values()
    path.rename(tmp_path / "failure.json")
    again = cli("run", "--repro", "failure.json", "--json")
    assert again.code == 1
    assert again.out == first.out
    repeated = json.loads(repro_file(tmp_path).read_text())
    assert {**repeated} == {**contents}


def test_repeating_with_an_image_that_changed_gives_a_warning(cli, tmp_path) -> None:
    cli("run", write_image(tmp_path, TRACED.format("        ud2\n")), *DETERMINISTIC)
    repro_file(tmp_path).rename(tmp_path / "failure.json")
    write_image(tmp_path, TRACED.format("        nop\n        ud2\n"))
    result = cli("run", "--repro", "failure.json")
    assert result.code == 1
    assert "warning: the image differs" in result.err


SPINNING = """
.include "linkage.inc"
.include "percpu.inc"
ENTRY startup_64
        mov ecx, 1000
        call spin
        hlt
END startup_64
ENTRY spin
        cli
        jmp spin
END spin
ENTRY cond_resched                      # never called: so that the threaded engine takes it
        out PORT_SAFEPOINT, al
        hlt
        ret
END cond_resched
"""


@pytest.mark.parametrize("engine", ["deterministic", "threaded"])
def test_a_loop_with_interrupts_off_is_named_and_does_not_hang(
    cli, tmp_path, monkeypatch, engine: str
) -> None:
    for module in (machine, deterministic, threaded):
        monkeypatch.setattr(module, "STOP_LIMIT_S", 0.3)
    image = write_image(tmp_path, SPINNING)
    result = cli("run", image, "--engine", engine, "--seconds", "0.1", "--vcpus", "1")
    assert result.code == 1
    error = next(line for line in result.err.splitlines() if line.startswith("dynftrace-emu: "))
    assert "vCPU 0 did not park" in error
    assert "spin+" in error
    assert "interrupts are off" in error
    assert "hint: " in result.err
    notes = json.loads(repro_file(tmp_path).read_text())
    assert "spin+" in notes["error"]
    assert ("not exact" in result.err) == (engine == "threaded")


def test_a_guest_that_ends_by_itself_with_code_0_is_done(cli, tmp_path) -> None:
    end = "        xor eax, eax\n        out 0xf4, al\n        hlt\n"
    result = cli("run", write_image(tmp_path, TRACED.format(end)), *DETERMINISTIC)
    assert result.code == 0
    assert list(tmp_path.glob("*.repro.json")) == []


def test_an_image_without_safepoints_runs_in_the_deterministic_engine_and_says_so(
    cli, tmp_path
) -> None:
    image = write_image(tmp_path, TRACED.format("        out 0xf4, al\n        hlt\n"))
    result = cli("run", image, "--vcpus", "1")
    assert "safepoints: using the deterministic" in result.err


# It polls nothing and never ends, but its interrupts are on.
ENDLESS = TRACED.format("nop").replace("mov ebx, 10000", "sti").replace("dec ebx", "inc ebx")
THREADED = ["--engine", "threaded", "--period", "0.05", "--seconds", "0.3"]


def test_an_image_without_safepoints_is_stopped_and_patched_in_the_threaded_engine(
    cli, tmp_path
) -> None:
    result = cli("run", write_image(tmp_path, ENDLESS), *THREADED, "--vcpus", "1", "--json")
    assert result.code == 0
    assert json.loads(result.out)["sites"]["jmp"] == 1


def test_where_the_host_cannot_stop_it_exactly_it_is_refused(cli, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        "dynftrace_emu.ftrace.resolve.why_no_native_hooks", lambda: "this host is made of wood"
    )
    result = cli("run", write_image(tmp_path, ENDLESS), *THREADED)
    assert result.code == 2
    assert "safepoints" in result.err
    assert "this host is made of wood; use --engine deterministic" in result.err


def test_two_vcpus_need_an_image_without_lock_prefixes_in_the_threaded_engine(
    cli, tmp_path
) -> None:
    locked = ENDLESS.replace("ENTRY culprit\n", "ENTRY culprit\n    lock inc qword ptr [rsp]\n")
    image = write_image(tmp_path, locked)
    result = cli("run", image, *THREADED, "--vcpus", "2")
    assert result.code == 2
    assert "the first is at culprit+0x0" in result.err
    assert cli("run", image, *THREADED, "--vcpus", "1").code == 0


def test_a_mismatch_is_reported_like_ftrace_bug_and_the_exit_code_is_1(cli, tmp_path) -> None:
    """A call that is made of two instructions: what returns to .Lback is not behind a call."""
    image = write_image(
        tmp_path,
        """
.include "arch/mcount.S"
ENTRY startup_64
        call ftrace_dynamic_init
.Lloop:
        call odd
        jmp .Lloop
END startup_64
ENTRY odd
        push rbp
        mov rbp, rsp
        lea rax, [rip + .Lback]
        push rax
        jmp mcount
        .byte 0x90
.Lback:
        pop rbp
        ret
END odd
""",
    )
    result = cli("run", image, *DETERMINISTIC, "--seconds", "0.2")
    assert result.code == 1
    assert result.err.count("[ ftrace bug ]") == 1  # once, though there were four periods
    assert "expected:" in result.err
    assert "actual:" in result.err
    assert re.search(r"^dynftrace-emu: 1 ", result.err, re.MULTILINE)
    assert re.search(r"odd\+0x", result.err)
