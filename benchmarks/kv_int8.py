"""Records what storing keys and values in few bits does to SmolLM2-135M's cross-entropy: K and V apart, then both.

    python benchmarks/kv_int8.py

Writes benchmarks/results/kv_int8.json. Keys are stored as a cache keeps them, after RoPE. The texts are those of
convert_texts.py, in windows of 512 tokens; losses in nats per token, in float32. Some minutes on one core.
"""

import torch
from convert_texts import description, held_out, losses

from gqa_lab.attention import sdpa_attention
from gqa_lab.listen import load_smollm2
from gqa_lab.recorded import environment, save_record

BLOCK = 64
"""Tokens that share a scale per place; with a head_dim of 64 there are as many scales as with one per token."""

SCALE_OVER = {"token": -1, "place": -2}
"""The axis of `[B, G, blocks, BLOCK, D]` whose numbers share a scale."""


def stored(x: torch.Tensor, n_bits: int, scale_per: str) -> torch.Tensor:
    """Returns x as it comes back from whole numbers of n_bits bits and a float16 scale. A copy: it shows the error."""
    most, blocks = 2 ** (n_bits - 1) - 1, x.unflatten(2, (-1, BLOCK))
    scale = (blocks.abs().amax(SCALE_OVER[scale_per], keepdim=True) / most).clamp(min=1e-5).half().float()
    return ((blocks / scale).round() * scale).flatten(2, 3)


def storing(k_bits: int | None, v_bits: int | None, scale_per: str):
    """Returns an attention that reads K and V as they come back from so many bits; None leaves them alone."""

    def attend(q, k, v, **rest):
        k = k if k_bits is None else stored(k, k_bits, scale_per)
        v = v if v_bits is None else stored(v, v_bits, scale_per)
        return sdpa_attention(q, k, v, **rest)

    return attend


def main() -> None:
    model, tokenizer = load_smollm2(device="cpu")
    texts = held_out(tokenizer)
    runs = {"original": (None, None, "token")}
    for bits, name in ((8, "token"), (4, "token"), (4, "place")):
        for k_bits, v_bits in ((bits, None), (None, bits), (bits, bits)):
            runs[f"K {k_bits or 'full'}, V {v_bits or 'full'}, a scale per {name}"] = (k_bits, v_bits, name)
    found = {}
    for run, (k_bits, v_bits, name) in runs.items():
        attend = storing(k_bits, v_bits, name)
        found[run] = {text: losses(model, ids, attend=attend) for text, ids in texts.items()}
        mean = {text: sum(values) / len(values) for text, values in found[run].items()}
        print(run, {text: round(value, 4) for text, value in mean.items()}, flush=True)
    texts = {name: text for name, text in description(tokenizer).items() if name != "train"}
    save_record("kv_int8", {"provenance": environment(), "texts": texts, "losses": found})


if __name__ == "__main__":
    main()
