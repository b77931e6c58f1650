"""What may be asked of a model on this machine, what fits beside it, and what another cache would take."""

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gqa_lab.config import divisors
from gqa_lab.costs import ModelShape, Shape, kv_cache_bytes, with_kv_heads
from gqa_lab.costs.limits import longest
from gqa_lab.profiler.fit import Fit
from gqa_lab.profiler.profile import Fits, WhatIf

RESERVE = 0.2  # of a CPU's memory, left to everything else; to allocate it all takes minutes, and the machine
WINDOWS = (4096, 1024)
CGROUP = Path("/sys/fs/cgroup/memory.max")  # what a container may take of its machine


def memory_bytes(device: torch.device) -> int | None:
    """Returns the memory that weights and caches can have: a GPU's free bytes, a CPU's all; None if it does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        limit = int(CGROUP.read_text(encoding="ascii"))
        found = min(found or limit, limit)
    return found


def cache_bytes(shape: Shape, kv_lens: Sequence[int], bytes_per_element: int) -> int:
    """Returns the bytes of keys and values of sequences of these lengths, by `costs`."""
    return sum(kv_cache_bytes(shape, batch_size=1, kv_len=n, bytes_per_element=bytes_per_element) for n in kv_lens)


def cache_budget(memory: int | None, held_bytes: int, device: torch.device) -> int | float:
    """Returns the bytes that caches may take: on a GPU, where the weights lie already, all that is free."""
    if memory is None:
        return math.inf
    return memory if device.type == "cuda" else max(0, round(memory * (1 - RESERVE)) - held_bytes)


def what_fits(
    shape: Shape, device: torch.device, kv_lens: Sequence[int], itemsize: int, memory: int, held: int
) -> Fits:
    """Returns how many sequences, and how long ones, fit beside the weights.

    On a CPU it is computed, with a fifth of the memory kept free. On CUDA the largest cache that can be allocated is
    found by trying, and freed again; this was not yet run on a GPU.

    Args:
        kv_lens: tokens of each profiled sequence.
        itemsize: bytes of an element of the cache.
        memory: bytes of a CPU's memory, or free on a GPU.
        held: bytes of the weights.
    """
    budget, tried = cache_budget(memory, held, device), device.type == "cuda"
    if tried:
        budget = allocatable_bytes(budget, 2 * shape.n_layers, device)
    tokens = longest(shape, budget, batch_size=len(kv_lens), kv_bytes_per_element=itemsize)
    return Fits(
        memory_bytes=memory,
        reserve=0.0 if tried else RESERVE,
        batch_size=budget // cache_bytes(shape, [max(kv_lens)], itemsize),
        kv_len=int(min(tokens, shape.max_seq_len)),
        tried=tried,
    )


def allocatable_bytes(n_bytes: int, n_blocks: int, device: torch.device, allocate: Callable = torch.empty) -> int:
    """Returns how many bytes, in so many equal blocks, can be had at once; they are freed again.

    Begins with `n_bytes` and takes a twentieth less after every failure.
    """
    while n_bytes >= n_blocks:
        blocks = []
        try:
            for _ in range(n_blocks):
                blocks.append(allocate(n_bytes // n_blocks, dtype=torch.uint8, device=device))
            return n_bytes // n_blocks * n_blocks
        except torch.OutOfMemoryError:
            n_bytes = n_bytes * 19 // 20
        finally:
            blocks.clear()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return 0


def what_if(shape: Shape, kv_lens: Sequence[int], fit: Fit, *, weight_bytes: int, itemsize: int) -> list[WhatIf]:
    """Returns what the fitted line says of other KV heads, smaller elements and windows: only the cache's bytes change.

    Weights and t0 do not know about any of them. (k_proj and v_proj do, by a little; that is left out.)
    """
    options = divisors(shape.n_heads) if shape.kind != "mla" else []
    options = options if len(options) <= 8 else sorted({1, shape.n_kv_heads, shape.n_heads})
    others = []
    for n in reversed(options):
        other, own = with_kv_heads(shape, n), ", as it is" if n == shape.n_kv_heads else ""
        others.append((f"{n} KV head{'s' if n > 1 else ''} ({other.kind.upper()}){own}", other, itemsize))
    others += [(f"cache in {8 * size} bits", shape, size) for size in (2, 1) if size < itemsize]
    seen = min(max(kv_lens), shape.sliding_window or max(kv_lens))
    everywhere = {"n_full_attention_layers": 0} if isinstance(shape, ModelShape) else {}
    for window in WINDOWS:
        if window < seen:
            others.append((f"window of {window:,}", replace(shape, sliding_window=window, **everywhere), itemsize))
    rows = [(what, cache_bytes(other, kv_lens, size)) for what, other, size in others]
    return [WhatIf(what, n_bytes, fit.seconds(weight_bytes + n_bytes)) for what, n_bytes in rows]


def check_lengths(kv_len: int | Sequence[int], batch_size: int | None) -> list[int]:
    """Returns the tokens of each sequence; raises `ValueError` for what cannot be."""
    several = isinstance(kv_len, list | tuple)
    if batch_size is None:
        batch_size = len(kv_len) if several else 1
    lens = list(kv_len) if several else [kv_len] * (batch_size if type(batch_size) is int else 0)
    if type(batch_size) is not int or batch_size < 1 or len(lens) != batch_size:
        raise ValueError(
            f"batch_size must be a whole number of at least 1, and that of the lengths in kv_len, got {batch_size!r}"
        )
    for n in lens:
        if type(n) is not int or n < 2:
            raise ValueError(f"kv_len must be a whole number of at least 2, or a list of such numbers, got {n!r}")
    return lens


def check_room(shape: Shape | None, kv_lens: list[int], more: int, max_seq_len: int | None) -> int:
    """Returns the tokens that each sequence's buffers have room for; raises `ValueError` where that is too few."""
    needed = max(kv_lens) + more
    if shape is not None and max(needed, max_seq_len or 0) > shape.max_seq_len:
        raise ValueError(
            f"kv_len ({max(kv_lens)}) and {more} more tokens of warm-up and timing need room for "
            f"{max(needed, max_seq_len or 0)}; this model has {shape.max_seq_len} positions: kv_len can be "
            f"{shape.max_seq_len - more} at most"
        )
    if max_seq_len is not None and (type(max_seq_len) is not int or max_seq_len < needed):
        raise ValueError(f"max_seq_len must be at least {needed} (kv_len and {more} tokens more), got {max_seq_len!r}")
    return max_seq_len or needed


def check_memory(needed: int, budget: int | float) -> None:
    """Raises `ValueError` for a cache that does not fit."""
    if needed > budget:
        raise ValueError(
            f"a cache of {needed / 1e9:,.1f} GB does not fit: {budget / 1e9:,.1f} GB can be had beside the weights; "
            "take fewer or shorter sequences, or a smaller dtype"
        )
