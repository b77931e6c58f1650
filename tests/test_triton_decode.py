"""The decode kernels against the reference: on a GPU themselves, elsewhere in Triton's interpreter (see conftest.py)."""

import re

import numpy as np
import pytest
import torch

from gqa_lab import reference
from gqa_lab.attention import grouped_attention
from gqa_lab.cache import KVCache
from gqa_lab.config import ModelConfig
from gqa_lab.generate import generate
from gqa_lab.model import Transformer

pytest.importorskip("triton", reason="triton has no build for this system")

from gqa_lab.triton_decode import choose_splits, triton_decode_attention  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
NAN = float("nan")


def inputs(n_kv_heads, group_size, kv_len, head_dim, dtype=FP32, *, batch_size=3, scale=1.0, layout="bgsd"):
    """Random q, k, v on the device; `scale` multiplies the scores."""
    rng = np.random.default_rng(1)
    q_shape = (batch_size, n_kv_heads * group_size, 1, head_dim)
    kv_shape = (batch_size, n_kv_heads, kv_len, head_dim)
    q, k, v = (
        torch.from_numpy(rng.standard_normal(shape)).to(DEVICE, dtype) for shape in (q_shape, kv_shape, kv_shape)
    )
    return q * scale**0.5, lay_out(k * scale**0.5, layout), lay_out(v, layout)


def lay_out(x, layout):
    """The same numbers, stored otherwise; what a view leaves out is NaN."""
    batch_size, n_kv_heads, kv_len, head_dim = x.shape
    if layout == "bgsd":
        return x.contiguous()
    if layout == "bsgd":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    buffer = torch.full((batch_size, n_kv_heads, kv_len + 37, head_dim), NAN, dtype=x.dtype, device=x.device)
    buffer[:, :, :kv_len] = x
    return buffer[:, :, :kv_len]


def on_device(lengths):
    return None if lengths is None else torch.tensor(lengths, dtype=torch.int32, device=DEVICE)


def truth(q, k, v, lengths=None, window=None):
    arrays = [x.double().cpu().numpy() for x in (q, k, v)]
    lengths = None if lengths is None else np.array(lengths)
    return torch.from_numpy(reference.attention(*arrays, lengths=lengths, window=window))


class NewMemoryIsNaN:
    """What torch.empty returns is NaN inside (torch.utils.deterministic.fill_uninitialized_memory)."""

    def __enter__(self):
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *_):
        torch.use_deterministic_algorithms(False)


def test_new_memory_is_nan():
    with NewMemoryIsNaN():
        assert torch.empty(3, device=DEVICE).isnan().all() and torch.ones(2, device=DEVICE).new_empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def decode(q, k, v, lengths=None, window=None, n_splits=None):
    """The output, after all that must not be read was made NaN: hidden keys and values, and memory fresh from torch."""
    for b, length in enumerate(lengths or ()):
        k[b, :, length:], v[b, :, length:] = NAN, NAN
    if window is not None:
        for b in range(q.shape[0]):
            length = k.shape[2] if lengths is None else lengths[b]
            k[b, :, : max(0, length - window)], v[b, :, : max(0, length - window)] = NAN, NAN
    with NewMemoryIsNaN():
        out = triton_decode_attention(q, k, v, lengths=on_device(lengths), window=window, n_splits=n_splits)
    assert out.dtype == q.dtype and out.shape == q.shape and out.is_contiguous()
    return out.double().cpu()


# n_kv_heads, group_size, kv_len, head_dim, layout, lengths, window, n_splits. Tiles hold 32 (fp32) or 64 keys: there are
# contexts below, at and above their multiples, splits that get none, and groups from one head to several tiles of heads.
CASES = [
    (3, 1, 130, 64, "bgsd", None, None, 1),
    (2, 3, 130, 128, "bsgd", [130, 1, 65], None, 2),
    (3, 4, 200, 64, "prefix", [200, 64, 63], None, 5),
    (2, 7, 65, 64, "bsgd", None, None, 7),
    (3, 8, 129, 128, "prefix", [129, 129, 129], None, 2),
    (2, 16, 96, 64, "bgsd", [31, 32, 33], None, 5),
    (2, 64, 97, 64, "prefix", [97, 40, 3], None, 2),
    (2, 71, 70, 64, "bsgd", [70, 1, 66], None, 2),
    (1, 128, 66, 128, "bgsd", None, None, 2),
    (2, 3, 200, 64, "bgsd", None, 1, 5),
    (2, 4, 200, 64, "bsgd", [200, 100, 7], 70, 2),
    (3, 2, 130, 64, "prefix", [130, 64, 65], 64, 1),
    (3, 2, 130, 64, "bgsd", [130, 99, 65], 1000, 7),
    (2, 3, 1, 64, "bgsd", None, None, 2),
    (2, 3, 64, 64, "prefix", None, None, None),
]
cases = pytest.mark.parametrize(
    ("n_kv_heads", "group_size", "kv_len", "head_dim", "layout", "lengths", "window", "n_splits"), CASES, ids=str
)


