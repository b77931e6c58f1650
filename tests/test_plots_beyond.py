"""The figures of lessons A1 and A2 draw what `costs` computes."""

import pytest

from gqa_lab import plots
from gqa_lab.costs import GPUS, SHAPES, plan
from gqa_lab.plots.frame import STYLE

LLAMA, H100 = SHAPES["llama-2-70b"], GPUS["h100-sxm"]


def test_each_line_is_the_cache_of_a_gpu_and_stops_at_its_number_of_kv_heads():
    axes = plots.cache_per_gpu(LLAMA, H100)
    drawn = {line.get_color(): dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines}
    for kind, g in (("mha", 64), ("gqa", 8), ("mqa", 1)):
        kib = drawn[STYLE[kind]["color"]]
        assert kib == {n: 40 * max(1, g / n) for n in (1, 2, 4, 8, 16, 32, 64)}
    assert axes.get_title("left") == "With 8 KV heads the cache of a GPU stops shrinking at 8 GPUs"


def test_each_step_is_the_floor_of_a_plan_and_starts_where_it_fits():
    sizes = dict(kv_len=4096, batch_size=32)
    axes = plots.step_by_gpus(LLAMA, H100, **sizes)
    for line, g in zip(axes.lines, (64, 8, 1), strict=True):
        for n, ms in zip(line.get_xdata(), line.get_ydata(), strict=True):
            assert ms == 1000 * plan(LLAMA, H100, n_kv_heads=g, n_gpus=int(n), **sizes).step_s
    assert [line.get_xdata()[0] for line in axes.lines] == [8, 4, 4]
    assert "1.6 times faster, not 2" in axes.get_title("left")


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="Llama-3.1-70B with 64 · 100,000 tokens does not fit 8 H100 SXM; take fewer"):
        plots.step_by_gpus(SHAPES["llama-3.1-70b"], H100, kv_len=100_000, batch_size=64)


def test_bars_are_the_bytes_of_the_ideas_and_start_at_zero():
    ideas = {"MHA": 524_288.0, "GQA": 131_072.0, "GQA, int8": 66_560.0, "MLA": 36_864.0}
    axes = plots.bytes_by_idea(ideas, what="a model")
    assert [bar.get_width() for bar in axes.patches] == [size / 1024 for size in ideas.values()]
    assert axes.get_xlim()[0] == 0 and all(bar.get_x() == 0 for bar in axes.patches)
    filled = [bar.get_facecolor()[:3] != (1, 1, 1) for bar in axes.patches]
    assert filled == [True, True, False, False]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(ideas)
    assert axes.get_label() == (
        "A token keeps from 512 KiB (MHA) down to 36 (MLA). In KiB per token, a model: MHA 512, GQA 128, GQA int8 65, MLA 36."
    )


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.cache_per_gpu(LLAMA, H100),
        lambda: plots.step_by_gpus(LLAMA, H100, kv_len=4096, batch_size=32),
        lambda: plots.bytes_by_idea({"MHA": 10.0, "MLA": 2.0}, what="x"),
    ],
)
def test_each_figure_is_the_same_bytes_every_time(draw):
    assert plots.png(draw()) == plots.png(draw())
