"""For all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import elf_builds

_VIEWER = Path(__file__).parents[1] / ".venv/speedscope/node_modules"
if _VIEWER.is_dir():
    os.environ.setdefault("SPEEDSCOPE", str(_VIEWER))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where every program must be there (REQUIRE_TOOLS=1), a test that is skipped has failed."""
    report = yield
    if report.skipped and os.environ.get("REQUIRE_TOOLS") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} must not be skipped: {call.excinfo.value}"
    return report


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    """The folder of firmware/samples, built in every style."""
    return elf_builds.samples(tmp_path_factory)
