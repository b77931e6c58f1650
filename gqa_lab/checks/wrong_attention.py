"""Attention whose every part can be replaced by a wrong one: what the known mistakes are made of.

It expands K and V and is right when nothing is replaced.
"""

from collections.abc import Callable

import torch

from gqa_lab.checks.head_maps import neighbours


def by_map(rule: Callable, k, n_heads: int):
    """Returns k with H heads: head i is KV head `rule(i, H, G)`."""
    return k[:, [rule(i, n_heads, k.shape[1]) for i in range(n_heads)]]


def group_size(k, n_heads: int) -> int:
    """Returns R."""
    return n_heads // k.shape[1]


def bottom_right(t: int, s: int):
    """Returns the right mask `[T, S]`; True means may look."""
    return torch.arange(s) <= torch.arange(t)[:, None] + s - t


def everything(t: int, s: int):
    """Wrong: a mask that hides nothing."""
    return torch.ones(t, s, dtype=torch.bool)


def over_keys(scores, n_kv_heads: int):
    """Returns the right weights."""
    return scores.softmax(-1)


def over_group(scores, n_kv_heads: int, dim: int = 2):
    """Wrong: softmax over the R heads of a group (dim 2) or over the G groups (dim 1)."""
    return scores.unflatten(1, (n_kv_heads, -1)).softmax(dim).flatten(1, 2)


def attend(
    q,
    k,
    v,
    *,
    keys=neighbours,
    values=neighbours,
    scale=None,
    mask=bottom_right,
    fill=float("-inf"),
    weigh=over_keys,
):
    """Returns attention. Each keyword replaces one part by a wrong one.

    Args:
        keys, values: `rule(i, H, G)`, the KV head that query head i reads.
        scale: `scale(R, G, D)`.
        mask: `mask(T, S)`.
        fill: what hidden scores become.
        weigh: `weigh(scores, G)`.
    """
    (h, t, d), (g, s) = q.shape[1:], k.shape[1:3]
    factor = d**-0.5 if scale is None else scale(h // g, g, d)
    scores = q @ by_map(keys, k, h).mT * factor
    return weigh(scores.masked_fill(~mask(t, s), fill), g) @ by_map(values, v, h)


def shared_scores(q, k, v, *, combine: str = "sum", n_copies: bool = True):
    """Wrong: the heads of a group share one row of scores; without copies G heads come out."""
    r, g = group_size(k, q.shape[1]), k.shape[1]
    one = getattr(q.unflatten(1, (g, r)), combine)(2)
    out = attend(one, k, v)
    return out.repeat_interleave(r, 1) if n_copies else out


def tokens_as_heads(q, k, v, *, back: bool):
    """Wrong: q is cut as (G, T, R), and the result put back the same way or not."""
    b, h, t, d = q.shape
    g, r = k.shape[1], group_size(k, h)
    out = attend(q.reshape(b, g, t, r, d).transpose(2, 3).reshape(b, h, t, d), k, v)
    return out.reshape(b, g, r, t, d).transpose(2, 3).reshape(b, h, t, d) if back else out


def cut_as_rg(q, k, v):
    """Wrong: q's heads are cut as (R, G) and brought into (G, R) order, so KV heads are dealt like cards."""
    g = k.shape[1]
    return attend(q.unflatten(1, (-1, g)).transpose(1, 2).flatten(1, 2), k, v)


def rg_order(q, k, v):
    """Wrong: the heads come out in (R, G) order."""
    return attend(q, k, v).unflatten(1, (k.shape[1], -1)).transpose(1, 2).flatten(1, 2)
