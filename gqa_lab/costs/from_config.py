"""A `ModelShape` from a Hugging Face config.json: what its bytes depend on, for more families than our model runs."""

import json
from pathlib import Path
from typing import Any

from gqa_lab.costs.shapes import ModelShape

GATED = {  # model types whose MLP has three matrices
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi3"),
    *("granite", "cohere", "cohere2", "olmo2", "olmo3", "smollm3", "gpt_oss", "deepseek_v2", "deepseek_v3"),
}
PLAIN = {"gpt_neox", "phi", "starcoder2"}  # and two
TIED = {"gemma", "gemma2", "gemma3_text", "cohere", "cohere2"}  # where a config.json does not say tie_word_embeddings
MHA = {"llama", "gpt_neox", "phi", "phi3"}  # without num_key_value_heads, as many as num_attention_heads
DERIVED_HEAD_DIM = {  # without head_dim, hidden_size / num_attention_heads
    *("llama", "mistral", "mixtral", "qwen2", "phi3", "granite", "cohere", "olmo2", "gpt_neox", "phi", "starcoder2"),
}
ALL_WINDOWED = {"mistral", "mixtral", "phi3", "starcoder2"}  # a sliding_window is that of every layer
FULL_EVERY = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}  # one layer in so many has no window
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
OTHER_CACHES = {  # keys of caches that are not computed here
    *("num_kv_shared_layers", "global_head_dim", "num_global_key_value_heads", "attention_k_eq_v", "index_head_dim"),
    *("block_configs", "layers_block_type", "attn_layer_indices", "hybrid_override_pattern", "full_attention_interval"),
    *("multi_query", "num_kv_heads"),
}


def shape_from_config(config: str | Path | dict[str, Any]) -> ModelShape:
    """Returns the sizes that a config.json states, for `kv_cache_bytes` and its siblings.

    Families like Llama, with a latent cache (DeepSeek), with windows in some layers (Gemma), mixtures of experts;
    of a model with images, the part that writes. What would make the bytes wrong is refused by name.

    Args:
        config: the path of a config.json or of its folder, or its content.

    Raises:
        ValueError: for a key that is missing, a size that none can be, and a cache that is not computed here.

    Example:
        >>> shape = shape_from_config(dict(
        ...     model_type="llama", hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        ...     intermediate_size=1536, vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True))
        >>> from gqa_lab.costs import kv_bytes_per_token
        >>> kv_bytes_per_token(shape, bytes_per_element=2)
        23040
    """
    said, source = (config, "a config.json") if isinstance(config, dict) else _read(Path(config))
    outer = said
    if isinstance(said.get("text_config"), dict):
        said = said["text_config"]
    for key in OTHER_CACHES:
        if said.get(key):
            raise ValueError(
                f"config.json says {key} = {json.dumps(said[key])[:60]}: a cache that is not computed here"
            )
    family, latent = str(said.get("model_type")), bool(said.get("kv_lora_rank"))
    n_heads, window = _size(said, "num_attention_heads"), _window(said, family)
    n_experts = next((_size(said, key) for key in EXPERTS if said.get(key)), None)
    matrices = 3 if family in GATED else 2 if family in PLAIN else None
    return ModelShape(
        name=str(outer.get("_name_or_path") or family),
        n_layers=_size(said, "num_hidden_layers"),
        d_model=_size(said, "hidden_size"),
        n_heads=n_heads,
        n_kv_heads=n_heads if latent else _size(said, "num_key_value_heads", n_heads if family in MHA else None),
        head_dim=_size(said, "v_head_dim") if latent else _head_dim(said, family),
        d_ff=_size(said, "intermediate_size"),
        vocab_size=_size(said, "vocab_size"),
        max_seq_len=_size(said, "max_position_embeddings"),
        sliding_window=window,
        n_full_attention_layers=_full_layers(said, family, window),
        kv_lora_rank=_size(said, "kv_lora_rank") if latent else None,
        qk_rope_head_dim=_size(said, "qk_rope_head_dim") if latent else None,
        n_experts=n_experts,
        mlp_matrices=None if latent or n_experts else matrices,
        tie_embeddings=_tied(said, outer, family),
        params_billion=_mixture_billions(said, outer, family, n_experts)
        if matrices and (latent or n_experts)
        else None,
        source=source,
    )


def _read(path: Path) -> tuple[dict[str, Any], str]:
    file = path / "config.json" if path.is_dir() else path
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"cannot read {file}: {error.strerror}; name a config.json or the folder that has it"
        ) from None
    except ValueError:
        raise ValueError(f"{file} is no JSON") from None
    if not isinstance(said, dict):
        raise ValueError(f"{file} is no object {{...}} of keys and values")
    return said, str(file)


