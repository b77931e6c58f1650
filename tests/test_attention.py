"""The contract of every attend, over the grid of the style guide: K != V, T != S, and a true group with G != R."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from gqa_lab import reference
from gqa_lab.attention import (
    GroupedQueryAttention,
    _softmax,
    expanded_attention,
    grouped_attention,
    sdpa_attention,
)
from gqa_lab.cache import KVCache
from gqa_lab.contract import visible
from gqa_lab.traffic import TrafficMeter

ATTENDS = [expanded_attention, grouped_attention, sdpa_attention]
HEADS = [(8, 8), (8, 2), (8, 1), (6, 3)]
SIZES = [(5, 5), (1, 7), (3, 7)]
MASKS = [(None, None), ("equal", None), ("ragged", None), (None, 1), (None, 3), ("ragged", 3)]

attends = pytest.mark.parametrize("attend", ATTENDS, ids=lambda f: f.__name__)
heads = pytest.mark.parametrize(("n_heads", "n_kv_heads"), HEADS)
sizes = pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
masks = pytest.mark.parametrize(("lengths", "window"), MASKS)


def inputs(n_heads, n_kv_heads, q_len, kv_len, *, batch_size=3, head_dim=6, dtype=torch.float64, scale=1.0):
    rng = np.random.default_rng(1)
    shapes = [(batch_size, n_heads, q_len, head_dim)] + 2 * [(batch_size, n_kv_heads, kv_len, head_dim)]
    q, k, v = (torch.from_numpy(rng.standard_normal(shape)).to(dtype) for shape in shapes)
    return q * scale**0.5, k * scale**0.5, v


def lengths_for(kind, q_len, kv_len, batch_size=3):
    values = {
        None: None,
        "equal": [kv_len - 1] * batch_size,
        "ragged": [kv_len, q_len, (kv_len + q_len) // 2],
    }[kind]
    if kind == "equal" and kv_len == q_len:
        values = [kv_len] * batch_size
    return None if values is None else torch.tensor(values, dtype=torch.int32)


def truth(q, k, v, lengths, window):
    arrays = [x.double().numpy() for x in (q, k, v)]
    lengths = None if lengths is None else lengths.numpy()
    return torch.from_numpy(reference.attention(*arrays, lengths=lengths, window=window))


@attends
@heads
@sizes
@masks
def test_every_attend_equals_the_reference_in_float64(attend, n_heads, n_kv_heads, q_len, kv_len, lengths, window):
    q, k, v = inputs(n_heads, n_kv_heads, q_len, kv_len)
    lengths = lengths_for(lengths, q_len, kv_len)
    out = attend(q, k, v, lengths=lengths, window=window)
    torch.testing.assert_close(out, truth(q, k, v, lengths, window), atol=1e-10, rtol=0)


@attends
@heads
@pytest.mark.parametrize(("q_len", "kv_len"), [(33, 33), (1, 65), (3, 65)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_low_precision_errs_at_most_twice_as_much_as_the_plain_formula(
    attend, n_heads, n_kv_heads, q_len, kv_len, dtype, scale
):
    q, k, v = inputs(n_heads, n_kv_heads, q_len, kv_len, dtype=dtype, head_dim=32, scale=scale)
    exact = truth(q, k, v, None, None)
    keys, values = (x.repeat_interleave(n_heads // n_kv_heads, dim=1) for x in (k, v))
    scores = (q @ keys.mT / 32**0.5).masked_fill(~visible(q_len, kv_len), float("-inf"))
    plain_error = (scores.softmax(-1) @ values - exact).abs().max()
    out = attend(q, k, v)
    assert out.dtype == dtype
    assert (out - exact).abs().max() <= 2 * plain_error + torch.finfo(dtype).eps / 4


@attends
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (6, 3), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_long_context_is_as_exact_as_the_plain_formula(attend, n_heads, n_kv_heads, dtype):
    q, k, v = inputs(n_heads, n_kv_heads, 1, 6000, dtype=dtype, head_dim=16, scale=3.0)
    exact = truth(q, k, v, None, None)
    keys, values = (x.repeat_interleave(n_heads // n_kv_heads, dim=1) for x in (k, v))
    plain_error = ((q @ keys.mT / 4).softmax(-1) @ values - exact).abs().max()
    prefixes = (torch.cat([x, torch.full_like(x, 1e4)], 2)[:, :, :6000] for x in (k, v))
    for keys_and_values in ((k, v), prefixes):
        out = attend(q, *keys_and_values)
        assert (out - exact).abs().max() <= 2 * plain_error + torch.finfo(dtype).eps / 4


@attends
@sizes
def test_scores_too_large_for_16_bits_are_no_trouble(attend, q_len, kv_len):
    q, k, v = inputs(6, 3, q_len, kv_len, dtype=torch.float16, head_dim=64, scale=8_000.0)
    assert (q.float() @ k.float().repeat_interleave(2, 1).mT).abs().max() > torch.finfo(torch.float16).max
    assert attend(q, k, v).isfinite().all()


@pytest.mark.parametrize("attend", [grouped_attention, sdpa_attention], ids=lambda f: f.__name__)
@pytest.mark.parametrize("q_len", [1, 3])
def test_a_window_reads_only_the_keys_it_shows(attend, q_len):
    q, k, v = inputs(6, 3, q_len, 1000, head_dim=64)
    with TrafficMeter() as meter:
        attend(q, k, v, window=10)
    assert meter.bytes_read < (k.nbytes + v.nbytes) / 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_softmax_runs_in_float32_or_better(dtype):
    assert _softmax(torch.zeros(1, 1, 1, 3, dtype=dtype), 1, None, None).dtype == torch.float32
    assert _softmax(torch.zeros(1, 1, 1, 3, dtype=torch.float64), 1, None, None).dtype == torch.float64


@attends
@pytest.mark.parametrize(("lengths", "window"), [m for m in MASKS if m[0]])
def test_what_stands_beyond_the_lengths_never_matters(attend, lengths, window):
    q, k, v = inputs(6, 3, 1, 7)
    lengths = lengths_for(lengths, 1, 7)
    clean = attend(q, k, v, lengths=lengths, window=window)
    for b, length in enumerate(lengths.tolist()):
        k[b, :, length:], v[b, :, length:] = 1e4, -1e4
    torch.testing.assert_close(attend(q, k, v, lengths=lengths, window=window), clean, atol=0, rtol=0)


@pytest.mark.parametrize("attend", [grouped_attention, sdpa_attention], ids=lambda f: f.__name__)
def test_the_mask_of_an_accelerator_hides_what_the_slices_of_a_cpu_hide(attend, monkeypatch):
    q, k, v = inputs(6, 3, 2, 7)
    lengths = lengths_for("ragged", 2, 7)
    sliced = attend(q, k, v, lengths=lengths, window=3)
    monkeypatch.setattr("gqa_lab.attention._rows_differ", lambda lengths: False)
    monkeypatch.setattr("gqa_lab.attention._narrow", lambda q_len, *rest: rest)
    monkeypatch.setattr("gqa_lab.attention._gqa_with_a_mask_copies", lambda q: True)
    torch.testing.assert_close(attend(q, k, v, lengths=lengths, window=3), sliced, atol=1e-12, rtol=0)


@attends
def test_the_inputs_are_left_alone(attend):
    tensors = inputs(6, 3, 3, 7)
    before = [x.clone() for x in tensors]
    attend(*tensors, lengths=lengths_for("ragged", 3, 7))
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


@attends
@heads
def test_permuting_heads_inside_a_group_permutes_the_output(attend, n_heads, n_kv_heads):
    q, k, v = inputs(n_heads, n_kv_heads, 3, 7)
    group_size = n_heads // n_kv_heads
    order = torch.arange(n_heads).view(n_kv_heads, group_size).flip(1).flatten()
    torch.testing.assert_close(attend(q[:, order], k, v), attend(q, k, v)[:, order], atol=1e-12, rtol=0)


def copies_of_a_head(attend, q, k, v) -> list[str]:
    """Names of the operations that wrote as many numbers as one head of K has, or more."""
    attend(q, k, v)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        attend(q, k, v)
    size = k.shape[2] * k.shape[3] * k.element_size()
    big = [e for e in events.events() if e.self_cpu_memory_usage >= size]
    return [f"{e.cpu_parent.name if e.cpu_parent else ''} > {e.name}" for e in big]


@pytest.mark.parametrize("attend", [grouped_attention, sdpa_attention], ids=lambda f: f.__name__)
@pytest.mark.parametrize("layout", ["[B, G, S, D]", "[B, S, G, D] transposed", "only v transposed", "a cache's prefix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("q_len", "kv_len", "n_heads"), [(1, 600, 8), (1, 4200, 8), (1, 4200, 2), (3, 1200, 8)])
def test_no_copy_of_k_or_v_is_ever_allocated(attend, layout, dtype, q_len, kv_len, n_heads):
    q = torch.randn(2, n_heads, q_len, 256).to(dtype)  # few scores beside large heads, so that nothing else is as large
    if layout == "[B, G, S, D]":
        k, v = torch.randn(2, 2, 2, kv_len, 256).to(dtype)
    elif layout == "a cache's prefix":
        cache = KVCache(2, 2, 4500, 256, dtype=dtype, device="cpu")
        k, v = cache.append(*torch.randn(2, 2, 2, kv_len, 256).to(dtype))
    else:
        k, v = torch.randn(2, 2, kv_len, 2, 256).to(dtype).transpose(2, 3)
        k = k.contiguous() if layout == "only v transposed" else k
    assert copies_of_a_head(attend, q, k, v) == []
    if n_heads > 2:
        assert copies_of_a_head(expanded_attention, q, k, v)  # the measure can see a copy


BAD = [
    (dict(q=torch.zeros(6, 1, 4)), "q has shape [6, 1, 4]; it needs four axes"),
    (dict(k=torch.zeros(1, 4, 5, 4)), "k has shape [1, 4, 5, 4] and v [1, 3, 5, 4]"),
    (dict(k=torch.zeros(1, 4, 5, 4), v=torch.zeros(1, 4, 5, 4)), "n_heads (6) must be a multiple of n_kv_heads (4); try"),
    (dict(q=torch.zeros(2, 6, 1, 4)), "q has batch 2 and k has 1"),
    (dict(q=torch.zeros(1, 6, 1, 8)), "q has head_dim 8 and k has 4"),
    (dict(q=torch.zeros(1, 6, 9, 4)), "q_len (9) must be from 1 to kv_len (5)"),
    (dict(k=torch.zeros(1, 3, 5, 4).double()), "k is torch.float64 on cpu but q is torch.float32"),
    (dict(q=torch.zeros(1, 6, 1, 4).long(), k=torch.zeros(1, 3, 5, 4).long(), v=torch.zeros(1, 3, 5, 4).long()), "q is torch.int64"),
    (dict(q=torch.zeros(1, 6, 2, 4), lengths=torch.tensor([1], dtype=torch.int32)), "lengths must lie from q_len (2) to kv_len (5), got [1]"),
    (dict(v=torch.zeros(1, 3, 5, 4, device="meta")), "v is torch.float32 on meta but q is torch.float32 on cpu"),
    (dict(lengths=torch.zeros(1, dtype=torch.int32, device="meta")), "lengths must be int32 [1] on cpu, got torch.int32 [1] on meta"),
    (dict(q=np.zeros((1, 6, 1, 4), dtype=np.float32)), "q is a ndarray; it must be a torch tensor"),
    (dict(q=torch.zeros(1, 6, 1, 0)), "q has shape [1, 6, 1, 0]; every axis needs at least one entry"),
    (dict(lengths=[5]), "lengths is a list; make it torch.tensor(lengths, dtype=torch.int32)"),
    (dict(window=1.5), "window must be at least 1, a whole number, got 1.5"),
    (dict(window=0), "window must be at least 1"),
    (dict(lengths=torch.tensor([6], dtype=torch.int32)), "lengths must lie from q_len (1) to kv_len (5), got [6]"),
    (dict(lengths=torch.tensor([0], dtype=torch.int32)), "lengths must lie from q_len (1) to kv_len (5), got [0]"),
    (dict(lengths=torch.tensor([5])), "lengths must be int32 [1] on cpu"),
    (dict(lengths=torch.tensor([5, 5], dtype=torch.int32)), "lengths must be int32 [1] on cpu"),
]  # fmt: skip


@attends
@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_a_wrong_argument_is_named_with_its_value(attend, change, message, shapes_unchecked):
    good = dict(q=torch.zeros(1, 6, 1, 4), k=torch.zeros(1, 3, 5, 4), v=torch.zeros(1, 3, 5, 4))
    with pytest.raises(ValueError, match=re.escape(message)):
        attend(**good | change)


def test_with_as_many_kv_heads_as_heads_the_module_is_multi_head_attention():
    torch.manual_seed(0)
    layer = GroupedQueryAttention(24, 6, 6).double()
    oracle = torch.nn.MultiheadAttention(24, 6, bias=False, batch_first=True).double()
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.cat([layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight]))
        oracle.out_proj.weight.copy_(layer.o_proj.weight)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    expected, _ = oracle(x, x, x, attn_mask=~visible(5, 5), is_causal=True, need_weights=False)
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=0)


def test_with_one_kv_head_the_module_is_multi_query_attention():
    torch.manual_seed(0)
    layer = GroupedQueryAttention(24, 6, 1).double()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    q = (x @ layer.q_proj.weight.T).view(2, 5, 6, 4)
    k, v = x @ layer.k_proj.weight.T, x @ layer.v_proj.weight.T  # no head axis at all
    scores = torch.einsum("btrd,bsd->brts", q, k) / 2
    weights = scores.masked_fill(~visible(5, 5), float("-inf")).softmax(-1)
    expected = torch.einsum("brts,bsd->btrd", weights, v).flatten(2) @ layer.o_proj.weight.T
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=0)


def test_grouped_weights_copied_into_multi_head_attention_give_the_same_output():
    torch.manual_seed(0)
    gqa, mha = GroupedQueryAttention(24, 6, 3).double(), GroupedQueryAttention(24, 6, 6).double()
    with torch.no_grad():
        for name in ("q_proj", "o_proj"):
            getattr(mha, name).weight.copy_(getattr(gqa, name).weight)
        for name in ("k_proj", "v_proj"):
            heads_of = getattr(gqa, name).weight.view(3, 4, 24)
            getattr(mha, name).weight.copy_(heads_of.repeat_interleave(2, dim=0).flatten(0, 1))
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(gqa(x), mha(x), atol=1e-10, rtol=0)


def test_fewer_kv_heads_shrink_only_the_key_and_value_projections():
    mha, gqa = GroupedQueryAttention(1024, 16, 16, 128), GroupedQueryAttention(1024, 16, 8, 128)
    shapes = {
        name: [tuple(getattr(m, name).weight.shape) for m in (mha, gqa)]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    assert shapes == {
        "q_proj": [(2048, 1024), (2048, 1024)],
        "k_proj": [(2048, 1024), (1024, 1024)],
        "v_proj": [(2048, 1024), (1024, 1024)],
        "o_proj": [(1024, 2048), (1024, 2048)],
    }


def test_a_module_whose_width_does_not_divide_asks_for_head_dim():
    with pytest.raises(ValueError, match="give head_dim"):
        GroupedQueryAttention(25, 6, 3)


def test_torch_aligns_is_causal_top_left_which_is_why_it_is_not_used_with_a_cache():
    q, k, v = inputs(1, 1, 1, 5, batch_size=1)
    torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, is_causal=True), v[:, :, :1])
    assert not torch.allclose(sdpa_attention(q, k, v), v[:, :, :1])
