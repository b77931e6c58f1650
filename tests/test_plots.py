from dataclasses import replace

import pytest

from gqa_lab import plots
from gqa_lab.costs import SHAPES, kv_cache_bytes


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(8, 8), (8, 2), (8, 1), (6, 3), (1, 1), (71, 1)])
def test_the_head_map_draws_one_line_per_query_head_to_its_own_kv_head(n_heads, n_kv_heads):
    axes = plots.head_map(n_heads, n_kv_heads)
    lines = [line.get_xdata() for line in axes.lines]
    assert [x[0] for x in lines] == list(range(n_heads))
    group_size = n_heads // n_kv_heads
    ends = [x[1] for x in lines]
    for i, j in zip(range(n_heads), range(1, n_heads), strict=False):
        assert (ends[i] == ends[j]) == (i // group_size == j // group_size)


def test_the_bytes_below_the_head_map_are_those_of_costs():
    shape = replace(SHAPES["llama-2-70b"], n_layers=1)
    expected = kv_cache_bytes(shape, batch_size=1, kv_len=1, bytes_per_element=2)
    assert plots.head_map(64, 8, head_dim=128).get_xlabel().startswith(f"A token keeps {expected:,} B per layer")


@pytest.mark.parametrize(("n_heads", "head_dim"), [(6, 2), (1, 4), (3, 5), (48, 2)])
def test_each_head_is_framed_around_its_own_columns(n_heads, head_dim):
    axes = plots.head_columns(n_heads, head_dim, head=n_heads - 1)
    frames = [p for p in axes.patches if not p.get_fill()]
    assert [p.get_x() for p in frames] == [i * head_dim for i in range(n_heads)]
    assert {p.get_width() for p in frames} == {head_dim}
    filled = [p.get_x() for p in axes.patches if p.get_fill() and p.get_facecolor()[:3] == (0, 0, 0)]
    assert filled == list(range((n_heads - 1) * head_dim, n_heads * head_dim))


def test_columns_that_would_be_a_smear_or_a_head_that_is_none_are_refused():
    with pytest.raises(ValueError, match="576.* is more than 96 columns"):
        plots.head_columns(9, 64)
    with pytest.raises(ValueError, match="must be one of 0 to 5"):
        plots.head_columns(6, 2, head=6)


def test_the_bars_are_the_bytes_of_every_possible_number_of_kv_heads():
    axes = plots.bytes_per_token(SHAPES["llama-2-70b"])
    assert [bar.get_height() for bar in axes.patches] == [40, 80, 160, 320, 640, 1280, 2560]
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize(
    "axes",
    [plots.head_map(8, 2), plots.head_columns(6, 2), plots.bytes_per_token(replace(SHAPES["phi-2"], n_kv_heads=4))],
)
def test_every_figure_says_itself_in_words_and_renders_to_the_same_bytes(axes):
    picture = plots.Picture(axes)
    data, metadata = picture._repr_mimebundle_()
    assert len(data["text/plain"]) > 40 and "<" not in data["text/plain"]
    assert metadata["image/png"]["alt"] == data["text/plain"]
    assert data["image/png"].startswith(b"\x89PNG") and plots.Picture(axes).png == picture.png


def test_kinds_differ_in_marker_and_line_as_well_as_in_colour():
    for key in ("color", "marker", "linestyle"):
        assert len({style[key] for style in plots.STYLE.values()}) == 3


def test_a_cache_that_does_not_depend_on_kv_heads_has_no_such_bars():
    with pytest.raises(ValueError, match="keeps one latent vector per token"):
        plots.bytes_per_token(SHAPES["deepseek-v3"])


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="try 1, 2, 3 or 6"):
        plots.head_map(6, 4)
