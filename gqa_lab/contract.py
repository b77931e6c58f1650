"""What every attention promises, so that a model takes any of them, or yours: `attend(q, k, v, *, lengths, window)`.

q [B, H, T, D], k and v [B, G, S, D], out like q; H is a multiple of G, T <= S
causal and aligned bottom-right: query t sees key s iff s <= t + S - T (and s > t + S - T - window)
query head i reads KV head i // R
lengths [B]: valid keys per sequence; the T tokens are the last T of each sequence
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from gqa_lab.config import check_heads

Attend = Callable[..., Tensor]


def visible(q_len: int, kv_len: int, *, lengths=None, window=None, device=None) -> Bool[Tensor, "*batch T S"]:
    """Returns True where query t may look at key s: `[T, S]`, or `[B, 1, T, S]` with `lengths`.

    Example:
        >>> visible(2, 5).int().tolist()
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    """
    t = torch.arange(q_len, device=device)[:, None]
    s = torch.arange(kv_len, device=device)
    ends = kv_len if lengths is None else lengths[:, None, None, None]
    position = t + ends - q_len
    seen = s <= position
    return seen if window is None else seen & (s > position - window)


def check_attend(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, window: int | None) -> None:
    """Raises `ValueError` naming the first argument that breaks the contract of every attention."""
    for name, x, axes in (
        ("q", q, "[batch, n_heads, q_len, head_dim]"),
        ("k", k, "[batch, n_kv_heads, kv_len, head_dim]"),
        ("v", v, "[batch, n_kv_heads, kv_len, head_dim]"),
    ):
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} is a {type(x).__name__}; it must be a torch tensor {axes}")
        if 0 in x.shape:
            raise ValueError(f"{name} has shape {list(x.shape)}; every axis needs at least one entry")
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {list(x.shape)}; it needs four axes {axes}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} is {x.dtype} on {x.device} but q is {q.dtype} on {q.device}; make them equal")
    if not q.is_floating_point():
        raise ValueError(f"q is {q.dtype}; attention needs floating point numbers")
    if k.shape != v.shape:
        raise ValueError(f"k has shape {list(k.shape)} and v {list(v.shape)}; they must be equal")
    for axis, name in ((0, "batch"), (3, "head_dim")):
        if q.shape[axis] != k.shape[axis]:
            raise ValueError(f"q has {name} {q.shape[axis]} and k has {k.shape[axis]}; they must be equal")
    check_heads(q.shape[1], k.shape[1])
    q_len, kv_len = q.shape[2], k.shape[2]
    if not 1 <= q_len <= kv_len:
        raise ValueError(f"q_len ({q_len}) must be from 1 to kv_len ({kv_len}): the new tokens' keys belong in k too")
    if window is not None and (type(window) is not int or window < 1):
        raise ValueError(f"window must be at least 1, a whole number, got {window!r}; None means no window")
    if lengths is not None:
        _check_lengths(lengths, q, kv_len)


def _check_lengths(lengths: Tensor, q: Tensor, kv_len: int) -> None:
    if not isinstance(lengths, Tensor):
        raise ValueError(f"lengths is a {type(lengths).__name__}; make it torch.tensor(lengths, dtype=torch.int32)")
    if lengths.shape != q.shape[:1] or lengths.dtype != torch.int32 or lengths.device != q.device:
        raise ValueError(
            f"lengths must be int32 [{q.shape[0]}] on {q.device}, got {lengths.dtype} "
            f"{list(lengths.shape)} on {lengths.device}"
        )
    if lengths.device.type == "cpu":  # on an accelerator a look at the values would wait for all its work
        low, high = int(lengths.min()), int(lengths.max())
        if low < q.shape[2] or high > kv_len:
            raise ValueError(f"lengths must lie from q_len ({q.shape[2]}) to kv_len ({kv_len}), got {lengths.tolist()}")
