"""`ModelConfig`: exactly what `gqa_lab.model.Transformer` can run."""

import math
from dataclasses import dataclass


def divisors(n: int) -> list[int]:
    """Returns the divisors of `n` in ascending order: the values that `n_kv_heads` may take for `n` heads."""
    return [d for d in range(1, n + 1) if n % d == 0]


def check_heads(n_heads: int, n_kv_heads: int) -> None:
    """Raises `ValueError` unless every KV head can serve the same number of query heads."""
    for name, value in (("n_heads", n_heads), ("n_kv_heads", n_kv_heads)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if n_heads % n_kv_heads:
        options = divisors(n_heads) if n_heads <= 4096 else [math.gcd(n_heads, n_kv_heads)]  # a file may say 2 ** 40
        listed = " or ".join(filter(None, (", ".join(map(str, options[:-1])), str(options[-1]))))
        raise ValueError(f"n_heads ({n_heads}) must be a multiple of n_kv_heads ({n_kv_heads}); try {listed}")


def attention_kind(n_heads: int, n_kv_heads: int) -> str:
    """Returns `"mha"` if every head has its own keys and values, else `"mqa"` if all share one, else `"gqa"`."""
    if n_kv_heads == n_heads:
        return "mha"
    return "mqa" if n_kv_heads == 1 else "gqa"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes of a Llama-shaped decoder. Immutable; every field is checked when it is made.

    Args:
        n_layers: decoder layers.
        d_model: numbers per token between layers (C).
        n_heads: query heads (H).
        n_kv_heads: key/value heads (G), a divisor of `n_heads`. The one number this course is about.
        head_dim: numbers per head (D), even because RoPE turns them in pairs. Many real models have
            `head_dim != d_model / n_heads`, so it is never derived.
        d_ff: width of the SwiGLU MLP.
        vocab_size: rows of the embedding table.
        max_seq_len: longest sequence that positions are known for.
        rope_theta: base of the rotary frequencies.
        norm_eps: epsilon of every RMSNorm.
        rope_scaling: `head_dim // 2` numbers by which the rotary frequencies are divided (Llama 3.1 and
            later), or None.
        sliding_window: how many latest tokens a query sees, itself included, or None for all.
        tie_embeddings: the output matrix is the embedding table.
        attention_bias: `q_proj`, `k_proj` and `v_proj` have a bias (Qwen2).
        qk_norm: an RMSNorm over every head of q and k before RoPE (Qwen3).

    Raises:
        ValueError: for a size that no model can have; the message names the remedy.

    Example:
        >>> config = ModelConfig(n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=1536,
        ...                      vocab_size=49152, max_seq_len=8192, rope_theta=1e5, norm_eps=1e-5)
        >>> config.group_size, config.kind
        (3, 'gqa')
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    max_seq_len: int
    rope_theta: float
    norm_eps: float
    rope_scaling: tuple[float, ...] | None = None
    sliding_window: int | None = None
    tie_embeddings: bool = False
    attention_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self):
        for name in ("n_layers", "d_model", "head_dim", "d_ff", "vocab_size", "max_seq_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        check_heads(self.n_heads, self.n_kv_heads)
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: RoPE turns its numbers in pairs")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number greater than 0 and finite, got {value!r}")
        for name in ("tie_embeddings", "attention_bias", "qk_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.sliding_window is not None and (type(self.sliding_window) is not int or self.sliding_window < 1):
            raise ValueError(
                f"sliding_window must be a whole number of at least 1, got {self.sliding_window!r}; None means none"
            )
        if self.rope_scaling is not None and len(self.rope_scaling) != self.head_dim // 2:
            raise ValueError(
                f"rope_scaling has {len(self.rope_scaling)} numbers; it needs one per frequency, "
                f"head_dim // 2 = {self.head_dim // 2}"
            )
        for divisor in self.rope_scaling or ():
            if not 0 < divisor < math.inf:
                raise ValueError(f"every number of rope_scaling must be greater than 0 and finite, got {divisor!r}")

    @property
    def group_size(self) -> int:
        """R = H // G, the query heads that share one KV head."""
        return self.n_heads // self.n_kv_heads

    @property
    def kind(self) -> str:
        """`"mha"`, `"gqa"` or `"mqa"`, derived from the two head counts and never stored."""
        return attention_kind(self.n_heads, self.n_kv_heads)
