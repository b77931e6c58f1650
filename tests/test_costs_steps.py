import math
from dataclasses import replace

import pytest

from gqa_lab.config import ModelConfig
from gqa_lab.costs import (
    GPUS,
    SHAPES,
    Gpu,
    attention_intensity,
    capacity_crossover,
    decode_flops,
    decode_step_s,
    kv_bytes_per_token,
    kv_cache_bytes,
    largest_batch,
    largest_context,
    n_parameters,
    prefill_flops,
    prefill_s,
    roofline_s,
    tokens_per_s_ceiling,
    traffic_crossover,
    weight_bytes_held,
    weight_bytes_read,
    with_kv_heads,
)

LLAMA = SHAPES["llama-3.1-8b"]
H100 = GPUS["h100-sxm"]


def config(**changes) -> ModelConfig:
    sizes = dict(
        n_layers=2, d_model=24, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=32, vocab_size=50, max_seq_len=64,
        rope_theta=1e4, norm_eps=1e-5,
    )  # fmt: skip
    return ModelConfig(**sizes | changes)


@pytest.mark.parametrize(
    ("name", "kib", "gib_8k", "gib_128k", "crossover"),
    [
        ("gpt-2", 36, 0.28, None, 6.7e3), ("smollm2-135m", 22.5, 0.18, None, 11.67e3), ("qwen3-0.6b", 112, 0.88, 14.0, 10.4e3),
        ("qwen2.5-0.5b", 12, 0.09, 1.5, 80e3), ("llama-2-7b", 512, 4.0, 64, 25.7e3), ("llama-3.1-8b", 128, 1.0, 16, 122.5e3),
        ("llama-2-70b", 320, 2.5, 40, 421e3), ("llama-3.1-405b", 504, 3.94, 63, 1.57e6), ("command-r-v01", 1280, 10, 160, 53e3),
        ("command-r-08-2024", 160, 1.25, 20, 394e3), ("falcon-7b", 8, 0.06, None, 1.69e6), ("deepseek-v3", 68.625, 0.54, 8.6, 19.1e6),
    ],
)  # fmt: skip
def test_sixteen_bits_cost_what_was_computed_by_hand(name, kib, gib_8k, gib_128k, crossover):
    shape = SHAPES[name]
    assert kv_bytes_per_token(shape, bytes_per_element=2) == kib * 1024
    for kv_len, gib in ((8192, gib_8k), (131_072, gib_128k)):
        kept = kv_cache_bytes(shape, batch_size=1, kv_len=kv_len, bytes_per_element=2) / 2**30
        assert gib is None or kept == pytest.approx(gib, abs=0.0051 if gib < 5 else 0.05)
    assert capacity_crossover(shape) == pytest.approx(crossover, rel=8e-3)


@pytest.mark.parametrize(
    ("name", "kv_len", "full", "windowed"),
    [("gemma-3-27b", 131_072, 62.0, 10.4), ("gpt-oss-20b", 131_072, 6.0, 3.0), ("mistral-7b-v0.1", 32_768, 4.0, 0.5)],
)
def test_windows_keep_what_was_computed_by_hand(name, kv_len, full, windowed):
    one = dict(batch_size=1, kv_len=kv_len, bytes_per_element=2)
    kept = [kv_cache_bytes(s, **one) / 2**30 for s in (replace(SHAPES[name], sliding_window=None), SHAPES[name])]
    assert kept == [pytest.approx(full), pytest.approx(windowed, abs=0.05)]


def test_llama_2_70b_by_hand():
    # k: 80 layers x 8 KV heads x 128 = 81,920 elements a token; with v 163,840; 2 bytes each: 327,680.
    # as MHA 64 / 8 = 8 times that. 100,000 tokens of four chats: 327,680 x 400,000 = 131.072 GB.
    # weights: tables 2 x 32,000 x 8,192; a layer 2 x 8,192 x 128 x 72 + 3 x 8,192 x 28,672; times 80.
    shape = SHAPES["llama-2-70b"]
    assert kv_bytes_per_token(with_kv_heads(shape, 64), bytes_per_element=2) == 8 * 327_680
    assert kv_cache_bytes(shape, batch_size=4, kv_len=100_000, bytes_per_element=2) == 131_072_000_000
    assert n_parameters(shape) == 2 * 32_000 * 8192 + 80 * (2 * 8192 * 128 * 72 + 3 * 8192 * 28_672) == 68_975_329_280


