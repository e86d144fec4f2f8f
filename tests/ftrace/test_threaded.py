"""The main job: ``run --json`` with its default options, threaded, five seconds, in a process.

The one long run of these tests; it is made once for all of them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.ftrace.invariants import check_sums


@pytest.fixture(scope="module")
def main_job() -> tuple[dict, str]:
    """The document, and the timeline of a function that only the second wave calls."""
    command = [sys.executable, "-m", "dynftrace_emu", "run", "--json", "--watch", "wb_kupdate"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_it_patches_all_it_found_settles_and_is_stopped_no_more(main_job) -> None:
    result, _ = main_job
    check_sums(result)
    assert (result["engine"], result["vcpus"], result["seed"]) == ("threaded", 2, None)
    assert (result["seconds"], result["site"], result["variant"]) == (5.0, "jmp", "dynamic")
    found = sum(tick["found"] for tick in result["ticks"])
    assert found > 300
    assert result["sites"]["jmp"] == found  # whatever was recorded before the last tick
    settled = result["equilibrium_s"]
    assert settled is not None
    stopped_at = [tick["t"] for tick in result["ticks"] if tick["stop_us"] is not None]
    assert result["stops"]["count"] == len(stopped_at)
    assert max(stopped_at) < settled
    assert 0 < result["stops"]["median_us"] <= result["stops"]["worst_us"]
    assert all(count > 0 for count in result["workload"]["iterations"])


def test_the_second_wave_comes_and_is_patched_too(main_job) -> None:
    result, timeline = main_job
    missed = float(re.search(r"([\d.]+) s  first miss", timeline)[1])
    patched = float(re.search(r"([\d.]+) s  ftraced: machine stopped", timeline)[1])
    assert 1.5 <= missed < patched < result["equilibrium_s"]
    first_wave = sum(tick["found"] for tick in result["ticks"] if tick["t"] < 1.5)
    assert 0 < first_wave < sum(tick["found"] for tick in result["ticks"])
