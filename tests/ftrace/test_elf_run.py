"""ELF images that run: their results whatever is done to their text, and how they start and end."""

from __future__ import annotations

import re

import pytest

from dynftrace_emu.errors import GuestFault, ImageError, OptionError
from dynftrace_emu.ftrace.options import EngineName, RunOptions
from dynftrace_emu.ftrace.run import Run
from dynftrace_emu.kernel.crash import crash_report
from dynftrace_emu.machine.engine import RunEnd
from dynftrace_emu.machine.native_hook import why_no_native_hooks
from dynftrace_emu.tracefs.controls import Controls
from tests.elf_builds import STYLES, compile_c

RESULT = 71
CONSOLE = ["steps=186", "result=3537685447", "leaked=0"]


def execute(path, **options):
    """Run an image to its end, with control files."""
    run = Run(RunOptions(str(path), **options))
    run.controls = Controls(run)
    run.execute()
    assert run.violations() == []
    return run


def shown(run, file="trace"):
    return run.controls.files.read(file)


def calls_shown(run):
    """(function, caller) of each event of the function tracer's text, in order."""
    lines = [line for line in shown(run).splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(": ", 1)[1].split(" <-")) for line in lines]


@pytest.mark.parametrize("kind", ["elf", "o"])
@pytest.mark.parametrize("style", STYLES)
def test_all_styles_compute_the_same(samples, style, kind):
    run = execute(samples / f"sample-{style}.{kind}")
    assert run.kernel.returned == RESULT
    assert [line for _, line in run.machine.console.lines] == CONSOLE
    assert run.ended is RunEnd.OFFLINE


@pytest.mark.parametrize("site", ["jmp", "nop"])
@pytest.mark.parametrize("discover", ["runtime", "scan"])
@pytest.mark.parametrize("style", STYLES)
def test_text_that_changes_under_it_changes_no_result(samples, style, discover, site):
    """The daemon patches every 2 ms of it, and tracing goes on and off; a stop comes anywhere."""
    run = execute(
        samples / f"sample-{style}.elf", discover=discover, site=site, period=0.0005, seed=5,
        nmi_rate=5000.0, tracing=(0.0021, 0.0043),
    )  # fmt: skip
    assert run.kernel.returned == RESULT
    assert [event.enabled for event in run.switches] == [True, False]
    assert len(run.machine.stops) >= (4 if run.options.discover == "runtime" else 2)
    assert run.kernel.total("traced_calls") > 20
    assert sum(run.machine.nmis) > 10


@pytest.mark.parametrize("style", STYLES)
def test_every_style_has_the_same_trace(samples, style):
    """Each call and its caller, which is in another place for calls in front of the frame."""
    run = execute(
        samples / f"sample-{style}.elf", set=("buffer_size_kb=4096", "current_tracer=function")
    )
    calls = calls_shown(run)
    reference = execute(
        samples / "sample-mcount.o", set=("buffer_size_kb=4096", "current_tracer=function")
    )
    callers = dict(reversed(calls))
    assert len(calls) > 600
    assert callers["heap_init"] == "main"
    assert callers["expression"] in ("parse", "factor")
    assert callers["factor"] in ("term", "factor")
    others = [pair for pair in calls_shown(reference) if pair[0] not in ("main", "before_main")]
    assert [pair for pair in calls if pair[0] not in ("main", "before_main")] == others


@pytest.mark.parametrize("style", STYLES)
def test_function_graph_follows_stacks_it_does_not_know(samples, style):
    """Two threads on stacks of 2 KiB side by side; each call ends where it began."""
    run = execute(samples / f"switch-{style}.elf", set=("current_tracer=function_graph",))
    assert run.kernel.returned == 1015
    text = shown(run)
    begun = text.count("() {") + text.count("();")
    assert begun == 30  # of main, 2 of body, 10 of step, 17 of switch_to
    ended = len(re.findall(r" us +\|", text))
    assert ended == begun - 2 - 2  # the two bodies never end, nor does each's last switch_to


