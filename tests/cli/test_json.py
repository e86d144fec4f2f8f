"""The one document of ``run --json``: keys and types as they are promised, and nothing else."""

from __future__ import annotations

import json
import re

import pytest

NUMBER = (int, float)
NONE = type(None)
TICK = {
    "t": NUMBER,
    "found": int,
    "patched": int,
    "pages_added": int,
    "mcount_calls": int,
    "iterations": int,
    "skipped": int,
    "stop_us": (*NUMBER, NONE),
}
DOCUMENT = {
    "schema": int,
    "image": str,
    "variant": str,
    "engine": str,
    "seed": (int, NONE),
    "vcpus": int,
    "seconds": NUMBER,
    "site": str,
    "discover": (str, NONE),
    "functions": int,
    "call_sites": int,
    "notrace": int,
    "records": {
        "used": int,
        "capacity": int,
        "pages": int,
        "failed": int,
        "skipped": {"no_slot": int, "nested": int, "suspended": int, "patched": int},
    },
    "ticks": [TICK],
    "sites": {
        "call": int,
        "jmp": int,
        "nop": int,
        "failed": int,
        "never_recorded": int,
        "traced": int,
    },
    "equilibrium_s": (*NUMBER, NONE),
    "stops": {"count": int, "median_us": (*NUMBER, NONE), "worst_us": (*NUMBER, NONE)},
    "nmis": int,
    "tracing": [{"t": NUMBER, "enabled": bool, "sites": int}],
    "traced_calls": int,
    "workload": {"iterations": [int], "checksum": [str]},
}
FAST = ("--engine", "deterministic", "--virtual-hz", "500000", "--json")


def check_shape(value, shape, where: str = "document") -> None:
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        assert list(value) == list(shape), where
        for key, inner in shape.items():
            check_shape(value[key], inner, f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for index, item in enumerate(value):
            check_shape(item, shape[0], f"{where}[{index}]")
    else:
        assert isinstance(value, shape), f"{where} is {value!r}"
        assert not (isinstance(value, bool) and shape is not bool), where


@pytest.mark.parametrize(
    "arguments",
    [
        [*FAST, "--seconds", "3", "--tracing", "1:2"],
        [*FAST, "--seconds", "1.2", "--variant", "static", "--vcpus", "3", "--seed", "9"],
        [*FAST, "--iterations", "2", "--variant", "none"],
        ["--json", "--seconds", "0.4", "--period", "0.15", "--nmi-rate", "50", "--site", "nop"],
    ],
    ids=["dynamic", "static", "none", "threaded"],
)
def test_keys_and_types(cli, arguments: list[str]) -> None:
    result = cli("run", *arguments)
    assert (result.code, result.err) == (0, "")
    document = json.loads(result.out)
    check_shape(document, DOCUMENT)
    assert document["schema"] == 1
    assert document["image"] == "mini-kernel"
    assert len(document["workload"]["iterations"]) == document["vcpus"]
    assert len(document["workload"]["checksum"]) == document["vcpus"]
    assert all(re.fullmatch("0x[0-9a-f]{16}", sum_) for sum_ in document["workload"]["checksum"])
    assert document["discover"] == ("runtime" if document["variant"] == "dynamic" else None)
    assert document["ticks"] or "--iterations" in arguments
    if document["engine"] == "threaded":
        assert document["seed"] is None
        assert document["seconds"] == 0.4
        assert any((tick["stop_us"] or 0) > 0 for tick in document["ticks"])
    else:
        assert document["seed"] == (9 if "9" in arguments else 0)
        assert {tick["stop_us"] for tick in document["ticks"]} <= {None, 0.0}


def test_an_interval_shorter_than_a_period_makes_no_tick(cli) -> None:
    document = json.loads(cli("run", *FAST, "--seconds", "1.9", "--period", "0.5").out)
    assert [tick["t"] for tick in document["ticks"]] == [0.5, 1.0, 1.5]
    assert document["seconds"] == 1.9


@pytest.mark.parametrize(
    "more", [["-v"], ["--watch", "vfs_read"], ["-v", "--watch", "vfs_read"]], ids=str
)
def test_nothing_else_is_on_stdout(cli, more: list[str]) -> None:
    alone = cli("run", *FAST, "--seconds", "1")
    result = cli("run", *FAST, "--seconds", "1", *more)
    assert json.loads(result.out) == json.loads(alone.out)
    assert ("mini-kernel 2.6" in result.err) == ("-v" in more)
    assert ("call site" in result.err) == ("--watch" in more)


def test_the_same_command_is_the_same_text(cli) -> None:
    arguments = (*FAST, "--seconds", "1.5", "--nmi-rate", "100", "--seed", "4", "--tracing", "0.5")
    assert cli("run", *arguments).out == cli("run", *arguments).out
