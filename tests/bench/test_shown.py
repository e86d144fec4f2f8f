"""Tables and pictures of results made by hand."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET

import pytest

from dynftrace_emu.bench.plot import plot
from dynftrace_emu.bench.tables import UNFINISHED, markdown, tables
from dynftrace_emu.errors import OptionError
from dynftrace_emu.export.missing_extra import MissingExtraError
from tests.bench.conftest import EVERYTHING, result_of


def by_title() -> dict:
    return {table.title.partition(",")[0]: table for table in tables(result_of(EVERYTHING))}


def test_each_row_of_modes_says_ratio_range_and_cost() -> None:
    rows = {
        row[0]: row[1:]
        for table in tables(result_of(EVERYTHING))
        if table.title.endswith("workload default")
        for row in table.rows
    }
    assert rows["patched-jmp"] == ("1.020", "1.010 - 1.050", "110", "-", "-")
    assert rows["function"] == ("2.50", "2.00 - 3.00", "-", "-", "70.0")


def test_every_kind_has_its_table_and_the_goals_come_last() -> None:
    titles = [table.title for table in tables(result_of(EVERYTHING))]
    assert titles == [
        "Time for the same work, workload default",
        "Time for the same work, workload leaf",
        "Instructions for the same work, times none, exactly",
        "Patching synthetic:N, in ms",
        "The same a site, in us",
        "vCPUs, threaded engine, 2 cores",
        "What a call costs before it is patched",
        "Goals",
    ]
    goals = {row[0]: row[1:] for row in by_title()["Goals"].rows}
    assert goals["patched jmp / none, default workload"] == ("<= 1.03", "1.020", "yes")
    assert goals["function tracer, added an event"] == ("<= 75 ns", "70.0 ns", "yes")
    pause = goals["pause to enable 50,000 sites, 2 vCPUs"]
    assert pause == ("<= 50 ms", "60.5 ms", "no")


def test_every_row_has_a_cell_a_column() -> None:
    for table in tables(result_of(EVERYTHING)):
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_nothing_measured_is_no_table() -> None:
    assert list(tables(result_of({}))) == []


def test_markdown_says_where_it_was_measured_and_holds_every_table() -> None:
    text = markdown(result_of(EVERYTHING, notes=["left out"]))
    assert text.startswith(
        "2026-01-02, a CPU, 2 cores, Linux 6.1, load 0.1 when it began; dynftrace-emu 0, unicorn 2"
    )
    assert text.count("\n### ") == 8
    assert "| patched-jmp | 1.020 | 1.010 - 1.050 | 110 | - | - |" in text
    assert text.endswith("- left out\n")


def test_markdown_of_what_was_not_finished_says_so() -> None:
    result = result_of(EVERYTHING)
    assert "not finished" not in markdown(result)
    result.complete = False
    assert markdown(result).split("\n\n")[1] == UNFINISHED


def test_a_negative_cost_is_noise_unless_it_is_exact() -> None:
    result = result_of(
        {
            "modes/leaf/none/ratio": (1.0,),
            "modes/leaf/none/added": (-2.0,),
            "instructions/leaf/none/ratio": (1.0,),
            "instructions/leaf/none/added": (-2.0,),
            "record/hit/added": (-5.0, -3.0, 4.0),
            "modes/default/none/ratio": (1.0,),
            "modes/default/function/ratio": (1.0,),
            "modes/default/function/added": (-1.0,),
        }
    )
    leaf, _, instructions, record, goals = tables(result)
    assert leaf.rows[0][-1] == "< noise"
    assert instructions.rows[0][-1] == "-2.00"
    assert record.rows[0][1:] == ("< noise", "< noise - 4.00")
    assert goals.rows[0][2] == "< noise"
    assert result.to_json()["figures"][1]["values"] == [-2.0]


def test_labels_do_not_touch_the_edge_of_a_picture(tmp_path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "x.png"
    figures = {"modes/leaf/none/ratio": (1,), "modes/leaf/function-one/ratio": (2, 3)}
    plot(result_of(figures), path)
    picture = imread(path)
    for edge in (picture[:12], picture[-12:], picture[:, :12], picture[:, -12:]):
        assert (edge == 1).all()


def test_a_picture_names_axes_units_and_modes(tmp_path) -> None:
    path = tmp_path / "x.svg"
    plot(result_of(EVERYTHING), path)
    texts = {"".join(node.itertext()) for node in ET.parse(path).iter() if "text" in node.tag}
    assert {
        "Time for the same work",
        "Instructions for the same work",
        "times the build without calls (logarithmic)",
        "sites are jumps",
        "function tracer, all sites",
        "milliseconds",
        "call sites",
        "throughput, times one vCPU",
        "vCPUs",
        "1.020",
    } <= texts


def test_a_picture_may_be_png(tmp_path) -> None:
    path = tmp_path / "x.png"
    plot(result_of({"modes/leaf/none/ratio": (1,), "modes/leaf/static/ratio": (2, 3)}), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused(tmp_path) -> None:
    with pytest.raises(OptionError, match=r"\.svg or \.png"):
        plot(result_of(EVERYTHING), tmp_path / "x.pdf")
    with pytest.raises(OptionError, match="nothing can be drawn"):
        plot(result_of({"record/hit/added": (1,)}), tmp_path / "x.svg")


def test_without_matplotlib_it_is_said_how_to_get_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dynftrace-emu\[plot\]'"):
        plot(result_of(EVERYTHING), tmp_path / "x.svg")
