"""A poker and an int3 handler in C: the breakpoint protocol as guest code, right and wrong."""

import json
import re
import shutil
from pathlib import Path

import pytest

from dynftrace_emu.errors import AssemblyError, ImageError, OptionError
from dynftrace_emu.explore.findings import FindingClass
from dynftrace_emu.explore.guest_code import compile_guest
from dynftrace_emu.explore.lab import LabImage, TaskSpec
from dynftrace_emu.explore.model import Bounds, Model, Text
from dynftrace_emu.explore.plain import from_plain, to_plain
from dynftrace_emu.explore.protocols import none
from dynftrace_emu.explore.search import exhaustive
from dynftrace_emu.explore.setup import (
    OpsSpec,
    Setup,
    SiteSpec,
    build,
    with_guest,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "breakpoint_poker.c"
SYNC = "text_poke_sync();"

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def written(tmp_path, source):
    path = tmp_path / "poker.c"
    path.write_text(source)
    return path


def compiled(tmp_path, source):
    return compile_guest(written(tmp_path, source), LabImage(("LAB_GUEST",)).image)


def explored(poker, text, *, old="call:ftrace_caller", new="nop", nmis=0, cpus=1, defines=()):
    calls = ("site_work",)
    before, after = (calls if code.startswith("call") else () for code in (old, new))
    setup = Setup(
        defines=defines,
        tasks=tuple(TaskSpec(cpu) for cpu in range(cpus)),
        sites=(SiteSpec(old=old, new=new),),
        ops=(OpsSpec(before=before, after=after),),
        model=Model(text),
        bounds=Bounds(nmis=nmis),
        nmi_rule=False,
    )
    setup = with_guest(setup, poker)
    return exhaustive(build(setup, none), setup.bounds)


def without_sync(number):
    """The example without its ``number``th sync, from 1."""
    ends = [match.end() for match in re.finditer(re.escape(SYNC), EXAMPLE.read_text())]
    source = EXAMPLE.read_text()
    end = ends[number - 1]
    return source[: end - len(SYNC)] + source[end:]


@pytest.mark.parametrize("text", Text)
@pytest.mark.parametrize(
    ("old", "new"), [("call:ftrace_caller", "nop"), ("nop", "call:ftrace_caller")]
)
def test_the_breakpoint_protocol_in_c_is_clean(text, old, new):
    outcome = explored(EXAMPLE, text, old=old, new=new)
    assert outcome.found is None
    assert outcome.schedules
    assert not outcome.truncated


def test_so_it_is_when_an_nmi_comes_and_calls_what_is_patched():
    """Its int3 handler waits for nobody."""
    outcome = explored(EXAMPLE, Text.RELAXED, nmis=1, defines=("LAB_NMI_TRACES",))
    assert outcome.found is None
    assert outcome.schedules > explored(EXAMPLE, Text.RELAXED).schedules


TORN, UNCLAIMED = FindingClass.TORN_FETCH, FindingClass.UNCLAIMED_INT3


@pytest.mark.parametrize(
    ("sync", "found"),
    [
        (1, {Text.RELAXED: TORN}),
        (2, {Text.RELAXED: TORN}),
        # A CPU that has trapped and holds no reference yet is covered by the last sync alone.
        (3, {Text.COHERENT: UNCLAIMED, Text.STALE: UNCLAIMED, Text.RELAXED: UNCLAIMED}),
    ],
)
def test_without_one_of_its_syncs_it_is_not(tmp_path, sync, found):
    poker = written(tmp_path, without_sync(sync))
    for text in Text:
        outcome = explored(poker, text)
        assert (outcome.found[0].kind if outcome.found else None) is found.get(text)


def test_a_poker_that_waits_for_a_reference_it_holds_itself_is_a_deadlock(tmp_path):
    source = EXAMPLE.read_text().replace(
        "        atomic_dec(&desc.refs);\n        while", "        while"
    )
    found = explored(written(tmp_path, source), Text.COHERENT).found
    assert found is not None
    assert found[0].kind is FindingClass.DEADLOCK
    assert "poker" in found[0].what


def test_a_store_outside_the_sites_is_a_fault_of_the_guest(tmp_path):
    source = EXAMPLE.read_text().replace("changes[i].site + 1,", "changes[i].site + 2,")
    found = explored(written(tmp_path, source), Text.COHERENT).found
    assert found is not None
    assert found[0].kind is FindingClass.GUEST_FAULT
    assert "outside every site" in found[0].what


def test_code_that_was_linked_against_another_lab_is_refused(tmp_path):
    guest = compiled(tmp_path, EXAMPLE.read_text())
    with pytest.raises(ImageError, match="another lab"):
        build(Setup(guest=guest, pad=8), none)


def test_compiled_code_travels_as_json_and_needs_no_compiler(tmp_path):
    guest = compiled(tmp_path, EXAMPLE.read_text())
    setup = Setup(guest=guest)
    assert from_plain(Setup, json.loads(json.dumps(to_plain(setup))), "") == setup


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("int x = ;\n", AssemblyError, "poker.c:1:9: error"),
        ("void poker(void) {}\n", OptionError, "it defines no poke_int3_handler"),
        (
            "void nobody(void); void poker(void) { nobody(); } int poke_int3_handler(void) "
            "{ return 0; }\n",
            AssemblyError,
            "undefined reference to `nobody'",
        ),
        (
            "char x[4096] = {1}; void poker(void) { x[1]++; } int poke_int3_handler(void) "
            "{ return x[0]; }\n",
            ImageError,
            "has room for",
        ),
    ],
)
def test_what_cannot_be_linked_is_told_in_a_line(tmp_path, source, error, said):
    with pytest.raises(error, match=said) as caught:
        compiled(tmp_path, source)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"none\.c: no such file"):
        compile_guest(tmp_path / "none.c", LabImage(("LAB_GUEST",)).image)
