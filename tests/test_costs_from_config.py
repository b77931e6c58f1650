import json

import pytest

from gqa_lab.costs import SHAPES, kv_cache_bytes, n_parameters, shape_from_config, weight_bytes_read


def llama_like(model_type, n_layers, d_model, n_heads, n_kv_heads, d_ff, vocab_size, **more) -> dict:
    return {
        "model_type": model_type, "num_hidden_layers": n_layers, "hidden_size": d_model, "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads, "intermediate_size": d_ff, "vocab_size": vocab_size,
        "max_position_embeddings": 131072, **more,
    }  # fmt: skip


LATENT = dict(kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128)
CONFIGS = {
    "llama-2-7b": llama_like("llama", 32, 4096, 32, None, 11008, 32000, tie_word_embeddings=False),
    "llama-3.1-8b": llama_like("llama", 32, 4096, 32, 8, 14336, 128256, sliding_window=None),
    "smollm2-135m": llama_like("llama", 30, 576, 9, 3, 1536, 49152, tie_word_embeddings=True),
    "mistral-7b-v0.1": llama_like("mistral", 32, 4096, 32, 8, 14336, 32000, sliding_window=4096),
    "qwen2.5-0.5b": llama_like("qwen2", 24, 896, 14, 2, 4864, 151936, use_sliding_window=False, sliding_window=32768,
                               max_window_layers=21, tie_word_embeddings=True),
    "qwen3-0.6b": llama_like("qwen3", 28, 1024, 16, 8, 3072, 151936, head_dim=128, tie_word_embeddings=True),
    "gemma-2-9b": llama_like("gemma2", 42, 3584, 16, 8, 14336, 256000, head_dim=256, sliding_window=4096),
    "gemma-3-27b": {"model_type": "gemma3", "text_config": llama_like(
        "gemma3_text", 62, 5376, 32, 16, 21504, 262144, head_dim=128, sliding_window=1024, sliding_window_pattern=6)},
    "gpt-oss-20b": llama_like("gpt_oss", 24, 2880, 64, 8, 2880, 201088, head_dim=64, sliding_window=128,
                              num_local_experts=32, layer_types=["sliding_attention", "full_attention"] * 12),
    "mixtral-8x7b-v0.1": llama_like("mixtral", 32, 4096, 32, 8, 14336, 32000, num_local_experts=8, sliding_window=None),
    "qwen3-30b-a3b": llama_like("qwen3_moe", 48, 2048, 32, 4, 6144, 151936, head_dim=128, num_experts=128,
                                moe_intermediate_size=768, decoder_sparse_step=1, mlp_only_layers=[]),
    "deepseek-v2": llama_like("deepseek_v2", 60, 5120, 128, 128, 12288, 102400, **LATENT, q_lora_rank=1536,
                              n_routed_experts=160, n_shared_experts=2, moe_intermediate_size=1536, first_k_dense_replace=1),
    "deepseek-v3": llama_like("deepseek_v3", 61, 7168, 128, 128, 18432, 129280, **LATENT, q_lora_rank=1536,
                              n_routed_experts=256, n_shared_experts=1, moe_intermediate_size=2048, first_k_dense_replace=3),
    "starcoder2-7b": llama_like("starcoder2", 32, 4608, 36, 4, 18432, 49152, sliding_window=4096, tie_word_embeddings=True),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_json_costs_what_the_published_shape_costs(name):
    shape, published = shape_from_config(CONFIGS[name]), SHAPES[name]
    for kv_len in (1, 131_072):
        sizes = dict(batch_size=3, kv_len=kv_len, bytes_per_element=2)
        assert kv_cache_bytes(shape, **sizes) == kv_cache_bytes(published, **sizes)
    assert shape.kind == published.kind
    if published.params_billion:
        routers = 1e-3 * published.params_billion if published.n_experts else 6e-4  # the table leaves them out
        assert n_parameters(shape) / 1e9 == pytest.approx(published.params_billion, abs=routers)
    if published.mlp_matrices:
        assert weight_bytes_read(shape, bytes_per_element=2) == weight_bytes_read(published, bytes_per_element=2)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("deepseek-v2", 236), ("deepseek-v3", 671), ("gpt-oss-20b", 20.9)],
)  # arXiv 2405.04434 and 2412.19437, abstracts; gpt-oss model card (arXiv 2508.10925), table 1
def test_the_parameters_of_mixtures_are_those_their_papers_name(name, billions):
    assert n_parameters(shape_from_config(CONFIGS[name])) / 1e9 == pytest.approx(billions, rel=2e-3)


def test_a_file_or_its_folder_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["smollm2-135m"]))
    assert shape_from_config(tmp_path) == shape_from_config(str(tmp_path / "config.json"))
    assert shape_from_config(tmp_path).n_kv_heads == 3


def test_windows_of_some_layers_are_counted_in_every_spelling():
    qwen = CONFIGS["qwen2.5-0.5b"] | dict(use_sliding_window=True, sliding_window=512)
    assert shape_from_config(qwen).n_full_attention_layers == 21
    listed = CONFIGS["gemma-2-9b"] | dict(layer_types=["full_attention"] * 2 + ["sliding_attention"] * 40)
    assert shape_from_config(listed).n_full_attention_layers == 2
    chunked = llama_like("llama4_text", 4, 64, 4, 2, 64, 50, head_dim=16, attention_chunk_size=8192,
                         layer_types=["chunked_attention"] * 3 + ["full_attention"])  # fmt: skip
    assert (shape_from_config(chunked).sliding_window, shape_from_config(chunked).n_full_attention_layers) == (8192, 1)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama-3.1-8b", {"vocab_size": None}, "config.json lacks vocab_size"),
        ("llama-3.1-8b", {"num_hidden_layers": "32"}, 'num_hidden_layers = "32", not a whole number'),
        ("mistral-7b-v0.1", {"num_key_value_heads": None}, "config.json lacks num_key_value_heads"),
        ("qwen3-0.6b", {"head_dim": None}, "config.json lacks head_dim"),
        ("llama-3.1-8b", {"hidden_size": 4097}, "hidden_size .4097. is no multiple of 32 heads"),
        ("llama-3.1-8b", {"num_key_value_heads": 5}, "n_heads .32. must be a multiple of n_kv_heads .5."),
        ("llama-3.1-8b", {"sliding_window": 4096}, "says sliding_window = 4096 and not for which layers"),
        ("llama-3.1-8b", {"layer_types": ["linear_attention"] * 32}, "layers of linear_attention: not computed here"),
        ("gpt-oss-20b", {"sliding_window": None}, "lacks sliding_window, which some of its layer_types need"),
        ("gemma-2-9b", {"num_kv_shared_layers": 10}, "says num_kv_shared_layers = 10: a cache that is not computed here"),
        ("deepseek-v3", {"qk_rope_head_dim": None}, "config.json lacks qk_rope_head_dim"),
    ],
)  # fmt: skip
def test_what_would_make_the_bytes_wrong_is_refused_by_name(name, change, message):
    with pytest.raises(ValueError, match=message):
        shape_from_config(CONFIGS[name] | change)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot read .*nowhere.json: No such file"):
        shape_from_config(tmp_path / "nowhere.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is no JSON"):
        shape_from_config(tmp_path)
