"""Grouped-query attention: three ways to compute it, and the module that a model is made of.

Each is an `attend` as `gqa_lab.contract` has it. G = H (MHA) and G = 1 (MQA) are the ends of the same code.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor, nn

from gqa_lab.cache import KVCache
from gqa_lab.config import check_heads
from gqa_lab.contract import Attend, check_attend, visible


def expanded_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    *,
    lengths: Int32[Tensor, "B"] | None = None,
    window: int | None = None,
) -> Float[Tensor, "B H T D"]:
    """Returns attention after every KV head was copied R times, so that MHA code can be used on it.

    Right, and what many programs do. It moves 2R + 1 times the bytes of `grouped_attention` (read 1, write R,
    read R) and exists to be measured.

    Args, Raises: as `grouped_attention`.

    Example:
        >>> q, k, v = torch.randn(1, 6, 1, 4), torch.randn(1, 3, 5, 4), torch.randn(1, 3, 5, 4)
        >>> torch.allclose(expanded_attention(q, k, v), grouped_attention(q, k, v), atol=1e-6)
        True
    """
    check_attend(q, k, v, lengths, window)
    if _rows_differ(lengths):
        return _split(expanded_attention, q, k, v, lengths, window, dim=0)
    k, v, lengths = _valid(k, v, lengths)
    group_size = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group_size, dim=1), v.repeat_interleave(group_size, dim=1)  # [B, H, S, D]
    weights = _softmax(torch.einsum("bhtd,bhsd->bhts", q, k), q.shape[3], lengths, window)
    return torch.einsum("bhts,bhsd->bhtd", weights.to(v.dtype), v)


def grouped_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    *,
    lengths: Int32[Tensor, "B"] | None = None,
    window: int | None = None,
) -> Float[Tensor, "B H T D"]:
    """Returns attention with K and V read where they lie: the query heads are grouped, the keys stay as they are.

    `bgrtd,bgsd->bgrts`: the keys carry no `r`. That missing letter is the memory saved.

    Args:
        q: queries of the T newest tokens, H heads.
        k: keys of all S tokens, G heads; any strides.
        v: values, like k.
        lengths: valid keys per sequence (T <= lengths[b] <= S) on q's device; None means all S.
        window: how many latest keys a query sees, itself included; None means all.

    Returns:
        Like q, in q's dtype. The softmax runs in float32 or better.

    Raises:
        ValueError: for shapes, dtypes, devices, window or (on a CPU) lengths that do not fit; names the argument.

    Example:
        >>> q = torch.randn(1, 6, 4, 2)                              # H = 6, T = 4, D = 2
        >>> k, v = torch.randn(1, 3, 4, 2), torch.randn(1, 3, 4, 2)  # G = 3, S = 4
        >>> grouped_attention(q, k, v).shape
        torch.Size([1, 6, 4, 2])

    Source: Ainslie et al. 2023 (arXiv 2305.13245) section 2.2.
    """
    check_attend(q, k, v, lengths, window)
    if _rows_differ(lengths) or _batched_product_copies(k) or _batched_product_copies(v):
        return _split(grouped_attention, q, k, v, lengths, window, dim=0 if k.shape[0] > 1 else 1)
    k, v, lengths = _valid(k, v, lengths)
    grouped = q.unflatten(1, (k.shape[1], -1))  # [B, G, R, T, D]
    scores = _grouped_scores(grouped, k)
    weights = _softmax(scores.flatten(1, 2), q.shape[3], lengths, window).to(v.dtype)  # [B, H, T, S]
    return _grouped_mix(weights.view(scores.shape), v).flatten(1, 2)


def _grouped_scores(q: Float[Tensor, "B G R T D"], k: Float[Tensor, "B G S D"]) -> Float[Tensor, "B G R T S"]:
    if k.shape[0] * k.shape[1] == 1:  # a plain matrix product takes k as it lies, a batched one may not
        return (q.reshape(-1, k.shape[3]) @ k[0, 0].mT).view(*q.shape[:4], -1)
    return torch.einsum("bgrtd,bgsd->bgrts", q, k)


def _grouped_mix(weights: Float[Tensor, "B G R T S"], v: Float[Tensor, "B G S D"]) -> Float[Tensor, "B G R T D"]:
    if v.shape[0] * v.shape[1] == 1:
        return (weights.reshape(-1, v.shape[2]) @ v[0, 0]).view(*weights.shape[:4], -1)
    return torch.einsum("bgrts,bgsd->bgrtd", weights, v)


def sdpa_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    *,
    lengths: Int32[Tensor, "B"] | None = None,
    window: int | None = None,
) -> Float[Tensor, "B H T D"]:
    """Returns attention by PyTorch's fused kernels, which never store the T x S weights.

    A whole prompt (T = S) uses `is_causal` with `enable_gqa`. Everything else lays the R query heads of a group
    out as extra query rows over one KV head, with a mask where one is needed: that way no backend repeats K or V,
    as the MATH backend does for `enable_gqa`. `is_causal` is never used for T < S, where torch aligns it top-left
    (pytorch#108108).

    Args, Raises: as `grouped_attention`.

    Example:
        >>> q, k = torch.randn(2, 6, 1, 4), torch.randn(2, 3, 5, 4)
        >>> sdpa_attention(q, k, k, lengths=torch.tensor([5, 2], dtype=torch.int32)).shape
        torch.Size([2, 6, 1, 4])
    """
    check_attend(q, k, v, lengths, window)
    if _rows_differ(lengths):
        return _split(sdpa_attention, q, k, v, lengths, window, dim=0)
    k, v, lengths = _valid(k, v, lengths)
    (batch_size, n_heads, q_len, head_dim), (n_kv_heads, kv_len) = q.shape, k.shape[1:3]
    group_size = n_heads // n_kv_heads
    whole_prompt = q_len == kv_len > 1 and lengths is None and window is None
    if whole_prompt and (group_size == 1 or q.device.type == "cpu" or q.element_size() == 2):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=group_size > 1)
    rows = q.reshape(batch_size, n_kv_heads, group_size * q_len, head_dim)
    mask = None
    if q_len > 1 or lengths is not None or window is not None:
        seen = visible(q_len, kv_len, lengths=lengths, window=window, device=q.device)  # [(B, 1,) T, S]
        mask = seen.repeat(*(1,) * (seen.ndim - 2), group_size, 1)  # rows run (r, t), so the mask repeats over r
    return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).reshape(q.shape)


class GroupedQueryAttention(nn.Module):
    """Projections, `attend`, projection back: one class from MHA (G = H) over GQA to MQA (G = 1).

    `q_proj` and `o_proj` do not know `n_kv_heads`; `k_proj` and `v_proj` are H/G times smaller than in MHA.

    Args:
        d_model: width of the input and of the output (C).
        n_heads: query heads (H).
        n_kv_heads: KV heads (G), a divisor of H.
        head_dim: numbers per head (D); None means d_model // n_heads.
        bias: `q_proj`, `k_proj` and `v_proj` have a bias.
        qk_norm_eps: epsilon of an RMSNorm over each head of q and k; None means no such norm.

    Raises:
        ValueError: for head counts that do not divide.

    Example:
        >>> mha, gqa = GroupedQueryAttention(576, 9, 9), GroupedQueryAttention(576, 9, 3)
        >>> mha.k_proj.weight.shape, gqa.k_proj.weight.shape
        (torch.Size([576, 576]), torch.Size([192, 576]))
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int | None = None,
        *,
        bias: bool = False,
        qk_norm_eps: float | None = None,
    ):
        super().__init__()
        check_heads(n_heads, n_kv_heads)
        if head_dim is None and d_model % n_heads:
            raise ValueError(f"d_model ({d_model}) is not a multiple of n_heads ({n_heads}): give head_dim")
        self.head_dim = d_model // n_heads if head_dim is None else head_dim
        self.q_proj = nn.Linear(d_model, n_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(n_heads * self.head_dim, d_model, bias=False)
        if qk_norm_eps is not None:
            self.q_norm = nn.RMSNorm(self.head_dim, eps=qk_norm_eps)
            self.k_norm = nn.RMSNorm(self.head_dim, eps=qk_norm_eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        cache: KVCache | None = None,
        *,
        rotate: Callable[[Tensor], Tensor] = lambda x: x,
        attend: Attend = sdpa_attention,
        window: int | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Returns the attention of the T new tokens over themselves and, with a cache, all that came before.

        Args:
            x: what the layer reads, one row per new token.
            cache: where the new keys and values are appended, and all of them read from; None means no past.
            rotate: what turns q and k `[B, heads, T, D]` by their positions; nothing by default.
            attend: the attention to compute.
            window: passed on to `attend`.
        """
        if cache is not None and cache.window not in (None, window):
            raise ValueError(f"this cache keeps a window of {cache.window} tokens, but window is {window}")
        q_len = x.shape[1]
        q = rotate(self.q_norm(self._heads(self.q_proj(x))))  # [B, H, T, D]
        k = rotate(self.k_norm(self._heads(self.k_proj(x))))  # [B, G, T, D]
        v = self._heads(self.v_proj(x))
        lengths = None
        if cache is not None:
            k, v = cache.append(k, v)  # [B, G, S, D]
            lengths = cache.kv_lengths(q_len)
            if cache.window is not None and q_len == 1:
                window = None  # the ring holds what the window shows, in another order
        out = attend(q, k, v, lengths=lengths, window=window)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def _rows_differ(lengths: Tensor | None) -> bool:
    """True if sequences of different length are best sliced one by one: on a CPU, where a look costs nothing."""
    return lengths is not None and lengths.device.type == "cpu" and int(lengths.min()) != int(lengths.max())


def _split(attend: Attend, q, k, v, lengths, window, *, dim: int) -> Tensor:
    """Returns `attend` computed for each sequence (dim 0) or for each KV head with its query heads (dim 1)."""
    n = k.shape[dim]
    lengths = [lengths] * n if lengths is None or dim else lengths.chunk(n)
    parts = zip(q.chunk(n, dim), k.chunk(n, dim), v.chunk(n, dim), lengths, strict=True)
    return torch.cat([attend(q, k, v, lengths=part, window=window) for q, k, v, part in parts], dim)


def _valid(k: Tensor, v: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Slices K and V to their one common length on a CPU, where slicing is far cheaper than masking."""
    if lengths is None or lengths.device.type != "cpu":
        return k, v, lengths
    return k[:, :, : lengths[0]], v[:, :, : lengths[0]], None


def _batched_product_copies(x: Tensor) -> bool:
    """True if one matrix product over all sequences and KV heads of `x` would first copy it.

    It does when batch and heads do not fold into one axis, and on a CPU in 16 bits whenever there are gaps between
    the heads, as in the used part of a cache: 33 MB of keys and values take 12 ms that way instead of 2.
    """
    batch_size, n_kv_heads = x.shape[:2]
    if batch_size * n_kv_heads == 1:
        return False
    folds = batch_size == 1 or n_kv_heads == 1 or x.stride(0) == n_kv_heads * x.stride(1)
    return not folds or (x.device.type == "cpu" and x.element_size() == 2 and not x.is_contiguous())


def _softmax(scores: Float[Tensor, "B H T S"], head_dim: int, lengths, window) -> Float[Tensor, "B H T S"]:
    """Returns the causal softmax of `scores / sqrt(head_dim)`, in float32 or better."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * head_dim**-0.5
    q_len, kv_len = scores.shape[-2:]
    if q_len > 1 or lengths is not None or window is not None:
        seen = visible(q_len, kv_len, lengths=lengths, window=window, device=scores.device)
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(-1)
