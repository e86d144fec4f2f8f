"""Several instances at once: each gets the calls that it chose, and nobody else's."""

from __future__ import annotations

import random
from fnmatch import fnmatchcase

import pytest

from dynftrace_emu.machine.engine import Park
from tests.ftrace.invariants import traced_bytes
from tests.tracers.call_tree import ROOTS, CallTree
from tests.tracers.oracle import Model, Oracle, make_run, sites_by_name, untouched_checksums

INSTANCES = ("red", "green", "blue")
GLOBS = ("vfs_*", "*[rw]*", "s*", "[a-m]*", "*i*", "[!a-d]*", "*lock*", "list_*")


def test_each_has_its_own_filter_and_buffer() -> None:
    tree = CallTree()
    chosen = {"red": "lock", "green": "vfs_*", "blue": ""}
    for name, glob in chosen.items():
        tree.files.mkdir(f"instances/{name}")
        tree.files.write(f"instances/{name}/set_ftrace_filter", glob)
        tree.files.write(f"instances/{name}/current_tracer", "function")
    for root in ROOTS:
        tree.call(root)
    for name, glob in chosen.items():
        wanted = [f for root in ROOTS for f in tree.walk(root) if fnmatchcase(f, glob or "*")]
        assert tree.names(tree.events(tree.tracing.instances[name])) == wanted
    assert not len(tree.events())


def test_a_site_is_a_call_while_anybody_wants_it() -> None:
    tree = CallTree()

    def calls() -> set[str]:
        memory = tree.machine.memory
        return {name for name in tree.calls if memory.read(tree.site(name), 1) == b"\xe8"}

    for name, glob in (("red", "lock fput"), ("green", "lock vfs_read")):
        tree.files.mkdir(f"instances/{name}")
        tree.files.write(f"instances/{name}/set_ftrace_filter", glob)
    assert calls() == set()
    tree.files.write("instances/red/current_tracer", "function")
    assert calls() == {"lock", "fput"}
    tree.files.write("instances/green/current_tracer", "function")
    assert calls() == {"lock", "fput", "vfs_read"}
    assert "lock (2)" in tree.files.read("enabled_functions").splitlines()
    tree.files.rmdir("instances/red")
    assert calls() == {"lock", "vfs_read"}
    tree.files.write("instances/green/set_ftrace_notrace", "lock")
    assert calls() == {"vfs_read"}
    tree.files.write("instances/green/current_tracer", "nop")
    assert calls() == set()


def meddle(oracle: Oracle, seed: int):
    """Filters and tracers change while calls are going on; instances go and come again."""
    choice, names = random.Random(seed), sites_by_name(oracle.run)
    oracle.write("current_tracer", "function", tracer="function")
    while True:
        yield choice.uniform(0.0005, 0.004)
        name = choice.choice(("", *INSTANCES))
        what = choice.randrange(10)
        if name and name not in oracle.models:
            make(oracle, name)
        elif name and what == 0:
            forget(oracle, name)
        elif what < 7:
            glob = choice.choice(GLOBS)
            chosen = frozenset(s for f, s in names.items() if fnmatchcase(f, glob))
            oracle.write("set_ftrace_filter", glob, array=name, filter=chosen)
        elif what < 9:
            tracer = "nop" if oracle.models[name].tracer == "function" else "function"
            oracle.write("current_tracer", tracer, array=name, tracer=tracer)
        else:
            on = not oracle.models[name].on
            oracle.write("tracing_on", str(int(on)), array=name, on=on)
        check_text(oracle, names)


def make(oracle: Oracle, name: str) -> None:
    oracle.files.mkdir(f"instances/{name}")
    array = oracle.run.tracing.instances[name]
    oracle.models[name] = Model(array, read_count=[0] * len(oracle.calls))
    oracle.files.write(f"instances/{name}/buffer_size_kb", "64")


def forget(oracle: Oracle, name: str) -> None:
    """rmdir: the model goes in the stop that takes the tracer away."""
    model = oracle.models[name]

    def gone() -> None:
        oracle.models.pop(name, None)
        for calls in oracle.calls:
            for call in calls:
                if model in call.wanted:
                    kept = [i for i, other in enumerate(call.wanted) if other is not model]
                    call.wanted = tuple(call.wanted[i] for i in kept)
                    call.epochs = tuple(call.epochs[i] for i in kept)

    oracle.before_write(gone)
    try:
        oracle.files.rmdir(f"instances/{name}")
    finally:
        oracle.before_write(None)
    gone()


def check_text(oracle: Oracle, names: dict[str, int]) -> None:
    run = oracle.run
    for site in names.values():
        wanted = any(
            model.tracer == "function"
            and (model.filter is None or site in model.filter)
            and site not in model.notrace
            for model in oracle.models.values()
        )
        code = run.machine.memory.read(site, 5)
        assert (code == traced_bytes(run, site)) == wanted, run.image.symbolize(site)
        assert wanted or code[:2] == b"\xeb\x03"


@pytest.mark.parametrize("park", Park, ids=lambda park: park.value)
def test_no_tracer_gets_what_it_did_not_choose(park: Park) -> None:
    run = make_run(iterations=3, discover="scan", park=park, seed=13, nmi_rate=200)
    oracle = Oracle(run)
    for name in INSTANCES:
        make(oracle, name)
    run.machine.kthread("meddling", meddle(oracle, 3), daemon=True)
    run.execute()
    oracle.check()
    assert oracle.checks > 100
    assert sum(len(calls) for calls in oracle.calls) > 2000
    assert run.kernel.percpu("checksum") == untouched_checksums(3)


def test_rmdir_while_events_are_written_leaves_memory_to_others() -> None:
    """Made and removed many times under load: buffers are given back, nobody writes to them."""
    run = make_run(iterations=3, discover="scan", park=Park.ANYWHERE, seed=1)
    files, free = Oracle(run).files, []

    def control():
        for _ in range(40):
            yield 0.002
            files.mkdir("instances/foo")
            files.write("instances/foo/current_tracer", "function")
            yield 0.001
            array = run.tracing.instances["foo"]
            parts = [(part.base, part.nr_pages * 4096) for part in array.buffer.cpus]
            files.rmdir("instances/foo")
            before = [run.machine.memory.read(base, size) for base, size in parts]
            yield 0.001
            after = [run.machine.memory.read(base, size) for base, size in parts]
            assert before == after  # nobody else has taken them, and nobody writes there
            free.append(any(any(page) for page in before))

    run.machine.kthread("control", control())
    run.execute()
    assert len(free) >= 20
    assert sum(free) > 10
    assert run.kernel.percpu("checksum") == untouched_checksums(3)
