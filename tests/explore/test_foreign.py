"""Functions of ELF images, in place of the lab's own."""

import shutil
import subprocess

import pytest

from dynftrace_emu.errors import ImageError, OptionError
from dynftrace_emu.explore.explorer import explore
from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.job import Job, machine_of
from dynftrace_emu.explore.overrides import Overrides
from dynftrace_emu.explore.replay import End, run
from dynftrace_emu.explore.setup import with_image

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

SOURCE = """
static int total;

__attribute__((noinline)) int add(int a, int b) { return a + b; }

__attribute__((noinline)) int sum(int n)
{
        int s = 0;
        for (int i = 0; i < n; i++)
                s = add(s, i);
        total += s;
        return s;
}

__attribute__((noinline)) int length(const char *s)
{
        int n = 0;
        while (s[n])
                n++;
        return n;
}

__attribute__((noinline)) int deep(int n)
{
        volatile char pad[512];
        pad[n] = n;
        return n ? deep(n - 1) + pad[n] : 0;
}

void spin(void) { for (;;) __asm__ volatile("" ::: "memory"); }
void crash(void) { *(volatile int *)8 = 0; }
__attribute__((no_instrument_function)) int plain(void) { return 1; }
"""
FLAGS = (
    "-O2", "-ffreestanding", "-fno-pic", "-no-pie", "-mno-red-zone", "-fcf-protection=none",
    "-nostdlib", "-static", "-c",
)  # fmt: skip
FLOATS = "double ratio; __attribute__((noinline)) void scale(int n) { ratio = n * 0.5; }\n"
RING = "char ring[1 << 19]; __attribute__((noinline)) void put(int n) { ring[n] = 1; }\n"


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The object's bytes, by compiler options and what else is in it."""
    made = {}

    def build(*options, more=""):
        if (options, more) not in made:
            folder = tmp_path_factory.mktemp("fw")
            (folder / "fw.c").write_text(SOURCE + more)
            command = ["gcc", *FLAGS, *options, "fw.c", "-o", "fw.o"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            made[options, more] = (folder / "fw.o").read_bytes()
        return made[options, more]

    return build


PG, FENTRY = ("-pg", "-mgeneral-regs-only"), ("-pg", "-mfentry", "-mgeneral-regs-only")


def explored(data, call, **options):
    setup = with_image("fw.o", data, call)
    return explore(Job(Overrides(vcpus=1, **options).apply(setup)))


@pytest.mark.parametrize("options", [PG, FENTRY])
@pytest.mark.parametrize("call", ["add(3, 4)", "sum(3)", 'length("hey")'])
@pytest.mark.parametrize("protocol", ["stop_machine", "breakpoint"])
def test_right_protocols_are_clean_on_compiled_functions(built, options, call, protocol):
    verdict = explored(built(*options), call, protocol=protocol, nmis=1)
    assert verdict.finding is None
    assert verdict.runs > 100
    assert not verdict.outcome.truncated


@pytest.mark.parametrize("options", [PG, FENTRY])
def test_a_wrong_one_is_found_and_its_counterexample_carries_the_image(built, options, tmp_path):
    verdict = explored(built(*options), "sum(3)", protocol="live", new="nop")
    assert verdict.finding.kind is FindingClass.TORN_FETCH
    found = verdict.counterexample()
    assert found.job.setup.foreign.data == built(*options)
    assert run(found).end is End.FAILS


def test_results_are_those_of_the_function_with_its_arguments(built):
    """RBX of a task folds what the function returned: 3 * its number, and that."""
    for call, result in (("add(40, 2)", 42), ("sum(5)", 10), ('length("four")', 4)):
        world, _ = machine_of(Job(with_image("fw.o", built(*PG), call)))
        assert world.results == [3 * number + result for number in (1, 2)]


def test_what_the_image_writes_is_part_of_a_snapshot(built):
    world, first = machine_of(Job(with_image("fw.o", built(*PG), "sum(4)")))
    while not world.tasks[0].done:
        world.run_alone(0)
    after = world.save()
    assert after.data != first.data
    world.load(first)
    assert world.lab.data == first.data
    world.load(after)
    assert world.lab.data == after.data


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (None, r"say what to call, as in --call .*add, sum, length"),
        ("nobody()", "fw.o has no function nobody"),
        ("plain()", "plain has no call site"),
        ("sum(1, 2, 3, 4, 5, 6, 7)", "6 arguments at most"),
    ],
)
def test_what_cannot_be_called_is_told_in_a_line(built, call, said):
    with pytest.raises(OptionError, match=said) as error:
        with_image("fw.o", built(*PG), call)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "more", "said"),
    [
        ("spin()", "", "does not end within"),
        ("crash()", "", "fails when nothing is patched: exception 14"),
        ("deep(40)", "", "has left its stack"),
        ("put(1)", RING, "can write 51. KiB, which would be copied at every step"),
    ],
)
def test_a_function_that_is_not_for_exploring_says_why(built, call, more, said):
    with pytest.raises((OptionError, ImageError), match=said):
        machine_of(Job(with_image("fw.o", built(*PG, more=more), call)))


def test_registers_that_no_snapshot_has_are_named(built):
    data = built("-pg", more=FLOATS)
    with pytest.raises(ImageError, match="vector and x87 registers are no part of a snapshot"):
        machine_of(Job(with_image("fw.o", data, "scale(3)")))
