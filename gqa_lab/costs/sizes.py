"""What a model *keeps*, in bytes: its cache and its weights."""

from gqa_lab.config import ModelConfig
from gqa_lab.costs.shapes import ModelShape, Shape, check_shape, check_whole, layers_by_window, name_of


def kv_cache_bytes(shape: Shape, *, batch_size: int, kv_len: int, bytes_per_element: int) -> int:
    """Returns the bytes of keys and values that decoding keeps: 2 · L · B · G · S · D · bytes per element.

    A layer with a sliding window keeps at most the window; a latent cache (MLA) keeps one vector per token
    instead of G keys and values. The number of *query* heads appears nowhere.

    Args:
        shape: a `ModelConfig` or one of `SHAPES`.
        batch_size: sequences (B).
        kv_len: tokens per sequence (S).
        bytes_per_element: 2 for float16 and bfloat16, 4 for float32.

    Returns:
        Bytes over all layers.

    Example:
        >>> from gqa_lab.costs import SHAPES
        >>> kv_cache_bytes(SHAPES["llama-2-70b"], batch_size=1, kv_len=1, bytes_per_element=2)
        327680
        >>> kv_cache_bytes(SHAPES["deepseek-v3"], batch_size=1, kv_len=1, bytes_per_element=2)
        70272

    Source: for these two numbers, DeepSeek-AI 2025 (arXiv 2505.09343) Table 1, which lists 70.272 KB for
        DeepSeek-V3 and 327.680 KB for Qwen2.5-72B, a model with the KV heads, layers and head_dim of LLaMA 2 70B.
    """
    check_shape(shape)
    check_whole(0, batch_size=batch_size, kv_len=kv_len, bytes_per_element=bytes_per_element)
    kept = sum(n_layers * min(kv_len, window or kv_len) for n_layers, window in layers_by_window(shape))
    return batch_size * kept * kv_elements(shape) * bytes_per_element


def kv_bytes_per_token(shape: Shape, *, bytes_per_element: int) -> int:
    """Returns the bytes that one token leaves in all layers, as long as no window is full.

    Args:
        shape: a `ModelConfig` or one of `SHAPES`.
        bytes_per_element: 2 for float16 and bfloat16, 1 for an 8-bit cache (its scales not counted).

    Example:
        >>> from gqa_lab.costs import SHAPES
        >>> kv_bytes_per_token(SHAPES["llama-3.1-70b"], bytes_per_element=2) // 1024      # KiB; Llama-2-7B: 512
        320
    """
    return kv_cache_bytes(shape, batch_size=1, kv_len=1, bytes_per_element=bytes_per_element)


def n_parameters(shape: Shape) -> int:
    """Returns the number of weights: exact for a `ModelConfig`; for one of `SHAPES` without norms and biases.

    Raises:
        ValueError: for a published model whose count is not known.

    Example:
        >>> from gqa_lab.costs import SHAPES
        >>> n_parameters(SHAPES["llama-3.1-8b"]) / 1e9
        8.029995008
    """
    if isinstance(shape, ModelShape) and shape.mlp_matrices is None:
        if shape.params_billion is None:
            raise ValueError(f"the number of parameters of {shape.name} is not known here; use a ModelConfig")
        return round(shape.params_billion * 1e9)
    tables = table_parameters(shape) * (1 if shape.tie_embeddings else 2)
    total = tables + matrix_parameters(shape)
    return total + _norms_and_biases(shape) if isinstance(shape, ModelConfig) else total


def weight_bytes_held(shape: Shape, *, bytes_per_element: int | float) -> int:
    """Returns the bytes of all weights in memory.

    Example:
        >>> from gqa_lab.costs import SHAPES
        >>> weight_bytes_held(SHAPES["llama-3.1-8b"], bytes_per_element=2) / 1e9      # GB
        16.059990016
    """
    return round(n_parameters(shape) * bytes_per_element)


def weight_bytes_read(shape: Shape, *, bytes_per_element: int | float) -> int:
    """Returns the bytes of weights that one decode step reads: all but an untied embedding table.

    A step looks up one row of that table per sequence. Tied, the same table is the output matrix, and is read.

    Raises:
        ValueError: for a mixture of experts, whose step reads only some of them, or where tying is unknown.

    Example:
        >>> from gqa_lab.costs import SHAPES
        >>> weight_bytes_read(SHAPES["llama-3.1-8b"], bytes_per_element=2) / 1e9      # GB
        15.009316864
    """
    if getattr(shape, "n_experts", None) or shape.tie_embeddings is None:
        raise ValueError(f"which weights of {shape.name} a step reads is not known here (experts or tying)")
    unread = 0 if shape.tie_embeddings else table_parameters(shape)
    return round((n_parameters(shape) - unread) * bytes_per_element)


def kv_elements(shape: Shape) -> int:
    """Returns the elements that one token leaves in one layer."""
    if getattr(shape, "kv_lora_rank", None):
        return shape.kv_lora_rank + shape.qk_rope_head_dim
    return 2 * shape.n_kv_heads * shape.head_dim


def table_parameters(shape: Shape) -> int:
    """Returns the size of the embedding table, which is also that of the output matrix."""
    return shape.vocab_size * shape.d_model


def matrix_parameters(shape: Shape) -> int:
    """Returns the parameters of all matrices between embedding and output.

    q_proj and o_proj span all query heads, k_proj and v_proj only the KV heads.

    Raises:
        ValueError: for a mixture of experts or a latent cache, whose matrices are others.
    """
    mlp_matrices = getattr(shape, "mlp_matrices", 3)
    if mlp_matrices is None:
        raise ValueError(f"the matrices of {name_of(shape)} are not known here (experts, or a latent cache)")
    attention = 2 * shape.d_model * shape.head_dim * (shape.n_heads + shape.n_kv_heads)
    return shape.n_layers * (attention + mlp_matrices * shape.d_model * shape.d_ff)


def _norms_and_biases(config: ModelConfig) -> int:
    biases = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim if config.attention_bias else 0
    head_norms = 2 * config.head_dim if config.qk_norm else 0
    return config.n_layers * (2 * config.d_model + biases + head_norms) + config.d_model
