"""One plan: this model on these GPUs with so many tokens. Does it fit, how fast can it be, what decides?"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from gqa_lab.costs.gpus import Gpu
from gqa_lab.costs.limits import longest, offered_bytes
from gqa_lab.costs.report import plan_notes, plan_table
from gqa_lab.costs.shapes import Shape, check_positive, check_shape, check_whole, with_kv_heads
from gqa_lab.costs.sizes import kv_bytes_per_token, kv_cache_bytes, weight_bytes_held, weight_bytes_read
from gqa_lab.costs.steps import decode_flops, prefill_s, roofline_s


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plan` returns. Fields are what was asked; properties follow from them. None is what is not known here.

    Times and prices are those of `n_gpus`, and None where it does not fit there; see `on_enough_gpus`.

    Several GPUs share the weights and the KV heads (tensor parallel): each holds whole heads, ceil(G / n) of them, so
    that a single KV head, or a latent cache, is held by all of them. What they tell each other is not counted.

    Args:
        shape: the model as published.
        n_kv_heads: what it is planned with.
        gpu, n_gpus: what it runs on.
        kv_len, batch_size: tokens of each sequence, and sequences.
        weight_bytes_per_element, kv_bytes_per_element, free_share: as for `largest_batch`.
        price_per_hour: of one GPU, in whatever you pay with.
    """

    shape: Shape
    n_kv_heads: int
    gpu: Gpu
    n_gpus: int
    kv_len: int
    batch_size: int
    weight_bytes_per_element: int | float
    kv_bytes_per_element: int
    free_share: int | float
    price_per_hour: int | float | None

    @cached_property
    def model(self) -> Shape:
        """The shape with `n_kv_heads`."""
        return self.shape if self.n_kv_heads == self.shape.n_kv_heads else with_kv_heads(self.shape, self.n_kv_heads)

    @property
    def kv_bytes_per_token(self) -> int:
        return kv_bytes_per_token(self.model, bytes_per_element=self.kv_bytes_per_element)

    @cached_property
    def cache_bytes(self) -> int:
        """Of all sequences, every KV head counted once."""
        return self._cache(self.kv_len) * self.batch_size

    @cached_property
    def weight_bytes(self) -> int | None:
        """Held in memory."""
        return _or_none(weight_bytes_held, self.model, bytes_per_element=self.weight_bytes_per_element)

    @cached_property
    def weight_bytes_read(self) -> int | None:
        """Read by a decode step; not known for a mixture of experts, which reads some of them."""
        return _or_none(weight_bytes_read, self.model, bytes_per_element=self.weight_bytes_per_element)

    @property
    def offered_bytes(self) -> float:
        """Memory that weights and cache may take on `n_gpus`."""
        return self.n_gpus * offered_bytes(self.gpu, self.free_share)

    @property
    def needed_bytes(self) -> float | None:
        """Weights, and cache with the KV heads that several GPUs hold copies of."""
        return None if self.weight_bytes is None else self._needed(self.n_gpus)

    @property
    def fits(self) -> bool | None:
        return None if self.needed_bytes is None else self.needed_bytes <= self.offered_bytes

    @cached_property
    def gpus_needed(self) -> int | None:
        """The smallest number of these GPUs that holds it.

        None where the weights are not known, or where one KV head's cache, which no GPU holds less of, fills a GPU.
        """
        if self.weight_bytes is None:
            return None
        one = offered_bytes(self.gpu, self.free_share)
        for n_gpus in range(1, self._n_parts + 1):
            if self._needed(n_gpus) <= n_gpus * one:
                return n_gpus
        left = one - self.cache_bytes / self._n_parts
        return math.ceil(self.weight_bytes / left) if left > 0 else None

    def copies(self, n_gpus: int) -> float:
        """Returns how many times `n_gpus` GPUs hold the cache: once, while the KV heads can be dealt out evenly."""
        return math.ceil(self._n_parts / n_gpus) * n_gpus / self._n_parts

    def on_enough_gpus(self) -> "Plan":
        """Returns this plan on `gpus_needed` GPUs if it does not fit as asked, else itself."""
        return self if self.fits is not False or self.gpus_needed is None else replace(self, n_gpus=self.gpus_needed)

    @cached_property
    def step_s(self) -> float | None:
        """Seconds of one decode step at least, one token for each sequence; None where it does not fit."""
        if self.weight_bytes_read is None or not self.fits:
            return None
        flops = decode_flops(self.model, batch_size=self.batch_size, kv_len=self.kv_len)
        return roofline_s(self.gpu, read_bytes=self._bytes_read / self.n_gpus, flops=flops / self.n_gpus)

    @property
    def tokens_per_s(self) -> float | None:
        """Of all sequences together, at most."""
        return None if self.step_s is None else self.batch_size / self.step_s

    @property
    def cache_share(self) -> float | None:
        """Part of the bytes read by a step that are cache: all that fewer KV heads can save."""
        return None if self.weight_bytes_read is None else 1 - self.weight_bytes_read / self._bytes_read

    @property
    def decides(self) -> str | None:
        """`"weights"` or `"cache"`, whichever a step reads more of, or `"compute"` if that takes longer than both."""
        if self.step_s is None:
            return None
        reading_s = self._bytes_read / self.n_gpus / self.gpu.bandwidth_bytes_per_s
        return "compute" if self.step_s > reading_s else "cache" if self.cache_share > 0.5 else "weights"

    @cached_property
    def first_token_s(self) -> float | None:
        """Seconds of reading one prompt of `kv_len` tokens at least; None where it does not fit or is not known."""
        if self.step_s is None or self.gpu.dense_16bit_tflops is None:
            return None
        sizes = dict(batch_size=1, q_len=self.kv_len, weight_bytes_per_element=self.weight_bytes_per_element)
        return prefill_s(self.model, self.gpu, **sizes) / self.n_gpus

    @property
    def chats(self) -> int | None:
        """How many sequences of `kv_len` tokens fit at once."""
        return self.chats_of(self.kv_len)

    def chats_of(self, kv_len: int) -> int | None:
        """Returns how many sequences of `kv_len` tokens fit at once."""
        if self.weight_bytes is None:
            return None
        left = self.offered_bytes - self.weight_bytes
        return max(0, int(left // (self._cache(kv_len) * self.copies(self.n_gpus))))

    @property
    def largest_context(self) -> int | float | None:
        """Tokens that each of `batch_size` sequences may have, whatever the model was made for; `math.inf` if any."""
        return None if self.weight_bytes is None else self._tokens_in(max(0, self.offered_bytes - self.weight_bytes))

    @property
    def capacity_crossover(self) -> int | float | None:
        """Tokens per sequence up to which the cache takes no more memory than the weights; `math.inf` if always."""
        return None if self.weight_bytes is None else self._tokens_in(self.weight_bytes)

    @property
    def traffic_crossover(self) -> int | float | None:
        """Tokens per sequence up to which a step reads no more of the cache than of the weights."""
        return None if self.weight_bytes_read is None else self._tokens_in(self.weight_bytes_read)

    @property
    def cost_per_million_tokens(self) -> float | None:
        """Of generated tokens at the batch asked for, at the floor: what no program undercuts on these GPUs."""
        if self.price_per_hour is None or self.step_s is None:
            return None
        return self.price_per_hour * self.n_gpus / 3600 * 1e6 / self.tokens_per_s

    @property
    def cost_per_chat_hour(self) -> float | None:
        """Of keeping one chat of `kv_len` tokens in memory for an hour, with as many as fit beside it."""
        if self.price_per_hour is None or not self.chats:
            return None
        return self.price_per_hour * self.n_gpus / self.chats

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before believing the numbers."""
        return plan_notes(self)

    def beside(self) -> "tuple[Plan, ...]":
        """Returns this plan among those as MHA, as published and as MQA, the most KV heads first."""
        options = {self.shape.n_heads, self.shape.n_kv_heads, self.n_kv_heads, 1}
        if self.shape.kind == "mla":
            return (self,)
        return tuple(replace(self, n_kv_heads=g) for g in sorted(options, reverse=True))

    def table(self) -> str:
        """Returns it for people: a verdict, then a column each for MHA, the model's own, this plan's and MQA.

        Where it does not fit, the columns stand on as many GPUs as this plan needs.
        """
        return plan_table(self, self.on_enough_gpus().beside())

    @property
    def _n_parts(self) -> int:
        """Parts that a cache can be dealt out in."""
        return 1 if self.shape.kind == "mla" else self.n_kv_heads

    @property
    def _bytes_read(self) -> float:
        return self.weight_bytes_read + self.cache_bytes * self.copies(self.n_gpus)

    def _cache(self, kv_len: int) -> int:
        return kv_cache_bytes(self.model, batch_size=1, kv_len=kv_len, bytes_per_element=self.kv_bytes_per_element)

    def _needed(self, n_gpus: int) -> float:
        return self.weight_bytes + self.cache_bytes * self.copies(n_gpus)

    def _tokens_in(self, budget: int | float) -> int | float:
        sizes = dict(batch_size=self.batch_size, kv_bytes_per_element=self.kv_bytes_per_element)
        return longest(self.model, budget / self.copies(self.n_gpus), **sizes)


def plan(
    shape: Shape,
    gpu: Gpu,
    *,
    kv_len: int,
    batch_size: int,
    n_kv_heads: int | None = None,
    weight_bytes_per_element: int | float = 2,
    kv_bytes_per_element: int = 2,
    n_gpus: int = 1,
    free_share: int | float = 0.1,
    price_per_hour: int | float | None = None,
) -> Plan:
    """Returns whether a model fits, how fast it can be at most, what decides, and what that costs.

    Args:
        shape: a `ModelConfig` or one of `SHAPES`.
        gpu: one of `GPUS`.
        kv_len: tokens of each sequence (S).
        batch_size: sequences decoded together (B).
        n_kv_heads: another number of KV heads than the model's own.
        weight_bytes_per_element: 2 for 16-bit weights, 1 for 8, 0.5 for 4.
        kv_bytes_per_element: 2 for a 16-bit cache, 1 for 8.
        n_gpus: GPUs that share the model.
        free_share: part of the memory left to everything else.
        price_per_hour: of one GPU, in whatever you pay with.

    Raises:
        ValueError: for sizes below 1, a price or bytes not above 0, heads that do not divide, KV heads of a model
            that has none (MLA).

    Example:
        >>> from gqa_lab.costs import GPUS, SHAPES
        >>> chat = plan(SHAPES["llama-2-70b"], GPUS["h100-sxm"], kv_len=100_000, batch_size=4)
        >>> chat.fits, chat.gpus_needed, chat.on_enough_gpus().decides
        (False, 4, 'weights')
    """
    check_shape(shape)
    check_whole(1, kv_len=kv_len, batch_size=batch_size, n_gpus=n_gpus, kv_bytes_per_element=kv_bytes_per_element)
    check_positive(weight_bytes_per_element=weight_bytes_per_element)
    if price_per_hour is not None:
        check_positive(price_per_hour=price_per_hour)
    offered_bytes(gpu, free_share)
    if n_kv_heads is not None:
        with_kv_heads(shape, n_kv_heads)
    return Plan(
        shape=shape,
        n_kv_heads=shape.n_kv_heads if n_kv_heads is None else n_kv_heads,
        gpu=gpu,
        n_gpus=n_gpus,
        kv_len=kv_len,
        batch_size=batch_size,
        weight_bytes_per_element=weight_bytes_per_element,
        kv_bytes_per_element=kv_bytes_per_element,
        free_share=free_share,
        price_per_hour=price_per_hour,
    )


def _or_none(function, *args, **kwargs):
    """What is not known here (experts, a latent cache) raises; a plan says None and goes on."""
    try:
        return function(*args, **kwargs)
    except ValueError:
        return None
