"""What *fits*, and from where on the cache outweighs the weights."""

import math

from gqa_lab.costs.gpus import Gpu
from gqa_lab.costs.shapes import Shape, check_positive, check_shape, check_whole, layers_by_window
from gqa_lab.costs.sizes import kv_cache_bytes, kv_elements, weight_bytes_held, weight_bytes_read


def capacity_crossover(
    shape: Shape, *, batch_size: int = 1, weight_bytes_per_element: int | float = 2, kv_bytes_per_element: int = 2
) -> int | float:
    """Returns up to how many tokens per sequence the cache takes no more *memory* than the weights.

    Compare `traffic_crossover`: an untied embedding table is held and never read as a whole.

    Args:
        shape: a `ModelConfig` or one of `SHAPES`.
        batch_size: sequences, which share the weights and own their caches.
        weight_bytes_per_element, kv_bytes_per_element: 2 for 16 bits.

    Returns:
        Tokens per sequence, rounded down; `math.inf` where full windows keep the cache smaller for ever.

    Raises:
        ValueError: for a model whose number of weights is not known here.

    Example:
        >>> from gqa_lab.costs import SHAPES
        >>> capacity_crossover(SHAPES["llama-2-7b"]), capacity_crossover(SHAPES["llama-3.1-8b"])
        (25704, 122528)
        >>> capacity_crossover(SHAPES["mistral-7b-v0.1"])
        inf
    """
    check_positive(weight_bytes_per_element=weight_bytes_per_element)
    weights = weight_bytes_held(shape, bytes_per_element=weight_bytes_per_element)
    return longest(shape, weights, batch_size=batch_size, kv_bytes_per_element=kv_bytes_per_element)


def traffic_crossover(
    shape: Shape, *, batch_size: int = 1, weight_bytes_per_element: int | float = 2, kv_bytes_per_element: int = 2
) -> int | float:
    """Returns up to how many tokens per sequence a decode step *reads* no more of the cache than of the weights.

    Up to here a smaller cache saves less than half of the step's bytes.

    Args, Returns: as for `capacity_crossover`.

    Raises:
        ValueError: for a mixture of experts, whose weights per step are not known here.

    Example:
        >>> from gqa_lab.costs import SHAPES
        >>> traffic_crossover(SHAPES["llama-3.1-8b"]), traffic_crossover(SHAPES["llama-3.1-8b"], batch_size=64)
        (114512, 1789)
    """
    check_positive(weight_bytes_per_element=weight_bytes_per_element)
    weights = weight_bytes_read(shape, bytes_per_element=weight_bytes_per_element)
    return longest(shape, weights, batch_size=batch_size, kv_bytes_per_element=kv_bytes_per_element)


def largest_batch(
    shape: Shape,
    gpu: Gpu,
    *,
    kv_len: int,
    free_share: int | float = 0.1,
    weight_bytes_per_element: int | float = 2,
    kv_bytes_per_element: int = 2,
) -> int:
    """Returns how many sequences of `kv_len` tokens fit beside the weights; 0 where not even the weights do.

    Args:
        shape: a `ModelConfig` or one of `SHAPES`.
        gpu: one of `GPUS`.
        kv_len: tokens of each sequence (S), at least 1.
        free_share: part of the memory left to activations, buffers and fragments, from 0 up to but not including 1.
        weight_bytes_per_element, kv_bytes_per_element: 2 for 16 bits.

    Example:
        >>> from gqa_lab.costs import GPUS, SHAPES
        >>> largest_batch(SHAPES["llama-3.1-8b"], GPUS["h100-sxm"], kv_len=100_000)
        4
    """
    check_whole(1, kv_len=kv_len, kv_bytes_per_element=kv_bytes_per_element)
    left = _memory_left(shape, gpu, free_share, weight_bytes_per_element)
    one = kv_cache_bytes(shape, batch_size=1, kv_len=kv_len, bytes_per_element=kv_bytes_per_element)
    return max(0, int(left // one))


def largest_context(
    shape: Shape,
    gpu: Gpu,
    *,
    batch_size: int,
    free_share: int | float = 0.1,
    weight_bytes_per_element: int | float = 2,
    kv_bytes_per_element: int = 2,
) -> int:
    """Returns the tokens per sequence that fit beside the weights, at most the model's own `max_seq_len`.

    Args:
        shape, gpu, free_share, weight_bytes_per_element, kv_bytes_per_element: as for `largest_batch`.
        batch_size: sequences of that length (B).

    Example:
        >>> from gqa_lab.costs import GPUS, SHAPES
        >>> largest_context(SHAPES["llama-3.1-8b"], GPUS["l4"], batch_size=1)
        42266
    """
    left = _memory_left(shape, gpu, free_share, weight_bytes_per_element)
    if left < 0:
        return 0
    fits = longest(shape, left, batch_size=batch_size, kv_bytes_per_element=kv_bytes_per_element)
    return int(min(fits, shape.max_seq_len))


def offered_bytes(gpu: Gpu, free_share: int | float) -> float:
    """Returns the memory that weights and cache may take together.

    Raises:
        ValueError: for a share outside [0, 1).
    """
    if isinstance(free_share, bool) or not isinstance(free_share, int | float) or not 0 <= free_share < 1:
        raise ValueError(f"free_share must be at least 0 and less than 1, got {free_share!r}")
    return gpu.memory_bytes * (1 - free_share)


def longest(shape: Shape, budget: int | float, *, batch_size: int, kv_bytes_per_element: int) -> int | float:
    """Returns the largest kv_len whose cache takes at most `budget` bytes, or `math.inf` if every one does."""
    check_shape(shape)
    check_whole(1, batch_size=batch_size, kv_bytes_per_element=kv_bytes_per_element)
    budget /= batch_size * kv_elements(shape) * kv_bytes_per_element  # in tokens kept by one layer
    everywhere, windows = 0, 0
    for n_layers, window in layers_by_window(shape):
        everywhere += n_layers if window is None else 0
        windows += n_layers * (window or 0)
    growing = budget / shape.n_layers
    if shape.sliding_window is None or growing <= shape.sliding_window:
        return math.floor(growing)
    return math.floor((budget - windows) / everywhere) if everywhere else math.inf


def _memory_left(shape: Shape, gpu: Gpu, free_share: int | float, weight_bytes_per_element: int | float) -> float:
    check_positive(weight_bytes_per_element=weight_bytes_per_element)
    return offered_bytes(gpu, free_share) - weight_bytes_held(shape, bytes_per_element=weight_bytes_per_element)
