import hashlib
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch

from gqa_lab.config import ModelConfig
from gqa_lab.convert import convert_kv_heads, pool_layers
from gqa_lab.model import Transformer
from gqa_lab.plots import damage_by_layer
from gqa_lab.plots import recovery as recovery_figure
from gqa_lab.recorded import recorded

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import convert_fit  # noqa: E402
import convert_layers  # noqa: E402
import convert_texts  # noqa: E402
import convert_why  # noqa: E402

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0, 4, 5]])


def tiny():
    """12 query heads on 3 KV heads of 4 numbers, d_model 30."""
    torch.manual_seed(0)
    config = ModelConfig(
        n_layers=2, d_model=30, n_heads=12, n_kv_heads=3, head_dim=4, d_ff=40, vocab_size=50, max_seq_len=32,
        rope_theta=1e2, norm_eps=1e-5,
    )  # fmt: skip
    model = Transformer(config).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def unrelated():
    model = tiny()
    return model, convert_why.attention_inputs(model, IDS)


@pytest.fixture(scope="module")
def disguised():
    """A model whose KV heads are one head, turned: each with its queries and its columns of o_proj."""
    model = pool_layers(tiny(), 1, range(2))
    for layer in model.layers:
        a = layer.attention
        for g in range(3):
            angles = torch.exp(1j * torch.rand(2, dtype=torch.float64) * 6)[:, None]
            turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
            for rows, weight in ((slice(4 * g, 4 * g + 4), a.k_proj.weight),) + tuple(
                (slice(4 * i, 4 * i + 4), a.q_proj.weight) for i in range(4 * g, 4 * g + 4)
            ):
                z = convert_why.complex_pairs(weight.data[rows], 0) * angles
                weight.data[rows] = convert_why.real_halves(z, 0)
            a.v_proj.weight.data[4 * g : 4 * g + 4] = turn @ a.v_proj.weight.data[4 * g : 4 * g + 4]
            for i in range(4 * g, 4 * g + 4):
                a.o_proj.weight.data[:, 4 * i : 4 * i + 4] = a.o_proj.weight.data[:, 4 * i : 4 * i + 4] @ turn.T
    return model, convert_why.attention_inputs(model, IDS)


@torch.no_grad()
def test_turning_keys_with_their_queries_and_values_with_their_outputs_changes_nothing(unrelated):
    model, inputs = unrelated
    aligned = convert_why.turned(model, inputs)
    torch.testing.assert_close(aligned(IDS), model(IDS), atol=1e-10, rtol=0)
    for part in ("k_proj", "v_proj"):
        before, after = (
            [layer["kept_of_activations"] for layer in convert_why.geometry(m, inputs)[part]] for m in (model, aligned)
        )
        assert all(a > b + 0.05 for a, b in zip(after, before, strict=True))


