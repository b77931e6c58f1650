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
WINDOWS, LONGEST = (4096, 1024), 8192
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
        torch.cuda.empty_cache()
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
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what earlier caches and tries left behind
        try:
            blocks = [allocate(n_bytes // n_blocks, dtype=torch.uint8, device=device) for _ in range(n_blocks)]
            return sum(block.nbytes for block in blocks)
        except torch.OutOfMemoryError:
            n_bytes = n_bytes * 19 // 20
    return 0


def what_if(shape: Shape, kv_lens: Sequence[int], fit: Fit, *, weight_bytes: int, itemsize: int) -> list[WhatIf]:
    """Returns what the fitted line says of other KV heads, smaller elements and windows: only the cache's bytes change.

    Weights and t0 do not know about any of them. (k_proj and v_proj do, by a little; that is left out.) A line knows
    bytes alone: where arithmetic counts too, as on a CPU, it holds as long as R, the query heads per KV head, does.
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


def asked_for(
    decoder, kv_len: int | Sequence[int], batch_size: int | None, warm_up: int, new_tokens: int,
    max_seq_len: int | None, prefills: int, budget: int | float,
) -> tuple[list[int], int]:  # fmt: skip
    """Returns the tokens of each sequence, and what its buffers have room for.

    Raises:
        ValueError: for what cannot be, or does not fit into the model's positions or into `budget` bytes.
    """
    alike = 1 if batch_size is None else batch_size if type(batch_size) is int else 0
    lens = list(kv_len) if isinstance(kv_len, list | tuple) else [kv_len] * alike
    if not lens or batch_size not in (None, len(lens)):
        raise ValueError(f"batch_size must be at least 1, and as many as kv_len has lengths, got {batch_size!r}")
    asked = [("new_tokens", new_tokens, 1), ("prefills", prefills, 0), *(("kv_len", n, 2) for n in lens)]
    for what, value, least in asked:
        if type(value) is not int or value < least:
            raise ValueError(f"{what} must be a whole number of at least {least}, got {value!r}")
    if len(set(lens)) > 1 and not decoder.takes_lengths:
        raise ValueError("a model of transformers is profiled with sequences of one length; give kv_len as a number")
    needed = max(lens) + warm_up + new_tokens
    room = needed if max_seq_len is None else max_seq_len
    if type(room) is not int or room < needed:
        raise ValueError(f"max_seq_len must be at least {needed}, kv_len and {needed - max(lens)} tokens, got {room!r}")
    if decoder.shape is not None and room > decoder.shape.max_seq_len:
        most = decoder.shape.max_seq_len
        raise ValueError(
            f"room for {room} tokens is needed (kv_len, {warm_up} of warm-up, {new_tokens} timed, or max_seq_len) "
            f"and this model has {most} positions; kv_len can be {most - warm_up - new_tokens} at most"
        )
    _check_memory(decoder, [room] * len(lens), budget)
    return lens, room


def contexts_of(decoder, batch_size: int, sweep: Sequence[int] | None, more: int, budget: int | float) -> list[int]:
    """Returns the contexts to measure: those asked for, or five up to the longest that model and memory hold.

    Raises:
        ValueError: for a context outside the model's positions (`more` tokens follow it), or the memory.
    """
    if decoder.shape is None:
        return []
    most = decoder.shape.max_seq_len - more
    for n in sweep or ():
        if type(n) is not int or not 8 <= n <= most:
            raise ValueError(f"sweep holds {n!r}; a context must be a whole number from 8 to {most}")
        _check_memory(decoder, [n] * batch_size, budget)
    if sweep is not None:
        return sorted(set(sweep))
    top = min(most, LONGEST)
    while top > 8 and cache_bytes(decoder.shape, [top] * batch_size, decoder.dtype.itemsize) > budget:
        top //= 2
    top -= top % 64 if top >= 512 else 0
    return sorted({n for n in (top // 8, top // 4, top // 2, top * 3 // 4, top) if n >= 8})


def _check_memory(decoder, kv_lens: list[int], budget: int | float) -> None:
    needed = 0 if decoder.shape is None else cache_bytes(decoder.shape, kv_lens, decoder.dtype.itemsize)
    if needed > budget:
        raise ValueError(
            f"a cache of {gb(needed)} does not fit: {gb(budget)} can be had beside the weights; take fewer or shorter "
            "sequences, or a smaller dtype"
        )


def gb(n_bytes: int | float) -> str:
    """Returns bytes as GB: three digits, whole numbers from 1,000 on."""
    return f"{n_bytes / 1e9:,.0f} GB" if n_bytes >= 999.5e9 else f"{n_bytes / 1e9:.3g} GB"
