"""The small training loop of the lesson on quality: models that start alike and read the same batches, in one order.

Two decoders are comparable if nothing but `n_kv_heads` differs. So the first weights (`initial_model`) and the batches
(`text_batches`, `recall_batches`) follow from a seed alone, and `train` adds no chance of its own.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gqa_lab.config import ModelConfig
from gqa_lab.convert import convert_kv_heads, first_head
from gqa_lab.model import Transformer

Batch = tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]
"""What is read, and what has to be predicted at each place; `NOTHING` where nothing has to be."""

NOTHING = -100
"""The target of a place that does not count, as `torch.nn.functional.cross_entropy` has it."""


def initial_model(config: ModelConfig, seed: int) -> Transformer:
    """Returns an untrained decoder that differs from those of other `n_kv_heads` only where it has to.

    Every matrix is drawn from a generator of its own, which its name and the seed decide. Keys and values are drawn
    for all H heads, and of each group that shares a KV head the first is kept (`first_head`): all decoders of one seed
    have their embedding, `q_proj`, `o_proj` and, where d_ff is the same, MLPs in common, and every KV head is one of
    the MHA decoder's.

    Args:
        config: the sizes.
        seed: 0 or more; decides every weight.

    Returns:
        On the CPU, in float32. Matrices are drawn from N(0, 1 / d_model), so that products keep the size of what they
        read; those that add to the residual stream, `o_proj` and `down_proj`, are divided by the root of 2 n_layers.
        Norms begin at 1, biases at 0.

    Example:
        >>> config = ModelConfig(n_layers=1, d_model=24, n_heads=6, n_kv_heads=6, head_dim=4, d_ff=32,
        ...                      vocab_size=50, max_seq_len=16, rope_theta=1e4, norm_eps=1e-5)
        >>> mha, gqa = (initial_model(replace(config, n_kv_heads=n), seed=0).layers[0].attention for n in (6, 3))
        >>> torch.equal(mha.q_proj.weight, gqa.q_proj.weight)
        True
        >>> torch.equal(mha.k_proj.weight.view(6, 4, 24)[::2], gqa.k_proj.weight.view(3, 4, 24))
        True

    Source: the division is that of Radford et al. 2019 (GPT-2) section 2.3.
    """
    mha = Transformer(replace(config, n_kv_heads=config.n_heads))
    for name, weight in mha.named_parameters():
        if weight.ndim == 2:
            adds = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = config.d_model**-0.5 / (math.sqrt(2 * config.n_layers) if adds else 1)
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            torch.nn.init.normal_(weight, std=std, generator=generator)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(weight)
    return convert_kv_heads(mha, config.n_kv_heads, first_head)


def equalised(config: ModelConfig, n_kv_heads: int) -> ModelConfig:
    """Returns the config with other KV heads and a d_ff so much wider that it has as many parameters as before.

    A KV head less frees 2·C·D weights a layer, keys and values; one more of d_ff costs 3·C. What is left of the
    division is at most half a row: 1.5·C parameters a layer.

    Raises:
        ValueError: for an `n_kv_heads` that no model of `n_heads` can have, or one that leaves no d_ff.

    Example:
        >>> config = ModelConfig(n_layers=4, d_model=128, n_heads=8, n_kv_heads=8, head_dim=16, d_ff=352,
        ...                      vocab_size=256, max_seq_len=128, rope_theta=1e4, norm_eps=1e-5, tie_embeddings=True)
        >>> [equalised(config, n).d_ff for n in (8, 4, 2, 1)]
        [352, 395, 416, 427]
    """
    freed = 2 * config.head_dim * (config.n_kv_heads - n_kv_heads)
    return replace(config, n_kv_heads=n_kv_heads, d_ff=config.d_ff + round(freed / 3))


def text_batches(ids: Int[Tensor, "N"], *, n_steps: int, batch_size: int, window: int, seed: int) -> Iterator[Batch]:
    """Yields `n_steps` batches of pieces of a text, each with its next tokens as targets.

    Args:
        ids: the text, N tokens.
        n_steps: batches.
        batch_size: pieces in a batch (B).
        window: tokens read in a piece (T).
        seed: decides where every piece begins, whatever model reads it.

    Raises:
        ValueError: for a text that holds no piece and its next token.

    Example:
        >>> [(inputs, targets)] = text_batches(torch.arange(9), n_steps=1, batch_size=1, window=8, seed=0)
        >>> inputs.tolist(), targets.tolist()
        ([[0, 1, 2, 3, 4, 5, 6, 7]], [[1, 2, 3, 4, 5, 6, 7, 8]])
    """
    if window >= len(ids):
        raise ValueError(f"window ({window}) must be less than the {len(ids)} tokens of ids: each needs a next one")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        starts = torch.randint(len(ids) - window, (batch_size, 1), generator=generator)
        pieces = ids[starts + torch.arange(window + 1)]  # [B, T + 1]
        yield pieces[:, :-1], pieces[:, 1:]


def recall_batches(
    *, n_steps: int, batch_size: int, n_pairs: int, n_keys: int, n_values: int, seed: int
) -> Iterator[Batch]:
    """Yields batches of a task that only looking back solves: pairs of a key and a value, and then every key once more.

    A pair is one token, `key * n_values + value`. A token of its own, `n_keys * n_values + key`, asks for a key, and
    the pair with that key has to be said. No key has a usual value: every sequence draws its own.

    Args:
        n_steps: batches.
        batch_size: sequences in a batch (B).
        n_pairs: pairs in a sequence, which is 2 n_pairs tokens long (T); the keys are asked for in another order.
        n_keys: the keys to draw from; those of a sequence all differ.
        n_values: the values to draw from; several keys may have the same. The vocabulary is n_keys * (n_values + 1).
        seed: decides every sequence, whatever model reads it.

    Raises:
        ValueError: for more pairs than keys.

    Example:
        >>> [(inputs, targets)] = recall_batches(n_steps=1, batch_size=1, n_pairs=3, n_keys=5, n_values=10, seed=0)
        >>> inputs.tolist(), targets.tolist()
        ([[29, 37, 43, 54, 52, 53]], [[-100, -100, -100, 43, 29, 37]])

    Source: after the multi-query associative recall of Arora et al. 2023 (arXiv 2312.04927), with a pair in one token,
        so that one layer's attention can find it.
    """
    if n_pairs > n_keys:
        raise ValueError(f"n_pairs ({n_pairs}) must be at most n_keys ({n_keys}): the keys of a sequence all differ")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        keys = torch.rand(batch_size, n_keys, generator=generator).argsort(1)[:, :n_pairs]
        values = torch.randint(n_values, (batch_size, n_pairs), generator=generator)
        pairs = keys * n_values + values
        order = torch.rand(batch_size, n_pairs, generator=generator).argsort(1)
        asked = n_keys * n_values + keys.gather(1, order)
        yield torch.cat([pairs, asked], 1), torch.cat([torch.full_like(pairs, NOTHING), pairs.gather(1, order)], 1)


def cosine_rate(peak: float, n_steps: int, *, warm_up: int = 10) -> Callable[[int], float]:
    """Returns the learning rate of every step: up to `peak` in `warm_up` steps, then down to 0 along a cosine.

    Example:
        >>> rate = cosine_rate(1e-3, 100)
        >>> [f"{rate(step):.6f}" for step in (0, 10, 55, 99)]
        ['0.000100', '0.001000', '0.000500', '0.000000']

    Source: Loshchilov & Hutter 2017 (arXiv 1608.03983) section 3.
    """

    def rate(step: int) -> float:
        if step < warm_up:
            return peak * (step + 1) / warm_up
        return 0.5 * peak * (1 + math.cos(math.pi * (step - warm_up) / max(1, n_steps - warm_up)))

    return rate


def next_token_loss(model: Transformer, inputs: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Returns the mean cross-entropy of the targets, in nats per token that counts."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=NOTHING)


def train(
    model: Transformer, batches: Iterable[Batch], rate: Callable[[int], float], *, weight_decay: float = 0.1
) -> Iterator[float]:
    """Trains the model on one batch after the other; yields the loss of each, in nats per token, before it is learnt.

    Nothing is trained that is not asked for: `list(train(...))` takes all batches, a `break` in a loop leaves the
    model as it is then. AdamW with gradients cut to length 1; only matrices decay.

    Args:
        model: is changed.
        batches: what is read and what has to be predicted.
        rate: the learning rate of step 0, 1, …
        weight_decay: part of a weight that is lost, per step and learning rate.

    Example:
        >>> config = ModelConfig(n_layers=1, d_model=24, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=32,
        ...                      vocab_size=8, max_seq_len=16, rope_theta=1e4, norm_eps=1e-5)
        >>> alphabet = torch.arange(800) % 8
        >>> batches = text_batches(alphabet, n_steps=40, batch_size=4, window=16, seed=0)
        >>> first, *_, last = train(initial_model(config, seed=0), batches, cosine_rate(1e-2, 40))
        >>> first > 2 > 0.2 > last
        True

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101) algorithm 2.
    """
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step, (inputs, targets) in enumerate(batches):
        loss = next_token_loss(model, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        yield loss.item()


@torch.no_grad()
def accuracy(model: Transformer, inputs: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]) -> float:
    """Returns the share of targets that the model finds likeliest, from 0 to 1; places of `NOTHING` do not count."""
    counts = targets != NOTHING
    return (model(inputs).argmax(-1) == targets)[counts].float().mean().item()
