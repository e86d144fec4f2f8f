"""Dataclasses as JSON values and back."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynftrace_emu.errors import DynftraceError, ImageError
from dynftrace_emu.explore.lab import TaskSpec
from dynftrace_emu.explore.model import CHUNKS, Bounds, Model, Text
from dynftrace_emu.explore.plain import from_plain, to_plain
from dynftrace_emu.explore.setup import OpsSpec, Setup, SiteSpec
from dynftrace_emu.machine.engine import Park

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
setups = st.builds(
    Setup,
    name=names,
    protocol=names,
    defines=st.lists(names, max_size=2).map(tuple),
    pad=st.integers(0, 4096),
    tasks=st.lists(
        st.builds(TaskSpec, st.integers(0, 2), st.just(("work",)), st.integers(1, 9)),
        min_size=1,
        max_size=3,
    ).map(tuple),
    sites=st.lists(st.builds(SiteSpec, names, names, names), min_size=1, max_size=3).map(tuple),
    ops=st.lists(st.builds(OpsSpec, names, st.integers(0, 9)), max_size=2).map(tuple),
    words=st.lists(st.tuples(names, names | st.integers(0, 2**64 - 1)), max_size=2).map(tuple),
    model=st.builds(
        Model,
        st.sampled_from(Text),
        st.sampled_from(CHUNKS),
        st.sampled_from(Park),
        st.frozensets(st.sampled_from(["iret", "cpuid"])),
    ),
    bounds=st.builds(Bounds, st.none() | st.integers(0, 9), st.integers(0, 3)),
    nmi_rule=st.booleans(),
)


@settings(max_examples=30, deadline=None)
@given(setups)
def test_a_setup_comes_back_as_it_was(setup):
    assert from_plain(Setup, json.loads(json.dumps(to_plain(setup))), "") == setup


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(setups, st.data(), anything)
def test_any_value_put_anywhere_is_refused_or_fits(setup, data, value):
    """A hand-edited file never gives anything but our own errors."""
    document = to_plain(setup)
    at = document
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(at[key], (dict, list)) and data.draw(st.booleans()):
            at = at[key]
            continue
        at[key] = value
        break
    with contextlib.suppress(DynftraceError):
        assert isinstance(from_plain(Setup, document, ""), Setup)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d.pop("pad"), "it has no 'pad'"),
        (lambda d: d.update(colour=1), "it has 'colour', which is not known"),
        (lambda d: d.update(pad="4"), "pad is '4', not a number"),
        (lambda d: d.update(pad=True), "pad is True, not a number"),
        (lambda d: d.update(pad=10**400), "pad is huge: too big"),
        (lambda d: d.update(tasks={}), "tasks is {}, not a list"),
        (lambda d: d["tasks"][0].update(cpu=None), r"tasks\[0\].cpu is None, not a number"),
        (lambda d: d["model"].update(text="odd"), "model.text is 'odd', not one of coherent, "),
        (lambda d: d["words"].append(["a"]), r"words\[0\] has 1 items, not 2"),
        (lambda d: d.update(guest=5), "guest is 5, not an object or null"),
    ],
)
def test_what_is_wrong_where_is_said(change, error):
    document = to_plain(Setup())
    change(document)
    with pytest.raises(ImageError, match=error):
        from_plain(Setup, document, "")


def test_bytes_are_base64():
    assert from_plain(bytes, to_plain(b"\x00\xff"), "text") == b"\x00\xff"
    with pytest.raises(ImageError, match="text is '!', not base64"):
        from_plain(bytes, "!", "text")
