"""Where attention looks, drawn."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from gqa_lab.plots.frame import new_axes


def attention_weights(
    weights: Float[np.ndarray, "T S"],
    *,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    title: str = "",
) -> Axes:
    """Draws the weights of one head: a row for each query, a column for each key, lighter is more.

    Args:
        weights: each row sums to 1.
        queries: names of the rows; None means their numbers.
        keys: names of the columns; None means their numbers.
        title: the finding, which the picture is to show.

    Example:
        >>> axes = attention_weights(np.array([[1.0, 0.0], [0.25, 0.75]]), title="Query 1 looks at itself")
        >>> axes.get_label()
        'Query 1 looks at itself. Largest weight of each query: query 0 looks at key 0 (1.00), query 1 at key 1 (0.75).'
    """
    q_len, kv_len = weights.shape
    queries, keys = queries or [str(t) for t in range(q_len)], keys or [str(s) for s in range(kv_len)]
    axes = new_axes(width=min(10.0, 2.5 + 0.45 * kv_len), height=min(9.0, 1.4 + 0.4 * q_len))
    image = axes.imshow(weights, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    if kv_len <= 10:
        for t in range(q_len):
            for s in range(kv_len):
                dark = weights[t, s] < 0.5
                axes.text(s, t, f"{weights[t, s]:.2f}", ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(
        range(kv_len),
        keys,
        rotation=0 if max(map(len, keys)) < 3 else 60,
        ha="right" if max(map(len, keys)) > 2 else "center",
    )
    axes.set_yticks(range(q_len), queries)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    axes.figure.colorbar(image, ax=axes, label="weight")
    axes.set_label(attention_weights_text(weights, queries=queries, keys=keys, title=title))
    axes.set_title(title, loc="left", fontsize=11)
    return axes


def attention_weights_text(
    weights: Float[np.ndarray, "T S"], *, queries: Sequence[str], keys: Sequence[str], title: str
) -> str:
    """Returns the picture of `attention_weights` in words: where each of the last queries, at most six, looks most."""
    shown = range(max(0, len(queries) - 6), len(queries))
    looks = [
        f"{queries[t]} {'looks ' * (t == shown[0])}at key {keys[s]} ({weights[t, s]:.2f})"
        for t in shown
        for s in [int(weights[t].argmax())]
    ]
    which = "" if len(shown) == len(queries) else " of the last six"
    first = f"{title}. " if title else ""
    return f"{first}Largest weight of each query{which}: query {', query '.join(looks)}."
