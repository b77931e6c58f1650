"""The whole story of inference in three short functions: `prefill`, `decode_step`, `generate`."""

from collections.abc import Callable, Collection, Iterator
from numbers import Integral

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gqa_lab.attention import Attend, grouped_attention, sdpa_attention
from gqa_lab.cache import KVCache
from gqa_lab.model import Transformer

Sampler = Callable[[Tensor], Tensor]
INTEGERS = (torch.int64, torch.int32)


@torch.no_grad()
def prefill(
    model: Transformer,
    prompt_ids: Int[Tensor, "B T"],
    caches: list[KVCache],
    *,
    attend: Attend = sdpa_attention,
) -> Float[Tensor, "B vocab"]:
    """Returns the logits of the first new token, after reading the whole prompt at once.

    All T tokens go through every matrix together, so this part is limited by arithmetic, not by memory.

    Args:
        prompt_ids: prompts of one length.
        caches: one per layer; they hold the prompt afterwards.
    """
    hidden = model.hidden(prompt_ids, caches, attend=attend)
    return model.logits(hidden[:, -1])  # nobody reads the logits inside the prompt


@torch.no_grad()
def decode_step(
    model: Transformer, ids: Int[Tensor, "B 1"], caches: list[KVCache], *, attend: Attend = grouped_attention
) -> Float[Tensor, "B vocab"]:
    """Returns the logits of the next token of every sequence, after reading one more.

    One token reads every weight and the whole cache: this part is limited by memory.

    Raises:
        ValueError: for more than one new token per sequence; `prefill` reads several.
    """
    if ids.ndim != 2 or ids.shape[1] != 1:
        raise ValueError(f"ids has shape {list(ids.shape)}; a decode step takes [batch, 1], prefill takes several")
    return model(ids, caches, attend=attend)[:, 0]


def greedy(logits: Float[Tensor, "B vocab"]) -> Int[Tensor, "B"]:
    """Returns the likeliest token of every sequence."""
    return logits.argmax(-1)


def random_sampler(temperature: float, *, top_p: float = 1.0, seed: int = 0) -> Sampler:
    """Returns a sampler that draws from `softmax(logits / temperature)`, cut to the likeliest `top_p` of the mass.

    Args:
        temperature: below 1 sharper, above 1 flatter; greater than 0.
        top_p: from 0 (exclusive) to 1; keeps the fewest tokens whose probabilities reach it (Holtzman et al.
            2019, arXiv 1904.09751).
        seed: the same seed draws the same tokens.

    Raises:
        ValueError: for a temperature or top_p outside its range.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature must be greater than 0 and finite, got {temperature}; use greedy for the likeliest token"
        )
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be greater than 0 and at most 1, got {top_p}")
    generator = torch.Generator().manual_seed(seed)

    def sample(logits: Tensor) -> Tensor:
        probabilities = (logits.float().cpu() / temperature).softmax(-1)
        if top_p == 1:
            return torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)
        ordered, order = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # the mass of all likelier tokens
        drawn = torch.multinomial(ordered.masked_fill(before >= top_p, 0.0), 1, generator=generator)
        return order.gather(-1, drawn)[:, 0].to(logits.device)

    return sample


def generate(
    model: Transformer,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    attend: Attend = grouped_attention,
    prefill_attend: Attend = sdpa_attention,
    step: Callable[..., Tensor] = decode_step,
    sampler: Sampler = greedy,
    stop: Collection[int] = (),
) -> Iterator[list[int | None]]:
    """Streams the answers: one list of B ids per step, None for a sequence that has finished.

    Args:
        model: a decoder.
        prompts: token ids of B prompts; their lengths may differ.
        max_new_tokens: most tokens that a sequence gets.
        attend: attention of the decode steps.
        prefill_attend: attention of the prompt.
        step: what turns `(model, ids [B, 1], caches, attend=...)` into logits.
        sampler: what turns logits `[B, vocab]` into ids `[B]`.
        stop: ids that end a sequence; they are not part of the answer.

    Raises:
        ValueError: at the call, not at the first token, for empty prompts, unknown ids, or more tokens than the
            model has positions.

    Example:
        >>> answers = generate(model, [[1, 2, 3], [4]], max_new_tokens=8)  # doctest: +SKIP
        >>> for first, second in answers: ...                              # doctest: +SKIP
    """
    _check_request(model, prompts, max_new_tokens, stop)
    longest = max(map(len, prompts)) + max_new_tokens - 1  # the last new token is never read back
    caches = model.new_caches(len(prompts), longest)
    return _stream(model, prompts, caches, max_new_tokens, attend, prefill_attend, step, sampler, frozenset(stop))


def _stream(model, prompts, caches, max_new_tokens, attend, prefill_attend, step, sampler, stop):
    logits = _prefill_prompts(model, prompts, caches, prefill_attend)
    finished = [False] * len(prompts)
    for n_new in range(1, max_new_tokens + 1):
        ids = sampler(logits)
        if not isinstance(ids, Tensor) or ids.shape != logits.shape[:1] or ids.dtype not in INTEGERS:
            raise ValueError(f"sampler returned {ids!r}; it must return a tensor of {len(prompts)} token ids")
        tokens = ids.tolist()
        finished = [done or token in stop for done, token in zip(finished, tokens, strict=True)]
        if all(finished):
            return
        yield [None if done else token for done, token in zip(finished, tokens, strict=True)]
        if n_new < max_new_tokens:
            logits = step(model, ids[:, None], caches, attend=attend)


def _prefill_prompts(model, prompts, caches, attend) -> Float[Tensor, "B vocab"]:
    """Returns the first logits; prompts of different length are read one by one, so no padding enters the model."""
    if len(set(map(len, prompts))) == 1:
        return prefill(model, torch.tensor(prompts, device=model.device), caches, attend=attend)
    rows = []
    for b, prompt in enumerate(prompts):
        row = [cache.row(b) for cache in caches]
        rows.append(prefill(model, torch.tensor([prompt], device=model.device), row, attend=attend))
    return torch.cat(rows)


def _check_request(model: Transformer, prompts: list[list[int]], max_new_tokens: int, stop: Collection[int]) -> None:
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(p, list | tuple) for p in prompts):
        raise ValueError("prompts must be a list of prompts, each a list of token ids; for one prompt write [ids]")
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
    if not isinstance(stop, list | tuple | set | frozenset) or not all(isinstance(i, Integral) for i in stop):
        raise ValueError(f"stop must be a list of token ids such as tokenizer.stop_ids, got {stop!r}")
    vocab_size, max_seq_len = model.config.vocab_size, model.config.max_seq_len
    for b, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {b} is empty; it needs at least one token")
        unknown = [i for i in prompt if not isinstance(i, Integral) or not 0 <= i < vocab_size]
        if unknown:
            raise ValueError(f"prompt {b} holds token id {unknown[0]!r}; this model knows 0 to {vocab_size - 1}")
        if len(prompt) + max_new_tokens - 1 > max_seq_len:
            raise ValueError(
                f"prompt {b} has {len(prompt)} tokens; with {max_new_tokens} new ones that exceeds the model's "
                f"{max_seq_len} positions: at most {max(0, max_seq_len - len(prompt) + 1)} new tokens fit"
            )
