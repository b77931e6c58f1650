"""What fits into this machine's memory, and what another cache would take: computed; on CUDA what fits is tried."""

import contextlib
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

RESERVE = 0.2  # of a CPU's memory, left to everything else; allocating it all takes minutes, and the machine
WINDOWS = (4096, 1024)
CGROUP = Path("/sys/fs/cgroup/memory.max")  # what a container may take of its machine


def memory_bytes(device: torch.device) -> int | None:
    """Returns the memory that weights and caches can have: a GPU's free bytes, a CPU's all; None if it does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with contextlib.suppress(OSError, ValueError):
            found = min(found, int(CGROUP.read_text(encoding="ascii")))
        return found
    return None


def cache_bytes(shape: Shape, kv_lens: Sequence[int], bytes_per_element: int) -> int:
    """Returns the bytes of keys and values of sequences of these lengths, by `costs`."""
    return sum(kv_cache_bytes(shape, batch_size=1, kv_len=n, bytes_per_element=bytes_per_element) for n in kv_lens)


def what_fits(
    shape: Shape,
    device: torch.device,
    kv_lens: Sequence[int],
    *,
    bytes_per_element: int,
    held_bytes: int,
    memory_bytes: int,
) -> Fits:
    """Returns how many sequences, and how long ones, fit beside the weights.

    On a CPU computed, with a fifth of the memory kept free. On CUDA the weights are there already: the largest cache
    that can be allocated beside them is found by trying, and freed again. (Not yet run on a GPU.)

    Args:
        shape: the model.
        device: where.
        kv_lens: tokens of each profiled sequence.
        bytes_per_element: of the cache.
        held_bytes: of the weights.
        memory_bytes: a CPU's memory, a GPU's free memory.
    """
    tried = device.type == "cuda"
    if tried:
        budget = allocatable_bytes(memory_bytes, 2 * shape.n_layers, device)
    else:
        budget = max(0, round(memory_bytes * (1 - RESERVE)) - held_bytes)
    tokens = longest(shape, budget, batch_size=len(kv_lens), kv_bytes_per_element=bytes_per_element)
    return Fits(
        memory_bytes=memory_bytes,
        reserve=0.0 if tried else RESERVE,
        held_bytes=held_bytes,
        batch_size=budget // cache_bytes(shape, [max(kv_lens)], bytes_per_element),
        kv_len=int(min(tokens, shape.max_seq_len)),
        tried=tried,
    )


def allocatable_bytes(n_bytes: int, n_blocks: int, device: torch.device, allocate: Callable = torch.empty) -> int:
    """Returns how many bytes, in so many equal blocks, can be allocated at once; they are freed again.

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


def what_if(
    shape: Shape, kv_lens: Sequence[int], fit: Fit, *, weight_bytes: int, bytes_per_element: int
) -> list[WhatIf]:
    """Returns what the fitted line says of other KV heads, smaller elements and windows: only the cache's bytes change.

    Weights and t0 do not know about any of these. (k_proj and v_proj do, by a little; that is left out.)
    """

    def row(what: str, other: Shape, element_bytes: int) -> WhatIf:
        n_bytes = cache_bytes(other, kv_lens, element_bytes)
        return WhatIf(what=what, cache_bytes=n_bytes, seconds=fit.seconds(weight_bytes + n_bytes))

    rows, options = [], divisors(shape.n_heads)
    if getattr(shape, "kind", "") != "mla":
        options = options if len(options) <= 8 else sorted({1, shape.n_kv_heads, shape.n_heads})
        for n in reversed(options):
            own = ", as it is" if n == shape.n_kv_heads else ""
            kind = with_kv_heads(shape, n).kind.upper()
            rows.append(
                row(f"{n} KV head{'s' if n > 1 else ''} ({kind}){own}", with_kv_heads(shape, n), bytes_per_element)
            )
    for size in (2, 1):
        if size < bytes_per_element:
            rows.append(row(f"cache in {8 * size} bits", shape, size))
    for window in WINDOWS:
        if window < min(max(kv_lens), shape.sliding_window or max(kv_lens)):
            rows.append(row(f"window of {window:,} in every layer", _windowed(shape, window), bytes_per_element))
    return rows


def _windowed(shape: Shape, window: int) -> Shape:
    no_full_layers = {"n_full_attention_layers": 0} if isinstance(shape, ModelShape) else {}
    return replace(shape, sliding_window=window, **no_full_layers)