def test_mistral_7b_by_hand():
    # 32 layers x 8 x 128 x 2 x 2 bytes = 131,072 a token; its window stops at 4,096 of them: 0.5 GiB for ever,
    # which is less than its 14.5 GB of weights: no crossover at batch 1, and at batch 28 (15.03 GB) there is one.
    shape = SHAPES["mistral-7b-v0.1"]
    assert kv_bytes_per_token(shape, bytes_per_element=2) == 131_072
    assert capacity_crossover(shape) == math.inf == traffic_crossover(shape, batch_size=26)
    assert 0 < capacity_crossover(shape, batch_size=28) <= 4096


@pytest.mark.parametrize(("name", "held", "read"), [("llama-2-7b", 25_704, 25_204), ("llama-3.1-8b", 122_528, 114_512)])
def test_there_are_two_crossovers(name, held, read):
    assert (capacity_crossover(SHAPES[name]), traffic_crossover(SHAPES[name])) == (held, read)


@pytest.mark.parametrize("name", ["llama-2-70b", "smollm2-135m", "gemma-3-27b", "gemma-2-9b", "starcoder2-7b"])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_at_the_crossover_the_cache_is_the_last_that_is_no_larger_than_the_weights(name, batch_size):
    shape = SHAPES[name]
    weights, tokens = weight_bytes_held(shape, bytes_per_element=2), capacity_crossover(shape, batch_size=batch_size)
    cache = dict(batch_size=batch_size, bytes_per_element=2)
    if tokens == math.inf:
        assert kv_cache_bytes(shape, kv_len=10**9, **cache) <= weights
    else:
        assert kv_cache_bytes(shape, kv_len=tokens, **cache) <= weights
        assert kv_cache_bytes(shape, kv_len=tokens + 1, **cache) > weights


@pytest.mark.parametrize(("q_len", "less"), [(128, 0.103), (8192, 0.091), (131_072, 0.032)])
def test_fewer_kv_heads_hardly_shorten_the_prefill(q_len, less):
    mha, gqa = (prefill_flops(with_kv_heads(LLAMA, g), batch_size=1, q_len=q_len) for g in (32, 8))
    assert 1 - gqa / mha == pytest.approx(less, abs=5e-4)


@pytest.mark.parametrize("window", [None, 1, 3, 5, 100])
def test_flops_are_two_for_every_pair_that_is_seen_and_every_weight_that_is_met(window):
    shape, d = config(sliding_window=window), 4
    seen = [[s for s in range(7) if s <= t and (window is None or s > t - window)] for t in range(7)]
    layer = 24 * d * (6 + 3 + 3 + 6) + 3 * 24 * 32
    attention = [2 * 2 * 6 * d * len(keys) for keys in seen]
    assert prefill_flops(shape, batch_size=5, q_len=7) == 5 * (2 * (7 * 2 * layer + 50 * 24) + 2 * sum(attention))
    assert decode_flops(shape, batch_size=5, kv_len=7) == 5 * (2 * (2 * layer + 50 * 24) + 2 * attention[-1])
    keys = len({s for t in range(4, 7) for s in seen[t]})  # three new tokens over seven
    elements = 2 * 3 * keys * d + 2 * 3 * 6 * d
    assert attention_intensity(shape, q_len=3, kv_len=7, bytes_per_element=2) == sum(attention[4:]) / (2 * elements)


@pytest.mark.parametrize(("n_kv_heads", "at_100k"), [(32, 1), (8, 4), (1, 32)])
def test_one_token_does_as_many_flops_per_byte_as_query_heads_share_a_key(n_kv_heads, at_100k):
    shape = with_kv_heads(LLAMA, n_kv_heads)
    found = attention_intensity(shape, q_len=1, kv_len=100_000, bytes_per_element=2)
    assert found == pytest.approx(100_000 * at_100k / (at_100k + 100_000))  # S R / (R + S), arXiv 2505.21487 Table 1


