"""What a step *takes*: FLOPs, FLOPs per byte, and the seconds below which no program gets."""

from gqa_lab.costs.gpus import Gpu
from gqa_lab.costs.shapes import Shape, check_positive, check_shape, check_whole, layers_by_window
from gqa_lab.costs.sizes import kv_cache_bytes, kv_elements, matrix_parameters, table_parameters, weight_bytes_read


def prefill_flops(shape: Shape, *, batch_size: int, q_len: int) -> int:
    """Returns the matmul FLOPs of reading a prompt, 2 for each multiply-add.

    All matrices for every token, the output matrix for each sequence's last token only, and attention's scores and
    weighted values for the pairs that a causal mask leaves: T · (T + 1) / 2 of them, fewer with a window. Fewer KV
    heads make k_proj and v_proj smaller and nothing else: attention's own FLOPs count *query* heads.

    Args:
        shape: a `ModelConfig` or one of `SHAPES`.
        batch_size: prompts (B).
        q_len: tokens of each prompt (T).

    Raises:
        ValueError: for a mixture of experts or a latent cache, whose matrices are not known here.

    Example:
        >>> from gqa_lab.costs import SHAPES, with_kv_heads
        >>> gqa = SHAPES["llama-3.1-8b"]
        >>> of_mha = prefill_flops(with_kv_heads(gqa, 32), batch_size=1, q_len=8192)
        >>> round(1 - prefill_flops(gqa, batch_size=1, q_len=8192) / of_mha, 3)
        0.091
    """
    check_shape(shape)
    check_whole(1, batch_size=batch_size, q_len=q_len)
    linear = 2 * (q_len * matrix_parameters(shape) + table_parameters(shape))
    return batch_size * (linear + _attention_flops(shape, q_len, q_len))


def decode_flops(shape: Shape, *, batch_size: int, kv_len: int) -> int:
    """Returns the matmul FLOPs of one decode step, 2 for each multiply-add, the output matrix included.

    Args:
        shape: a `ModelConfig` or one of `SHAPES`.
        batch_size: sequences that get one token each (B).
        kv_len: tokens that each of them sees, the new one included (S).

    Raises:
        ValueError: for a mixture of experts or a latent cache, whose matrices are not known here.

    Example:
        >>> from gqa_lab.costs import SHAPES
        >>> decode_flops(SHAPES["llama-3.1-8b"], batch_size=1, kv_len=8192) / 1e9      # about 2 per weight
        19.30428416
    """
    check_shape(shape)
    check_whole(1, batch_size=batch_size, kv_len=kv_len)
    linear = 2 * (matrix_parameters(shape) + table_parameters(shape))
    return batch_size * (linear + _attention_flops(shape, 1, kv_len))


def attention_intensity(shape: Shape, *, q_len: int, kv_len: int, bytes_per_element: int) -> float:
    """Returns the FLOPs of attention for each byte of its keys, values, queries and outputs.

    In 16 bits, one new token of MHA does 1 FLOP per byte it reads, of GQA nearly `group_size`: every query head of a
    group uses the same keys. A larger batch changes nothing, because every sequence owns its cache. Each key and value
    is read once, scores are not written; a latent cache (MLA) is taken in its absorbed form, which decodes from the
    latent vector itself.

    Args:
        shape: a `ModelConfig` or one of `SHAPES`.
        q_len: new tokens (T), the last ones of kv_len.
        kv_len: tokens that can be seen, the new ones included (S).
        bytes_per_element: 2 for float16 and bfloat16.

    Raises:
        ValueError: for more new tokens than tokens.

    Example:
        >>> from gqa_lab.costs import SHAPES
        >>> for name in ("llama-2-7b", "llama-2-70b", "falcon-7b"):
        ...     print(name, round(attention_intensity(SHAPES[name], q_len=1, kv_len=8192, bytes_per_element=2), 1))
        llama-2-7b 1.0
        llama-2-70b 8.0
        falcon-7b 70.4

    Source: T = 1 gives the row "GQA" of Zadouri et al. 2025 (arXiv 2505.21487) Table 1, S · R / (R + S).
    """
    check_shape(shape)
    check_whole(1, q_len=q_len, kv_len=kv_len, bytes_per_element=bytes_per_element)
    if q_len > kv_len:
        raise ValueError(f"q_len ({q_len}) must be at most kv_len ({kv_len}), which includes the new tokens")
    kept = kv_elements(shape)
    per_query = sum(_elements_per_pair(shape)) * shape.n_heads
    elements = sum(
        n_layers * (kept * min(kv_len, (window or kv_len) + q_len - 1) + q_len * per_query)
        for n_layers, window in layers_by_window(shape)
    )
    return _attention_flops(shape, q_len, kv_len) / (elements * bytes_per_element)


def roofline_s(gpu: Gpu, *, read_bytes: int | float, flops: int | float) -> float:
    """Returns the longer of reading so many bytes and doing so many FLOPs at the data sheet's rates, in seconds.

    Where no FLOP/s are known, the time of reading: still a floor.

    Example:
        >>> from gqa_lab.costs import GPUS
        >>> roofline_s(GPUS["h100-sxm"], read_bytes=3.35e9, flops=1e9) * 1000      # ms
        1.0
    """
    reading = read_bytes / gpu.bandwidth_bytes_per_s
    return reading if gpu.dense_16bit_tflops is None else max(reading, flops / gpu.flops_per_s)


