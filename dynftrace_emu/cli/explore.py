"""``dynftrace-emu explore``."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynftrace_emu.cli.explore_necessity import show_necessity
from dynftrace_emu.cli.explore_options import (
    describing,
    explore_options,
    to_limits,
    to_overrides,
    to_strategy,
)
from dynftrace_emu.errors import OptionError

if TYPE_CHECKING:
    from dynftrace_emu.explore.job import Job
    from dynftrace_emu.explore.scenario import Scenario
    from dynftrace_emu.explore.verdict import Verdict
    from dynftrace_emu.explore.workers import Workers

__all__ = ["explore"]

_INTERRUPTED = 130


@click.command(
    epilog="Without SCENARIO and without an option that describes one, all scenarios that ship are "
    "explored, and each is held against what it is there to show. Otherwise the exit code is 0 "
    "if nothing is found, 1 if something is, 2 if used wrongly.\n\n\b\nExamples:\n"
    "  dynftrace-emu explore --list\n"
    "  dynftrace-emu explore seed-live-line\n"
    "  dynftrace-emu explore --protocol breakpoint --nmis 1\n"
    "  dynftrace-emu explore fw.elf --call 'parse(\"x=1\")' --protocol breakpoint\n"
    "  dynftrace-emu explore --protocol mine.py:patch --model relaxed --expect torn-fetch"
)
@click.argument("names", nargs=-1, metavar="[SCENARIO|ELF]...")
@explore_options()
@click.pass_context
def explore(
    context: click.Context, /, names: tuple[str, ...], show_list: bool, quick: bool, **values: Any
) -> int:
    """Run every interleaving of a patching protocol and the code it patches, and check each.

    SCENARIO is one that ships (--list); options change it. Without one, they change a small
    default: two vCPUs that call a function, whose site becomes a nop under stop_machine. With an
    ELF image that is the function of --call.
    """
    necessity, as_markdown = values.pop("necessity"), values.pop("as_markdown")
    if as_markdown and necessity is None:
        raise OptionError("--markdown is for --necessity")
    if necessity is not None:
        others = set(describing(context)) - {"--necessity", "--markdown"}
        if names or others or show_list or quick:
            raise OptionError("--necessity tries its own setups: leave the others out")
        return show_necessity(
            necessity, _workers(values), as_json=values["as_json"], as_markdown=as_markdown
        )
    if show_list:
        return _list(as_json=values["as_json"])
    more = describing(context)
    if not names and not more:
        return _check_shipped(values, quick=quick)
    if quick:
        raise OptionError(f"--quick is for all scenarios that ship: leave {(*names, *more)[0]} out")
    return _explore(names, values)


def _list(*, as_json: bool) -> int:
    from dynftrace_emu.cli.explore_view import scenario_lines
    from dynftrace_emu.explore.scenarios import SCENARIOS

    scenarios = list(SCENARIOS.values())
    if as_json:
        rows = [
            {
                "name": s.name,
                "title": s.title,
                "expects": s.expects.value if s.expects else None,
                "mended_by": s.mended,
                "protocol": s.setup.protocol,
            }
            for s in scenarios
        ]
        click.echo(json.dumps(rows, indent=1))
    else:
        for line in scenario_lines(scenarios):
            click.echo(line)
    return 0


def _workers(values: dict[str, Any], *, apart: bool = False) -> Workers:
    """Who works; ``apart``: not this process, which must be able to end them."""
    from dynftrace_emu.explore import workers

    if values["cluster"] is not None:
        if values["jobs"] is not None:
            raise OptionError("--cluster and --jobs: say one of them")
        return workers.cluster(values["cluster"])
    jobs = values["jobs"] or len(os.sched_getaffinity(0))
    return workers.processes(jobs) if jobs > 1 or apart else workers.here()


# --- what ships ---


def _check_shipped(values: dict[str, Any], *, quick: bool) -> int:
    from dynftrace_emu.cli.explore_view import ProgressView, check_line
    from dynftrace_emu.explore.scenarios import SCENARIOS
    from dynftrace_emu.explore.shipped import check_all

    width = max(map(len, SCENARIOS))
    checks = []
    interrupted = False
    with _workers(values) as workers, ProgressView("explore") as view:
        try:
            for check in check_all(workers, quick=quick):
                checks.append(check)
                view.say(f"{len(checks)} of {len(SCENARIOS)} scenarios")
                if not values["as_json"]:
                    click.echo(check_line(check, width))
        except KeyboardInterrupt:
            interrupted = True
    failed = [check for check in checks if not check.holds]
    if values["as_json"]:
        rows = [
            {"holds": c.holds, "expects": c.scenario.expects and c.scenario.expects.value,
             **c.verdict.to_json()}
            for c in checks
        ]  # fmt: skip
        click.echo(json.dumps({"interrupted": interrupted, "scenarios": rows}, indent=1))
    else:
        click.echo(f"{len(checks)} of {len(SCENARIOS)} scenarios explored, {len(failed)} failed")
    if interrupted:
        return _INTERRUPTED
    return int(bool(failed))


# --- one ---


def _jobs(names: tuple[str, ...], values: dict[str, Any]) -> list[tuple[Job, str]]:
    """What is to be explored, with its title."""
    from dynftrace_emu.explore.job import Job
    from dynftrace_emu.explore.mutations import split_name
    from dynftrace_emu.explore.protocol_file import read_protocol_file
    from dynftrace_emu.explore.scenario import Scenario
    from dynftrace_emu.explore.setup import small_default, with_guest

    overrides = to_overrides(values)
    protocol = values["protocol"] or ""
    source = read_protocol_file(protocol) if ":" in split_name(protocol)[0] else None
    chosen = [_named(name, values) for name in names]
    if not names:
        chosen = [Scenario("what the options describe", small_default())]
    if values["call"] is not None and not any(scenario.setup.foreign for scenario in chosen):
        raise OptionError("--call needs an ELF image")
    setups = [overrides.apply(scenario.setup) for scenario in chosen]
    if values["guest"] is not None:
        if protocol:
            raise OptionError("--guest patches by itself: leave --protocol out")
        setups = [with_guest(setup, values["guest"]) for setup in setups]
    quiet = not values["no_reduction"]
    return [(Job(u, source, quiet), s.title) for u, s in zip(setups, chosen, strict=True)]


def _named(name: str, values: dict[str, Any]) -> Scenario:
    """A scenario that ships, or what is asked for of an ELF image."""
    from dynftrace_emu.explore.scenario import Scenario, scenario_named
    from dynftrace_emu.explore.scenarios import SCENARIOS
    from dynftrace_emu.explore.setup import with_image
    from dynftrace_emu.kernel.mini_kernel import is_elf

    if name in SCENARIOS or not is_elf(name):
        return scenario_named(name, SCENARIOS)
    for option in ("sites", "site_offset"):
        if values[option] is not None:
            raise OptionError(f"--{option.replace('_', '-')} is not for ELF images")
    setup = with_image(Path(name).name, Path(name).read_bytes(), values["call"])
    return Scenario(f"{values['call']} in {name}", setup)


def _explore(names: tuple[str, ...], values: dict[str, Any]) -> int:
    from dynftrace_emu.cli.explore_view import ProgressView, show_verdict
    from dynftrace_emu.explore.explorer import explore as run
    from dynftrace_emu.explore.job import machine_of
    from dynftrace_emu.explore.verdict import Ending

    strategy, limits = to_strategy(values), to_limits(values)
    jobs = _jobs(names, values)
    for job, _ in jobs:
        if job.source is None:
            machine_of(job)  # what is wrong with one is said before any is explored
    documents, verdicts = [], []
    with ExitStack() as stack:
        workers = stack.enter_context(_workers(values, apart=bool(jobs[0][0].source)))
        for job, title in jobs:
            with ProgressView(job.setup.name) as view:
                verdict = run(job, strategy, limits, workers, view.show)
            verdicts.append(verdict)
            written = _write(verdict, values["output"]) if verdict.finding else None
            if values["as_json"]:
                path = str(written) if written else None
                documents.append({**verdict.to_json(), "counterexample": path})
            else:
                show_verdict(verdict, title, _where(verdict, written))
            if verdict.ending is Ending.INTERRUPTED:
                break
    if values["as_json"]:
        click.echo(json.dumps(documents if len(jobs) > 1 else documents[0], indent=1))
    return _exit_code(verdicts, values["expect"])


def _exit_code(verdicts: list[Verdict], expected: str | None) -> int:
    from dynftrace_emu.explore.verdict import Ending

    if any(verdict.ending is Ending.INTERRUPTED for verdict in verdicts):
        return _INTERRUPTED
    if expected is None:
        return int(any(verdict.finding for verdict in verdicts))
    came = {verdict.finding.kind.value if verdict.finding else "clean" for verdict in verdicts}
    return int(came != {expected})


def _write(verdict: Verdict, output: Path | None) -> Path | None:
    """Write the counterexample; None, and a line on stderr, if that cannot be."""
    path = output or Path()
    if path.is_dir():
        path = path / f"counterexample-{verdict.job.setup.name}.json"
    try:
        path.write_text(verdict.counterexample().dump())
    except OSError as error:
        click.echo(f"dynftrace-emu explore: {path}: {error.strerror}", err=True)
        return None
    return path


def _where(verdict: Verdict, written: Path | None) -> list[str]:
    if not verdict.finding:
        return []
    actions = f"The schedule has {len(verdict.schedule)} actions"
    if written is None:
        return [f"{actions}; it could not be written."]
    return [f"{actions}; it is in {written}", f"Show it: dynftrace-emu replay {written}"]
