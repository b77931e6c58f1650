import sys
from pathlib import Path

import pytest
import torch

from gqa_lab.config import ModelConfig
from gqa_lab.convert import convert_kv_heads, pool_layers
from gqa_lab.model import Transformer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
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