def test_a_latent_cache_decodes_with_nearly_two_flops_per_byte_and_head():
    # 128 heads, each 2 x (576 + 512) FLOPs per cached token of 576 elements: 2 x 1,088 x 128 / (2 x 576) = 241.8
    found = attention_intensity(SHAPES["deepseek-v3"], q_len=1, kv_len=10**7, bytes_per_element=2)
    assert found == pytest.approx(241.8, abs=0.05)


@pytest.mark.parametrize(("batch_size", "mha_ms", "gqa_ms"), [(1, 5.8, 4.8), (32, 45.5, 14.7)])
def test_a_step_of_llama_on_an_h100_takes_at_least(batch_size, mha_ms, gqa_ms):
    step = dict(batch_size=batch_size, kv_len=8192)
    assert 1000 * decode_step_s(LLAMA, H100, **step) == pytest.approx(gqa_ms, abs=0.05)
    cache = kv_cache_bytes(with_kv_heads(LLAMA, 32), **step, bytes_per_element=2)
    same_weights = weight_bytes_read(LLAMA, bytes_per_element=2) + cache
    assert 1000 * roofline_s(H100, read_bytes=same_weights, flops=0) == pytest.approx(mha_ms, abs=0.05)
    # an MHA model also reads larger k_proj and v_proj: 32 x 2 x 4,096 x 128 x 24 x 2 bytes = 1.61 GB, 0.48 ms
    more = 1000 * decode_step_s(with_kv_heads(LLAMA, 32), H100, **step) - mha_ms
    assert more == pytest.approx(0.48, abs=0.06)


def test_a_step_is_bound_by_compute_only_where_no_cache_holds_it_back():
    tiny = config(n_layers=1, d_model=64, d_ff=512, max_seq_len=8)
    weights = weight_bytes_read(tiny, bytes_per_element=2)
    slow = Gpu(name="slow", memory_gb=1, bandwidth_gb_per_s=1, dense_16bit_tflops=0.001, source="made up")
    for batch_size in (1, 64):  # ridge 1: weights alone do 1 FLOP per byte at batch 1, 64 at batch 64
        flops = decode_flops(tiny, batch_size=batch_size, kv_len=1)
        cache = kv_cache_bytes(tiny, batch_size=batch_size, kv_len=1, bytes_per_element=2)
        longer = max((weights + cache) / 1e9, flops / 1e9)
        assert decode_step_s(tiny, slow, batch_size=batch_size, kv_len=1) == longer
    assert longer == flops / 1e9


def test_a_ceiling_is_the_batch_by_the_step_and_never_rises_above_bandwidth_by_cache():
    step = dict(kv_len=8192)
    by_batch = [tokens_per_s_ceiling(LLAMA, H100, batch_size=b, **step) for b in (1, 8, 64)]
    assert by_batch == sorted(by_batch)
    assert by_batch[1] == 8 / decode_step_s(LLAMA, H100, batch_size=8, **step)
    assert by_batch[-1] < 3350e9 / (8192 * 131_072)


def test_what_cannot_be_known_is_still_bounded_by_what_can():
    mac = GPUS["m4"]
    bytes_read = weight_bytes_read(LLAMA, bytes_per_element=0.5) + 8192 * 131_072 / 2
    step_s = decode_step_s(LLAMA, mac, batch_size=1, kv_len=8192, weight_bytes_per_element=0.5, kv_bytes_per_element=1)
    assert step_s == pytest.approx(bytes_read / 120e9)
    with pytest.raises(ValueError, match="no official 16-bit FLOP/s of Apple M4 are known here"):
        prefill_s(LLAMA, mac, batch_size=1, q_len=8)
    with pytest.raises(ValueError, match="the matrices of Mixtral-8x7B-v0.1 are not known here"):
        decode_step_s(SHAPES["mixtral-8x7b-v0.1"], H100, batch_size=1, kv_len=8)


def test_a_prefill_is_at_least_one_read_of_the_weights():
    short, long = (prefill_s(LLAMA, H100, batch_size=1, q_len=q_len) for q_len in (1, 8192))
    assert short == weight_bytes_read(LLAMA, bytes_per_element=2) / 3350e9
    assert long == prefill_flops(LLAMA, batch_size=1, q_len=8192) / 989e12
    assert prefill_s(LLAMA, H100, batch_size=1, q_len=8192, share_of_peak=0.5) == 2 * long
    with pytest.raises(ValueError, match="share_of_peak .1.5. must be at most 1"):
        prefill_s(LLAMA, H100, batch_size=1, q_len=8192, share_of_peak=1.5)