@cases
def test_in_float32_it_equals_the_reference(
    n_kv_heads, group_size, kv_len, head_dim, layout, lengths, window, n_splits
):
    q, k, v = inputs(n_kv_heads, group_size, kv_len, head_dim, layout=layout)
    exact = truth(q, k, v, lengths, window)
    out = decode(q, k, v, lengths, window, n_splits)
    torch.testing.assert_close(out, exact, atol=5e-6, rtol=0)


def assert_errs_at_most_twice_as_much_as_the_plain_formula(q, k, v, lengths, window, n_splits):
    exact = truth(q, k, v, lengths, window)
    plain_error = (plain(q, k, v, lengths, window).double().cpu() - exact).abs().max()
    error = (decode(q, k, v, lengths, window, n_splits) - exact).abs().max()
    assert error <= 2 * plain_error + torch.finfo(q.dtype).eps / 4


def plain(q, k, v, lengths, window):
    """The formula as one writes it, every intermediate result in q's dtype."""
    keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ keys.mT / q.shape[3] ** 0.5
    ends = k.shape[2] if lengths is None else on_device(lengths)[:, None, None, None]
    s = torch.arange(k.shape[2], device=DEVICE)
    seen = (s < ends) & (s >= ends - (window or k.shape[2]))
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize(
    ("n_kv_heads", "group_size", "kv_len", "head_dim", "layout", "lengths", "window", "n_splits"),
    [
        (2, 3, 130, 128, "bsgd", None, None, 1),
        (2, 4, 200, 64, "prefix", [200, 128, 129], 150, 3),
        (1, 71, 66, 64, "bgsd", [65, 66, 64], None, 2),
    ],
    ids=str,
)
def test_in_16_bits_it_errs_at_most_twice_as_much_as_the_plain_formula(
    n_kv_heads, group_size, kv_len, head_dim, layout, lengths, window, n_splits, dtype, scale
):
    q, k, v = inputs(n_kv_heads, group_size, kv_len, head_dim, dtype, scale=scale, layout=layout)
    assert_errs_at_most_twice_as_much_as_the_plain_formula(q, k, v, lengths, window, n_splits)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("group_size", [1, 3, 4, 7, 8, 16, 33, 64, 71, 128])
@pytest.mark.parametrize(("head_dim", "scale"), [(64, 3.0), (128, 1.0)])
@pytest.mark.parametrize(
    ("kv_len", "layout", "lengths", "window", "n_splits"),
    [
        (1, "bgsd", None, None, 1),
        (257, "bsgd", [257, 64, 1], None, 5),
        (130, "prefix", [130, 129, 65], 66, 7),
        (191, "bsgd", None, 128, 2),
    ],
    ids=str,
)
def test_the_whole_grid(group_size, head_dim, kv_len, layout, lengths, window, n_splits, dtype, scale):
    q, k, v = inputs(2, group_size, kv_len, head_dim, dtype, scale=scale, layout=layout)
    if dtype is FP32:
        exact = truth(q, k, v, lengths, window)
        torch.testing.assert_close(decode(q, k, v, lengths, window, n_splits), exact, atol=1e-5, rtol=0)
    else:
        assert_errs_at_most_twice_as_much_as_the_plain_formula(q, k, v, lengths, window, n_splits)


@pytest.mark.parametrize("n_splits", [1, 2])
def test_scores_of_any_size_neither_overflow_nor_vanish(n_splits):
    q, k, v = inputs(2, 3, 70, 64)
    for offset in (-1e4, 1e4):  # every score is that far from 0, so 2 ** score is 0 or infinite
        q[..., 0], k[..., 0] = 8.0, offset
        exact = truth(q, k, v)
        torch.testing.assert_close(decode(q, k, v, n_splits=n_splits), exact, atol=1e-2, rtol=0)


