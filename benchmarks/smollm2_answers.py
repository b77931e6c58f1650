"""Records what the lessons show of the real model, for readers who have not brought it.

    python benchmarks/smollm2_answers.py

Writes benchmarks/results/smollm2_answers.json: for the right attention and for each classic mistake the answer, its
ids, the smallest gap between the two likeliest tokens on the way (so that another machine says the same), and the
cross-entropy of `listen.PARAGRAPH`; and how far apart heads of one group and of different groups look.
"""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from gqa_lab.attention import grouped_attention
from gqa_lab.checks.head_maps import cards
from gqa_lab.checks.wrong_attention import attend, everything
from gqa_lab.generate import generate
from gqa_lab.listen import PARAGRAPH, cross_entropy, head_weights, load_smollm2
from gqa_lab.recorded import environment, save_record

PROMPT = "What is the capital of France, and why is it famous?"
SMALLEST_GAP = 1e-3


def reshaped(q, k, v):
    """Cuts the projection's columns without the transpose: heads are made of whole tokens."""
    b, h, t, d = q.shape
    return attend(q.transpose(1, 2).reshape(b, h, t, d), k, v)


def top_left(t: int, s: int):
    """The mask that `is_causal=True` makes: query t sees keys 0 to t, however many came before."""
    return torch.ones(t, s, dtype=torch.bool).tril()


MISTAKES: dict[str, tuple[Callable, int]] = {  # wrong attention, and how many tokens of its answer to record
    "no scale": (partial(attend, scale=lambda r, g, d: 1.0), 12),
    "scale 1/D": (partial(attend, scale=lambda r, g, d: 1 / d), 12),
    "scale √d_model": (partial(attend, scale=lambda r, g, d: (r * g * d) ** -0.5), 12),
    "mask times scores": (partial(attend, fill=0.0), 40),
    "no mask": (partial(attend, mask=everything), 40),
    "q reshaped": (reshaped, 24),
    "top-left mask": (partial(attend, mask=top_left), 12),
    "tiled": (partial(attend, keys=cards, values=cards), 12),
    "tiled values": (partial(attend, values=cards), 12),
    "KV head 0": (partial(attend, keys=lambda i, h, g: 0, values=lambda i, h, g: 0), 12),
}


def as_attend(function: Callable) -> Callable:
    """Returns the function as a model calls it."""
    return lambda q, k, v, *, lengths=None, window=None: function(q, k, v)


def with_restarting_positions(model):
    """Returns the model, its weights shared, in which the positions of new tokens start at 0 again and again."""
    forgetful = copy.copy(model)
    forgetful.rope = lambda token_ids, caches: model.rope(token_ids, None)
    return forgetful


def answer(model, tokenizer, attend, max_new_tokens: int) -> dict:
    """Returns the greedy answer to `PROMPT` and how sure the model was of each token."""
    gaps = []

    def greedy_with_gaps(logits):
        likeliest = logits.topk(2)
        gaps.append((likeliest.values[0, 0] - likeliest.values[0, 1]).item())
        return likeliest.indices[:, 0]

    steps = generate(
        model, [tokenizer.chat(PROMPT)], max_new_tokens=max_new_tokens, attend=attend, prefill_attend=attend,
        sampler=greedy_with_gaps, stop=tokenizer.stop_ids,
    )  # fmt: skip
    ids = [token for [token] in steps]
    assert min(gaps) > SMALLEST_GAP, f"gaps {gaps} could fall the other way elsewhere: shorten the answer"
    text_ids = torch.tensor([tokenizer.encode(PARAGRAPH)], device=model.device)
    loss = cross_entropy(model, text_ids, attend=attend)
    return {"ids": ids, "text": tokenizer.decode(ids), "smallest_gap": min(gaps), "cross_entropy": loss}


def head_distances(model, tokenizer) -> dict:
    """Returns, for each layer, the mean total variation distance of attention weights inside groups and across."""
    w, group_size = head_weights(model, tokenizer.encode(PARAGRAPH)), model.config.group_size
    inside, across = [], []
    for i in range(model.config.n_heads):
        for j in range(i):
            distance = 0.5 * np.abs(w[:, i] - w[:, j]).sum(-1).mean(-1)  # [layers]
            (inside if i // group_size == j // group_size else across).append(distance)
    return {"inside": np.mean(inside, axis=0).tolist(), "across": np.mean(across, axis=0).tolist()}


def main() -> None:
    model, tokenizer = load_smollm2()
    record = {
        "provenance": environment(),
        "prompt": PROMPT,
        "n_prompt_tokens": len(tokenizer.chat(PROMPT)),
        "n_paragraph_tokens": len(tokenizer.encode(PARAGRAPH)),
        "answers": {
            "right": answer(model, tokenizer, grouped_attention, 40),
            **{name: answer(model, tokenizer, as_attend(wrong), n) for name, (wrong, n) in MISTAKES.items()},
            "positions restart": answer(with_restarting_positions(model), tokenizer, grouped_attention, 40),
        },
        "head_distances": head_distances(model, tokenizer),
    }
    save_record("smollm2_answers", record)
    for name, said in record["answers"].items():
        print(f"{name:<18} {said['cross_entropy']:6.2f}  gap {said['smallest_gap']:.4f}  {said['text']!r}")


if __name__ == "__main__":
    main()