def _size(said: dict[str, Any], key: str, default: int | None = None) -> int:
    value = default if said.get(key) is None else said[key]
    if value is None:
        raise ValueError(f"config.json lacks {key}")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"config.json says {key} = {json.dumps(value)[:60]}, not a whole number of at least 1")
    return value


def _head_dim(said: dict[str, Any], family: str) -> int:
    if said.get("head_dim") is not None or family not in DERIVED_HEAD_DIM:
        return _size(said, "head_dim")
    d_model, n_heads = _size(said, "hidden_size"), _size(said, "num_attention_heads")
    if d_model % n_heads:
        raise ValueError(f"config.json lacks head_dim, and hidden_size ({d_model}) is no multiple of {n_heads} heads")
    return d_model // n_heads


def _window(said: dict[str, Any], family: str) -> int | None:
    if said.get("use_sliding_window") is False or (family.startswith("qwen") and not said.get("use_sliding_window")):
        return None
    key = "attention_chunk_size" if "chunked_attention" in (said.get("layer_types") or ()) else "sliding_window"
    return None if said.get(key) is None else _size(said, key)


def _full_layers(said: dict[str, Any], family: str, window: int | None) -> int | None:
    """Layers without a window, by the first of these that is stated: a list, a pattern, a number, the family."""
    kinds, n_layers = said.get("layer_types"), _size(said, "num_hidden_layers")
    if kinds is not None:
        other = set(map(str, kinds)) - {"full_attention", "sliding_attention", "chunked_attention"}
        if other or len(kinds) != n_layers:
            what = (
                f"layers of {', '.join(sorted(other))}" if other else f"{len(kinds)} layer_types for {n_layers} layers"
            )
            raise ValueError(f"config.json says {what}: not computed here")
        if window is None and set(kinds) != {"full_attention"}:
            raise ValueError("config.json lacks sliding_window, which some of its layer_types need")
        return None if window is None else kinds.count("full_attention")
    if window is None:
        return None
    if family.startswith("qwen"):
        return min(_size(said, "max_window_layers"), n_layers)
    if said.get("sliding_window_pattern") is not None or family in FULL_EVERY:
        return n_layers // _size(said, "sliding_window_pattern", FULL_EVERY.get(family))
    if family in ALL_WINDOWED:
        return 0
    raise ValueError(f"config.json says sliding_window = {window} and not for which layers; it lacks layer_types")


def _tied(said: dict[str, Any], outer: dict[str, Any], family: str) -> bool | None:
    for keys in (said, outer):
        if isinstance(keys.get("tie_word_embeddings"), bool):
            return keys["tie_word_embeddings"]
    return family in TIED if family in GATED | PLAIN else None


def _mixture_billions(said: dict, outer: dict, family: str, n_experts: int | None) -> float | None:
    """Parameters in billions of a mixture or of a model with a latent cache, without norms and biases."""
    if said.get("decoder_sparse_step", 1) != 1 or said.get("mlp_only_layers") or said.get("moe_layer_freq", 1) != 1:
        return None
    width, n_layers = _size(said, "hidden_size"), _size(said, "num_hidden_layers")
    dense_layers = n_layers if not n_experts else said.get("first_k_dense_replace") or 0
    dense = 3 * width * _size(said, "intermediate_size")
    experts = (n_experts or 0) + (said.get("n_shared_experts") or 0)
    expert = 3 * width * _size(said, "moe_intermediate_size", _size(said, "intermediate_size"))
    sparse = experts * expert + (n_experts or 0) * width  # and the router
    attention = n_layers * _attention_parameters(said, family)
    tables = (1 if _tied(said, outer, family) else 2) * _size(said, "vocab_size") * width
    return (tables + attention + dense_layers * dense + (n_layers - dense_layers) * sparse) / 1e9


def _attention_parameters(said: dict[str, Any], family: str) -> int:
    width, n_heads = _size(said, "hidden_size"), _size(said, "num_attention_heads")
    if not said.get("kv_lora_rank"):
        return 2 * width * _head_dim(said, family) * (n_heads + _size(said, "num_key_value_heads"))
    rank, rope, nope, value = (
        _size(said, key) for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    )
    queries = n_heads * (nope + rope)
    q_rank = said.get("q_lora_rank")
    q = q_rank * (width + queries) if q_rank else width * queries
    return q + width * (rank + rope) + rank * n_heads * (nope + value) + n_heads * value * width
