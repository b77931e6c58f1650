from dataclasses import replace

import pytest
import torch

from gqa_lab.config import ModelConfig
from gqa_lab.costs import n_parameters
from gqa_lab.train import (
    NOTHING,
    accuracy,
    cosine_rate,
    equalised,
    initial_model,
    next_token_loss,
    recall_batches,
    text_batches,
    train,
)

MHA = ModelConfig(
    n_layers=2, d_model=24, n_heads=8, n_kv_heads=8, head_dim=4, d_ff=40, vocab_size=60, max_seq_len=32,
    rope_theta=1e4, norm_eps=1e-5, tie_embeddings=True,
)  # fmt: skip
TASK = {"n_pairs": 5, "n_keys": 6, "n_values": 9}
WIDTHS = ("gate_proj", "up_proj", "down_proj")


def weights(seed=0, **changes):
    return initial_model(replace(MHA, **changes), seed).state_dict()


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_decoders_of_one_seed_begin_with_the_same_weights_and_kv_heads_of_the_mha_decoder(n_kv_heads):
    mha, shared = weights(), weights(n_kv_heads=n_kv_heads)
    for name, weight in shared.items():
        if "k_proj" in name or "v_proj" in name:
            assert torch.equal(weight.view(n_kv_heads, 4, 24), mha[name].view(8, 4, 24)[:: 8 // n_kv_heads])
        else:
            assert torch.equal(weight, mha[name]), name


def test_a_wider_mlp_moves_no_other_weight():
    narrow, wide = weights(), weights(d_ff=47)
    assert {name for name in narrow if narrow[name].shape != wide[name].shape} == {
        f"layers.{i}.mlp.{part}.weight" for i in range(2) for part in WIDTHS
    }
    assert all(torch.equal(w, wide[name]) for name, w in narrow.items() if w.shape == wide[name].shape)


def test_the_first_weights_follow_from_the_seed_alone():
    torch.manual_seed(1)
    once = weights(attention_bias=True)
    torch.manual_seed(2)
    again, other = weights(attention_bias=True), weights(seed=1, attention_bias=True)
    assert all(torch.equal(weight, again[name]) for name, weight in once.items())
    assert not any(torch.equal(weight, other[name]) for name, weight in once.items() if weight.ndim == 2)


def test_no_two_matrices_of_a_decoder_begin_alike():
    matrices = [w for w in weights().values() if w.ndim == 2]
    assert len({round(w[0, 0].item(), 6) for w in matrices}) == len(matrices) == 15


@pytest.mark.parametrize("n_kv_heads", [8, 4, 2, 1])
def test_an_equalised_decoder_has_as_many_parameters_up_to_half_a_row_a_layer(n_kv_heads):
    config = equalised(MHA, n_kv_heads)
    assert config.n_kv_heads == n_kv_heads and n_parameters(config) == sum(
        p.numel() for p in initial_model(config, 0).parameters()
    )
    assert abs(n_parameters(config) - n_parameters(MHA)) <= 1.5 * MHA.d_model * MHA.n_layers
    assert (config == MHA) == (n_kv_heads == 8)


def test_no_equalised_decoder_has_a_number_of_kv_heads_that_does_not_divide():
    with pytest.raises(ValueError, match="try 1, 2, 4 or 8"):
        equalised(MHA, 3)


def test_every_decoder_reads_the_same_pieces_in_the_same_order():
    ids = torch.arange(500) % 60
    of_the_text = [list(text_batches(ids, n_steps=3, batch_size=2, window=8, seed=s)) for s in (0, 0, 1)]
    of_recall = [list(recall_batches(n_steps=3, batch_size=2, seed=s, **TASK)) for s in (0, 0, 1)]
    for once, again, other in (of_the_text, of_recall):
        assert all(torch.equal(x, y) for a, b in zip(once, again, strict=True) for x, y in zip(a, b, strict=True))
        assert not any(torch.equal(a[0], b[0]) for a, b in zip(once, other, strict=True))
        assert not torch.equal(once[0][0], once[1][0])


def test_more_steps_begin_with_the_batches_of_fewer():
    ids = torch.arange(500)
    fewer, more = (list(text_batches(ids, n_steps=n, batch_size=2, window=8, seed=0)) for n in (2, 4))
    assert len(more) == 4 and all(torch.equal(a[0], b[0]) for a, b in zip(fewer, more, strict=False))


def test_a_batch_of_a_text_holds_every_place_of_it_and_asks_for_the_next_token():
    ids = torch.arange(20)
    seen = set()
    for inputs, targets in text_batches(ids, n_steps=40, batch_size=3, window=6, seed=0):
        assert inputs.shape == targets.shape == (3, 6) and torch.equal(targets, inputs + 1)
        seen |= set(targets.flatten().tolist())
    assert seen == set(range(1, 20))


def test_a_text_too_short_for_its_window_is_refused():
    with pytest.raises(ValueError, match=r"window \(8\) must be less than the 8 tokens of ids"):
        next(text_batches(torch.arange(8), n_steps=1, batch_size=1, window=8, seed=0))


def test_recall_is_solved_by_looking_back_and_not_by_knowing_what_a_key_usually_means():
    n_keys, n_values, n_pairs = TASK["n_keys"], TASK["n_values"], TASK["n_pairs"]
    [(inputs, targets)] = recall_batches(n_steps=1, batch_size=2000, seed=0, **TASK)
    assert inputs.shape == targets.shape == (2000, 2 * n_pairs) and int(inputs.max()) < n_keys * (n_values + 1)
    pairs, asked = inputs[:, :n_pairs], inputs[:, n_pairs:] - n_keys * n_values
    assert (targets[:, :n_pairs] == NOTHING).all() and torch.equal(asked.sort(1)[0], (pairs // n_values).sort(1)[0])
    found = pairs[:, None].expand(-1, n_pairs, -1)[pairs[:, None] // n_values == asked[:, :, None]]
    assert torch.equal(found.view(2000, n_pairs), targets[:, n_pairs:])
    counts = torch.zeros(n_keys, n_values)
    first, later = slice(0, 1000), slice(1000, 2000)
    counts.index_put_(
        (asked[first].flatten(), targets[first, n_pairs:].flatten() % n_values), torch.tensor(1.0), accumulate=True
    )
    usual = counts.argmax(1)[asked[later]] == targets[later, n_pairs:] % n_values
    assert usual.float().mean().item() == pytest.approx(1 / n_values, abs=0.02)
    assert (asked[:, 0] == pairs[:, 0] // n_values).float().mean() < 0.3  # asked for in another order


def test_more_pairs_than_keys_are_refused():
    with pytest.raises(ValueError, match=r"n_pairs \(7\) must be at most n_keys \(6\)"):
        next(recall_batches(n_steps=1, batch_size=1, seed=0, **TASK | {"n_pairs": 7}))


def test_only_places_with_a_target_count():
    model = initial_model(MHA, 0)
    [(inputs, targets)] = recall_batches(n_steps=1, batch_size=4, seed=0, **TASK)
    told = model(inputs).argmax(-1)
    right = torch.where(targets == NOTHING, NOTHING, told)
    half = right.clone()
    half[:2] = torch.where(right[:2] == NOTHING, NOTHING, (told[:2] + 1) % 60)
    assert accuracy(model, inputs, right) == 1 and accuracy(model, inputs, half) == 0.5
    log_p = model(inputs).log_softmax(-1)[:, 5:].gather(2, targets[:, 5:, None])
    torch.testing.assert_close(next_token_loss(model, inputs, targets), -log_p.mean())


def test_the_learning_rate_rises_then_falls_to_zero():
    rate = cosine_rate(2.0, 30, warm_up=5)
    rates = [rate(step) for step in range(30)]
    assert rates[:6] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2, 2])
    assert rates[5:] == sorted(rates[5:], reverse=True) and 0 < rates[-1] < 0.02 and rate(30) == pytest.approx(0)


def test_training_learns_and_repeats_itself_to_the_last_bit():
    ids = torch.arange(600) % 60
    losses = [
        list(
            train(initial_model(MHA, 0), text_batches(ids, n_steps=25, batch_size=4, window=16, seed=0), lambda _: 1e-2)
        )
        for _ in range(2)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 25 and losses[0][-1] < 0.3 * losses[0][0]


def test_training_that_is_left_stops_there():
    model = initial_model(MHA, 0)
    batches = list(text_batches(torch.arange(60), n_steps=3, batch_size=2, window=8, seed=0))
    steps = train(model, batches, lambda _: 1e-2)
    before = model.embed_tokens.weight.clone()
    assert torch.equal(before, model.embed_tokens.weight)
    first = next(steps)
    after_one = model.embed_tokens.weight.clone()
    steps.close()
    assert not torch.equal(before, after_one) and torch.equal(after_one, model.embed_tokens.weight)
    assert first == pytest.approx(next_token_loss(initial_model(MHA, 0), *batches[0]).item(), abs=1e-6)


def test_only_matrices_decay():
    model = initial_model(replace(MHA, tie_embeddings=False), 0)
    unused = model.embed_tokens.weight[59].clone()  # no gradient reaches it
    batches = text_batches(torch.arange(200) % 50, n_steps=1, batch_size=2, window=8, seed=0)
    [_] = train(model, batches, lambda _: 0.5, weight_decay=0.1)
    torch.testing.assert_close(model.embed_tokens.weight[59], unused * 0.95)
    moved = torch.stack([p for p in model.parameters() if p.ndim == 1]) - 1  # Adam's first step is the rate, up or down
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.5), atol=1e-3, rtol=0)
