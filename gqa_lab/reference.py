"""Attention as the formula in the paper, in NumPy float64, with loops over heads: the truth, slow and obvious.

    output(i, t) = sum over visible s of softmax_s( q(i, t) · k(i // R, s) / sqrt(D) ) · v(i // R, s)

Everything else in this package is compared with these functions. They read only the keys that are visible, so
whatever stands beyond `lengths` (NaN, too) cannot reach the result.

Source: Vaswani et al. 2017 (arXiv 1706.03762) equation 1; Ainslie et al. 2023 (arXiv 2305.13245) section 2.2.
"""

import numpy as np
from jaxtyping import Float, Integer


def visible_keys(t: int, q_len: int, kv_len: int, window: int | None = None) -> range:
    """Returns the keys that query `t` of `q_len` may look at when `kv_len` keys are valid.

    The new tokens are the *last* `q_len` of the sequence, so query `t` stands at position `t + kv_len - q_len`
    and sees everything up to itself, or only the last `window` of that.

    Example:
        >>> [list(visible_keys(t, q_len=2, kv_len=5)) for t in range(2)]
        [[0, 1, 2, 3], [0, 1, 2, 3, 4]]
        >>> list(visible_keys(0, q_len=1, kv_len=5, window=2))
        [3, 4]
    """
    position = t + kv_len - q_len
    first = 0 if window is None else max(0, position - window + 1)
    return range(first, position + 1)


def softmax(scores: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Returns `exp(scores)` divided by its sum, finite for any finite scores."""
    e = np.exp(scores - scores.max())
    return e / e.sum()


def attention_weights(
    q: Float[np.ndarray, "B H T D"],
    k: Float[np.ndarray, "B G S D"],
    *,
    lengths: Integer[np.ndarray, "B"] | None = None,
    window: int | None = None,
) -> Float[np.ndarray, "B H T S"]:
    """Returns how much query t of head i looks at key s; each row sums to 1 and hidden keys have weight 0.

    Args:
        q: queries of the T newest tokens.
        k: keys of all S tokens, one set per KV head.
        lengths: valid keys per sequence; None means all S.
        window: how many latest keys a query sees, itself included; None means all.

    Example:
        >>> q = k = np.ones((1, 1, 2, 4))
        >>> attention_weights(q, k)[0, 0].tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    batch_size, n_heads, q_len, head_dim = q.shape
    n_kv_heads, kv_len = k.shape[1:3]
    group_size = n_heads // n_kv_heads
    weights = np.zeros((batch_size, n_heads, q_len, kv_len))
    for b in range(batch_size):
        length = kv_len if lengths is None else int(lengths[b])
        for i in range(n_heads):
            for t in range(q_len):
                seen = visible_keys(t, q_len, length, window)
                keys = k[b, i // group_size, seen.start : seen.stop].astype(np.float64)
                scores = keys @ q[b, i, t].astype(np.float64) / np.sqrt(head_dim)
                weights[b, i, t, seen.start : seen.stop] = softmax(scores)
    return weights


def attention(
    q: Float[np.ndarray, "B H T D"],
    k: Float[np.ndarray, "B G S D"],
    v: Float[np.ndarray, "B G S D"],
    *,
    lengths: Integer[np.ndarray, "B"] | None = None,
    window: int | None = None,
) -> Float[np.ndarray, "B H T D"]:
    """Returns the attention of every query head, in float64 whatever comes in.

    Args:
        q: queries of the T newest tokens.
        k: keys of all S tokens, one set per KV head.
        v: values, like k.
        lengths: valid keys per sequence; None means all S. Nothing beyond them is read.
        window: how many latest keys a query sees, itself included; None means all.

    Example:
        >>> q, k = np.zeros((1, 2, 1, 2)), np.zeros((1, 1, 2, 2))
        >>> v = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> attention(q, k, v)[0, :, 0].tolist()          # equal scores: the mean of the values, in both heads
        [[2.0, 3.0], [2.0, 3.0]]
    """
    weights = attention_weights(q, k, lengths=lengths, window=window)
    batch_size, n_heads, q_len, head_dim = q.shape
    group_size = n_heads // k.shape[1]
    out = np.zeros((batch_size, n_heads, q_len, head_dim))
    for b in range(batch_size):
        length = k.shape[2] if lengths is None else int(lengths[b])
        for i in range(n_heads):
            out[b, i] = weights[b, i, :, :length] @ v[b, i // group_size, :length].astype(np.float64)
    return out
