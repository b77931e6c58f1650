"""The runs of `quality.py`: a decoder trained on a text, one trained on recall, a trained one converted.

Runs of one seed begin with the same weights and see the same batches, whatever their n_kv_heads. All losses are
cross-entropies in nats per byte, in float32, on the held-out topics of `convert_texts`.
"""

from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import mean

import torch
from convert_texts import HELD_OUT, topics, training_text

from gqa_lab.config import ModelConfig
from gqa_lab.convert import convert_kv_heads, first_head, mean_heads, random_head
from gqa_lab.costs import n_parameters
from gqa_lab.model import Transformer
from gqa_lab.train import (
    accuracy,
    cosine_rate,
    equalised,
    initial_model,
    next_token_loss,
    recall_batches,
    text_batches,
    train,
)

N_KV_HEADS = (8, 4, 2, 1)
RULES = {"mean": mean_heads, "first": first_head, "random": random_head}
SHARES = (0, 0.05, 0.1)
"""Of the original steps, how many a converted model is trained further."""

TEXT_MODEL = ModelConfig(
    n_layers=4, d_model=128, n_heads=8, n_kv_heads=8, head_dim=16, d_ff=352, vocab_size=256, max_seq_len=128,
    rope_theta=1e4, norm_eps=1e-5, tie_embeddings=True,
)  # fmt: skip
PAIRS = {"n_pairs": 8, "n_keys": 16, "n_values": 16}
RECALL_MODEL = ModelConfig(
    n_layers=2, d_model=64, n_heads=8, n_kv_heads=8, head_dim=4, d_ff=128, vocab_size=16 * 17, max_seq_len=16,
    rope_theta=1e4, norm_eps=1e-5, tie_embeddings=True,
)  # fmt: skip
SOLVED = 0.99
"""Share of right answers that counts as having solved recall."""
FURTHER, MEASURED = 1000, 2000
"""Added to the seed of a run: for the batches of further training, and for the sequences that recall is measured on."""

WARM_UP = 20
"""Steps in which the learning rate rises."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How long the runs are. Rates and steps were tried on seed 6, which is not in the record.

    Args:
        seeds: one pair of runs for each.
        steps: of the training on the text, of `batch` pieces of `window` bytes.
        rate: its highest learning rate; `further_rate` that of converted models, which have learnt before.
        held_out_windows: pieces of the held-out text that are measured.
        recall_steps: at most so many, of `recall_batch` sequences.
        recall_measured: sequences that it is measured on, after every `recall_every` steps.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    steps: int = 600
    batch: int = 4
    window: int = 128
    rate: float = 4e-3
    further_rate: float = 1e-3
    held_out_windows: int = 96
    recall_steps: int = 500
    recall_batch: int = 64
    recall_rate: float = 3e-3
    recall_measured: int = 128
    recall_every: int = 20


SMOKE = Sizes(
    seeds=(0, 1), steps=20, batch=1, window=8, held_out_windows=2,
    recall_steps=4, recall_batch=2, recall_measured=2, recall_every=2,
)  # fmt: skip


@cache
def text_ids() -> torch.Tensor:
    """Returns the training text, one id a byte."""
    return torch.tensor(list(training_text().encode()))


def held_out_text() -> str:
    """Returns the held-out topics; `convert_texts` keeps them apart from the training text."""
    return "\n\n".join(topics[name] for name in HELD_OUT)


def held_out_windows(sizes: Sizes) -> torch.Tensor:
    """Returns pieces spread evenly over the held-out topics, `[n, window + 1]`: the last byte is only predicted."""
    ids = torch.tensor(list(held_out_text().encode()))
    pieces = ids.unfold(0, sizes.window + 1, sizes.window)
    return pieces[torch.linspace(0, len(pieces) - 1, sizes.held_out_windows).long()]


@torch.no_grad()
def held_out_loss(model: Transformer, sizes: Sizes) -> float:
    """Returns the loss on the held-out topics, in nats per byte."""
    parts = held_out_windows(sizes).split(32)
    return sum(len(x) * next_token_loss(model, x[:, :-1], x[:, 1:]).item() for x in parts) / sizes.held_out_windows


@torch.no_grad()
def changed_by_expansion(model: Transformer, sizes: Sizes) -> float:
    """Returns the largest difference between the model's logits and those of itself expanded to MHA."""
    ids = held_out_windows(sizes)[:2, :-1]
    return (convert_kv_heads(model, model.config.n_heads)(ids) - model(ids)).abs().max().item()


