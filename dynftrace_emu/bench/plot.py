"""A result as a picture: the ratios, and how pauses and throughput scale. Needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynftrace_emu.bench.modes import MODES, YARDSTICK
from dynftrace_emu.bench.tables import ratio_text
from dynftrace_emu.errors import OptionError
from dynftrace_emu.export.missing_extra import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dynftrace_emu.bench.figures import Figure, Result

__all__ = ["FORMATS", "check_plot", "plot"]

FORMATS = (".svg", ".png")
_WHAT = {mode.name: mode.what for mode in MODES}
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")  # told apart whatever one's sight is
_DPI = 120
_PAD = 0.15  # inches around all that is drawn
_BAR = 0.8
_CURVES = (
    ("patch", "pause: patch all", "-"),
    ("enable", "pause: enable", "-"),
    ("disable", "pause: disable", "-"),
    ("after_enable", "re-translation after enabling", "--"),
)


def check_plot(path: Path) -> None:
    """Refuse what :func:`plot` could not write, before anything is measured.

    :raises OptionError: another kind of file.
    :raises MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise OptionError(f"--plot {path}: a name that ends in {' or '.join(FORMATS)} is needed")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("--plot", "plot") from None


def plot(result: Result, path: Path) -> None:
    """Draw all of ``result`` that a picture helps with.

    :raises OptionError: there is nothing of that kind in it, or another kind of file is named.
    :raises MissingExtraError: matplotlib is not installed.
    """
    check_plot(path)
    panels = _panels(result)
    if not panels:
        raise OptionError(f"--plot {path}: of what was measured nothing can be drawn")
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Picture

    with rc_context({"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10}):
        heights = [height for height, _ in panels]
        picture = Picture(figsize=(9, sum(heights)), layout="constrained", facecolor="white")
        parts = picture.subfigures(len(panels), 1, squeeze=False, height_ratios=heights)
        for (_, draw), part in zip(panels, parts[:, 0], strict=True):
            draw(part)
        picture.savefig(path, dpi=_DPI, bbox_inches="tight", pad_inches=_PAD)


Panel = tuple[float, "Callable[[Any], None]"]
"""A panel's height in inches, and what draws it into its part of the picture."""


def _panels(result: Result) -> list[Panel]:
    panels: list[Panel] = []
    for kind, what in (("modes", "Time"), ("instructions", "Instructions")):
        workloads = result.workloads(kind)
        if workloads and len(result.subjects(kind, workloads[0])) > 1:
            subjects = list(dict.fromkeys(s for w in workloads for s in result.subjects(kind, w)))
            subjects.remove(YARDSTICK.name)  # it is 1
            height = 1 + (0.13 * len(workloads) + 0.07) * len(subjects)
            panels.append((height, _ratios(result, kind, what, subjects)))
    if len(result.subjects("patching")) > 1:
        panels.append((3.6, _sites(result)))
    if len(result.subjects("vcpus")) > 1:
        panels.append((3.2, _vcpus(result)))
    return panels


def _ratios(result: Result, kind: str, what: str, subjects: list[str]) -> Callable[[Any], None]:
    """Bars that grow from 1, the yardstick, on a logarithmic scale; a line from least to most."""

    def draw(part: Any) -> None:
        axes = part.subplots()
        workloads = result.workloads(kind)
        thickness = _BAR / len(workloads)
        for index, workload in enumerate(workloads):
            figures = {figure.subject: figure for figure in result.of(kind, "ratio", workload)}
            places = [
                (place - _BAR / 2 + thickness * (index + 0.5), figures[subject])
                for place, subject in enumerate(subjects)
                if subject in figures
            ]
            _bars(axes, places, thickness, _COLOURS[index % len(_COLOURS)], workload)
        axes.set_xscale("log")
        axes.axvline(1, color="black", linewidth=0.8)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.8), high * 2.2)  # room for the numbers
        axes.set_yticks(range(len(subjects)), [_WHAT.get(s, s) for s in subjects])
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("times the build without calls (logarithmic)")
        axes.set_title(f"{what} for the same work")
        axes.legend(title="workload", loc="center left", bbox_to_anchor=(1.01, 0.5))
        axes.grid(axis="x", which="major", alpha=0.3)

    return draw


def _bars(
    axes: Any, places: list[tuple[float, Figure]], thickness: float, colour: str, label: str
) -> None:
    ys = [place for place, _ in places]
    axes.barh(
        ys, [f.median - 1 for _, f in places], thickness * 0.9, left=1, color=colour, label=label
    )
    for y, figure in places:
        if figure.high > figure.low:
            axes.hlines(y, figure.low, figure.high, color="black", linewidth=0.8)
        text = ratio_text(figure.median)
        at = max(figure.high, figure.median, 1)
        axes.annotate(
            text, (at, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7
        )


def _sites(result: Result) -> Callable[[Any], None]:
    def draw(part: Any) -> None:
        axes = part.subplots()
        sizes = [int(subject.partition(":")[2]) for subject in result.subjects("patching")]
        for (quantity, label, style), colour in zip(_CURVES, _COLOURS, strict=True):
            _curve(axes, sizes, result.of("patching", quantity), label, colour, style)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("call sites")
        axes.set_ylabel("milliseconds")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_title("Switching every site of a running kernel, 2 vCPUs")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        axes.grid(which="major", alpha=0.3)

    return draw


def _vcpus(result: Result) -> Callable[[Any], None]:
    def draw(part: Any) -> None:
        left, right = part.subplots(1, 2)
        figures = result.of("vcpus", "scaling")
        counts = [int(figure.subject.split()[0]) for figure in figures]
        cores = result.environment.get("machine", {}).get("cores", counts[-1])
        _curve(left, counts, figures, "measured", _COLOURS[0], "-")
        ideal = [min(count, cores) for count in counts]
        left.plot(counts, ideal, ":", color="black", label=f"as {cores} cores allow")
        left.set_ylabel("throughput, times one vCPU")
        left.set_title(f"Throughput, threaded engine, {cores} cores")
        left.legend(loc="upper center", ncols=2)
        _curve(right, counts, result.of("vcpus", "pause"), "pause", _COLOURS[1], "-")
        right.set_ylabel("milliseconds")
        right.set_title("Pause to switch the function tracer")
        for axes in (left, right):
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.set_ylim(0, axes.get_ylim()[1] * 1.2)  # room for the legend
            axes.set_xlabel("vCPUs")
            axes.grid(alpha=0.3)

    return draw


def _curve(
    axes: Any, xs: list[int], figures: list[Figure], label: str, colour: str, style: str
) -> None:
    medians = [figure.median for figure in figures]
    errors = [
        [figure.median - figure.low for figure in figures],
        [figure.high - figure.median for figure in figures],
    ]
    axes.errorbar(
        xs,
        medians,
        yerr=errors,
        fmt=f"o{style}",
        color=colour,
        label=label,
        markersize=4,
        capsize=3,
    )
