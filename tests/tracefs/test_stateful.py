"""200 random sequences of writes to control files against a small model; none harms the guest."""

from __future__ import annotations

import errno
from fnmatch import fnmatchcase
from typing import ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run
from tests.ftrace.conftest import assembled
from tests.tracefs.conftest import Session

SEQUENCES = 200
SEQUENCES_A_RUN = 25
STEP = 0.015  # seconds: some ten thousand instructions on each vCPU
KINDS = ("traceon", "traceoff", "stacktrace", "snapshot")

patterns = st.sampled_from(
    ["vfs_*", "*_read", "*lock*", "sch?dule", "pipe_write", "[a-e]*", "*_*e*", "kfree", "1", "630"]
)
words = st.builds(lambda bang, word: f"{bang}{word}", st.sampled_from(["", "", "!"]), patterns)
filters = st.one_of(patterns, st.lists(words, max_size=3).map(" ".join))
arrays = st.sampled_from(["", "", "instances/a/", "instances/b/"])
appends = st.booleans()

REFUSED = [
    ("current_tracer", "blk", errno.EINVAL),
    ("set_ftrace_filter", "vfs_* no_such*", errno.EINVAL),
    ("set_ftrace_filter", "vfs_read:no_such", errno.EINVAL),
    ("set_ftrace_filter", "schedule vfs_read:traceoff:x", errno.EINVAL),
    ("set_ftrace_notrace", "kfree 631", errno.EINVAL),
    ("set_ftrace_pid", "3 x", errno.EINVAL),
    ("tracing_on", "x", errno.EINVAL),
    ("tracing_cpumask", "4", errno.EOVERFLOW),
    ("buffer_size_kb", "0", errno.EINVAL),
    ("buffer_size_kb", "99999999", errno.ENOMEM),
    ("buffer_percent", "101", errno.EINVAL),
    ("trace_clock", "sundial", errno.EINVAL),
    ("trace_options", "no_such", errno.EINVAL),
    ("options/overwrite", "2", errno.EINVAL),
    ("snapshot", "x", errno.EINVAL),
    ("available_tracers", "nop", errno.EINVAL),
    ("no_such_file", "1", errno.ENOENT),
    ("options", "1", errno.EISDIR),
]


class Untouched:
    """What each vCPU has computed after n iterations, in a kernel that nobody traces."""

    def __init__(self) -> None:
        options = RunOptions(
            engine=EngineName.DETERMINISTIC, variant="none", seconds=None, iterations=1_000_000
        )
        self._run = Run(options, image=assembled("none", "mini-kernel"))
        self._sums: list[dict[int, int]] = [{0: 0}, {0: 0}]

    def checksum(self, cpu: int, iterations: int) -> int:
        while iterations not in self._sums[cpu]:
            assert max(self._sums[cpu]) < iterations, f"iteration {iterations} was missed"
            self._run.machine.run(0.01)
            for known, (count, checksum) in zip(self._sums, computed(self._run), strict=True):
                known[count] = checksum
        return self._sums[cpu][iterations]


def computed(run: Run) -> list[tuple[int, int]]:
    """Iterations and checksum of each vCPU, which go together while the machine is stopped."""
    percpu = run.kernel.percpu
    return run.machine.stop_machine(
        lambda: list(zip(percpu("iterations"), percpu("checksum"), strict=True))
    )


class ArrayModel:
    """A trace array: the global one or an instance."""

    def __init__(self, tracers: tuple[str, ...]) -> None:
        self.tracers = tracers
        self.tracer = "nop"
        self.filter: set[str] = set()
        self.notrace: set[str] = set()
        self.triggers: dict[tuple[str, str], None] = {}
        self.values = {
            "tracing_on": "1", "tracing_cpumask": "3", "buffer_size_kb": "1408",
            "buffer_percent": "50", "trace_clock": "[local] counter", "set_ftrace_pid": "no pid",
            "set_ftrace_notrace_pid": "no pid", "options/overwrite": "1",
            "options/func_stack_trace": "0",
        }  # fmt: skip


