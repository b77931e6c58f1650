"""How softmax saturates when scores are not scaled, measured on random queries and keys and drawn."""

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from gqa_lab.plots.frame import new_axes

N_QUERIES, N_KEYS = 500, 64


def random_weights(head_dim: int, *, scaled: bool) -> Float[np.ndarray, "queries keys"]:
    """Returns the weights of 500 random queries over 64 random keys, all entries from N(0, 1).

    Example:
        >>> largest = [float(random_weights(64, scaled=scaled).max(-1).mean()) for scaled in (False, True)]
        >>> [round(x, 1) for x in largest]
        [0.8, 0.1]
    """
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((N_QUERIES, head_dim)), rng.standard_normal((N_KEYS, head_dim))
    scores = q @ k.T / (np.sqrt(head_dim) if scaled else 1.0)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def effective_keys(weights: Float[np.ndarray, "queries keys"]) -> float:
    """Returns how many keys a query uses on average, 2 to the entropy of its weights in bits: 1 to all of them.

    Example:
        >>> effective_keys(np.full((1, 64), 1 / 64)), effective_keys(np.eye(3))
        (64.0, 1.0)
    """
    bits = -np.where(weights > 0, weights * np.log2(np.maximum(weights, 1e-300)), 0.0).sum(-1)
    return float(np.mean(2**bits))


def saturation(head_dim: int, *, scaled: bool) -> Axes:
    """Draws the weights of random queries over 64 keys, sorted from the largest: how fast they fall.

    Args:
        head_dim: numbers per query and key.
        scaled: scores are divided by the root of head_dim.
    """
    weights = random_weights(head_dim, scaled=scaled)
    falling = np.sort(weights, axis=-1)[:, ::-1].mean(0)
    axes = new_axes(height=2.8)
    axes.bar(range(1, N_KEYS + 1), falling, color="#444444")
    axes.axhline(1 / N_KEYS, color="black", linewidth=0.8, linestyle=":")
    axes.text(N_KEYS, 1 / N_KEYS, "1/64", ha="right", va="bottom")
    axes.set_ylim(0, 1)
    axes.set_xlabel("keys of a query, from the one with the largest weight")
    axes.set_ylabel("mean weight")
    axes.set_label(saturation_text(head_dim, scaled=scaled))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def saturation_text(head_dim: int, *, scaled: bool) -> str:
    """Returns the picture of `saturation` in words.

    Example:
        >>> print(saturation_text(64, scaled=True).replace(". ", ".\\n"))
        head_dim 64, scaled: a query uses about 39 of 64 keys.
        Its largest weight is 0.11 on average.
    """
    weights = random_weights(head_dim, scaled=scaled)
    how = "scaled" if scaled else "not scaled"
    return (
        f"head_dim {head_dim}, {how}: a query uses about {effective_keys(weights):.2g} of {N_KEYS} keys. "
        f"Its largest weight is {weights.max(-1).mean():.2f} on average."
    )
