"""How softmax saturates when scores are not scaled, measured on random queries and keys and drawn."""

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from gqa_lab.plots.frame import new_axes

N_QUERIES, N_KEYS = 500, 64
_HEAD_DIMS = (4, 8, 16, 32, 64, 128, 256)


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


def saturation_by_head_dim() -> Axes:
    """Draws the largest weight of random queries over 64 keys against head_dim, with the scale and without it."""
    axes = new_axes(height=2.8)
    for scaled, style, marker in ((False, "-", "o"), (True, "--", "x")):
        largest = [random_weights(d, scaled=scaled).max(-1).mean() for d in _HEAD_DIMS]
        axes.plot(_HEAD_DIMS, largest, color="black", linestyle=style, marker=marker, linewidth=1)
        name = "divided by √D" if scaled else "not scaled"
        axes.annotate(name, (_HEAD_DIMS[-1], largest[-1]), (8, 0), textcoords="offset points", va="center")
    axes.set_xscale("log", base=2)
    axes.set_xticks(_HEAD_DIMS, [str(d) for d in _HEAD_DIMS])
    axes.set_xlim(3.5, 700)
    axes.set_ylim(0, 1)
    axes.set_xlabel("head_dim, numbers per query and key")
    axes.set_ylabel(f"largest of {N_KEYS} weights, mean")
    axes.set_label(saturation_by_head_dim_text())
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def saturation_by_head_dim_text() -> str:
    """Returns the picture of `saturation_by_head_dim` in words.

    Example:
        >>> print(saturation_by_head_dim_text().replace(". ", ".\\n"))
        Without the scale, softmax saturates as heads grow.
        The largest of 64 weights is 0.3 at head_dim 4, 0.8 at 64 and 0.9 at 256.
        Divided by √D it is 0.1 at all of them.
    """
    without, scaled = (
        [f"{random_weights(d, scaled=scaled).max(-1).mean():.1f}" for d in (4, 64, 256)] for scaled in (False, True)
    )
    same = scaled[0] if len(set(scaled)) == 1 else " or ".join(scaled)
    return (
        f"Without the scale, softmax saturates as heads grow. The largest of {N_KEYS} weights is {without[0]} at "
        f"head_dim 4, {without[1]} at 64 and {without[2]} at 256. Divided by √D it is {same} at all of them."
    )
