"""What the figures of lesson 09 draw: every key once, no slot twice at a time, the cost as counted."""

import pytest

from gqa_lab import plots, widgets
from gqa_lab.plots.kernel import scheduled, split_grid_text


@pytest.mark.parametrize(
    ("kv_len", "n_keys", "n_splits"), [(100, 32, 2), (100, 32, 3), (96, 32, 3), (7, 8, 2), (65, 16, 4)]
)
def test_the_splits_hold_every_key_once_and_start_at_whole_blocks(kv_len, n_keys, n_splits):
    ranges = plots.split_keys(kv_len, n_keys, n_splits)
    assert len(ranges) == n_splits
    assert [s for first, last in ranges for s in range(first, last)] == list(range(kv_len))
    assert all(first % n_keys == 0 for first, last in ranges if first < last)
    axes = plots.split_grid(2, group_size=3, kv_len=kv_len, n_keys=n_keys, n_splits=n_splits, program=(1, 0))
    drawn = sorted((p.get_x(), p.get_x() + p.get_width()) for p in axes.patches if not p.get_hatch())
    assert drawn == sorted(2 * [pair for pair in ranges if pair[0] < pair[1]])
    assert sum(p.get_facecolor()[:3] != (1, 1, 1) for p in axes.patches if not p.get_hatch()) == 1


def test_a_split_without_keys_is_no_program():
    assert split_grid_text(3, 4, 100, 32, 3, (1, 1)).startswith("6 programs share 3 KV heads")


@pytest.mark.parametrize("n_splits", [1, 2, 4, 5, 7, 20])
def test_each_block_runs_once_and_a_slot_runs_one_program_at_a_time(n_splits):
    plan = scheduled(3, 20, n_splits, 8)
    assert sum(stop - start for _, start, stop, _, _ in plan) == 3 * 20
    assert len({entry[3:] for entry in plan}) == len(plan)
    for slot in range(8):
        times = [t for s, start, stop, _, _ in plan if s == slot for t in range(start, stop)]
        assert len(times) == len(set(times))


@pytest.mark.parametrize("n_splits", [1, 2, 4, 5, 10, 20])
def test_where_blocks_divide_the_schedule_ends_when_the_formula_says(n_splits):
    end = max(stop for _, _, stop, _, _ in scheduled(2, 20, n_splits, 8))
    assert end == plots.split_cost(n_splits, n_programs=2, n_blocks=20, n_slots=8)


def test_the_line_of_costs_is_the_formula():
    sizes = {"n_programs": 3, "n_blocks": 40, "n_slots": 12}
    axes = plots.split_costs(most=10, **sizes)
    assert list(axes.lines[0].get_ydata()) == [plots.split_cost(n, **sizes) for n in range(1, 11)]
    assert axes.get_title(loc="left").startswith("4 splits fill 12 slots once")


def test_the_slider_of_the_waves_redraws_them():
    figure = widgets.waves_explorer()
    slider = next(child for child in figure.children if getattr(child, "description", "") == "n_splits")
    before = figure._view.value
    slider.value = 5
    assert "2 wait for a later wave" in figure._view.value != before
