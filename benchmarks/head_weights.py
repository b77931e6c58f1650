"""Records where every head of SmolLM2 looks in one sentence, for readers of lesson 02 who have not brought the model.

    python benchmarks/head_weights.py

Writes benchmarks/results/head_weights.json: the tokens, and for each layer and head the attention weights in whole
percent, row by row up to the diagonal (a causal row t has t + 1 weights; the rest are 0).
"""

import json

import numpy as np

from gqa_lab.listen import head_weights, load_smollm2
from gqa_lab.recorded import RESULTS, environment

SENTENCE = "The dog chased the cat because it was hungry"


def main() -> None:
    model, tokenizer = load_smollm2(device="cpu")
    ids = tokenizer.encode(SENTENCE)
    all_weights = head_weights(model, ids)  # [layers, heads, T, T]
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
