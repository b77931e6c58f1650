"""What a Hugging Face config.json says, as a `ModelConfig`; what our model would ignore is refused by name."""

import json
import math
from typing import Any

from gqa_lab.config import ModelConfig

WINDOW_KEYS = {  # the model types that we compute, and what each says about a sliding window
    "llama": set(),
    "mistral": {"sliding_window"},
    "qwen2": {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"},
    "qwen3": {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"},
}
READ = {  # keys of config.json that are used below
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings"),
}
SILENT = {  # keys that say nothing about the logits
    *("_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "transformers_version"),
    *("attention_dropout", "initializer_range", "pretraining_tp", "use_cache", "problem_type", "id2label"),
    *("label2id", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "tokenizer_class"),
    *("output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward", "is_llama_config"),
    *("_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "transformers.js_config"),
    *("max_sequence_length", "unsloth_fixed", "unsloth_version"),
}
NEUTRAL = {  # keys that are harmless at this value only
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "use_mrope": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}
ROPE_KEYS = {  # the types of RoPE that we compute, and what each of them says
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}
MAX_HEAD_DIM = 4096  # far above any model: what a silly number could allocate before the tensors refute it


def check_settings(said: dict[str, Any]) -> None:
    """Raises `ValueError` for anything in a config.json that our model would ignore, by name. null says nothing."""
    model_type = said.get("model_type")
    if not isinstance(model_type, str) or model_type not in WINDOW_KEYS:
        raise ValueError(f"config.json says model_type = {_short(model_type)}")
    for key, value in said.items():
        known = key in READ or key in SILENT or key in WINDOW_KEYS[model_type]
        if not known and value is not None and value != NEUTRAL.get(key):
            raise ValueError(f"config.json says {key} = {_short(value)}, which our model would ignore")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def model_config(said: dict[str, Any]) -> ModelConfig:
    """Returns the sizes that a config.json states.

    Without num_key_value_heads or head_dim they are H and C / H, and the shapes of the tensors must bear it out.

    Raises:
        ValueError: for a size that is missing or that no model can have, for another type of RoPE, and for a
            window that only some layers have.
    """
    n_heads, d_model = _size(said, "num_attention_heads"), _size(said, "hidden_size")
    head_dim = _size(said, "head_dim", d_model // n_heads)
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"head_dim is {head_dim}; no model has more than {MAX_HEAD_DIM}")
    max_seq_len = _size(said, "max_position_embeddings")
    rope_theta, rope_scaling = _rope(said, head_dim, max_seq_len)
    return ModelConfig(
        n_layers=_size(said, "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=_size(said, "num_key_value_heads", n_heads),
        head_dim=head_dim,
        d_ff=_size(said, "intermediate_size"),
        vocab_size=_size(said, "vocab_size"),
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
        norm_eps=_number(said, "rms_norm_eps"),
        rope_scaling=rope_scaling,
        sliding_window=_window(said),
        tie_embeddings=_flag(said, "tie_word_embeddings"),
        attention_bias=said["model_type"] == "qwen2",
        qk_norm=said["model_type"] == "qwen3",
    )


def _number(said: dict[str, Any], key: str, default: int | float | None = None) -> int | float:
    value = default if said.get(key) is None else said[key]
    if value is None:
        raise ValueError(f"config.json lacks {key}")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"config.json says {key} = {_short(value)}, not a number greater than 0")
    return value


def _size(said: dict[str, Any], key: str, default: int | None = None) -> int:
    value = _number(said, key, default)
    if not isinstance(value, int):
        raise ValueError(f"config.json says {key} = {value}, not a whole number")
    return value


def _flag(said: dict[str, Any], key: str) -> bool:
    value = said.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"config.json says {key} = {_short(value)}, not true or false")
    return value


def _window(said: dict[str, Any]) -> int | None:
    """Returns how many latest tokens a query sees, itself included, or None for all.

    Source: `sliding_window_overlay` in transformers' masking_utils.py: a query sees `kv_idx > q_idx - sliding_window`.
    """
    model_type, window = said["model_type"], None
    if model_type == "mistral" or (model_type != "llama" and _flag(said, "use_sliding_window")):
        if "sliding_window" not in said:
            raise ValueError("config.json lacks sliding_window; a model without a window says null")
        window = None if said["sliding_window"] is None else _size(said, "sliding_window")
    if model_type in ("llama", "mistral"):
        return window
    kinds = _layer_kinds(said, window)
    if kinds != {"full_attention" if window is None else "sliding_attention"} and kinds != {"full_attention"}:
        raise ValueError(
            f"config.json gives its layers different kinds of attention, {', '.join(sorted(kinds))} (layer_types, "
            "or the first max_window_layers)"
        )
    return window if kinds == {"sliding_attention"} else None


def _layer_kinds(said: dict[str, Any], window: int | None) -> set[str]:
    """Returns the kinds of attention that the layers of a Qwen model have, as its configuration class derives them."""
    n_layers, kinds = _size(said, "num_hidden_layers"), said.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != n_layers or not all(isinstance(kind, str) for kind in kinds):
            raise ValueError(
                f"config.json says layer_types = {_short(kinds)}, not one name for each of {n_layers} layers"
            )
        return set(kinds)
    if window is None:
        return {"full_attention"}
    n_full = 0 if said.get("max_window_layers") == 0 else _size(said, "max_window_layers")
    return ({"full_attention"} if n_full else set()) | ({"sliding_attention"} if n_full < n_layers else set())


def _rope(said: dict[str, Any], head_dim: int, max_seq_len: int) -> tuple[int | float, tuple[float, ...] | None]:
    """Returns the base of the rotary frequencies and what each of them is divided by.

    transformers 5 writes both into `rope_parameters`, before it `rope_theta` stood beside `rope_scaling`.
    """
    rope = said.get("rope_scaling") or said.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"config.json says RoPE is {_short(rope)}, not an object {{...}}")
    rope = {"rope_theta": said.get("rope_theta", 10000.0), "rope_type": rope.get("type", "default")} | rope
    kind, theta = rope["rope_type"], _number(rope, "rope_theta")
    if not isinstance(kind, str) or kind not in ROPE_KEYS:
        raise ValueError(f"config.json says rope_type = {_short(kind)}")
    for key, value in rope.items():
        if key not in ROPE_KEYS[kind] | {"type", "rope_type", "rope_theta"} and value != NEUTRAL.get(key):
            raise ValueError(f"config.json says {key} = {_short(value)} for RoPE of type {kind}, which we would ignore")
    if kind == "default":
        return theta, None
    factor = _number(rope, "factor")
    if kind == "linear":
        return theta, (float(factor),) * (head_dim // 2)
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    if not low < high:
        raise ValueError(f"low_freq_factor ({low}) must be less than high_freq_factor ({high})")
    trained_len = _number(rope, "original_max_position_embeddings", max_seq_len)
    return theta, _llama3_divisors(theta, head_dim, factor, low, high, trained_len)


def _llama3_divisors(theta, head_dim, factor, low, high, trained_len) -> tuple[float, ...]:
    """Returns what Llama 3.1 divides each frequency by: 1 for fast ones, `factor` for slow ones, smooth in between.

    A pair that turns at least `high` times over the length of training is left alone; one that turns at most `low`
    times is slowed by the whole factor.

    Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils.py.
    """
    divisors = []
    for i in range(0, head_dim, 2):
        turns = trained_len * theta ** (-i / head_dim) / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - kept) / factor + kept))
    return tuple(divisors)