def learn_text(model: Transformer, sizes: Sizes, *, n_steps: int, rate: float, seed: int, warm_up: int) -> list[float]:
    """Trains on the text; returns the losses of the training batches, as the means of ten equal parts."""
    batches = text_batches(text_ids(), n_steps=n_steps, batch_size=sizes.batch, window=sizes.window, seed=seed)
    losses = list(train(model, batches, cosine_rate(rate, n_steps, warm_up=warm_up)))
    tenths = [losses[i * n_steps // 10 : (i + 1) * n_steps // 10] for i in range(10)]
    return [round(mean(tenth), 4) for tenth in tenths if tenth]


def text_run(sizes: Sizes, folder: Path, seed: int, n_kv_heads: int, equal: bool) -> dict:
    """Returns what a decoder that was trained on the text loses on the held-out text.

    Args:
        folder: where the trained weights of an MHA decoder are kept, to be converted.
        equal: the MLP is so much wider that the decoder has the parameters of the one with 8 KV heads.
    """
    config = equalised(TEXT_MODEL, n_kv_heads) if equal else replace(TEXT_MODEL, n_kv_heads=n_kv_heads)
    model = initial_model(config, seed)
    losses = learn_text(model, sizes, n_steps=sizes.steps, rate=sizes.rate, seed=seed, warm_up=WARM_UP)
    changed = changed_by_expansion(model, sizes)
    assert changed < 1e-4, f"expansion to MHA is exact, but a logit moved by {changed}"
    if config.kind == "mha":
        torch.save(model.state_dict(), folder / f"quality_mha_{seed}.pt")
    return {
        "n_kv_heads": n_kv_heads,
        "d_ff": config.d_ff,
        "n_parameters": n_parameters(config),
        "loss": held_out_loss(model, sizes),
        "training_losses": losses,
        "changed_by_expansion": changed,
    }


def recall_run(sizes: Sizes, folder: Path, seed: int, n_kv_heads: int) -> dict:
    """Returns after how many steps a decoder had solved recall (None: not at all), and how far it was on the way.

    Args:
        folder: not used; nothing of it is converted.
    """
    config = replace(RECALL_MODEL, n_kv_heads=n_kv_heads)
    model = initial_model(config, seed)
    [held] = recall_batches(n_steps=1, batch_size=sizes.recall_measured, seed=MEASURED + seed, **PAIRS)
    batches = recall_batches(n_steps=sizes.recall_steps, batch_size=sizes.recall_batch, seed=seed, **PAIRS)
    steps = train(model, batches, lambda step: sizes.recall_rate * min(1, (step + 1) / WARM_UP))
    accuracies = []
    while list(islice(steps, sizes.recall_every)):
        accuracies.append(round(accuracy(model, *held), 4))
        if accuracies[-1] >= SOLVED:
            break
    return {
        "n_kv_heads": n_kv_heads,
        "n_parameters": n_parameters(config),
        "steps_to_solve": len(accuracies) * sizes.recall_every if accuracies[-1] >= SOLVED else None,
        "accuracies": accuracies,
    }


def convert_run(sizes: Sizes, folder: Path, seed: int, n_kv_heads: int, rule: str | None) -> dict:
    """Returns the loss of a trained MHA decoder, converted and then trained further, for each of `SHARES`.

    Each share begins anew with the converted decoder and has a learning rate that ends at 0.

    Args:
        folder: where the trained weights are.
        rule: the key in `RULES` of what makes one head of several; None for the control, which is not converted.
    """
    losses = {}
    for share in SHARES:
        model = Transformer(TEXT_MODEL)
        model.load_state_dict(torch.load(folder / f"quality_mha_{seed}.pt"))
        if rule is not None:
            torch.manual_seed(seed)  # for random_head
            model = convert_kv_heads(model, n_kv_heads, RULES[rule])
        n_steps = round(share * sizes.steps)
        learn_text(model, sizes, n_steps=n_steps, rate=sizes.further_rate, seed=FURTHER + seed, warm_up=2)
        losses[f"{share:.0%}"] = held_out_loss(model, sizes)
    return {"n_kv_heads": n_kv_heads, "losses": losses}
