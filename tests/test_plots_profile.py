"""A profile's figures: the prediction is a line, the measurement is a dot, and the label says both."""

import pytest

from gqa_lab import plots
from gqa_lab.plots.frame import STYLE

RECORD = {
    "model": "a model", "kv_lens": [1000, 200], "sizes": {"kind": "gqa"},
    "ceilings": {"read_bytes_per_s": 40e9, "flops_per_s": 1e12},
    "sweep": [
        {"kv_len": 500, "read_bytes": 100_000_000, "seconds": 0.002, "flagged": True},
        {"kv_len": 1000, "read_bytes": 200_000_000, "seconds": 0.007, "flagged": False},
        {"kv_len": 2000, "read_bytes": 400_000_000, "seconds": 0.013, "flagged": False},
    ],
    "fit": {"t0_s": 0.001, "bytes_per_s": 1e8 / 0.003},
    "split_s": {"attention": 0.004, "append": 0.0001, "mlp": 0.006, "unattributed": 0.0019},
}  # fmt: skip


def test_the_line_is_the_predicted_bytes_at_the_ceiling_and_dots_are_measured():
    axes = plots.step_by_context(RECORD)
    floor, fitted, *dots = axes.lines
    assert list(floor.get_xdata()) == list(fitted.get_xdata()) == [500, 1000, 2000]
    assert list(floor.get_ydata()) == pytest.approx([2.5, 5, 10])
    assert list(fitted.get_ydata()) == pytest.approx([4, 7, 13])
    assert [(dot.get_xdata()[0], dot.get_ydata()[0]) for dot in dots] == [(500, 2), (1000, 7), (2000, 13)]
    assert [dot.get_markerfacecolor() for dot in dots] == ["none", *[STYLE["gqa"]["color"]] * 2]
    assert {dot.get_marker() for dot in dots} == {"o"} and floor.get_color() == STYLE["gqa"]["color"]
    assert floor.get_linestyle() == "--"
    assert axes.get_ylim()[0] == 0
    text = axes.get_label()
    assert axes.get_title("left") == "From 500 to 2,000 tokens a step goes from 2 to 13 ms" == text.split(". ")[0]
    assert "the predicted bytes take 2.5 to 10 ms at the measured 40 GB/s" in text
    assert "The line through the dots is 1 ms + bytes / 33.3 GB/s" in text
    assert text.endswith("Above the ceiling, hollow: 500 tokens.")


def test_without_a_line_there_is_none_and_without_contexts_no_figure():
    axes = plots.step_by_context(RECORD | {"fit": None, "sizes": {}})
    assert len(axes.lines) == 4 and "The line through" not in axes.get_label()
    with pytest.raises(ValueError, match="this profile has no sweep"):
        plots.step_by_context(RECORD | {"sweep": []})


def test_the_parts_of_a_token_stand_side_by_side_and_add_up():
    axes = plots.step_split(RECORD)
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert [width for _, width in bars] == pytest.approx([4, 0.1, 6, 1.9])
    assert [x for x, _ in bars] == pytest.approx([0, 4, 4.1, 10.1]) and axes.get_xlim() == (0, pytest.approx(12))
    assert axes.get_title("left") == "MLP takes 50% of a token"
    assert "a model at 200 to 1,000 tokens, measured: attention 4 ms, append 0.1 ms, MLP 6 ms, the rest 1.9 ms." in (
        axes.get_label()
    )
    with pytest.raises(ValueError, match="this profile has no split"):
        plots.step_split(RECORD | {"split_s": {}})