def test_a_tail_call_returns_through_both(tmp_path):
    source = """
    static volatile int g;
    __attribute__((noinline)) int last(int x) { g += x; return g; }
    __attribute__((noinline)) int next(int x) { return last(x + 1); }
    __attribute__((noinline)) int first(int x) { return next(x * 2); }
    int main(void) { return first(3) + first(4); }
    """
    for flags in ("-O2 -pg -mfentry", "-O2 -fpatchable-function-entry=5", "-O2 -pg"):
        run = execute(compile_c(tmp_path, source, flags), set=("current_tracer=function_graph",))
        assert run.kernel.returned == 7 + 16
        lines = [
            line.split("|")[1].rstrip() for line in shown(run).splitlines() if line[1:2].isdigit()
        ]
        assert lines[:7] == [
            "  main() {",
            "    first() {",
            "      next() {",
            "        last();",
            "      }",
            "    }",
            "    first() {",
        ]


def test_a_jump_out_of_calls_leaves_them_behind(tmp_path):
    """What setjmp does: frames are given up without a return, and their places used again."""
    source = """
    static void *buffer[5];
    static int rounds;
    __attribute__((noinline)) void deep(int n)
    { if (n) { deep(n - 1); rounds++; } else __builtin_longjmp(buffer, 1); }
    __attribute__((noinline)) int attempt(int n)
    { if (__builtin_setjmp(buffer)) return n; deep(n); return -1; }
    int main(void)
    { int sum = 0; for (int n = 0; n < 400; n++) sum += attempt(n % 9); return sum + rounds; }
    """
    for flags in ("-O1 -pg", "-O1 -pg -mfentry"):
        run = execute(
            compile_c(tmp_path, source, flags),
            set=("buffer_size_kb=2048", "current_tracer=function_graph"),
        )
        assert run.kernel.returned == sum(n % 9 for n in range(400))
        assert shown(run).count("attempt()") == 400
        assert shown(run).count("deep()") == sum(n % 9 + 1 for n in range(400))


def test_recursion_deeper_than_one_stack_of_ours(tmp_path):
    source = """
    __attribute__((noinline)) int down(int n) { return n ? down(n - 1) + 1 : 0; }
    int main(void) { return down(600); }
    """
    path = compile_c(tmp_path, source, "-O1 -fno-optimize-sibling-calls -pg")
    run = execute(path, set=("buffer_size_kb=1024", "current_tracer=function_graph"), stack=1 << 20)
    assert run.kernel.returned == 600
    assert shown(run).count("down()") == 601
    assert f"{'  ' * 601}down();" in shown(run)


# --- start and end ---


def program(tmp_path, main, more="", flags="-pg"):
    return compile_c(tmp_path, f"{more}\nint main(void) {{ {main} }}", flags)


OUT_F4 = '__asm__ volatile("outb %0, $0xf4" : : "a"((char){}));'


def test_hlt_with_nothing_left_to_do_ends_it(tmp_path):
    for off in ("cli", "sti"):
        loop = f'__asm__ volatile("{off}"); for (;;) __asm__ volatile("hlt");'
        run = execute(program(tmp_path, loop), vcpus=1)
        assert run.ended in (RunEnd.OFFLINE, RunEnd.IDLE)
        assert run.machine.now() < 1
        assert run.kernel.returned is None


def test_the_exit_port_ends_it_with_its_code(tmp_path):
    assert execute(program(tmp_path, OUT_F4.format(0) + "return 1;")).ended is RunEnd.SHUTDOWN
    from dynftrace_emu.errors import GuestExit

    with pytest.raises(GuestExit, match="code 3"):
        execute(program(tmp_path, OUT_F4.format(3) + "return 1;"))


