"""What *is*: the published models, each with its source, and one of them with another number of KV heads."""

import math
from dataclasses import dataclass, fields, replace

from gqa_lab.config import ModelConfig, attention_kind, check_heads
from gqa_lab.costs.catalogue import Catalogue, read_table


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a published model that its costs depend on, whether or not this package can run it.

    Args:
        name: as published.
        n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size, max_seq_len: as in `ModelConfig`.
        sliding_window: tokens that a windowed layer keeps, or None.
        n_full_attention_layers: layers without that window; None means none of them where there is one.
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


def _read_shapes() -> Catalogue[ModelShape]:
    other = {"name", "source", "notes", "tie_embeddings", "params_billion"}
    whole = {f.name for f in fields(ModelShape)} - other
    shapes = Catalogue()
    for row in read_table("models"):
        values = {name: int(text) for name, text in row.items() if name in whole and text}
        values["tie_embeddings"] = {"yes": True, "no": False, "": None}[row["tie_embeddings"]]
        values["params_billion"] = float(row["params_billion"]) if row["params_billion"] else None
        shapes[row["key"]] = ModelShape(name=row["name"], source=row["source"], notes=row["notes"], **values)
    return shapes


SHAPES: Catalogue[ModelShape] = _read_shapes()
"""78 published models by name, e.g. `SHAPES["llama-2-70b"]`; each with its source."""


def with_kv_heads(shape: Shape, n_kv_heads: int) -> Shape:
    """Returns the same model with `n_kv_heads` KV heads: a smaller or larger cache, k_proj and v_proj; nothing else.

    A published study usually widens the MLP by as much as these projections lost; this function does not.

    Args:
        shape: a `ModelConfig` or one of `SHAPES`.
        n_kv_heads: a divisor of its `n_heads`.

    Raises:
        ValueError: for a number that does not divide `n_heads`, and for a latent cache (MLA), which has no KV heads.

    Example:
        >>> with_kv_heads(SHAPES["llama-2-70b"], 64).kind
        'mha'
        >>> with_kv_heads(SHAPES["smollm2-135m"], 4)
        Traceback (most recent call last):
        ValueError: n_heads (9) must be a multiple of n_kv_heads (4); try 1, 3 or 9
    """
    check_shape(shape)
    if shape.kind == "mla":
        raise ValueError(f"{name_of(shape)} keeps one latent vector per token (MLA), whatever n_kv_heads would be")
    changed = replace(shape, n_kv_heads=n_kv_heads)
    if getattr(shape, "params_billion", None) is None:
        return changed
    more = 2 * shape.n_layers * shape.d_model * shape.head_dim * (n_kv_heads - shape.n_kv_heads)
    return replace(changed, params_billion=shape.params_billion + more / 1e9)


def name_of(shape: Shape) -> str:
    """Returns the name of a published model, or what to call a `ModelConfig`, which has none."""
    return shape.name if isinstance(shape, ModelShape) else "this config"


def layers_by_window(shape: Shape) -> tuple[tuple[int, int | None], ...]:
    """Returns how many layers see everything, and how many see so many tokens: `((10, None), (52, 1024))`.

    Example:
        >>> layers_by_window(SHAPES["gemma-3-27b"])
        ((10, None), (52, 1024))
        >>> layers_by_window(SHAPES["llama-2-70b"])
        ((80, None),)
    """
    if shape.sliding_window is None:
        return ((shape.n_layers, None),)
    full = getattr(shape, "n_full_attention_layers", None) or 0
    kinds = ((full, None), (shape.n_layers - full, shape.sliding_window))
    return tuple((count, window) for count, window in kinds if count)


def check_shape(shape: Shape) -> None:
    """Raises `ValueError` for what is no model, a name for instance."""
    if not isinstance(shape, Shape):
        raise ValueError(f"shape is {shape!r}; take a ModelConfig or one of SHAPES, such as SHAPES['llama-2-70b']")


def check_whole(least: int, **sizes: int) -> None:
    """Raises `ValueError` for a size that is not a whole number of at least `least`."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_positive(**numbers: int | float) -> None:
    """Raises `ValueError` for what is not a finite number greater than 0."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a number greater than 0, got {value!r}")