def test_a_split_whose_scores_are_far_below_anothers_adds_nothing_and_breaks_nothing():
    q, k, v = inputs(2, 3, 192, 64)
    q[..., 0], k[..., 0] = 8.0, 0.0
    k[:, :, 64:128, 0] = 1000.0
    torch.testing.assert_close(decode(q, k, v, n_splits=3), truth(q, k, v), atol=1e-4, rtol=0)
    torch.testing.assert_close(decode(q, k, v, n_splits=1), truth(q, k, v), atol=1e-4, rtol=0)


def test_the_number_of_splits_may_exceed_what_the_second_kernel_takes_at_a_time():
    q, k, v = inputs(1, 3, 70, 64, batch_size=2)
    for n_splits in (32, 33, 70):
        torch.testing.assert_close(decode(q, k, v, n_splits=n_splits), truth(q, k, v), atol=5e-6, rtol=0)
    for largest in (slice(0, 40), slice(-40, None)):  # and all of them may have keys, the best ones first or last
        q, k, v = inputs(1, 1, 40 * 32 + 1, 64, batch_size=1)
        k[:, :, largest] *= 3
        torch.testing.assert_close(decode(q, k, v, n_splits=41), truth(q, k, v), atol=5e-6, rtol=0)


@pytest.mark.parametrize("n_splits", [1, 3])
def test_layouts_of_k_and_v_may_differ_and_queries_may_be_a_view(n_splits):
    q, k, v = inputs(3, 2, 100, 64)
    exact = truth(q, k, v)
    q = lay_out(q, "bsgd").expand(-1, -1, 5, -1)[:, :, 2:3]
    q = torch.cat([q, q], 1)[:, : q.shape[1]]  # strides of a wider tensor
    for layouts in (("bsgd", "prefix"), ("prefix", "bgsd")):
        views = [lay_out(x, layout) for x, layout in zip((k, v), layouts, strict=True)]
        torch.testing.assert_close(decode(q, *views, n_splits=n_splits), exact, atol=5e-6, rtol=0)


def test_lengths_may_be_a_view_too():
    q, k, v = inputs(2, 3, 40, 64)
    exact = truth(q, k, v, [7, 7, 7])
    out = triton_decode_attention(q, k, v, lengths=on_device([7]).expand(3))
    torch.testing.assert_close(out.double().cpu(), exact, atol=5e-6, rtol=0)
    out = triton_decode_attention(q, k, v, lengths=on_device([9, 0, 20, 0, 40, 0])[::2])
    torch.testing.assert_close(out.double().cpu(), truth(q, k, v, [9, 20, 40]), atol=5e-6, rtol=0)


def test_the_splits_share_only_the_keys_that_a_window_leaves(monkeypatch):
    from gqa_lab import triton_decode

    class Recorder:
        def __getitem__(self, grid):
            def launch(partial, lse, *args, **kwargs):
                assert partial.dtype == lse.dtype == torch.float32  # whatever the dtype of q
                seen.append(lse.isfinite().sum(-1).cpu())
                return combine[grid](partial, lse, *args, **kwargs)

            return launch

    combine, seen = triton_decode._combine_splits, []
    monkeypatch.setattr(triton_decode, "_combine_splits", Recorder())
    q, k, v = inputs(2, 3, 500, 64, FP16)
    decode(q, k, v, lengths=[500, 300, 130], window=128, n_splits=2)
    assert (seen[0] == 2).all()  # 128 keys are two tiles, wherever they stand


def test_without_a_number_of_splits_one_is_chosen_and_any_gives_the_same(monkeypatch):
    q, k, v = inputs(2, 3, 200, 64, batch_size=1)
    exact = truth(q, k, v)
    for resident in (2, 8, 264):
        monkeypatch.setattr("gqa_lab.triton_decode._resident", lambda device, n=resident: n)
        torch.testing.assert_close(decode(q, k, v), exact, atol=5e-6, rtol=0)


def test_the_inputs_are_left_alone():
    q, k, v = inputs(2, 3, 70, 64)
    lengths = on_device([70, 2, 65])
    before = [x.clone() for x in (q, k, v, lengths)]
    triton_decode_attention(q, k, v, lengths=lengths, window=66, n_splits=2)
    assert all(torch.equal(x, y) for x, y in zip((q, k, v, lengths), before, strict=True))