def decode_step_s(
    shape: Shape,
    gpu: Gpu,
    *,
    batch_size: int,
    kv_len: int,
    weight_bytes_per_element: int | float = 2,
    kv_bytes_per_element: int = 2,
) -> float:
    """Returns the seconds below which one decode step cannot come: a floor, not a forecast.

    max((weights read + cache read) / bandwidth, FLOPs / peak). Real steps also launch kernels, write, synchronise,
    and reach a part of the data sheet's rates; how large a part is what a profiler measures. One token of each
    sequence takes this long. Arithmetic is priced at the 16-bit rate whatever the weights are stored in.

    Args:
        shape: a `ModelConfig` or one of `SHAPES`.
        gpu: one of `GPUS`.
        batch_size: sequences decoded together (B).
        kv_len: tokens of each (S).
        weight_bytes_per_element: 2 for 16-bit weights, 1 for 8, 0.5 for 4 (scales not counted).
        kv_bytes_per_element: of the cache.

    Raises:
        ValueError: for a mixture of experts, whose weights per step are not known here, and for sizes below 1.

    Example:
        >>> from gqa_lab.costs import GPUS, SHAPES
        >>> step_s = decode_step_s(SHAPES["llama-3.1-8b"], GPUS["h100-sxm"], batch_size=32, kv_len=8192)
        >>> round(step_s * 1000, 1)      # ms
        14.7

    Source: the sum over bandwidth is the floor of Austin et al. 2025, "How to Scale Your Model", chapter Inference.
    """
    flops = decode_flops(shape, batch_size=batch_size, kv_len=kv_len)
    check_positive(weight_bytes_per_element=weight_bytes_per_element)
    weights = weight_bytes_read(shape, bytes_per_element=weight_bytes_per_element)
    cache = kv_cache_bytes(shape, batch_size=batch_size, kv_len=kv_len, bytes_per_element=kv_bytes_per_element)
    return roofline_s(gpu, read_bytes=weights + cache, flops=flops)


def tokens_per_s_ceiling(shape: Shape, gpu: Gpu, *, batch_size: int, **sizes: int | float) -> float:
    """Returns the tokens per second of the whole batch above which no program comes: B / `decode_step_s`.

    Args:
        shape, gpu, batch_size, sizes: as in `decode_step_s`.

    Example:
        >>> from gqa_lab.costs import GPUS, SHAPES
        >>> round(tokens_per_s_ceiling(SHAPES["llama-3.1-8b"], GPUS["h100-sxm"], batch_size=32, kv_len=8192))
        2171
    """
    return batch_size / decode_step_s(shape, gpu, batch_size=batch_size, **sizes)


def prefill_s(
    shape: Shape,
    gpu: Gpu,
    *,
    batch_size: int,
    q_len: int,
    share_of_peak: int | float = 1,
    weight_bytes_per_element: int | float = 2,
) -> float:
    """Returns the seconds of reading a prompt, the longer of its FLOPs and of one read of the weights.

    Args:
        shape: a `ModelConfig` or one of `SHAPES`.
        gpu: one of `GPUS`; its FLOP/s must be known.
        batch_size: prompts (B).
        q_len: tokens of each (T).
        share_of_peak: the part of the data sheet's FLOP/s that is reached, at most 1. 1 gives the floor; 0.76 was
            reported for a 540B model on 64 TPU v4 (Pope et al. 2022, arXiv 2211.05102).
        weight_bytes_per_element: 2 for 16-bit weights.

    Raises:
        ValueError: for a share outside (0, 1], for a mixture of experts or a latent cache, for unknown FLOP/s.

    Example:
        >>> from gqa_lab.costs import GPUS, SHAPES
        >>> seconds = prefill_s(SHAPES["llama-3.1-8b"], GPUS["h100-sxm"], batch_size=1, q_len=8192)
        >>> round(seconds * 1000)      # ms to the first token, at least
        133
    """
    flops = prefill_flops(shape, batch_size=batch_size, q_len=q_len)
    check_positive(share_of_peak=share_of_peak, weight_bytes_per_element=weight_bytes_per_element)
    if share_of_peak > 1:
        raise ValueError(f"share_of_peak ({share_of_peak}) must be at most 1, all of the data sheet's FLOP/s")
    weights = weight_bytes_read(shape, bytes_per_element=weight_bytes_per_element)
    return max(flops / (gpu.flops_per_s * share_of_peak), weights / gpu.bandwidth_bytes_per_s)


def _attention_flops(shape: Shape, q_len: int, kv_len: int) -> int:
    """Scores and weighted values of all layers for one sequence: every query head with every key that it may see."""
    pairs = sum(n_layers * _seen_pairs(q_len, kv_len, window) for n_layers, window in layers_by_window(shape))
    return 2 * pairs * shape.n_heads * sum(_elements_per_pair(shape))


def _elements_per_pair(shape: Shape) -> tuple[int, int]:
    """Width of a query head where it meets a key, and of a value."""
    if getattr(shape, "kv_lora_rank", None):
        return shape.kv_lora_rank + shape.qk_rope_head_dim, shape.kv_lora_rank
    return shape.head_dim, shape.head_dim


def _seen_pairs(q_len: int, kv_len: int, window: int | None) -> int:
    """Pairs of a query and a key that the causal mask and the window leave; the queries are the last q_len tokens."""
    window = window or kv_len
    before = kv_len - q_len
    growing = max(0, min(q_len, window - before))  # queries that still see all keys up to themselves
    return growing * before + growing * (growing + 1) // 2 + (q_len - growing) * window
