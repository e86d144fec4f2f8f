"""What a run may be asked to be."""

from __future__ import annotations

import json
import math

import pytest

from dynftrace_emu.errors import OptionError
from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.machine.engine import Park

BAD = [
    ({"vcpus": 0}, "1 to 64"),
    ({"vcpus": 65}, "1 to 64"),
    ({"vcpus": -1}, "1 to 64"),
    ({"period": 0.0}, "more than 0"),
    ({"period": -1.0}, "more than 0"),
    ({"period": math.nan}, "more than 0"),
    ({"period": math.inf}, "more than 0"),
    ({"seconds": 0.0}, "more than 0"),
    ({"seconds": math.nan}, "more than 0"),
    ({"seconds": math.inf}, "more than 0"),
    ({"iterations": 0}, "1 or more"),
    ({"boot_records": -1}, "0 to"),
    ({"nmi_rate": -1.0}, "0 to"),
    ({"nmi_rate": math.nan}, "0 to"),
    ({"virtual_hz": 0}, "allowed"),
    ({"variant": "both"}, "dynamic, static, none"),
    ({"site": "int3"}, "jmp, nop"),
    ({"tracing": (3.0, 1.0)}, "before UNTIL"),
    ({"tracing": (1.0, 1.0)}, "before UNTIL"),
    ({"tracing": (-1.0, None)}, "0 or more"),
    ({"tracing": (math.nan, None)}, "0 or more"),
    ({"tracing": (1.0, math.inf)}, "before UNTIL"),
    ({"tracing": (1.0, 2.0), "variant": "none"}, "no calls"),
    ({"engine": EngineName.THREADED, "park": Park.ANYWHERE}, "deterministic"),
    ({"engine": EngineName.THREADED, "virtual_hz": 1_000_000}, "deterministic"),
    ({"engine": EngineName.THREADED, "workload": "shared"}, "deterministic"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused_and_says_what_is_allowed(options: dict, says: str) -> None:
    with pytest.raises(OptionError) as error:
        RunOptions(**options)
    message = str(error.value)
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vcpus": 64, "boot_records": 0, "nmi_rate": 1000.0},
        {"engine": EngineName.DETERMINISTIC, "park": Park.ANYWHERE, "tracing": (1.0, None)},
        {"engine": EngineName.THREADED, "seconds": None, "iterations": 5, "tracing": (0.0, 2.5)},
    ],
    ids=str,
)
def test_options_come_back_from_a_file_as_they_went(options: dict) -> None:
    chosen = RunOptions(**options)
    assert RunOptions.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
