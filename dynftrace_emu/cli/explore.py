"""``dynftrace-emu explore``."""

from __future__ import annotations

import json

import click

from dynftrace_emu.cli.options import json_option

__all__ = ["explore"]


@click.command()
@click.argument("names", nargs=-1, metavar="[SCENARIO]...")
@click.option("--list", "show_list", is_flag=True, help="Show the scenarios that ship.")
@json_option("Print verdicts as JSON.")
def explore(names: tuple[str, ...], show_list: bool, as_json: bool) -> int:
    """Run every interleaving of a patching protocol and the code it patches, and check each."""
    from dynftrace_emu.explore.explorer import explore as run
    from dynftrace_emu.explore.job import Job
    from dynftrace_emu.explore.scenario import scenario_named
    from dynftrace_emu.explore.scenarios import SCENARIOS

    if show_list:
        for scenario in SCENARIOS.values():
            expected = scenario.expects.value if scenario.expects else "clean"
            click.echo(f"{scenario.name:24} {expected:24} {scenario.title}")
        return 0
    verdicts = []
    for name in names:
        scenario = scenario_named(name, SCENARIOS)
        verdict = run(Job(scenario.setup))
        verdicts.append(verdict)
        if not as_json:
            click.echo(f"{scenario.name}: {scenario.title}")
            for line in verdict.lines():
                click.echo(line)
    if as_json:
        click.echo(json.dumps([v.to_json() for v in verdicts], indent=1))
    return int(any(v.finding for v in verdicts))
