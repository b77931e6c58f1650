"""Records what lessons 00 and 05 show of the real model, for readers who have not brought it.

    python benchmarks/smollm2_answers.py

Writes benchmarks/results/smollm2_answers.json: for the right attention and for tiled KV heads (both, or values only)
the answer, its ids, the smallest gap between the two likeliest tokens on the way (so that another machine says the
same), and the cross-entropy of `listen.PARAGRAPH`; and how far apart heads of one group and of different groups look.
"""

import json

import numpy as np
import torch

from gqa_lab import reference
from gqa_lab.attention import grouped_attention, sdpa_attention
from gqa_lab.generate import generate
from gqa_lab.listen import PARAGRAPH, cross_entropy, load_smollm2
from gqa_lab.recorded import RESULTS, environment

PROMPT = "What is the capital of France, and why is it famous?"
SMALLEST_GAP = 1e-3


def tiled_attention(q, k, v, *, lengths=None, window=None):
    """The classic mistake: KV heads repeated as a block (0, 1, 2, 0, 1, 2, ...) instead of one by one."""
    group_size = q.shape[1] // k.shape[1]
    k, v = (x.repeat(1, group_size, 1, 1) for x in (k, v))
    return sdpa_attention(q, k, v, lengths=lengths, window=window)


def tiled_values_attention(q, k, v, *, lengths=None, window=None):
    """The same mistake on V alone: the weights are right, the values are another head's."""
    group_size = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group_size, dim=1), v.repeat(1, group_size, 1, 1)
    return sdpa_attention(q, k, v, lengths=lengths, window=window)


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
    assert min(gaps) > SMALLEST_GAP, f"a gap of {min(gaps)} could fall the other way elsewhere: shorten the answer"
    text_ids = torch.tensor([tokenizer.encode(PARAGRAPH)], device=model.device)
    loss = cross_entropy(model, text_ids, attend=attend)
    return {"ids": ids, "text": tokenizer.decode(ids), "smallest_gap": min(gaps), "cross_entropy": loss}


def head_distances(model, tokenizer) -> dict:
    """Returns, for each layer, the mean total variation distance of attention weights inside groups and across."""
    weights = []

    def recording(q, k, v, *, lengths=None, window=None):
        weights.append(reference.attention_weights(q.double().cpu().numpy(), k.double().cpu().numpy()))
        return sdpa_attention(q, k, v, lengths=lengths, window=window)

    with torch.no_grad():
        model(torch.tensor([tokenizer.encode(PARAGRAPH)], device=model.device), attend=recording)
    w, group_size = np.concatenate(weights), model.config.group_size
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
            "tiled": answer(model, tokenizer, tiled_attention, 12),
            "tiled values": answer(model, tokenizer, tiled_values_attention, 12),
        },
        "head_distances": head_distances(model, tokenizer),
    }
    (RESULTS / "smollm2_answers.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