def test_permuting_heads_inside_a_group_permutes_the_output():
    q, k, v = inputs(3, 4, 70, 64)
    order = torch.arange(12).view(3, 4).flip(1).flatten()
    torch.testing.assert_close(decode(q[:, order], k, v), decode(q, k, v)[:, order], atol=0, rtol=0)


@pytest.mark.parametrize("long", ["batch", "head", "key"])
def test_a_cache_may_hold_more_than_2_to_the_31_numbers(long):
    q, k, v = inputs(3, 2, 130, 64, FP16, batch_size=3)
    plain_out = triton_decode_attention(q, k, v)
    try:  # of these 4.6 GB only what is touched becomes memory, on a CPU
        buffer = torch.empty(2**31 + 2**27, dtype=FP16, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f"no room: {error}")
    strides = {
        "batch": (2**30 + 128, 130 * 64, 64, 1),  # each stride fits 32 bits, and twice it does not
        "head": (130 * 64, 2**30 + 128, 64, 1),
        "key": (3 * 64, 64, 2**24 + 1024, 1),
    }[long]
    k = buffer.as_strided(k.shape, strides).copy_(k)
    v = buffer.as_strided(v.shape, strides, 2**16).copy_(v)
    torch.testing.assert_close(triton_decode_attention(q, k, v), plain_out, atol=0, rtol=0)


@torch.no_grad()
def test_a_model_answers_the_same_with_it_over_a_ragged_cache():
    torch.manual_seed(0)
    config = ModelConfig(
        n_layers=2, d_model=32, n_heads=6, n_kv_heads=3, head_dim=64, d_ff=32, vocab_size=50, max_seq_len=64,
        rope_theta=1e4, norm_eps=1e-5,
    )  # fmt: skip
    model = Transformer(config).eval().to(DEVICE)
    for prompts in ([[3, 1, 4], [1, 5, 9]], [[3, 1, 4], [9], [2, 6, 5, 3, 5]]):
        expected = list(generate(model, prompts, max_new_tokens=5, attend=grouped_attention))
        assert list(generate(model, prompts, max_new_tokens=5, attend=triton_decode_attention)) == expected
        assert len({tuple(answer) for answer in zip(*expected, strict=True)}) == len(prompts)


def test_views_of_a_growing_cache_are_read_in_place():
    cache = KVCache(2, 3, 80, 64, dtype=FP32, device=DEVICE)
    q, k, v = inputs(3, 2, 70, 64, batch_size=2)
    cache.k.fill_(NAN), cache.v.fill_(NAN)
    views = cache.append(k[:, :, :63], v[:, :, :63])
    for n in range(63, 67):
        torch.testing.assert_close(
            triton_decode_attention(q, *views).double().cpu(), truth(q, k[:, :, :n], v[:, :, :n]), atol=5e-6, rtol=0
        )
        views = cache.append(k[:, :, n : n + 1], v[:, :, n : n + 1])


