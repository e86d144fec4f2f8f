"""A result as tables: plain cells, which a terminal and a Markdown file show alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynftrace_emu.bench.goals import outcomes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dynftrace_emu.bench.figures import Figure, Result
    from dynftrace_emu.bench.goals import Outcome

__all__ = ["UNFINISHED", "Table", "markdown", "ratio_text", "tables"]

UNFINISHED = "It was not finished: these are the rounds that were done."
_DASH = "-"
_NOISE = "< noise"


@dataclass(frozen=True, slots=True)
class Table:
    """The first column is text, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables(result: Result) -> Iterator[Table]:
    """Of all that was measured, the goals last."""
    for workload in result.workloads("modes"):
        yield _modes(result, workload)
    if result.workloads("instructions"):
        yield _instructions(result)
    if result.subjects("program"):
        yield _program(result)
    if result.subjects("patching"):
        yield _patching(result)
        yield _patching_per_site(result)
    if result.subjects("vcpus"):
        yield _vcpus(result)
    if result.subjects("record"):
        yield _record(result)
    goals = tuple(outcomes(result))
    if goals:
        yield _goals(goals)


def _number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def ratio_text(value: float) -> str:
    """A ratio to the build without calls: near 1 with more digits."""
    return f"{value:.3f}" if value < 2 else _number(value)


def _cost(value: float, *, exact: bool = False) -> str:
    """A difference of two measurements: it cannot be negative, but for their noise."""
    return _NOISE if value < 0 and not exact else _number(value)


def _range(figure: Figure) -> str:
    return f"{ratio_text(figure.low)} - {ratio_text(figure.high)}"


class _Cells:
    """Looks figures up by subject and quantity."""

    def __init__(self, result: Result, kind: str, workload: str = "") -> None:
        self._figures = {
            (figure.subject, figure.quantity): figure
            for figure in result.figures
            if (figure.kind, figure.workload) == (kind, workload)
        }

    def get(self, subject: str, quantity: str) -> Figure | None:
        return self._figures.get((subject, quantity))

    def median(self, subject: str, quantity: str) -> str:
        figure = self.get(subject, quantity)
        return _DASH if figure is None else _cost(figure.median, exact=figure.exact)


def _modes(result: Result, workload: str) -> Table:
    cells = _Cells(result, "modes", workload)
    rows = []
    for subject in result.subjects("modes", workload):
        ratio = cells.get(subject, "ratio")
        assert ratio is not None
        rows.append(
            (
                subject,
                ratio_text(ratio.median),
                _range(ratio),
                cells.median(subject, "time"),
                cells.median(subject, "events"),
                cells.median(subject, "added"),
            )
        )
    rounds = max(len(f.values) for f in result.of("modes", "ratio", workload))
    return Table(
        f"Time for the same work, workload {workload}",
        ("mode", "x none", "min - max", "us/iter.", "events/iter.", "ns/event"),
        tuple(rows),
        f"x none: the median of {rounds} rounds' ratios to the build without calls. CPU time of "
        "one vCPU. ns/event: what an event adds to the build without calls.",
    )


def _instructions(result: Result) -> Table:
    workloads = result.workloads("instructions")
    by_workload = [_Cells(result, "instructions", workload) for workload in workloads]
    subjects = dict.fromkeys(
        subject for workload in workloads for subject in result.subjects("instructions", workload)
    )
    rows = []
    for subject in subjects:
        row = [subject]
        for cells in by_workload:
            ratio = cells.get(subject, "ratio")
            row.append(_DASH if ratio is None else f"{ratio.median:.4f}")
        row += [cells.median(subject, "added") for cells in by_workload[:1]]
        rows.append(tuple(row))
    return Table(
        "Instructions for the same work, times none, exactly",
        ("mode", *workloads, f"per event, {workloads[0]}"),
        tuple(rows),
        "Counted by the deterministic engine, in which the function tracer always takes its "
        "general path. Per event: what an event adds to the build without calls.",
    )


def _program(result: Result) -> Table:
    cells = _Cells(result, "program")
    rows = []
    for subject in result.subjects("program"):
        ratio = cells.get(subject, "ratio")
        assert ratio is not None
        counts = [cells.get(subject, quantity) for quantity in ("instructions", "events")]
        rows.append(
            (
                subject,
                f"{ratio.median:.4f}",
                *(_DASH if count is None else f"{count.median:,.0f}" for count in counts),
                cells.median(subject, "added"),
            )
        )
    return Table(
        "Instructions of a whole run, exactly",
        ("mode", "x nops", "instructions", "events", "per event"),
        tuple(rows),
        "x nops: to all calls patched to nops before it starts. Counted by the deterministic "
        "engine; per event: what an event adds.",
    )


