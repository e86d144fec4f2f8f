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


def test_the_readme_shows_a_run_that_works() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert output("-c", code).startswith("[145, 145, ")