def test_what_fits_is_what_the_bytes_say():
    # 80 GB less 10%: 72 GB; less 16.06 GB of weights; 13.107 GB for 100,000 tokens of 131,072 bytes: 4.27
    sizes = dict(kv_len=100_000)
    assert largest_batch(LLAMA, H100, **sizes) == 4
    assert largest_batch(with_kv_heads(LLAMA, 32), H100, **sizes) == 1  # 54.33 GB left, 52.43 GB each
    assert largest_batch(LLAMA, H100, **sizes, kv_bytes_per_element=1) == 8
    assert largest_batch(LLAMA, H100, **sizes, free_share=0) == 4
    assert largest_batch(SHAPES["llama-2-70b"], H100, **sizes) == 0
    assert largest_context(SHAPES["llama-2-70b"], H100, batch_size=1) == 0
    assert largest_context(LLAMA, H100, batch_size=1) == 131_072  # its own limit
    fits = largest_context(LLAMA, H100, batch_size=8)
    left = 72e9 - weight_bytes_held(LLAMA, bytes_per_element=2)
    assert fits == left // (8 * 131_072) and fits < 131_072


def test_another_number_of_kv_heads_changes_the_weights_of_a_mixture_too():
    mixtral = SHAPES["mixtral-8x7b-v0.1"]
    more = 32 * 2 * 4096 * 128 * 24
    assert n_parameters(with_kv_heads(mixtral, 32)) - n_parameters(mixtral) == pytest.approx(more, abs=2)
    with pytest.raises(ValueError, match="keeps one latent vector per token"):
        with_kv_heads(SHAPES["deepseek-v2"], 8)
    assert with_kv_heads(config(), 2) == config(n_kv_heads=2)


def test_every_gpu_has_a_source_and_the_ridge_that_is_quoted_for_it():
    assert len(GPUS) == 28 and all(gpu.source for gpu in GPUS.values())
    quoted = {"t4": 203, "l4": 403, "rtx-3090": 76, "rtx-4090": 164, "a100-80-sxm": 153, "h100-sxm": 295, "h200": 206,
              "b200": 281, "mi300x": 247, "tpu-v5e": 240}  # fmt: skip
    assert {key: round(GPUS[key].ridge) for key in quoted} == quoted


@pytest.mark.parametrize(
    ("table", "asked", "meant"),
    [(SHAPES, "llama2-70b", "llama-2-70b"), (GPUS, "H100 SXM", "h100-sxm"), (SHAPES, "Mistral", "mistral")],
)
def test_an_unknown_name_gets_the_nearest(table, asked, meant):
    with pytest.raises(KeyError, match=f"'{asked}' is not known here; did you mean .*{meant}"):
        table[asked]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decode_step_s(LLAMA, H100, batch_size=0, kv_len=1), "batch_size must be a whole number of at least 1, got 0"),
        (lambda: prefill_flops(LLAMA, batch_size=1, q_len=0), "q_len must be a whole number of at least 1, got 0"),
        (lambda: attention_intensity(LLAMA, q_len=3, kv_len=2, bytes_per_element=2), "q_len .3. must be at most kv_len .2."),
        (lambda: largest_batch(LLAMA, H100, kv_len=0), "kv_len must be a whole number of at least 1, got 0"),
        (lambda: largest_batch(LLAMA, H100, kv_len=1, free_share=1), "free_share must be at least 0 and less than 1, got 1"),
        (lambda: capacity_crossover(LLAMA, weight_bytes_per_element=0), "weight_bytes_per_element must be a number greater than 0"),
        (lambda: traffic_crossover(LLAMA, kv_bytes_per_element=0), "kv_bytes_per_element must be a whole number of at least 1"),
        (lambda: with_kv_heads(LLAMA, 3), "n_heads .32. must be a multiple of n_kv_heads .3.; try 1, 2, 4, 8, 16 or 32"),
        (lambda: replace(H100, bandwidth_gb_per_s=-1), "bandwidth_gb_per_s must be a number greater than 0, got -1"),
    ],
)  # fmt: skip
def test_impossible_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
