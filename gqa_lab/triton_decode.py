"""Decode attention as two Triton kernels: each byte of K and V is read once, by as many programs as the GPU can hold.

Head packing: the R query heads of one KV head are rows of one tile, so a key is loaded once for all of them.
Split-KV: a long cache is cut into `n_splits` ranges, so that even one sequence keeps every multiprocessor busy.

Source: Dao et al. 2023, "Flash-Decoding for long-context inference", https://pytorch.org/blog/flash-decoding/
"""

import math
from functools import cache
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from gqa_lab.contract import check_attend

# dtype: query heads and keys per tile, warps, stages. While one tile of K and V is worked on, `stages - 1` more are on
# their way (64 KiB at D = 128), and two programs fit a multiprocessor; float32 fills the registers with fewer heads.
LAUNCH = {torch.bfloat16: (64, 64, 4, 3), torch.float16: (64, 64, 4, 3), torch.float32: (16, 32, 4, 3)}
SPLITS_PER_STEP = tl.constexpr(32)  # partial outputs that the second kernel takes at a time
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1: Python and NumPy play the kernels


@triton.jit
@no_type_check  # triton reads the source itself, so nothing may wrap it
def _dot(a, b):
    """Returns a @ b in float32."""
    if INTERPRETED:  # NumPy has no bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="tf32x3")  # the precision of float32; "ieee" would not fit the registers


@triton.jit(do_not_specialize=["kv_len", "window", "n_splits"])  # they follow a growing cache: never recompile
@no_type_check
def _attend_to_split(
    q_ptr, k_ptr, v_ptr,  # [B, H, 1, D], [B, G, S, D], [B, G, S, D], each by its strides
    partial_ptr, lse_ptr, lengths_ptr,  # [B, H, n_splits, D], [B, H, n_splits] or None, [B] or None
    q_strides, k_strides, v_strides, kv_len, window, n_splits, scale,
    GROUP_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: up to ROWS query heads of one KV head against one split of its keys."""
    row_tiles: tl.constexpr = (GROUP_SIZE + ROWS - 1) // ROWS
    g, split, b = tl.program_id(0) // row_tiles, tl.program_id(1), tl.program_id(2).to(tl.int64)
    r = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    is_head = r < GROUP_SIZE
    head = g * GROUP_SIZE + r  # query head i reads KV head i // R
    d = tl.arange(0, HEAD_DIM)[None, :]

    length = kv_len if lengths_ptr is None else tl.load(lengths_ptr + b)
    start = tl.maximum(length - window, 0)
    keys_per_split = tl.cdiv(tl.cdiv(length - start, KEYS), n_splits) * KEYS
    first = start + split * keys_per_split
    last = tl.minimum(first + keys_per_split, length)  # first >= last: nothing is left for this split

    q = tl.load(q_ptr + b * q_strides[0] + head[:, None] * q_strides[1] + d, mask=is_head[:, None], other=0.0)
    k_ptr += b * k_strides[0] + g.to(tl.int64) * k_strides[1]
    v_ptr += b * v_strides[0] + g.to(tl.int64) * v_strides[1]
    peak = tl.full([ROWS], float("-inf"), tl.float32)  # the largest score so far
    total = tl.zeros([ROWS], tl.float32)  # sum of 2 ** (score - peak): GPUs compute powers of 2, so log2(e) is in scale
    mixed = tl.zeros([ROWS, HEAD_DIM], tl.float32)  # the same sum, each term times its value
    for tile in range(first, last, KEYS):
        s = tile + tl.arange(0, KEYS)
        valid = s < last  # what stands beyond is another split's, or must not be read at all
        s = s.to(tl.int64)[:, None]  # a cache may hold more than 2 ** 31 numbers
        k = tl.load(k_ptr + s * k_strides[2] + d, mask=valid[:, None], other=0.0)
        v = tl.load(v_ptr + s * v_strides[2] + d, mask=valid[:, None], other=0.0)
        scores = tl.where(valid[None, :], _dot(q, k.T) * scale, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))  # finite, because the first key of a tile is valid
        weights = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)  # 0 for the first tile
        total = total * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None] + _dot(weights.to(v.dtype), v)
        peak = new_peak

    total = tl.where(total > 0, total, 1.0)  # without keys: 0 / 1, and an lse of -inf that gives it no weight
    n_heads = tl.num_programs(0) // row_tiles * GROUP_SIZE
    row = (b * n_heads + head) * n_splits + split
    tl.store(partial_ptr + row[:, None] * HEAD_DIM + d, mixed / total[:, None], mask=is_head[:, None])
    if lse_ptr is not None:
        tl.store(lse_ptr + row, peak + tl.log2(total), mask=is_head)


@triton.jit(do_not_specialize=["n_splits"])
@no_type_check
def _combine_splits(partial_ptr, lse_ptr, out_ptr, n_splits, HEAD_DIM: tl.constexpr):
    """One program: one query head. Its splits are mixed as tiles are above, with 2 ** lse in place of 2 ** score."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, HEAD_DIM)[None, :]
    peak, total = float("-inf"), 0.0
    mixed = tl.zeros([HEAD_DIM], tl.float32)
    for step in range(0, n_splits, SPLITS_PER_STEP):
        split = row * n_splits + step + tl.arange(0, SPLITS_PER_STEP)
        valid = split < (row + 1) * n_splits
        lse = tl.load(lse_ptr + split, mask=valid, other=float("-inf"))
        partial = tl.load(partial_ptr + split[:, None] * HEAD_DIM + d, mask=valid[:, None], other=0.0)
        new_peak = tl.maximum(peak, tl.max(lse, 0))  # finite, because split 0 has keys
        weights = tl.exp2(lse - new_peak)
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 0)
        mixed = mixed * shrink + tl.sum(weights[:, None] * partial, 0)
        peak = new_peak
    tl.store(out_ptr + row * HEAD_DIM + tl.arange(0, HEAD_DIM), mixed / total)


