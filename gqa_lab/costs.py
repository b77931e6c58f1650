"""What we *predict*: integers in, bytes out. No torch, no measurement; those are the profiler's.

Units are in the names: `_bytes` are bytes, 1 GB is 10**9 bytes and 1 GiB is 2**30. Every function takes a
`ModelConfig` or one of `SHAPES`.
"""

import csv
from dataclasses import dataclass, fields
from importlib import resources

from gqa_lab.config import ModelConfig, attention_kind, check_heads


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a published model that its costs depend on, whether or not this package can run it.

    Args:
        name: as published.
        n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size, max_seq_len: as in `ModelConfig`.
        sliding_window: tokens that a windowed layer keeps, or None.
        n_full_attention_layers: layers without that window; None means all of them.
        kv_lora_rank, qk_rope_head_dim: with multi-head latent attention (MLA), the two parts of what a token
            leaves per layer; else None.
        n_experts: experts of a mixture, or None.
        mlp_matrices: 3 with a gated MLP, 2 without; None where the published parameters are not this simple.
        tie_embeddings: the output matrix is the embedding table; None where unknown.
        params_billion: parameters as counted by the source, without norms and biases; None where unknown.
        source: where the numbers were read.
        notes: what to know about them.
    """

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    max_seq_len: int
    sliding_window: int | None = None
    n_full_attention_layers: int | None = None
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    n_experts: int | None = None
    mlp_matrices: int | None = None
    tie_embeddings: bool | None = None
    params_billion: float | None = None
    source: str
    notes: str = ""

    def __post_init__(self):
        check_heads(self.n_heads, self.n_kv_heads)

    @property
    def group_size(self) -> int:
        """R = H // G, the query heads that share one KV head."""
        return self.n_heads // self.n_kv_heads

    @property
    def kind(self) -> str:
        """`"mha"`, `"gqa"`, `"mqa"`, or `"mla"` for a latent cache."""
        return "mla" if self.kv_lora_rank else attention_kind(self.n_heads, self.n_kv_heads)


Shape = ModelShape | ModelConfig


def _read_shapes() -> dict[str, ModelShape]:
    text = resources.files("gqa_lab").joinpath("data/models.csv").read_text(encoding="utf-8")
    whole = {f.name for f in fields(ModelShape)} - {
        "name",
        "source",
        "notes",
        "tie_embeddings",
        "params_billion",
    }
    shapes = {}
    for row in csv.DictReader(text.splitlines()):
        key = row.pop("key")
        values = {name: int(text) for name, text in row.items() if name in whole and text}
        values["tie_embeddings"] = {"yes": True, "no": False, "": None}[row["tie_embeddings"]]
        values["params_billion"] = float(row["params_billion"]) if row["params_billion"] else None
        shapes[key] = ModelShape(name=row["name"], source=row["source"], notes=row["notes"], **values)
    return shapes


SHAPES: dict[str, ModelShape] = _read_shapes()
"""78 published models by name, e.g. `SHAPES["llama-2-70b"]`; each with its source."""


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
        >>> kv_cache_bytes(SHAPES["llama-2-70b"], batch_size=1, kv_len=1, bytes_per_element=2)
        327680
        >>> kv_cache_bytes(SHAPES["deepseek-v3"], batch_size=1, kv_len=1, bytes_per_element=2)
        70272

    Source: for these two numbers, DeepSeek-AI 2025 (arXiv 2505.09343) Table 1, which lists 70.272 KB for
        DeepSeek-V3 and 327.680 KB for Qwen2.5-72B, a model with the KV heads, layers and head_dim of LLaMA 2 70B.
    """
    _check_shape(shape)
    for name, value in (
        ("batch_size", batch_size),
        ("kv_len", kv_len),
        ("bytes_per_element", bytes_per_element),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")
    window = shape.sliding_window
    full_layers = getattr(shape, "n_full_attention_layers", None)
    if full_layers is None:
        full_layers = 0 if window else shape.n_layers
    kept = full_layers * kv_len + (shape.n_layers - full_layers) * min(kv_len, window or kv_len)
    return batch_size * kept * _kv_elements(shape) * bytes_per_element


def _check_shape(shape: Shape) -> None:
    if not isinstance(shape, Shape):
        raise ValueError(f"shape is {shape!r}; take a ModelConfig or one of SHAPES, such as SHAPES['llama-2-70b']")


def n_parameters(shape: Shape) -> int:
    """Returns the number of weights: exact for a `ModelConfig`; for one of `SHAPES` without norms and biases.

    Raises:
        ValueError: for a published model whose count is not known.

    Example:
        >>> n_parameters(SHAPES["llama-3.1-8b"]) / 1e9
        8.029995008
    """
    if isinstance(shape, ModelShape) and shape.mlp_matrices is None:
        if shape.params_billion is None:
            raise ValueError(f"the number of parameters of {shape.name} is not known here; use a ModelConfig")
        return round(shape.params_billion * 1e9)
    tables = _table_parameters(shape) * (1 if shape.tie_embeddings else 2)
    mlp_matrices = getattr(shape, "mlp_matrices", 3)
    layer = _attention_parameters(shape) + mlp_matrices * shape.d_model * shape.d_ff
    total = tables + shape.n_layers * layer
    return total + _norms_and_biases(shape) if isinstance(shape, ModelConfig) else total


def weight_bytes_held(shape: Shape, *, bytes_per_element: int | float) -> int:
    """Returns the bytes of all weights in memory.

    Example:
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
        >>> weight_bytes_read(SHAPES["llama-3.1-8b"], bytes_per_element=2) / 1e9      # GB
        15.009316864
    """
    if getattr(shape, "n_experts", None) or shape.tie_embeddings is None:
        raise ValueError(f"which weights of {shape.name} a step reads is not known here (experts or tying)")
    unread = 0 if shape.tie_embeddings else _table_parameters(shape)
    return round((n_parameters(shape) - unread) * bytes_per_element)


def _kv_elements(shape: Shape) -> int:
    """Elements that one token leaves in one layer."""
    if getattr(shape, "kv_lora_rank", None):
        return shape.kv_lora_rank + shape.qk_rope_head_dim
    return 2 * shape.n_kv_heads * shape.head_dim


def _table_parameters(shape: Shape) -> int:
    return shape.vocab_size * shape.d_model


def _attention_parameters(shape: Shape) -> int:
    """q_proj and o_proj span all query heads, k_proj and v_proj only the KV heads."""
    return 2 * shape.d_model * shape.head_dim * (shape.n_heads + shape.n_kv_heads)


def _norms_and_biases(config: ModelConfig) -> int:
    biases = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim if config.attention_bias else 0
    head_norms = 2 * config.head_dim if config.qk_norm else 0
    return config.n_layers * (2 * config.d_model + biases + head_norms) + config.d_model
