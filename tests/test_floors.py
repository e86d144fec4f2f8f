"""The floors of docs/architecture.md: who imports whom."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dynftrace_emu"
FLOORS = ("machine", "kernel", "ftrace", "export", "tracefs", "explore", "bench", "cli")
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module that the file at ``path`` imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_floors_below_it(floor: str) -> None:
    allowed = set(FLOORS[: FLOORS.index(floor) + 1])
    files = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] == floor]
    assert files
    for path in files:
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("dynftrace_emu.")}
        assert ours & set(FLOORS) <= allowed, path


def test_only_one_module_knows_the_engine() -> None:
    users = [path for path in MODULES if any(n.split(".")[0] == "unicorn" for n in imported(path))]
    assert users == [PACKAGE / "machine" / "vcpu.py"]
