import pytest

from gqa_lab import plots
from gqa_lab.costs import GPUS, SHAPES, decode_step_s, kv_bytes_per_token, plan
from gqa_lab.plots.frame import STYLE

LLAMA, H100 = SHAPES["llama-3.1-8b"], GPUS["h100-sxm"]
CHATS = dict(kv_len=8192, batch_size=32)


def test_every_model_stands_at_its_parameters_and_bytes():
    axes = plots.models()
    drawn = {kind.get_label(): kind.get_offsets().tolist() for kind in axes.collections}
    for kind in ("mha", "gqa", "mqa", "mla"):
        expected = [
            [s.params_billion, kv_bytes_per_token(s, bytes_per_element=2) / 1024]
            for s in SHAPES.values()
            if s.kind == kind and s.params_billion
        ]
        assert drawn[kind.upper()] == expected
    assert sum(map(len, drawn.values())) == 74
    named = [text.get_text() for text in axes.texts]
    assert len(named) == 12 and "Falcon-7B (MQA)" in named and "DeepSeek-V3 (MLA)" in named


def test_of_some_models_only_those_are_drawn_and_named():
    axes = plots.models({key: SHAPES[key] for key in ("llama-2-7b", "falcon-7b", "kimi-k2")})
    assert {text.get_text() for text in axes.texts} == {"Llama-2-7B (MHA)", "Falcon-7B (MQA)"}
    assert "2 of 3 published models" in axes.get_label() and "of 1 that number is not known here" in axes.get_label()


def test_each_line_is_the_floor_of_its_kv_heads_and_ends_where_the_memory_is_full():
    axes = plots.step_time(plan(LLAMA, H100, **CHATS))
    curves = [line for line in axes.lines if len(line.get_xdata()) > 3]
    assert len(curves) == 6  # 32, 16, 8, 4, 2, 1
    ends = {}
    for n_kv_heads, line in zip((32, 16, 8, 4, 2, 1), curves, strict=True):
        alone = plan(LLAMA, H100, **CHATS, n_kv_heads=n_kv_heads)
        tokens, ms = line.get_xdata(), line.get_ydata()
        assert tokens[-1] == min(16_384, alone.largest_context)
        middle = len(tokens) // 2
        expected = decode_step_s(alone.model, H100, batch_size=32, kv_len=int(tokens[middle]))
        assert ms[middle] == pytest.approx(1000 * expected)
        ends[n_kv_heads] = ms[-1]
    # a full memory takes 72 GB / 3,350 GB/s = 21.5 ms to read, less the embedding table, whatever it is full of
    assert (
        ends[32]
        == pytest.approx(ends[16], rel=1e-3)
        == pytest.approx(72 / 3.35 - 2 * 128_256 * 4096 / 3.35e9, rel=1e-3)
    )
    assert [c.get_color() for c in curves] == [STYLE[k]["color"] for k in ("mha", "gqa", "gqa", "gqa", "gqa", "mqa")]
    assert max(curves, key=lambda c: c.get_linewidth()) is curves[2]


def test_the_dot_is_the_plan_and_the_upright_line_its_crossover():
    asked = plan(LLAMA, H100, **CHATS)
    axes = plots.step_time(asked)
    dot = next(line for line in axes.lines if line.get_marker() == "o")
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (8192, pytest.approx(1000 * asked.step_s))
    upright = next(line for line in axes.lines if list(line.get_xdata()) == [asked.traffic_crossover] * 2)
    level = next(line for line in axes.lines if list(line.get_xdata()) == [0, 1])
    assert upright.get_ydata()[1] == 2 * level.get_ydata()[0] == pytest.approx(2000 * 15_009_316_864 / 3350e9)


def test_a_window_bends_the_line_where_it_is_full():
    axes = plots.step_time(plan(SHAPES["mistral-7b-v0.1"], H100, kv_len=8192, batch_size=2))
    tokens, ms = next((line.get_xdata(), line.get_ydata()) for line in axes.lines if 4096 in line.get_xdata())
    at = list(tokens).index(4096)
    assert ms[at - 1] < ms[at] == pytest.approx(ms[-1], rel=1e-3)


def test_what_does_not_fit_is_drawn_on_as_many_gpus_as_it_needs_or_said():
    asked = plan(SHAPES["llama-2-70b"], H100, kv_len=100_000, batch_size=4)
    assert "on 4 H100 SXM" in plots.step_time(asked).get_label()
    never = plan(SHAPES["llama-2-70b"], GPUS["t4"], kv_len=100_000, batch_size=4, n_kv_heads=1)
    assert plots.step_time(never).get_title("left") == "With 1 KV head it fits no number of these GPUs"
    with pytest.raises(ValueError, match="which weights of Mixtral-8x7B-v0.1 a step reads is not known here"):
        plots.step_time(plan(SHAPES["mixtral-8x7b-v0.1"], H100, **CHATS))


@pytest.mark.parametrize("draw", [plots.models, lambda: plots.step_time(plan(LLAMA, H100, **CHATS))])
def test_each_figure_is_the_same_bytes_every_time(draw):
    assert plots.png(draw()) == plots.png(draw())
