import pytest
import torch

from gqa_lab.config import ModelConfig
from gqa_lab.convert import convert_kv_heads, first_head, mean_heads, pool_layers, random_head
from gqa_lab.generate import generate
from gqa_lab.model import Transformer

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])


def tiny(n_kv_heads=6, **changes):
    torch.manual_seed(0)
    sizes = dict(
        n_layers=2, d_model=30, n_heads=12, n_kv_heads=n_kv_heads, head_dim=4, d_ff=32, vocab_size=50, max_seq_len=32,
        rope_theta=1e4, norm_eps=1e-5,
    )  # fmt: skip
    model = Transformer(ModelConfig(**sizes | changes)).double().eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "qk_norm": True, "tie_embeddings": True}], ids=str)
@pytest.mark.parametrize(("before", "after"), [(6, 12), (3, 6), (3, 12), (1, 4), (4, 4), (12, 12)])
@torch.no_grad()
def test_more_kv_heads_compute_exactly_what_fewer_did(before, after, changes):
    model = tiny(before, **changes)
    converted = convert_kv_heads(model, after)
    assert converted.config.n_kv_heads == after
    torch.testing.assert_close(converted(IDS), model(IDS), atol=1e-12, rtol=0)
    assert list(generate(converted, [[3, 1]], max_new_tokens=5)) == list(generate(model, [[3, 1]], max_new_tokens=5))


@torch.no_grad()
def test_expanding_repeats_neighbours_and_pooling_by_any_rule_undoes_it():
    model = tiny(3, attention_bias=True)
    expanded = convert_kv_heads(model, 12)
    for pool in (mean_heads, first_head):
        back = convert_kv_heads(expanded, 3, pool)
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(back.state_dict()[name], weight, atol=1e-15, rtol=0, msg=name)


@pytest.mark.parametrize(("pool", "rule"), [(mean_heads, lambda heads: sum(heads) / len(heads)), (first_head, lambda heads: heads[0])])  # fmt: skip
@pytest.mark.parametrize("name", ["k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"])
@pytest.mark.parametrize("after", [3, 2, 1])
def test_pooling_makes_one_head_of_neighbours(after, name, pool, rule):
    model = tiny(6, attention_bias=True)
    before = model.get_parameter(f"layers.1.attention.{name}").data
    got = convert_kv_heads(model, after, pool).get_parameter(f"layers.1.attention.{name}").data
    shared = 6 // after
    for g in range(after):  # by hand: rows 4h to 4h + 3 are head h
        heads = [before[4 * h : 4 * h + 4] for h in range(g * shared, (g + 1) * shared)]
        torch.testing.assert_close(got[4 * g : 4 * g + 4], rule(heads), atol=1e-15, rtol=0)


def test_a_random_head_is_new_spread_like_the_old_ones_and_repeatable():
    model = tiny(6, d_model=300)
    torch.manual_seed(1)
    first = convert_kv_heads(model, 2, random_head)
    torch.manual_seed(1)
    again = convert_kv_heads(model, 2, random_head)
    new, same, old = (m.layers[0].attention for m in (first, again, model))
    assert torch.equal(new.k_proj.weight, same.k_proj.weight)
    assert not torch.equal(new.k_proj.weight, new.v_proj.weight)
    assert 0.27 < new.k_proj.weight.std() < 0.33
    alike = torch.corrcoef(torch.stack([new.k_proj.weight.flatten(), old.k_proj.weight[:8].flatten()]))[0, 1]
    assert abs(alike) < 0.2


@torch.no_grad()
def test_only_keys_and_values_change_and_the_old_model_is_left_alone():
    model = tiny(6)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    converted = convert_kv_heads(model, 2)
    for changed in (converted, convert_kv_heads(model, 1, first_head), convert_kv_heads(model, 6)):
        for parameter in changed.parameters():
            parameter.data.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    converted = convert_kv_heads(model, 2).state_dict()
    changed = {name for name, weight in before.items() if not torch.equal(converted[name], weight)}
    assert changed == {f"layers.{i}.attention.{x}_proj.weight" for i in (0, 1) for x in "kv"}


def test_dtype_device_mode_and_what_is_trained_carry_over():
    model = tiny(6).half().train()
    model.layers[0].mlp.requires_grad_(False)
    converted = convert_kv_heads(model, 3)
    assert converted.dtype == torch.float16 and converted.training
    assert not convert_kv_heads(model.eval(), 3).training
    assert {n: p.requires_grad for n, p in converted.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    loss = converted(IDS).float().logsumexp(-1).sum()
    loss.backward()
    assert converted.layers[1].attention.k_proj.weight.grad is not None


@pytest.mark.parametrize("n_kv_heads", [0, 4, 5, 24, -1, 2.5, 3.0, True, None])
def test_a_number_that_does_not_fit_is_refused_with_those_that_do(n_kv_heads, shapes_unchecked):
    with pytest.raises(
        ValueError,
        match=rf"n_kv_heads \({n_kv_heads}\) does not fit 12 query heads over 6 KV heads; try one of 1, 2, 3, 6, 12",
    ):
        convert_kv_heads(tiny(6), n_kv_heads)


def test_a_pool_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"pool returned shape \[4, 30\], expected shape \[3, 4, 30\]"):
        convert_kv_heads(tiny(6), 3, lambda heads: heads.mean((0, 1)))
    with pytest.raises(ValueError, match=r"pool returned a list, expected shape \[3, 4, 30\]"):
        convert_kv_heads(tiny(6), 3, lambda heads: list(heads))


@pytest.mark.parametrize(("before", "after"), [(3, 1), (6, 2), (4, 2)])
@torch.no_grad()
def test_equal_heads_in_every_layer_compute_what_the_converted_model_does(before, after):
    model = tiny(before, attention_bias=True)
    assert model.config.group_size not in (1, before)
    as_if = pool_layers(model, after, range(2))
    torch.testing.assert_close(as_if(IDS), convert_kv_heads(model, after)(IDS), atol=1e-12, rtol=0)
    assert (as_if(IDS) - model(IDS)).abs().max() > 1e-2


@pytest.mark.parametrize("parts", [("k_proj",), ("v_proj",), ("k_proj", "v_proj"), ()])
@torch.no_grad()
def test_pooling_one_layer_changes_only_its_named_parts_and_shares_the_rest(parts):
    model = tiny(6)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pooled = pool_layers(model, 2, [1], parts=parts, pool=first_head)
    own = {name for name, p in pooled.named_parameters() if p.data_ptr() != model.get_parameter(name).data_ptr()}
    assert own == {f"layers.1.attention.{part}.weight" for part in parts}
    for name in own:
        heads = before[name].unflatten(0, (6, 4))
        assert torch.equal(pooled.get_parameter(name).unflatten(0, (6, 4)), heads[[0, 0, 0, 3, 3, 3]])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_layers_parts_and_numbers_that_do_not_exist_are_refused():
    model = tiny(6)
    with pytest.raises(ValueError, match=r"n_kv_heads \(12\) must divide the 6 KV heads of this model; try 1, 2, 3, 6"):
        pool_layers(model, 12, [0])
    with pytest.raises(ValueError, match=r"layers holds 2; this model has layers 0 to 1"):
        pool_layers(model, 2, [0, 2])
    with pytest.raises(ValueError, match=r"layers holds -1"):
        pool_layers(model, 2, [-1])
    with pytest.raises(ValueError, match=r"parts holds 'q_proj'"):
        pool_layers(model, 2, [0], parts=("q_proj",))
