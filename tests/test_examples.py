"""The example of the API, and the one in the README, do what they say."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def output(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_a_kernel_from_text_is_recorded_patched_and_traced() -> None:
    recorded, patched, traced = output("examples/trace_a_kernel.py").splitlines()
    assert re.fullmatch(r"recorded 2 sites, mcount calls [1-9]\d*", recorded)
    # The vCPU may have been parked in the middle of a call; that one still arrives.
    assert re.fullmatch(r"patched 2, mcount calls since [01]", patched)
    assert traced == "traced True"


def test_the_readme_shows_a_run_that_works_and_then_its_trace() -> None:
    """Its blocks of Python follow each other."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found, header, *lines = output("-c", "\n".join(blocks)).splitlines()
    assert found.startswith("[145, 145, ")
    assert header == "# tracer: function"
    calls = [line for line in lines if line and not line.startswith("#")]
    assert len(calls) > 10
    assert all(re.search(r"[\d.]+: vfs_\w+ <-\w+$", line) for line in calls)
