"""speedscope's format; its own viewer opens it, in a browser.

Where the npm package speedscope is: in the directory $SPEEDSCOPE names, or installed for all. Where
npm can be used, it is fetched.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynftrace_emu.export.speedscope import write_speedscope
from tests.export.call_sources import (
    call,
    enter,
    leave,
    random_calls,
    real_trace,
    source,
    two_tasks,
)


def written(trace):
    out = io.BytesIO()
    write_speedscope(trace, out)
    return json.loads(out.getvalue())


def names(file):
    return [frame["name"] for frame in file["shared"]["frames"]]


def shown(file, cpu=0):
    """ "+name@time" for what opens, "-name@time" for what closes."""
    frames = names(file)
    return " ".join(
        f"{'+' if event['type'] == 'O' else '-'}{frames[event['frame']]}@{event['at']}"
        for event in file["profiles"][cpu]["events"]
    )


def check(file):
    """Every profile is in time order, and balanced."""
    for profile in file["profiles"]:
        at, stack = profile["startValue"], []
        for event in profile["events"]:
            assert at <= event["at"] <= profile["endValue"]
            at = event["at"]
            if event["type"] == "O":
                stack.append(event["frame"])
            else:
                assert stack.pop() == event["frame"]
        assert stack == []


def test_a_task_that_comes_opens_its_calls_again() -> None:
    file = written(two_tasks())
    check(file)
    assert shown(file) == (
        "+main@1000 +a@2000 +schedule@2500 -schedule@3000 -a@3000 -main@3000 "
        "+b@3000 +do_irq@3100 -do_irq@3400 -b@5000 "
        "+main@5000 +a@5000 +schedule@5000 -schedule@5000 -a@6000 -main@7000 "
        "+b@7000 -b@7000 +main@7500 -main@7500"
    )
    assert shown(file, 1) == "+idle@3500 -idle@7500"
    assert {key: file[key] for key in ("$schema", "name")} == {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": "trace",
    }
    head = {key: value for key, value in file["profiles"][0].items() if key != "events"}
    assert head == {
        "type": "evented", "name": "CPU 0", "unit": "nanoseconds", "startValue": 1000,
        "endValue": 7500,
    }  # fmt: skip


def test_calls_from_before_the_trace_are_open_from_its_start() -> None:
    file = written(
        source(
            enter(100, "c", 1),
            leave(110, "c", 100, 1),
            leave(120, "b", 60),
            leave(130, "a", 50, pid=8),
        )
    )
    check(file)
    assert shown(file) == "+b@100 +c@100 -c@110 -b@120 +a@120 -a@130"


def test_what_ends_with_the_trace_ends_once() -> None:
    file = written(source(enter(10, "a"), enter(20, "b", pid=8), enter(30, "c", 1)))
    check(file)
    assert shown(file) == "+a@10 -a@20 +b@20 -b@30 +a@30 +c@30 -c@30 -a@30"


def test_functions_are_samples() -> None:
    trace = source(call(1, "a", "main"), call(2, "b", "a"), call(3, "a", "main", cpu=1))
    file = written(trace)
    assert names(file) == ["main", "a", "b"]
    assert file["profiles"] == [
        {"type": "sampled", "name": "CPU 0", "unit": "none", "startValue": 0, "endValue": 2,
         "samples": [[0, 1], [1, 2]], "weights": [1, 1]},
        {"type": "sampled", "name": "CPU 1", "unit": "none", "startValue": 0, "endValue": 1,
         "samples": [[0, 1]], "weights": [1]},
    ]  # fmt: skip


def test_nothing_is_an_empty_profile() -> None:
    file = written(source())
    assert [profile["events"] for profile in file["profiles"]] == [[], []]


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 60))
def test_profiles_are_balanced(rng, count) -> None:
    events = random_calls(rng, count, lanes=5)
    for _ in range(min(len(events), rng.randint(0, 3))):
        del events[rng.randrange(len(events))]
    check(written(source(*events, cut=7)))


def test_the_mini_kernel(tmp_path) -> None:
    trace = real_trace("function_graph")
    write_speedscope(trace, tmp_path / "t.speedscope.json")
    check(json.loads((tmp_path / "t.speedscope.json").read_bytes()))


def test_functions_of_the_mini_kernel() -> None:
    trace = real_trace("function")
    file = written(trace)
    frames = names(file)
    counted = Counter(frames[s[-1]] for p in file["profiles"] for s in p["samples"])
    assert sum(counted.values()) == len(trace.events)


# The viewer.


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    """The directory of speedscope's viewer."""
    for program in ("chromium", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing")
    for modules in (os.environ.get("SPEEDSCOPE", ""), _global_modules()):
        found = Path(modules) / "speedscope/dist/release"
        if modules and found.is_dir():
            return found
    fetched = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(fetched), "speedscope"]
    if subprocess.run(command, capture_output=True, check=False, timeout=300).returncode:
        pytest.skip("npm package speedscope is missing, and cannot be fetched")
    return fetched / "node_modules/speedscope/dist/release"


def _global_modules():
    command = ["npm", "root", "--global"]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    return done.stdout.strip()


SPY = """
window.drawn = new Set();
const fillText = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...where) {
    window.drawn.add(text);
    document.documentElement.dataset.drawn = [...window.drawn].join(" ");
    return fillText.call(this, text, ...where);
};
"""
"""The names are drawn on a canvas: this writes them into the page as well."""


def page_with(viewer, directory, file, wanted):
    """What the viewer draws when it has opened a file, as its command line opens one.

    The browser gives a page so much of its own time, which on a busy machine may come to no frame.
    """
    for _ in range(5):
        page = page_drawn(viewer, directory, file)
        if all(text in page for text in wanted):
            break
    return page


def page_drawn(viewer, directory, file):
    data = base64.b64encode(file.read_bytes()).decode()
    load = f"speedscope.loadFileFromBase64({json.dumps(file.name)}, {json.dumps(data)})"
    (directory / "load.js").write_text(SPY + load)
    page = f"{(viewer / 'index.html').as_uri()}#localProfilePath={directory / 'load.js'}"
    command = [
        "chromium", "--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader", f"--user-data-dir={directory}/c", "--window-size=1200,800",
        "--virtual-time-budget=20000", "--dump-dom", page,
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=180)
    return done.stdout


def test_the_viewer_shows_the_functions_of_the_mini_kernel(viewer, tmp_path) -> None:
    trace = real_trace("function_graph")
    write_speedscope(trace, tmp_path / "t.speedscope.json", "the mini-kernel")
    wanted = ("start_kernel", "the mini-kernel", "CPU 0")
    page = page_with(viewer, tmp_path, tmp_path / "t.speedscope.json", wanted)
    assert [text for text in wanted if text not in page] == []


def test_the_viewer_shows_samples(viewer, tmp_path) -> None:
    trace = source(call(1, "a", "main"), call(2, "b", "schedule"), tracer="function")
    write_speedscope(trace, tmp_path / "t.speedscope.json")
    page = page_with(viewer, tmp_path, tmp_path / "t.speedscope.json", ("main", "schedule"))
    drawn = page.partition('data-drawn="')[2].partition('"')[0].split(" ")
    assert {"main", "schedule", "a", "b"} <= set(drawn)