@torch.no_grad()
def test_heads_that_are_one_head_in_disguise_are_pooled_without_loss_once_turned(disguised):
    model, inputs = disguised
    assert (convert_kv_heads(model, 1)(IDS) - model(IDS)).abs().max() > 0.1
    aligned = convert_why.turned(model, inputs)
    torch.testing.assert_close(convert_kv_heads(aligned, 1)(IDS), model(IDS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("parts", [("k_proj",), ("v_proj",), ("k_proj", "v_proj")])
@torch.no_grad()
def test_one_key_and_value_of_low_rank_tell_disguised_heads_exactly(disguised, parts):
    model, inputs = disguised
    one = convert_why.low_rank(model, inputs, parts)
    torch.testing.assert_close(one(IDS), model(IDS), atol=1e-6, rtol=0)
    for part in parts:
        heads = getattr(one.layers[0].attention, part).weight.unflatten(0, (3, 4))
        assert torch.equal(heads[0], heads[2])


def test_the_mean_of_equal_opposite_and_unrelated_heads_keeps_all_nothing_and_a_third():
    torch.manual_seed(0)
    head = torch.randn(1, 500, 64)
    assert convert_why.kept_by_the_mean(head.repeat(3, 1, 1)) == pytest.approx(1)
    assert convert_why.kept_by_the_mean(torch.cat([head, -head])) == pytest.approx(0)
    assert convert_why.kept_by_the_mean(torch.randn(3, 500, 64)) == pytest.approx(1 / 3, abs=0.02)


@pytest.fixture(scope="module")
def record():
    return recorded("convert_smollm2")


def means(losses):
    return {text: mean(windows) for text, windows in losses.items()}


def test_every_loss_is_the_mean_of_the_recorded_windows(record):
    texts, raw = record["texts"], record["before_after"]
    for losses in raw.values():
        assert {text: len(x) * texts[text]["window"] for text, x in losses.items()} == {
            text: texts[text]["n_tokens"] for text in "AB"
        }
    assert record["summary"]["loss"] == {name: pytest.approx(means(losses)) for name, losses in raw.items()}
    assert raw["expanded"] == {text: pytest.approx(x, abs=1e-5) for text, x in raw["original"].items()}
    assert all(mean(raw[rule]["A"]) > 3 * mean(raw["original"]["A"]) for rule in ("mean", "first", "random"))


def test_the_story_is_still_the_one_that_was_measured(record):
    assert record["texts"]["B"]["sha256"] == hashlib.sha256(convert_texts.narrative().encode()).hexdigest()


def test_no_line_of_the_held_out_topics_stands_in_the_training_text():
    train, held = convert_texts.training_text(), [convert_texts.topics[name] for name in convert_texts.HELD_OUT]
    lines = {line.strip() for text in held for line in text.splitlines() if len(line.strip()) >= 40}
    assert len(lines) > 300 and not lines & {line.strip() for line in train.splitlines()}


def test_the_same_measurement_made_twice_in_the_record_agrees(record):
    growth = record["summary"]["growth_with_all_layers"]["mean"]
    loss = record["summary"]["loss"]
    assert growth["both"] == pytest.approx(loss["mean"]["A"] - loss["original"]["A"], abs=1e-3)
    for run, start in (("recovery_pooled", "mean"), ("recovery_control", "original")):
        assert means(record[run]["points"][0]["losses"]) == pytest.approx(loss[start], abs=1e-3)
    fitted = record["recovery_fitted"]["points"][0]["losses"]
    assert means(fitted) == pytest.approx(means(record["layer_by_layer"]["losses"]), abs=1e-3)
    pooled, spared_none = loss["mean"], record["spared"]["steps"][0]["loss"]
    assert spared_none["B"] == pytest.approx(pooled["B"], abs=1e-3)


def test_the_damages_are_thirty_and_the_choices_are_ten_layers_whose_sum_is_theirs(record):
    damage = record["layer_damage"]
    assert damage == record["layers"]["damage"]["both"] and len(damage) == 30
    assert record["summary"]["sum_of_single_damages"] == pytest.approx(sum(damage))
    for choice in record["choices"]["choices"].values():
        assert len(set(choice["layers"])) == 10
        assert choice["sum_of_single"] == pytest.approx(sum(damage[i] for i in choice["layers"]))
    order = sorted(range(30), key=damage.__getitem__)
    chosen = record["choices"]["choices"]
    assert chosen["least"]["layers"] == sorted(order[:10]) and chosen["worst"]["layers"] == sorted(order[-10:])


def test_the_runs_saw_the_same_tokens_by_the_same_recipe(record):
    runs = [record[f"recovery_{run}"] for run in ("pooled", "fitted", "control")]
    recipes = {(run["learning_rate"], run["n_steps"], run["batch_size"]) for run in runs}
    assert len(recipes) == 1
    a_step = runs[0]["batch_size"] * record["texts"]["train"]["window"]
    n_tokens = runs[0]["n_steps"] * a_step
    assert 0 <= record["texts"]["train"]["n_tokens"] - n_tokens < a_step  # no token twice
    for run in runs:
        assert [point["n_tokens"] / n_tokens for point in run["points"]] == pytest.approx(
            [0, 0.125, 0.25, 0.5, 1], abs=0.015
        )
        assert len(run["training_losses"]) == run["n_steps"]
    assert runs[0]["n_trained_weights"] * 3 == runs[2]["n_trained_weights"] == 30 * 2 * 3 * 64 * 576


def test_what_is_said_about_the_recovery_follows_from_its_points(record):
    for text, said in record["summary"]["recovery"].items():
        start, end = (mean(record["recovery_pooled"]["points"][i]["losses"][text]) for i in (0, -1))
        original = mean(record["before_after"]["original"][text])
        control = mean(record["recovery_control"]["points"][-1]["losses"][text])
        assert said["share_recovered"] == pytest.approx((start - end) / (start - original))
        assert said["gap_to_control"] == pytest.approx(end - control)


def test_the_length_of_a_mean_of_three_is_that_of_unrelated_heads(record):
    for part in ("k_proj", "v_proj"):
        layers = record["why"]["geometry"][part]
        assert record["summary"]["geometry"][part]["length_of_mean"] == pytest.approx(
            mean(layer["length_of_mean"] for layer in layers)
        )
        for layer in layers:  # |mean|² of three equally long vectors is (1 + 2 cosine) / 3
            expected = ((1 + 2 * mean(layer["cosines"])) / 3) ** 0.5
            assert layer["length_of_mean"] == pytest.approx(expected, abs=0.02)


def test_the_figures_say_what_is_recorded_and_draw_every_point(record):
    damage, recovery = damage_by_layer(record), recovery_figure(record)
    assert [len(dots.get_offsets()) for dots in damage.collections] == [30, 30, 30]
    assert f"{max(record['layer_damage']):.2f}" in damage.get_label()
    assert [len(line.get_xdata()) for line in recovery.lines] == [5] * 6
    end = record["recovery_pooled"]["points"][-1]["losses"]
    assert all(f"to {mean(windows):.1f}" in recovery.get_label() for windows in end.values())
    assert all("recorded on" in axes.get_xlabel() for axes in (damage, recovery))


def test_a_layer_fitted_says_more_nearly_what_it_said_and_least_squares_is_the_mean(unrelated):
    model, _ = unrelated
    *call, wanted = convert_fit.listen_to(model, IDS)[1]
    assert convert_fit.least_squares_minus_mean(model, call, 1) < 1e-9
    attention = convert_kv_heads(model, 1).layers[1].attention
    before = {name: weight.clone() for name, weight in attention.state_dict().items()}
    errors = convert_fit.fit(attention, call, wanted, steps=40, learning_rate=2e-2)
    assert errors[-1] < 0.9 * errors[0]
    changed = {name for name, weight in attention.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"k_proj.weight", "v_proj.weight"}
    mixed = convert_fit.with_attention(model, 1, attention)
    assert [layer.attention.k_proj.weight.shape[0] for layer in mixed.layers] == [12, 4]
    assert model.layers[1].attention is not attention and mixed.embed_tokens.weight is model.embed_tokens.weight


@torch.no_grad()
def test_the_loss_from_a_layer_on_is_the_loss_of_the_whole(unrelated):
    model, _ = unrelated
    model = pool_layers(model, 1, [1])
    calls = convert_layers.calls_of_layers(model, IDS)
    whole = convert_texts.loss(model, IDS)
    assert [convert_layers.loss_from(model, i, call, IDS) for i, call in enumerate(calls)] == pytest.approx([whole] * 2)