def test_the_choice_of_splits_fills_the_gpu_and_stops_there():
    def programs(n_programs, kv_len, group_size=4):
        n = choose_splits(n_programs, -(-kv_len // 64), group_size, 264)
        return n, n * n_programs

    assert programs(8, 131_072) == (33, 264)  # one sequence, G = 8: exactly one wave of 2 * 132 programs
    assert programs(3 * 8, 32_768) == (11, 264)
    assert programs(1, 131_072, 32)[0] > 100  # multi-query attention: one program otherwise
    assert programs(64 * 8, 8192) == (1, 512)  # many sequences fill it by themselves
    assert programs(8, 64) == (1, 8)  # one tile cannot be cut
    assert 1 < programs(8, 1024)[0] <= 16  # never more splits than tiles
    assert programs(8, 2**23) == (33, 264)


def test_a_second_kernel_is_only_launched_where_it_pays():
    assert choose_splits(8, 2, 4, 264) == 1
    assert choose_splits(8, 16, 4, 264) > 1
    assert choose_splits(1, 64, 4, 264) == 22  # 64 would spare a program two tiles, and cost the second kernel two
    many_heads, few_heads = (choose_splits(200, 64, group_size, 264) for group_size in (128, 4))
    assert many_heads < few_heads  # 128 heads write as much as four tiles hold


def test_splits_are_chosen_from_shapes_alone(monkeypatch):
    asked = []
    monkeypatch.setattr("gqa_lab.triton_decode.choose_splits", lambda *sizes: asked.append(sizes) or 2)
    q, k, v = inputs(2, 3, 200, 64)
    for lengths in (None, [200, 200, 200], [1, 2, 3]):
        triton_decode_attention(q, k, v, lengths=on_device(lengths))
    assert len(set(asked)) == 1 and all(type(size) is int for size in asked[0])
    triton_decode_attention(q, k, v, window=20)
    assert asked[-1][1] == 1 < asked[0][1]  # but a window leaves fewer tiles to share


def zeros(*shape, dtype=FP32):
    return torch.zeros(shape, dtype=dtype, device=DEVICE)


WRONG = [
    (lambda: dict(q=zeros(1, 6, 2, 64)), "q_len (2) must be 1; for more new tokens use sdpa_attention"),
    (lambda: dict(q=zeros(1, 6, 1, 80), k=zeros(1, 3, 5, 80), v=zeros(1, 3, 5, 80)), "head_dim (80) must be 64 or 128; for others use grouped_attention"),
    (lambda: {n: zeros(1, h, s, 64, dtype=torch.float64) for n, h, s in (("q", 6, 1), ("k", 3, 5), ("v", 3, 5))}, "q is torch.float64; make it float16, bfloat16 or float32"),
    (lambda: dict(q=zeros(1, 6, 1, 128)[..., ::2]), "q has strides (768, 128, 128, 2); the last must be 1"),
    (lambda: dict(k=zeros(1, 3, 64, 5).mT), "k has strides (960, 320, 1, 5); the last must be 1"),
    (lambda: dict(v=zeros(1, 3, 64, 5).mT), "v has strides (960, 320, 1, 5); the last must be 1"),
    (lambda: dict(q=zeros(1, 6, 1, 64).requires_grad_()), "q requires a gradient, and this kernel has none; call it under torch.no_grad()"),
    (lambda: dict(n_splits=0), "n_splits must be at least 1, a whole number, got 0"),
    (lambda: dict(n_splits=2.0), "n_splits must be at least 1, a whole number, got 2.0"),
    (lambda: dict(n_splits=True), "n_splits must be at least 1, a whole number, got True"),
    (lambda: dict(window=0), "window must be at least 1"),
    (lambda: dict(q=zeros(1, 5, 1, 64)), "n_heads (5) must be a multiple of n_kv_heads (3); try"),
    (lambda: dict(v=zeros(1, 3, 4, 64)), "k has shape [1, 3, 5, 64] and v [1, 3, 4, 64]"),
    (lambda: dict(lengths=zeros(1, dtype=torch.int64)), "lengths must be int32 [1]"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[m for _, m in WRONG])
def test_a_wrong_argument_is_named_with_its_value(change, message, shapes_unchecked):
    good = dict(q=zeros(1, 6, 1, 64), k=zeros(1, 3, 5, 64), v=zeros(1, 3, 5, 64))
    with pytest.raises(ValueError, match=re.escape(message)):
        triton_decode_attention(**good | change())


@pytest.mark.skipif(DEVICE == "cuda", reason="the values of lengths are trusted on a GPU, where a look would wait")
@pytest.mark.parametrize("length", [0, 6])
def test_lengths_out_of_range_are_refused_on_a_cpu(length):
    with pytest.raises(ValueError, match="lengths must lie from q_len"):
        triton_decode_attention(zeros(1, 6, 1, 64), *[zeros(1, 3, 5, 64)] * 2, lengths=on_device([length]))


def test_a_cpu_without_the_interpreter_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr("gqa_lab.triton_decode.INTERPRETED", False)
    q, k, v = (x.cpu() for x in inputs(2, 3, 5, 64))
    with pytest.raises(ValueError, match="q is on cpu: set TRITON_INTERPRET=1 before importing, or use grouped_att"):
        triton_decode_attention(q, k, v)


def test_where_gradients_are_off_weights_that_could_have_them_are_welcome():
    q, k, v = inputs(2, 3, 5, 64)
    with torch.no_grad():
        triton_decode_attention(q.requires_grad_(), k, v)