@cache
def choose_splits(n_programs: int, n_tiles: int, group_size: int, resident_programs: int) -> int:
    """Returns into how many ranges to cut the keys, so that the last program is done first.

    `n_programs` per split run in waves of `resident_programs`. One costs its tiles of keys, plus 2 to start, plus what
    it writes and the second kernel reads: for 32 heads the bytes of a tile. That one costs 1, plus 1 per 32 splits.

    Example:
        >>> choose_splits(8, 2048, 4, resident_programs=264)  # one sequence of 131072, G = 8, H200: one full wave
        33
    """

    def cost(n_splits: int) -> int:
        waves = triton.cdiv(n_programs * n_splits, resident_programs)
        write, combine = (group_size // 32, 1 + n_splits // 32) if n_splits > 1 else (0, 0)
        return waves * (triton.cdiv(n_tiles, n_splits) + 2 + write) + combine

    return min(range(1, min(128, n_tiles) + 1), key=cost)


@cache
def _resident(device: torch.device) -> int:
    n_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return 2 * n_multiprocessors  # see LAUNCH


def _check(q: Tensor, k: Tensor, v: Tensor, n_splits: int | None) -> None:
    if q.shape[2] != 1:
        raise ValueError(f"q_len ({q.shape[2]}) must be 1; for more new tokens use sdpa_attention")
    if q.shape[3] not in (64, 128):
        raise ValueError(f"head_dim ({q.shape[3]}) must be 64 or 128; for others use grouped_attention")
    if q.dtype not in LAUNCH:
        raise ValueError(f"q is {q.dtype}; make it float16, bfloat16 or float32, or use grouped_attention")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.stride(3) != 1:
            raise ValueError(f"{name} has strides {x.stride()}; the last must be 1: store head_dim innermost")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient, and this kernel has none; call it under torch.no_grad()")
    if n_splits is not None and (type(n_splits) is not int or n_splits < 1):
        raise ValueError(f"n_splits must be at least 1, a whole number, got {n_splits!r}; None chooses one")
    if not (q.is_cuda or INTERPRETED):
        raise ValueError(f"q is on {q.device}: set TRITON_INTERPRET=1 before importing, or use grouped_attention")


def triton_decode_attention(
    q: Float[Tensor, "B H 1 D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    *,
    lengths: Int32[Tensor, "B"] | None = None,
    window: int | None = None,
    n_splits: int | None = None,
) -> Float[Tensor, "B H 1 D"]:
    """Returns the attention of one new token per sequence; a GPU's `attend` for decoding.

    The launches depend on shapes only, and `lengths` is read on the device: a CUDA graph may capture the call. What
    stands beyond `lengths` is never loaded.

    Args, Raises: as `grouped_attention`, for D = 64 or 128. `n_splits`: None lets `choose_splits` decide.

    Example:
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> q, k, v = (torch.randn(2, n, s, 64, device=device) for n, s in ((6, 1), (3, 40), (3, 40)))
        >>> triton_decode_attention(q, k, v).shape
        torch.Size([2, 6, 1, 64])
    """
    check_attend(q, k, v, lengths, window)
    _check(q, k, v, n_splits)
    (batch_size, n_heads, _, head_dim), (n_kv_heads, kv_len) = q.shape, k.shape[1:3]
    group_size = n_heads // n_kv_heads
    most_rows, keys, warps, stages = LAUNCH[q.dtype]
    rows = min(most_rows, max(16, triton.next_power_of_2(group_size)))  # a tensor core multiplies 16 rows at least
    grid_0 = n_kv_heads * triton.cdiv(group_size, rows)
    window = kv_len if window is None else min(window, kv_len)
    lengths = None if lengths is None else lengths.contiguous()  # B numbers; an expanded one has stride 0
    if n_splits is None:
        n_splits = choose_splits(batch_size * grid_0, triton.cdiv(window, keys), group_size, _resident(q.device))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    partial, lse = out, None  # one split: its part is the whole
    if n_splits > 1:
        partial = q.new_empty(batch_size, n_heads, n_splits, head_dim, dtype=torch.float32)
        lse = partial.new_empty(partial.shape[:3])
    with torch.cuda.device_of(q):
        _attend_to_split[grid_0, n_splits, batch_size](
            *(q, k, v, partial, lse, lengths, q.stride(), k.stride(), v.stride()),
            *(kv_len, window, n_splits, math.log2(math.e) / math.sqrt(head_dim)),
            **dict(GROUP_SIZE=group_size, HEAD_DIM=head_dim, ROWS=rows, KEYS=keys, num_warps=warps, num_stages=stages),
        )
        if n_splits > 1:
            _combine_splits[(batch_size * n_heads,)](partial, lse, out, n_splits, HEAD_DIM=head_dim)
    return out