_PATCHING = (
    ("record all", "record"),
    ("pause to patch all", "patch"),
    ("then re-translation", "after_patch"),
    ("pause to enable", "enable"),
    ("then re-translation", "after_enable"),
    ("pause to disable", "disable"),
    ("then re-translation", "after_disable"),
    ("start: make image and machine", "start"),
    ("record and patch all, in total", "record_and_patch"),
    ("first iteration without calls", "first_iteration"),
)


def _patching(result: Result) -> Table:
    subjects = result.subjects("patching")
    cells = _Cells(result, "patching")
    rows = [
        (name, *(cells.median(subject, quantity) for subject in subjects))
        for name, quantity in _PATCHING
    ]
    for name, quantity in (("memory, MiB", "memory"), ("of it record pages, MiB", "records")):
        rows.append((name, *(cells.median(subject, quantity) for subject in subjects)))
    return Table(
        "Patching synthetic:N, in ms",
        ("N", *_sizes(subjects)),
        tuple(rows),
        "Medians; 2 vCPUs, function tracer. Re-translation: what the next two iterations, which "
        "call every function, take beyond two before. Record all: what the first iteration takes "
        "beyond one without calls.",
    )


def _patching_per_site(result: Result) -> Table:
    subjects = result.subjects("patching")
    cells = _Cells(result, "patching")
    rows = [
        (name, *(cells.median(subject, f"{quantity}_per_site") for subject in subjects))
        for name, quantity in (
            ("record", "record"),
            ("pause to patch", "patch"),
            ("pause to enable", "enable"),
            ("pause to disable", "disable"),
            ("re-translation after enabling", "after_enable"),
        )
    ]
    return Table("The same a site, in us", ("N", *_sizes(subjects)), tuple(rows))


def _sizes(subjects: Sequence[str]) -> Iterator[str]:
    return (f"{int(subject.partition(':')[2]):,}" for subject in subjects)


def _vcpus(result: Result) -> Table:
    cells = _Cells(result, "vcpus")
    rows = []
    for subject in result.subjects("vcpus"):
        scaling = cells.get(subject, "scaling")
        rows.append(
            (
                subject,
                cells.median(subject, "throughput"),
                *(
                    (_DASH, _DASH)
                    if scaling is None
                    else (ratio_text(scaling.median), _range(scaling))
                ),
                cells.median(subject, "pause"),
            )
        )
    cores = result.environment.get("machine", {}).get("cores", "?")
    return Table(
        f"vCPUs, threaded engine, {cores} cores",
        ("", "iterations/s", "x one vCPU", "min - max", "pause, ms"),
        tuple(rows),
        "Patched, wall-clock time. Pause: to switch the function tracer on or off for every site.",
    )


def _record(result: Result) -> Table:
    what = {
        "stub": "mcount leads to the stub",
        "hit": "recorder: hash hit",
        "miss": "recorder: miss, a record is made",
        "skipped": "recorder: skipped, no record free",
    }
    rows = []
    for figure in result.of("record", "added"):
        name = what.get(figure.subject, figure.subject)
        low, high = _cost(figure.low), _cost(figure.high)
        rows.append((name, _cost(figure.median), f"{low} - {high}"))
    return Table("What a call costs before it is patched", ("", "ns", "min - max"), tuple(rows))


def _goals(goals: Sequence[Outcome]) -> Table:
    rows = []
    for outcome in goals:
        goal = outcome.goal
        unit = "" if goal.unit == "x" else f" {goal.unit}"
        show = ratio_text if goal.unit == "x" else _number
        bound = f"{'>=' if goal.at_least else '<='} {goal.bound:g}{unit}"
        verdict = "yes" if outcome.reached else "no"
        measured = _NOISE if outcome.value < 0 else f"{show(outcome.value)}{unit}"
        rows.append((goal.what, bound, measured, verdict))
    return Table("Goals", ("figure", "goal", "measured", "reached"), tuple(rows))


def markdown(result: Result) -> str:
    """All tables for a Markdown file, with where and with what they were made."""
    parts = [_made_with(result)]
    if not result.complete:
        parts.append(UNFINISHED)
    for table in tables(result):
        parts.append(f"### {table.title}")
        parts.append("\n".join(_markdown_rows(table)))
        if table.note:
            parts.append(table.note)
    parts += [f"- {note}" for note in result.notes]
    return "\n\n".join(parts) + "\n"


def _made_with(result: Result) -> str:
    environment = result.environment
    machine = environment["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return (
        f"{environment['time'][:10]}, {machine['cpu']}, {machine['cores']} cores, Linux "
        f"{machine['kernel']}, load {machine['load_before']} when it began; {versions}; image "
        f"{result.image}."
    )


def _markdown_rows(table: Table) -> Iterator[str]:
    yield _markdown_row(table.columns)
    yield _markdown_row(("---", *("---:" for _ in table.columns[1:])))
    for row in table.rows:
        yield _markdown_row(row)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
