from __future__ import annotations

from dataclasses import replace

import pytest

from dynftrace_emu.bench.figures import Figure, Result
from dynftrace_emu.bench.lab import Lab
from dynftrace_emu.bench.plan import Plan, make_plan


@pytest.fixture(scope="session")
def images() -> dict:
    """The images that all labs of these tests share: assembled once."""
    return {}


@pytest.fixture
def lab(images, monkeypatch) -> Lab:
    lab = Lab()
    lab._images = images
    monkeypatch.setattr(lab, "forget_images", lambda: None)
    return lab


def small_plan(lab: Lab, **chosen) -> Plan:
    """As little as can be measured."""
    plan = make_plan(lab, "mini-kernel", quick=True, **{"rounds": 1, **chosen})
    return replace(plan, warm_up_s=0.03, window_s=0.03)


def result_of(figures: dict[str, tuple[float, ...]], **options) -> Result:
    """A result with figures by id; exact where they are of instructions."""
    environment = {
        "time": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "a CPU", "cores": 2, "kernel": "6.1", "load_before": 0.1},
        "versions": {"dynftrace-emu": "0", "unicorn": "2.1.4"},
    }
    made = [_figure(name, values) for name, values in figures.items()]
    return Result("mini-kernel", {}, environment, made, complete=True, **options)


def _figure(name: str, values: tuple[float, ...]) -> Figure:
    kind, *workload, subject, quantity = name.split("/")
    return Figure(
        kind, subject, quantity, "x", values, "".join(workload), exact=kind == "instructions"
    )


EVERYTHING = {
    "modes/default/none/ratio": (1.0, 1.0, 1.0),
    "modes/default/none/time": (100.0, 110.0, 105.0),
    "modes/default/patched-jmp/ratio": (1.01, 1.02, 1.05),
    "modes/default/patched-jmp/time": (101.0, 112.0, 110.0),
    "modes/default/function/ratio": (2.0, 3.0, 2.5),
    "modes/default/function/added": (60.0, 70.0, 74.0),
    "modes/default/hook-entry/ratio": (20.0, 30.0, 25.0),
    "modes/default/hook-entry/added": (2800.0, 2900.0, 3000.0),
    "modes/leaf/none/ratio": (1.0,),
    "modes/leaf/patched-jmp/ratio": (1.2,),
    "instructions/default/none/ratio": (1.0,),
    "instructions/default/function/ratio": (3.25,),
    "patching/synthetic:100/patch": (2.0, 3.0),
    "patching/synthetic:100/enable": (2.0, 3.0),
    "patching/synthetic:100/disable": (2.0, 3.0),
    "patching/synthetic:100/after_enable": (9.0, 10.0),
    "patching/synthetic:50000/patch": (20.0, 30.0),
    "patching/synthetic:50000/enable": (60.0, 61.0),
    "patching/synthetic:50000/disable": (45.0, 47.0),
    "patching/synthetic:50000/after_enable": (4000.0, 4100.0),
    "vcpus/1 vCPU/throughput": (8000.0, 8100.0),
    "vcpus/1 vCPU/scaling": (1.0, 1.0),
    "vcpus/1 vCPU/pause": (2.0, 2.1),
    "vcpus/2 vCPUs/throughput": (15900.0, 15500.0),
    "vcpus/2 vCPUs/scaling": (1.98, 1.91),
    "vcpus/2 vCPUs/pause": (4.0, 4.4),
    "record/hit/added": (200.0, 210.0),
    "record/miss/added": (20000.0, 21000.0),
}