def test_a_function_is_called_with_numbers_and_texts(samples, tmp_path):
    source = """
    typedef unsigned long u64;
    u64 six(u64 a, long b, int c, const char *d, const char *e, char f)
    {
        u64 sum = a + (u64)b * 10 + (u64)c * 100;
        return sum + (u64)d[0] * 1000 + (u64)e[2] * 1000000 + (u64)f;
    }
    int main(void) { return 0; }
    """
    path = compile_c(tmp_path, source, "-pg")
    run = execute(path, call='six(0x10, -2, 3, "A\\n", "xyz", \'Q\')')
    assert run.kernel.returned == 16 - 20 + 300 + 65_000 + ord("z") * 1_000_000 + ord("Q")
    address = run.image.symbols["six"].address
    assert execute(path, call=f'{address:#x}(1,2,3,"","  !",0)').kernel.returned == 321 + 33_000_000
    assert execute(path, call="main").kernel.returned == 0
    assert execute(path, entry="main").kernel.returned == 0


def test_constructors_run_once_in_order_before_the_entry(tmp_path):
    more = """
    static int n;
    static void __attribute__((constructor(300))) c3(void) { n = n * 10 + 3; }
    static void __attribute__((constructor(200))) c2(void) { n = n * 10 + 2; }
    static void __attribute__((constructor)) c(void) { n = n * 10 + 9; }
    int get(void) { return n; }
    """
    path = program(tmp_path, "return n;", more)
    assert execute(path).kernel.returned == 239
    assert execute(path, call="get()").kernel.returned == 239


def test_an_image_that_runs_its_own_constructors_is_left_to_it(tmp_path):
    more = """
    typedef void (*function)(void);
    extern function __init_array_start[], __init_array_end[];
    static int n;
    static void __attribute__((constructor)) c(void) { n = n * 10 + 9; }
    """
    own = "for (function *f = __init_array_start; f < __init_array_end; f++) (*f)(); return n;"
    path = program(tmp_path, own, more)
    assert execute(path).kernel.returned == 9
    assert execute(path, call="c()").image.symbols[
        "n"
    ]  # there we run them, since its start does not


def test_the_other_vcpus_start_at_secondary_start(samples):
    path = samples / "smp-fentry.elf"
    run = execute(path, vcpus=3, call="run_cpus(3)", seed=3)
    assert run.kernel.returned == 50 * (1 + 2 + 3)
    assert run.kernel.percpu("online") == [1, 1, 1]
    run = execute(path, vcpus=3, call="run_cpus(1)", secondary="main")
    assert run.kernel.returned >= 50  # main works as CPU 0 does, and goes its way
    assert run.kernel.percpu("online") == [1, 1, 1]


def test_without_somewhere_to_start_the_other_vcpus_stay_idle(samples):
    run = execute(samples / "sample-mcount.elf", vcpus=4)
    assert run.kernel.percpu("online") == [1, 0, 0, 0]
    assert run.kernel.returned == RESULT


def test_ram_begins_behind_the_image_and_is_as_large_as_asked(tmp_path):
    main = """
    extern char _end[];
    unsigned long start = ((unsigned long)_end + 4095) & -4096ul;
    volatile char *last = (char *)start + SIZE - 1;
    *last = 7;
    return *last + *(volatile char *)start;
    """
    path = program(tmp_path, main, flags="-pg -DSIZE=0x300000")
    assert execute(path, ram=3 << 20).kernel.returned == 7
    assert execute(path).kernel.returned == 7  # 16 MiB unless told otherwise
    from dynftrace_emu.errors import GuestFault

    with pytest.raises(GuestFault, match="page fault"):
        execute(path, ram=2 << 20)


def test_a_stack_is_as_large_as_asked_and_has_a_guard(tmp_path):
    main = "volatile char room[100000]; room[0] = 1; room[99999] = 2; return room[0] + room[99999];"
    path = program(tmp_path, main)
    assert execute(path, stack=128 << 10).kernel.returned == 3
    from dynftrace_emu.errors import GuestFault

    with pytest.raises(GuestFault, match="page fault"):
        execute(path, stack=64 << 10)


def test_gs_is_kept_where_start_up_code_loads_it(tmp_path):
    load = '__asm__ volatile("mov $0x10, %%eax\\n mov %%eax, %%gs\\n mov %%eax, %%fs" : : : "eax");'
    path = program(
        tmp_path,
        f"{load} return f(2);",
        "__attribute__((noinline)) int f(int x) { return x * 21; }",
    )
    run = execute(path, set=("current_tracer=function",))
    assert run.kernel.returned == 42
    assert [name for name, _ in calls_shown(run)] == ["main", "f"]


