"""Collapsed stacks, and the flame graph that is drawn of the same tree."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest

from dynftrace_emu.export.call_tree import CallTree
from dynftrace_emu.export.flamegraph_svg import write_flamegraph_svg
from dynftrace_emu.export.folded import write_folded
from tests.export.call_sources import call, enter, leave, real_trace, source, two_tasks

SVG = "{http://www.w3.org/2000/svg}"
ODD = "odd;na\nme<&>\"'"


def folded(trace):
    out = io.BytesIO()
    write_folded(trace, out)
    return out.getvalue().decode().splitlines()


def test_self_times_of_two_tasks() -> None:
    assert folded(two_tasks()) == [
        "main 2500", "main;a 1500", "main;a;schedule 2500", "b 3700", "b;do_irq 300", "idle 4000",
    ]  # fmt: skip


def test_counts_of_functions() -> None:
    trace = source(call(1, "a", "main"), call(2, "a", "main"), call(3, "b", "a"))
    assert folded(trace) == ["main;a 2", "a;b 1"]


def test_separators_in_names_are_replaced() -> None:
    assert folded(source(enter(0, ODD), leave(5, ODD, 0))) == ["odd:na me<&>\"' 5"]


def test_calls_that_take_no_time_are_named() -> None:
    trace = source(enter(5, "a"), enter(5, "b", 1), leave(5, "b", 5, 1), leave(5, "a", 5))
    assert folded(trace) == ["a;b 0"]


def test_nothing_makes_nothing() -> None:
    assert folded(source()) == []


def test_all_time_of_the_mini_kernel_is_there(tmp_path) -> None:
    trace = real_trace("function_graph")
    write_folded(trace, tmp_path / "trace.folded")
    lines = (tmp_path / "trace.folded").read_text().splitlines()
    assert all(re.fullmatch(r"[^;\s]+(;[^;\s]+)* \d+", line) for line in lines)
    total = sum(node.total_ns for node in CallTree(trace).root.children.values())
    assert sum(int(line.split()[-1]) for line in lines) == total


# The flame graph.


def drawn(trace, **options):
    out = io.BytesIO()
    write_flamegraph_svg(trace, out, **options)
    return ElementTree.fromstring(out.getvalue())


def boxes(svg):
    """Name -> (x, y, width) of each box, by what its title says."""
    found = {}
    for group in svg.iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        name = group.findtext(f"{SVG}title").partition(": ")[0]
        found[name] = tuple(float(rect.get(part)) for part in ("x", "y", "width"))
    return found


def test_boxes_are_as_wide_as_calls_take_time() -> None:
    found = boxes(drawn(two_tasks()))
    assert {name: round(width / 1180 * 14500) for name, (_, _, width) in found.items()} == {
        "all": 14500, "main": 6500, "a": 4000, "schedule": 2500, "b": 4000, "do_irq": 300,
        "idle": 4000,
    }  # fmt: skip
    for callee, caller in (("a", "main"), ("schedule", "a"), ("main", "all"), ("do_irq", "b")):
        (x, y, width), (left, below, room) = found[callee], found[caller]
        assert (below - y, x >= left - 0.01, x + width <= left + room + 0.02) == (18, True, True)


def test_titles_and_texts() -> None:
    svg = drawn(two_tasks(), title="boot <1>")
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert texts[:2] == ["boot <1>", "time in functions and what they call; 14.500 µs in all"]
    assert {"main", "a", "schedule", "idle"} <= set(texts)
    titles = {title.text for title in svg.iter(f"{SVG}title")}
    assert "a: 4.000 µs, 27.59%; 1 calls, 1.500 µs in itself" in titles
    assert not list(svg.iter(f"{SVG}script"))


def test_names_are_escaped_and_shortened() -> None:
    calls = [enter(0, ODD), leave(3, ODD, 0), enter(3, "main"), leave(100, "main", 3)]
    svg = drawn(source(*calls))
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert "odd;na me<&>\"'" in {t.text.partition(": ")[0] for t in svg.iter(f"{SVG}title")}
    assert texts[2:] == ["all", "od…", "main"]


def test_calls_of_functions_and_nothing_at_all() -> None:
    svg = drawn(source(call(1, "a", "main"), call(2, "b", "main"), call(3, "b", "main")))
    assert {t.text for t in svg.iter(f"{SVG}title")} == {
        "all: 3 calls, 100.00%", "main: 3 calls, 100.00%", "a: 1 calls, 33.33%",
        "b: 2 calls, 66.67%",
    }  # fmt: skip
    assert len(list(drawn(source()).iter(f"{SVG}g"))) == 1


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian package chromium is missing")
def test_a_browser_draws_it(tmp_path) -> None:
    write_flamegraph_svg(real_trace("function_graph"), tmp_path / "trace.svg")
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/c",
        f"--screenshot={tmp_path}/trace.png", (tmp_path / "trace.svg").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    # Something of this size is not an empty page.
    assert (tmp_path / "trace.png").stat().st_size > 10_000
