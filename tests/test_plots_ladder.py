"""The figure of the decode loop's rungs: the wedge is computed, the dots are what was recorded."""

import pytest

from gqa_lab import plots
from gqa_lab.plots.ladder import MARKS, rows_of


def row(rung, kv_len, moved, ms):
    return {"model": "m", "dtype": "float32", "rung": rung, "kv_len": kv_len, "moved_mb": moved, "ms": ms}


RECORD = {
    "provenance": {"device": "a CPU", "versions": "torch 2", "commit": "0", "date": "2026-01-01"},
    "read_gb_per_s_min_max": [16.0, 24.0],
    "turns": 3,
    "results": [
        row("no cache", 100, None, 999.0),
        row("preallocated", 100, 560.0, 45.0),
        row("grouped", 100, 540.0, 40.0),
        row("preallocated", 4000, 1800.0, 150.0),
        row("grouped", 4000, 720.0, 60.0),
        row("compiled", 4000, 720.0, 50.0),
        row("grouped", 100, 540.0, 1.0) | {"dtype": "float16"},
    ],
}


def dots(axes) -> set:
    return {tuple(point) for marks in axes.collections[1:] for point in marks.get_offsets().tolist()}


def test_the_dots_are_the_recorded_rows_and_the_wedge_is_bytes_by_bandwidth():
    axes = plots.ladder(RECORD, model="m", dtype="float32")
    assert dots(axes) == {(r["moved_mb"], r["ms"]) for r in rows_of(RECORD, "m", "float32")}
    wedge = axes.collections[0].get_paths()[0].vertices
    assert {round(y / x, 6) for x, y in wedge.tolist() if x} == {round(1 / 16, 6), round(1 / 24, 6)}


def test_the_text_says_what_the_figure_shows():
    text = plots.ladder(RECORD, model="m", dtype="float32").get_label()
    assert text.startswith("At 4,000 tokens preallocated takes 3 times as long as compiled. ")
    assert "grouped 60 ms for 720 MB" in text and "Reading alone takes 30 to 45 ms for 720 MB" in text
    assert "999" not in text


def test_the_caption_says_recorded_on_what_and_when():
    label = plots.ladder(RECORD, model="m", dtype="float32").get_xlabel()
    assert "recorded on a CPU, torch 2, 2026-01-01" in label and "median of 3 turns" in label


def test_every_rung_has_a_mark_of_its_own():
    assert len(set(MARKS.values())) == len(MARKS)


def test_rows_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="no rows of m in bfloat16 in this record; it has m in float16, m in float32"):
        plots.ladder(RECORD, model="m", dtype="bfloat16")