def test_an_image_that_uses_gs_is_refused(tmp_path):
    path = program(tmp_path, 'int x; __asm__ volatile("mov %%gs:(0x10), %0" : "=r"(x)); return x;')
    with pytest.raises(ImageError, match=r"uses GS, at main\+0x[0-9a-f]+/"):
        Run(RunOptions(str(path)))


# --- engines ---


def test_it_runs_in_the_deterministic_engine_unless_told_otherwise(samples):
    run = Run(RunOptions(str(samples / "sample-mcount.elf")))
    assert run.options.engine is EngineName.DETERMINISTIC
    assert "safepoints: using the deterministic engine" in run.note


def test_the_same_seed_gives_the_same_run(samples):
    texts = [
        shown(
            execute(
                samples / "smp-mcount.elf",
                vcpus=2,
                call="run_cpus(2)",
                seed=9,
                set=("current_tracer=function",),
            )
        )
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


def test_locked_instructions_need_one_vcpu_on_threads(samples):
    with pytest.raises(
        OptionError,
        match=r"LOCK-prefixed instructions, which need --vcpus 1 there; the first is at work\+0x",
    ):
        Run(RunOptions(str(samples / "smp-mcount.elf"), engine=EngineName.THREADED, vcpus=2))


@pytest.mark.skipif(bool(why_no_native_hooks()), reason=str(why_no_native_hooks()))
@pytest.mark.parametrize("style", STYLES)
def test_it_runs_on_threads_where_it_can_be_stopped_exactly(samples, style):
    run = execute(samples / f"sample-{style}.elf", engine=EngineName.THREADED, vcpus=1, period=0.01)
    assert run.kernel.returned == RESULT


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "static"}, "--variant is for the mini-kernel; .* is an ELF image"),
        ({"workload": "leaf"}, "--workload is for the mini-kernel"),
        ({"iterations": 3}, "--iterations is for the mini-kernel"),
        ({"discover": "table"}, "has no table of call sites"),
        ({"entry": "nobody"}, "--entry: .* has no function nobody"),
        ({"entry": "expressions"}, "--entry: expressions is not in .*'s text"),
        ({"entry": "main", "call": "main()"}, "both say where to start"),
        ({"call": "nobody(1)"}, "--call: .* has no function nobody"),
        ({"call": "parse(1"}, "SYMBOL"),
        ({"call": "parse(1 2)"}, "a comma is missing at '2'"),
        ({"call": "parse(,)"}, "no argument at ','"),
        ({"call": "parse(x)"}, "'x' is neither a number nor"),
        ({"call": 'parse("a)'}, "no argument at"),
        ({"call": "parse(1,2,3,4,5,6,7)"}, "6 arguments at most"),
        ({"call": f"parse({1 << 64})"}, "does not fit in 64 bits"),
        ({"secondary": "nobody"}, "--secondary: .* has no function nobody"),
        ({"ram": 2 << 30}, "--ram 2147483648: 0 to 1073741824 bytes allowed"),
        ({"stack": 100}, "--stack 100: 4096 to 67108864 bytes allowed"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(samples, options, message):
    with pytest.raises(OptionError, match=message) as caught:
        Run(RunOptions(str(samples / "sample-mcount.elf"), **options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["entry", "call", "secondary"])
def test_options_of_elf_images_are_refused_for_ours(option):
    with pytest.raises(OptionError, match=f"--{option}: mini-kernel is no ELF image"):
        Run(RunOptions(**{option: "main"}))


def test_an_object_without_an_entry_asks_for_one(tmp_path):
    from tests.elf_builds import compile_object

    path = compile_object(tmp_path, "int f(void) { return 5; }", "-pg")
    with pytest.raises(
        OptionError, match="has no entry: say where to start with --entry SYMBOL or --call"
    ):
        Run(RunOptions(str(path)))
    assert execute(path, call="f()").kernel.returned == 5


def test_a_call_that_does_not_return_in_time_is_told(tmp_path):
    path = program(tmp_path, "for (;;);")
    run = Run(RunOptions(str(path), call="main()", seconds=0.01))
    run.execute()
    assert run.violations() == ["main() has not returned after 0.01 s (--seconds)"]


HANDLERS = r"""
typedef unsigned long u64;
struct gate { unsigned short low, selector, type, middle; unsigned high, zero; };
static struct gate idt[256];
struct frame { u64 ip, cs, flags, sp, ss; };
volatile int hits;
__attribute__((noinline)) void hit(int by) { hits += by; }
__attribute__((interrupt)) void on_int(struct frame *f) { hit(1); }
__attribute__((interrupt)) void on_fault(struct frame *f, u64 code)
{ hit(10 + (int)code); f->ip += 2; }
static void set(int vector, void *handler)
{
	u64 a = (u64)handler;
	unsigned short cs;
	__asm__("mov %%cs, %0" : "=r"(cs));
	idt[vector] = (struct gate){a, cs, 0x8e00, a >> 16, a >> 32, 0};
}
int main(void)
{
	struct { unsigned short limit; u64 base; } __attribute__((packed)) idtr = {4095, (u64)idt};
	set(0x80, on_int);
	set(14, on_fault);
	__asm__ volatile("lidt %0" : : "m"(idtr));
	for (int i = 0; i < 3; i++)
		__asm__ volatile("int $0x80");
	__asm__ volatile(".byte 0x89, 0x07" : : "D"(0x10L) : "memory"); /* mov [rdi], eax */
	return hits;
}
"""


@pytest.mark.parametrize("discover", ["runtime", "scan"])
@pytest.mark.parametrize("style", ["mcount", "fentry"])
@pytest.mark.parametrize("tracer", ["current_tracer=function_graph", "function_profile_enabled=1"])
def test_functions_that_return_by_iret_have_no_return_to_hook(tmp_path, tracer, style, discover):
    """What lies at their frame's top is an interrupted RIP, or an error code."""
    path = compile_c(tmp_path, HANDLERS, STYLES[style])
    run = execute(path, discover=discover, set=(tracer,))
    assert run.kernel.returned == 3 + 12
    file = "trace" if "graph" in tracer else "trace_stat/function0"
    text = shown(run, file)
    assert len(re.findall(r"\bhit\(\);", text)) == 4 or re.search(r"\bhit +4 ", text)
    assert "on_int" not in text
    assert "on_fault" not in text


def test_the_function_tracer_shows_what_returns_by_iret(tmp_path):
    run = execute(compile_c(tmp_path, HANDLERS, "-pg"), set=("current_tracer=function",))
    assert [name for name, _ in calls_shown(run)].count("on_int") == 3


CRASHES = """
__attribute__((noinline)) int crash(volatile int *p) { return *p + 1; }
__attribute__((noinline)) int mid(volatile int *p) { return crash(p) * 2; }
__attribute__((noinline)) int tail(volatile int *p) { return mid(p); }
int main(void) { return tail((int *)0x10) + 3; }
"""


def call_trace(path, *writes):
    """The functions and offsets of a crash report's call trace."""
    run = Run(RunOptions(str(path), set=writes))
    Controls(run)
    with pytest.raises(GuestFault) as caught:
        run.execute()
    report = crash_report(run.kernel, caught.value, ())
    return re.findall(r"\] (\S+)", report.split("Call trace:")[1].split("Code:")[0])


@pytest.mark.parametrize("style", ["mcount", "fentry"])
@pytest.mark.parametrize("flags", ["", "-foptimize-sibling-calls"])
def test_a_crash_shows_where_hooked_functions_return_to(tmp_path, style, flags):
    """As without the tracer (Linux: ftrace_graph_ret_addr), tail calls included."""
    path = compile_c(tmp_path, CRASHES, f"{STYLES[style]} -fno-omit-frame-pointer {flags}")
    plain = call_trace(path)
    assert [name.split("+")[0] for name in plain][:2] == ["crash", "mid"]
    assert call_trace(path, "current_tracer=function_graph") == plain
    assert call_trace(path, "function_profile_enabled=1") == plain