ACCEPTED = {
    "tracing_on": {"0": "0", "1": "1", "2\n": "1"},
    "tracing_cpumask": {"1": "1", "2": "2", "3": "3", "0": "0"},
    "buffer_size_kb": {"64": "64", "300": "300"},
    "buffer_percent": {"0": "0", "100": "100"},
    "trace_clock": {"local": "[local] counter", "counter": "local [counter]"},
    "set_ftrace_pid": {"3 9": "3\n9", "": "no pid"},
    "set_ftrace_notrace_pid": {"4": "4", "": "no pid"},
    "options/overwrite": {"0": "0", "1": "1"},
    "options/func_stack_trace": {"0": "0", "1": "1"},
}
ACCEPTED_ONCE = {
    "max_graph_depth": {"0": "0", "2": "2"},
    "tracing_thresh": {"0": "0", "50": "50"},
    "saved_cmdlines_size": {"4": "4", "128": "128"},
    "function_profile_enabled": {"0": "0", "1": "1"},
    "stack_tracer_enabled": {"0": "0", "1": "1"},
    "ftrace_enabled": {"0": "0", "1": "1"},
    "options/funcgraph-irqs": {"0": "0", "1": "1"},
}
INITIAL_ONCE = {
    "max_graph_depth": "0", "tracing_thresh": "0", "saved_cmdlines_size": "128",
    "function_profile_enabled": "0", "stack_tracer_enabled": "0", "ftrace_enabled": "1",
    "options/funcgraph-irqs": "1",
}  # fmt: skip
SWITCHES = ("ftrace_enabled", "function_profile_enabled", "stack_tracer_enabled")
values = st.sampled_from([(f, t) for f, texts in ACCEPTED.items() for t in texts])
values_once = st.sampled_from([(f, t) for f, texts in ACCEPTED_ONCE.items() for t in texts])


