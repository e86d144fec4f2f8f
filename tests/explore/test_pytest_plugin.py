"""The fixture, in tests of somebody else's."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

PROTOCOL = """
    from dynftrace_emu.explore.steps import Store, Sync

    def in_one_go(change, poke):
        yield Store(change.sites, change.new[:, :2])
        yield Sync()
"""


def test_claims_about_what_ships_and_about_protocols_of_their_own(pytester) -> None:
    pytester.makepyfile(mine=PROTOCOL)
    pytester.makepyfile(
        """
        import mine

        def test_scenario(explore):
            explore("seed-live-line").expect("torn-fetch")

        def test_file(explore):
            explore(protocol="mine.py:in_one_go", vcpus=1, new="jmp").expect(None)

        def test_function(explore):
            torn = explore(protocol=mine.in_one_go, vcpus=1, new="jmp", site_offset=63)
            torn.expect("torn-fetch")

        def test_wrong(explore):
            explore(protocol=mine.in_one_go, vcpus=1, new="jmp", site_offset=63).expect(None)

        def test_no_proof(explore):
            drawn = {"strategy": "random", "schedules": 20}
            explore(protocol="live", vcpus=1, new="jmp", **drawn).expect(None)

        def test_no_option(explore):
            explore(protocol="live", colour="red")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, failed=3)
    result.stdout.fnmatch_lines(
        [
            "*expected nothing*",
            "*FOUND torn-fetch: executes eb *",
            "*show it: dynftrace-emu replay *counterexample-site.json*",
            "*nothing is found, but that is no proof*",
            "*'colour' is no option: choose from chunk, *",
        ],
        consecutive=False,
    )


@pytest.mark.parametrize("module", ["unicorn", "numpy", "capstone", "rich"])
def test_the_plugin_costs_nothing(module) -> None:
    code = f"import sys, dynftrace_emu.explore.pytest_plugin; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
