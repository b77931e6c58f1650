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
        return _by_sequence(expanded_attention, q, k, v, lengths, window)
    k, v, lengths, window = _narrow(q.shape[2], k, v, lengths, window)
    group_size = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group_size, dim=1), v.repeat_interleave(group_size, dim=1)  # [B, H, S, D]
    scores = torch.einsum("bhtd,bhsd->bhts", q * q.shape[3] ** -0.5, k)
    return torch.einsum("bhts,bhsd->bhtd", _softmax(scores, q.shape[2], lengths, window).to(v.dtype), v)


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
    if _rows_differ(lengths):
        return _by_sequence(grouped_attention, q, k, v, lengths, window)
    (batch_size, n_heads, q_len, head_dim), n_kv_heads = q.shape, k.shape[1]
    k, v, lengths, window = _narrow(q_len, k, v, lengths, window)
    rows = q.reshape(batch_size, n_kv_heads, n_heads // n_kv_heads * q_len, head_dim)  # (r, t) in one axis
    if q_len == 1 and fused_is_faster(k, n_heads // n_kv_heads):
        return F.scaled_dot_product_attention(rows, k, v).reshape(q.shape)
    rows = rows * head_dim**-0.5  # before the product, whose sums may be too large for 16 bits
    times_k, times_v = (_by_head if _batched_product_copies(x) else torch.matmul for x in (k, v))
    if q_len == 1:
        weights = _softmax(times_k(k, rows.mT).mT, 1, lengths, window)  # [B, G, R, S]
    else:
        scores = times_k(rows, k.mT).view(batch_size, n_heads, q_len, -1)
        weights = _softmax(scores, q_len, lengths, window).view(*rows.shape[:3], -1)  # [B, G, R * T, S]
    return times_v(weights.to(v.dtype), v).view(q.shape)


def sdpa_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    *,
    lengths: Int32[Tensor, "B"] | None = None,
    window: int | None = None,
) -> Float[Tensor, "B H T D"]:
    """Returns attention by PyTorch's fused kernels, which never store the T x S weights.

    One token lays the R query heads of a group out as extra query rows over one KV head: that way no backend
    repeats K or V, or reads them R times. Several tokens use `enable_gqa` on a CPU, and on a GPU for a whole
    prompt; where a GPU needs a mask, its MATH backend would repeat K and V, so the rows are laid out there too.
    `is_causal` is never used for T < S, where torch aligns it top-left (pytorch#108108).

    Args, Raises: as `grouped_attention`.

    Example:
        >>> q, k = torch.randn(2, 6, 1, 4), torch.randn(2, 3, 5, 4)
        >>> sdpa_attention(q, k, k, lengths=torch.tensor([5, 2], dtype=torch.int32)).shape
        torch.Size([2, 6, 1, 4])
    """
    check_attend(q, k, v, lengths, window)
    if _rows_differ(lengths):
        return _by_sequence(sdpa_attention, q, k, v, lengths, window)
    (batch_size, n_heads, q_len, head_dim), n_kv_heads = q.shape, k.shape[1]
    k, v, lengths, window = _narrow(q_len, k, v, lengths, window)
    group_size, kv_len = n_heads // n_kv_heads, k.shape[2]
    whole_prompt = q_len == kv_len > 1 and lengths is None and window is None
    if whole_prompt and (group_size == 1 or q.device.type == "cpu" or q.element_size() == 2):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=group_size > 1)
    mask = None
    if q_len > 1 or lengths is not None:
        mask = visible(q_len, kv_len, lengths=lengths, window=window, device=q.device)  # [(B, 1,) T, S]
    if q_len > 1 and (group_size == 1 or not _gqa_with_a_mask_copies(q)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=group_size > 1)
    rows = q.reshape(batch_size, n_kv_heads, group_size * q_len, head_dim)
    if q_len > 1:
        mask = mask.repeat(*(1,) * (mask.ndim - 2), group_size, 1)  # rows run (r, t), so the mask repeats over r
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
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


def _rows_differ(lengths: Tensor | None) -> bool:
    """True if sequences of different length are best sliced one by one: on a CPU, where a look costs nothing."""
    return lengths is not None and lengths.device.type == "cpu" and int(lengths.min()) != int(lengths.max())


def _by_sequence(attend: Attend, q, k, v, lengths, window) -> Tensor:
    """Returns `attend` computed for one sequence after the other."""
    parts = zip(*(x.split(1) for x in (q, k, v, lengths)), strict=True)
    return torch.cat([attend(q, k, v, lengths=length, window=window) for q, k, v, length in parts])


def _narrow(q_len: int, k: Tensor, v: Tensor, lengths: Tensor | None, window: int | None):
    """Slices K and V to the keys that some query sees, where the host knows them; what is left needs a mask.

    A slice costs nothing. A mask over hidden keys reads them all.
    """
    if lengths is not None and lengths.device.type != "cpu":
        return k, v, lengths, window
    end = k.shape[2] if lengths is None else int(lengths[0])
    first = 0 if window is None else max(0, end - q_len + 1 - window)
    masks_nothing = window is None or window >= end - first
    if end - first < k.shape[2]:
        k, v = k[:, :, first:end], v[:, :, first:end]
    return k, v, None, None if masks_nothing else window


def fused_is_faster(k: Float[Tensor, "B G S D"], group_size: int) -> bool:
    """True where PyTorch's fused attention decodes over `k` faster than two matrix products, on a CPU.

    It does for few keys, where each call counts, and in 16 bits wherever it has several query rows at a time.
    Measured by benchmarks/cpu_decode.py; another CPU may order the forms differently.
    """
    if k.device.type != "cpu":
        return False
    batch_size, n_kv_heads, kv_len, _ = k.shape
    if k.element_size() == 2:
        return group_size > 1 or kv_len < 1024
    return batch_size * n_kv_heads * kv_len < 16384


def _gqa_with_a_mask_copies(q: Tensor) -> bool:
    """True where `enable_gqa` with a mask leaves only backends that repeat K and V: everywhere but on a CPU."""
    return q.device.type != "cpu"


def _by_head(x: Float[Tensor, "B G n m"], y: Float[Tensor, "B G m p"]) -> Float[Tensor, "B G n p"]:
    """Returns `x @ y`, one plain product after the other: those never copy what they read."""
    products = [x[b, g] @ y[b, g] for b in range(x.shape[0]) for g in range(x.shape[1])]
    return torch.stack(products).unflatten(0, x.shape[:2])


def _batched_product_copies(x: Tensor) -> bool:
    """True if one matrix product over all sequences and KV heads of `x` would first copy it.

    It does when batch and heads do not fold into one axis, and on a CPU in 16 bits whenever there are gaps between
    the heads, as in the used part of a cache.
    """
    batch_size, n_kv_heads = x.shape[:2]
    folds = batch_size == 1 or n_kv_heads == 1 or x.stride(0) == n_kv_heads * x.stride(1)
    return not folds or (x.device.type == "cpu" and x.element_size() == 2 and not x.is_contiguous())


def _softmax(scores: Float[Tensor, "B heads rows S"], q_len: int, lengths, window) -> Float[Tensor, "B heads rows S"]:
    """Returns the causal softmax, in float32 or better; rows are queries, or (q_len 1) the heads of a group."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if q_len > 1 or lengths is not None:
        seen = visible(q_len, scores.shape[-1], lengths=lengths, window=window, device=scores.device)
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(-1)
