from dataclasses import replace

import pytest

from gqa_lab.config import ModelConfig
from gqa_lab.costs import SHAPES, kv_cache_bytes, n_parameters, weight_bytes_held, weight_bytes_read

TOKEN = dict(batch_size=1, kv_len=1, bytes_per_element=2)


@pytest.mark.parametrize(
    ("name", "expected"), [("deepseek-v3", 70_272), ("qwen2.5-72b", 327_680), ("llama-3.1-405b", 516_096)]
)
def test_bytes_per_token_are_those_of_arxiv_2505_09343_table_1(name, expected):
    assert kv_cache_bytes(SHAPES[name], **TOKEN) == expected


@pytest.mark.parametrize(
    ("name", "kib"),
    [("gpt-2", 36), ("smollm2-135m", 22.5), ("qwen3-0.6b", 112), ("llama-2-7b", 512), ("llama-3.1-8b", 128),
     ("llama-2-70b", 320), ("command-r-v01", 1280), ("falcon-7b", 8), ("phi-2", 320)],
)  # fmt: skip
def test_bytes_per_token_are_those_computed_by_hand(name, kib):
    assert kv_cache_bytes(SHAPES[name], **TOKEN) == kib * 1024


def test_a_sliding_window_and_grouping_multiply():
    mistral = SHAPES["mistral-7b-v0.1"]
    long = dict(batch_size=1, kv_len=32_768, bytes_per_element=2)
    assert kv_cache_bytes(mistral, **long) == 0.5 * 2**30
    assert kv_cache_bytes(replace(mistral, sliding_window=None), **long) == 4 * 2**30
    assert kv_cache_bytes(replace(mistral, n_kv_heads=32), **long) == 2 * 2**30


def test_a_hybrid_model_keeps_all_tokens_in_its_full_layers_only():
    gemma = SHAPES["gemma-3-27b"]
    kept = kv_cache_bytes(gemma, batch_size=1, kv_len=131_072, bytes_per_element=2)
    assert kept == 2 * 16 * 128 * 2 * (10 * 131_072 + 52 * 1024)
    assert kept / 2**30 == pytest.approx(10.4, abs=0.05)


@pytest.mark.parametrize(
    ("name", "held_gb", "read_gb"),
    [("llama-3.1-8b", 16.06, 15.01), ("llama-2-7b", 13.48, 13.21), ("smollm2-135m", 0.269, 0.269)],
)
def test_a_step_reads_all_weights_but_an_untied_table(name, held_gb, read_gb):
    assert weight_bytes_held(SHAPES[name], bytes_per_element=2) / 1e9 == pytest.approx(held_gb, rel=1e-3)
    assert weight_bytes_read(SHAPES[name], bytes_per_element=2) / 1e9 == pytest.approx(read_gb, rel=1e-3)


def test_every_shape_has_a_source_and_its_published_number_of_parameters():
    assert len(SHAPES) == 78
    for shape in SHAPES.values():
        assert shape.source
        if shape.params_billion is not None:
            assert n_parameters(shape) / 1e9 == pytest.approx(shape.params_billion, abs=6e-4)


def test_kinds_of_real_models():
    kinds = {name: SHAPES[name].kind for name in ("llama-2-7b", "llama-2-70b", "falcon-7b", "deepseek-v3")}
    assert kinds == {"llama-2-7b": "mha", "llama-2-70b": "gqa", "falcon-7b": "mqa", "deepseek-v3": "mla"}


def config(**changes) -> ModelConfig:
    sizes = dict(
        n_layers=2, d_model=24, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=32, vocab_size=50, max_seq_len=64,
        rope_theta=1e4, norm_eps=1e-5,
    )  # fmt: skip
    return ModelConfig(**sizes | changes)


def test_a_config_costs_what_its_sizes_say():
    windowed = dict(batch_size=3, kv_len=10, bytes_per_element=2)
    assert kv_cache_bytes(config(), **windowed) == 2 * 2 * 3 * 3 * 10 * 4 * 2
    assert kv_cache_bytes(config(sliding_window=8), **windowed) == 2 * 2 * 3 * 3 * 8 * 4 * 2
    tied, untied = config(tie_embeddings=True), config()
    read = [weight_bytes_read(c, bytes_per_element=2) for c in (tied, untied)]
    held = [weight_bytes_held(c, bytes_per_element=2) for c in (tied, untied)]
    assert read[0] == read[1] == held[0] == held[1] - 50 * 24 * 2


def test_what_is_not_known_is_said():
    with pytest.raises(ValueError, match="the number of parameters of Kimi-K2"):
        n_parameters(SHAPES["kimi-k2"])
    with pytest.raises(ValueError, match="which weights of Mixtral-8x7B-v0.1 a step reads is not known"):
        weight_bytes_read(SHAPES["mixtral-8x7b-v0.1"], bytes_per_element=2)


def test_negative_sizes_are_refused():
    with pytest.raises(ValueError, match="kv_len must be a whole number of at least 0, got -1"):
        kv_cache_bytes(SHAPES["llama-2-7b"], batch_size=1, kv_len=-1, bytes_per_element=2)


@pytest.mark.parametrize(
    ("shape", "change", "message"),
    [
        ("llama-2-70b", {}, r"shape is 'llama-2-70b'; take a ModelConfig or one of SHAPES"),
        (SHAPES["llama-2-70b"], {"kv_len": 1.5}, "kv_len must be a whole number of at least 0, got 1.5"),
        (SHAPES["llama-2-70b"], {"batch_size": True}, "batch_size must be a whole number of at least 0, got True"),
    ],
)
def test_what_is_no_model_or_no_number_is_refused(shape, change, message, shapes_unchecked):
    with pytest.raises(ValueError, match=message):
        kv_cache_bytes(shape, **dict(batch_size=1, kv_len=1, bytes_per_element=2) | change)
