"""Records where every head of SmolLM2 looks in one sentence, for readers of lesson 02 who have not brought the model.

    python benchmarks/head_weights.py

Writes benchmarks/results/head_weights.json: the tokens, and for each layer and head the attention weights in whole
percent, row by row up to the diagonal (a causal row t has t + 1 weights; the rest are 0).
"""

import json

import numpy as np
import torch

from gqa_lab import reference
from gqa_lab.attention import sdpa_attention
from gqa_lab.listen import load_smollm2
from gqa_lab.recorded import RESULTS, environment

SENTENCE = "The dog chased the cat because it was hungry"


def main() -> None:
    model, tokenizer = load_smollm2(device="cpu")
    ids, weights = tokenizer.encode(SENTENCE), []

    def recording(q, k, v, *, lengths=None, window=None):
        weights.append(reference.attention_weights(q.numpy(), k.numpy()))
        return sdpa_attention(q, k, v)

    with torch.no_grad():
        model(torch.tensor([ids]), attend=recording)
    all_weights = np.concatenate(weights)  # [layers, heads, T, T]
    rows, columns = np.tril_indices(len(ids))
    percent = np.rint(100 * all_weights[:, :, rows, columns]).astype(int)
    record = {
        "provenance": environment(),
        "sentence": SENTENCE,
        "words": [tokenizer.decode([i]) for i in ids],
        "percent": percent.tolist(),
    }
    text = json.dumps(record, separators=(",", ":"))
    (RESULTS / "head_weights.json").write_text(text.replace('],"', '],\n"').replace("]],[[", "]],\n[[") + "\n")
    print(len(text), "bytes")


if __name__ == "__main__":
    main()