class ControlFiles(RuleBasedStateMachine):
    """One sequence. Runs are shared by sequences that went well, each of which cleans up."""

    untouched: ClassVar[Untouched]
    idle: ClassVar[list[tuple[Session, int]]] = []
    sequences: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        if self.idle:
            self.s, self.age = self.idle.pop()
        else:
            self.s, self.age = Session(), 0
            self.s.go(0.3)
        self.touched = set(self._names("touched_functions"))
        self.names = [self.s.name[site] for site in self.s.sites]
        self.arrays = {"": ArrayModel(("function_graph", "function", "nop"))}
        self.once = dict(INITIAL_ONCE)
        self.stack_filter: set[str] = set()
        self.is_well = True

    # --- the model ---

    def choose(self, chosen: set[str], text: str, append: bool) -> set[str]:
        chosen = set(chosen) if append else set()
        for word in text.split():
            pattern = word.removeprefix("!")
            if pattern.isdigit():
                matching = {self.names[int(pattern) - 1]}
            else:
                matching = {name for name in self.names if fnmatchcase(name, pattern)}
            chosen = chosen - matching if word.startswith("!") else chosen | matching
        return chosen

    def wants(self, array: ArrayModel) -> set[str]:
        return (array.filter or set(self.names)) - array.notrace

    @property
    def wanted(self) -> set[str]:
        """The functions somebody wants: tracers, triggers, the profiler, the stack tracer."""
        if self.once["ftrace_enabled"] == "0":
            return set()
        wanted: set[str] = set()
        for array in self.arrays.values():
            is_on = array.tracer == "function"
            if is_on or array.tracer == "function_graph":
                wanted |= self.wants(array)
            wanted |= {name for name, _ in array.triggers}
        if self.once["function_profile_enabled"] == "1":
            wanted |= self.wants(self.arrays[""])
        if self.once["stack_tracer_enabled"] == "1":
            wanted |= self.stack_filter or set(self.names)
        return wanted

    # --- writes ---

    def _write(self, path: str, text: str, append: bool = False) -> None:
        self.is_well = False  # until it was looked at
        with self.s.one_stop():
            self.s.files.write(path, text, append=append)

    @initialize(
        tracer=st.sampled_from(["function", "function_graph"]),
        text=filters,
        notrace=filters,
        with_instance=st.booleans(),
    )
    def begin(self, tracer: str, text: str, notrace: str, with_instance: bool) -> None:
        """Without this most sequences would trace nothing."""
        self.set_tracer("", tracer)
        self.touched |= self.wanted
        self.set_filter("", text, append=True)
        self.touched |= self.wanted
        if with_instance:
            self.mkdir("a")
            self.set_tracer("instances/a/", "function")
            self.touched |= self.wanted
            self.set_filter("instances/a/", notrace, append=False)
        else:
            self.set_notrace("", notrace, append=False)

    @rule(array=arrays, tracer=st.sampled_from(["nop", "function", "function_graph"]))
    def set_tracer(self, array: str, tracer: str) -> None:
        path = f"{array}current_tracer"
        if array not in self.arrays:
            self.s.refuse(errno.ENOENT, path, tracer)
        elif tracer not in self.arrays[array].tracers:
            self.s.refuse(errno.EINVAL, path, tracer)
        else:
            self._write(path, tracer)
            self.arrays[array].tracer = tracer

    @rule(array=arrays, text=filters, append=appends)
    def set_filter(self, array: str, text: str, append: bool) -> None:
        if array in self.arrays:
            self._write(f"{array}set_ftrace_filter", text, append)
            model = self.arrays[array]
            model.filter = self.choose(model.filter, text, append)

    @rule(array=arrays, text=filters, append=appends)
    def set_notrace(self, array: str, text: str, append: bool) -> None:
        if array in self.arrays:
            self._write(f"{array}set_ftrace_notrace", text, append)
            model = self.arrays[array]
            model.notrace = self.choose(model.notrace, text, append)

    @rule(text=filters, append=appends)
    def set_stack_filter(self, text: str, append: bool) -> None:
        self._write("stack_trace_filter", text, append)
        self.stack_filter = self.choose(self.stack_filter, text, append)

    @rule(
        array=arrays,
        pattern=st.sampled_from(["vfs_*", "schedule", "*pipe_r*", "e1000_read"]),
        kind=st.sampled_from(KINDS),
        count=st.sampled_from(["", ":2", ":unlimited"]),
    )
    def set_trigger(self, array: str, pattern: str, kind: str, count: str) -> None:
        if array not in self.arrays:
            return
        triggers = self.arrays[array].triggers
        new = [(name, kind) for name in self.names if fnmatchcase(name, pattern)]
        if not any(key in triggers for key in new):
            self._write(f"{array}set_ftrace_filter", f"{pattern}:{kind}{count}", append=True)
            triggers.update(dict.fromkeys(new))

    @rule(
        array=arrays,
        pattern=st.sampled_from(["vfs_*", "*", "schedule"]),
        kind=st.sampled_from(KINDS),
    )
    def remove_trigger(self, array: str, pattern: str, kind: str) -> None:
        if array not in self.arrays:
            return
        triggers = self.arrays[array].triggers
        gone = [key for key in triggers if key[1] == kind and fnmatchcase(key[0], pattern)]
        if gone:
            self._write(f"{array}set_ftrace_filter", f"!{pattern}:{kind}", append=True)
            for key in gone:
                del triggers[key]

    @rule(array=arrays, value=values)
    def set_value(self, array: str, value: tuple[str, str]) -> None:
        file, text = value
        if array in self.arrays:
            self._write(f"{array}{file}", text)
            self.arrays[array].values[file] = ACCEPTED[file][text]

    @rule(value=values_once)
    def set_value_once(self, value: tuple[str, str]) -> None:
        file, text = value
        self._write(file, text)
        self.once[file] = ACCEPTED_ONCE[file][text]

    @rule(switch=st.sampled_from(SWITCHES), on=st.booleans())
    def set_switch(self, switch: str, on: bool) -> None:
        self.set_value_once((switch, str(int(on))))

    @rule(name=st.sampled_from("ab"))
    def mkdir(self, name: str) -> None:
        path = f"instances/{name}"
        if f"{path}/" not in self.arrays:
            self.is_well = False
            self.s.files.mkdir(path)
            self.arrays[f"{path}/"] = ArrayModel(("function", "nop"))

    @precondition(lambda self: len(self.arrays) > 1)
    @rule()
    def rmdir(self) -> None:
        array = list(self.arrays)[-1]
        self.is_well = False
        with self.s.one_stop():
            self.s.files.rmdir(array)
        del self.arrays[array]

    @rule(array=arrays, write=st.sampled_from(REFUSED), append=appends)
    def refused(self, array: str, write: tuple[str, str, int], append: bool) -> None:
        file, text, number = write
        number = number if array in self.arrays else errno.ENOENT
        self.is_well = False
        self.s.refuse(number, f"{array}{file}", text, append=append)

    @rule(array=arrays)
    def take_a_snapshot(self, array: str) -> None:
        if array in self.arrays:
            self._write(f"{array}snapshot", "1")

    # --- what must be so after every step ---

    def _names(self, path: str) -> list[str]:
        return [line.split()[0] for line in self.s.lines(path)]

    def _ordered(self, chosen: set[str]) -> list[str]:
        return [name for name in self.names if name in chosen]

    @invariant()
    def the_text_and_the_files_are_the_models(self) -> None:
        self.is_well = False  # until we come to the end
        self.touched |= self.wanted
        self.s.check_calls(self.wanted)
        self.s.go(STEP)
        self.s.check_calls(self.wanted)
        assert self._names("enabled_functions") == self._ordered(self.wanted)
        assert self._names("touched_functions") == self._ordered(self.touched)
        for path, array in self.arrays.items():
            self._check_array(path, array)
        for file, text in self.once.items():
            assert self.s.read(file) == f"{text}\n", file
        self.is_well = True

    def _check_array(self, path: str, array: ArrayModel) -> None:
        assert self.s.read(f"{path}current_tracer") == f"{array.tracer}\n"
        if any(kind in ("traceon", "traceoff") for _, kind in array.triggers):
            array.values["tracing_on"] = self.s.read(f"{path}tracing_on").strip()
        for file, text in array.values.items():
            assert self.s.read(f"{path}{file}") == f"{text}\n", path + file
        lines = self.s.lines(f"{path}set_ftrace_filter")
        chosen = self._ordered(array.filter) or ["#### all functions enabled ####"]
        assert lines[: len(chosen)] == chosen
        triggers = [tuple(line.split(":")[:2]) for line in lines[len(chosen) :]]
        assert sorted(triggers) == sorted(array.triggers)
        chosen = self._ordered(array.notrace) or ["#### no functions disabled ####"]
        assert self.s.lines(f"{path}set_ftrace_notrace") == chosen

    # --- the end ---

    def teardown(self) -> None:
        type(self).sequences += 1
        if not self.is_well:
            return
        self._clean_up()
        for cpu, (iterations, checksum) in enumerate(computed(self.s.run)):
            assert checksum == self.untouched.checksum(cpu, iterations)
        assert self.s.run.dynamic.arch.patcher.mismatches == []
        if self.age + 1 < SEQUENCES_A_RUN:
            self.idle.append((self.s, self.age + 1))
        else:
            assert min(self.s.run.kernel.percpu("iterations")) > 5

    def _clean_up(self) -> None:
        for array in list(self.arrays)[1:]:
            self.s.files.rmdir(array)
        for kind in {kind for _, kind in self.arrays[""].triggers}:
            self.s.append("set_ftrace_filter", f"!*:{kind}")
        for file in ("set_ftrace_filter", "set_ftrace_notrace", "stack_trace_filter"):
            self.s.write(file, "")
        initial = {**ArrayModel(()).values, **INITIAL_ONCE, "current_tracer": "nop"}
        for file, text in initial.items():
            text = {"no pid": "", "[local] counter": "local"}.get(text, text)
            self.s.write(file, text)
        self.s.write("snapshot", "0")
        self.s.check_calls(set())


def test_sequences() -> None:
    ControlFiles.untouched, ControlFiles.sequences = Untouched(), 0
    ControlFiles.idle.clear()
    test = ControlFiles.TestCase
    test.settings = settings(
        max_examples=SEQUENCES,
        stateful_step_count=6,
        derandomize=True,
        phases=[Phase.generate],  # sequences are short, and runs shared: nothing to shrink
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    test("runTest").runTest()
    assert ControlFiles.sequences >= SEQUENCES
