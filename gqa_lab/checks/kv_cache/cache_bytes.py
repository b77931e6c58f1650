"""03.bytes: what an MHA model keeps, by hand."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart

_HALF = (
    "Half of it. Keys and values are both kept, and each element takes 2 bytes in bfloat16: one of these is missing."
)
_ONE_LAYER = "That is one layer. Every layer has a cache of its own."
_ONE_HEAD = "That is one head. Every head keeps its own keys and values."
_HEAD_DIM = "You took 128 for head_dim. Look at the numbers of this model."
_FLOAT32 = "You took 4 bytes per element; bfloat16 has 16 bits."
_ONE_TOKEN = "That is one token."
_PLAIN_BYTES = "These are bytes; the answer has another unit."


def _draw_bytes(seed: int) -> dict:
    if seed == 0:
        return _numbers("Phi-3.5-mini", 32, 32, 96, 100_000)
    rng = np.random.default_rng((31, seed))
    for _ in count():
        heads, head_dim = int(rng.choice([16, 20, 24, 32, 40, 48])), int(rng.choice([80, 96, 112, 160]))
        tokens = 1000 * int(rng.choice([4, 8, 16, 25, 32, 50, 64, 80, 100, 200]))
        numbers = _numbers(f"made up ({seed})", int(rng.integers(16, 61)), heads, head_dim, tokens)
        if tells_apart(numbers, _right_bytes, _wrong_bytes):
            return numbers


def _numbers(model: str, n_layers: int, n_heads: int, head_dim: int, tokens: int) -> dict:
    sizes = {"n_layers": n_layers, "n_heads": n_heads, "head_dim": head_dim}
    return {"model": model, **sizes, "dtype": "bfloat16", "tokens": tokens}


def _right_bytes(numbers: dict) -> dict:
    elements = 2 * numbers["n_layers"] * numbers["n_heads"] * numbers["head_dim"]
    total = 2 * elements * numbers["tokens"]
    return {
        "elements_per_token": elements,
        "bytes_per_token": 2 * elements,
        "total_gb": total / 1e9,
        "total_gib": total / 2**30,
    }


def _wrong_bytes(numbers: dict) -> list[Mistake]:
    n_layers, n_heads, head_dim, tokens = (numbers[x] for x in ("n_layers", "n_heads", "head_dim", "tokens"))
    elements = 2 * n_layers * n_heads * head_dim
    wrong_elements = (
        (elements // 2, "Keys only. Values are kept as well."),
        (elements // n_layers, _ONE_LAYER),
        (elements // n_heads, _ONE_HEAD),
        (elements // n_layers // 2, "Keys only, and one layer."),
        (elements // head_dim * 128, _HEAD_DIM),
        (2 * elements, "These are bytes. Count the numbers first, whatever each of them takes."),
    )
    wrong_bytes = (
        (elements, _HALF),
        (elements // 2, "A quarter of it. Keys and values are both kept, and each element takes 2 bytes in bfloat16."),
        (2 * elements // n_layers, _ONE_LAYER),
        (2 * elements // n_heads, _ONE_HEAD),
        (2 * elements // head_dim * 128, _HEAD_DIM),
        (4 * elements, _FLOAT32),
    )
    mistakes = [Mistake("elements_per_token", value, text) for value, text in wrong_elements]
    mistakes += [Mistake("bytes_per_token", value, text) for value, text in wrong_bytes]
    for key, unit in (("total_gb", 1e9), ("total_gib", 2**30)):
        mistakes += [Mistake(key, tokens * value / unit, text) for value, text in wrong_bytes]
        mistakes += [
            Mistake(key, 2 * elements, _ONE_TOKEN),
            Mistake(key, 2 * elements / unit, _ONE_TOKEN),
            Mistake(key, 2 * elements * tokens, _PLAIN_BYTES),
            Mistake(key, 2.048 * elements * tokens / unit, "You took 1,024 tokens for each 1,000."),
        ]
    return mistakes


BYTES = Hand(
    id="03.bytes",
    level="by hand ●○○ 6 min, core",
    draw=_draw_bytes,
    right=_right_bytes,
    mistakes=_wrong_bytes,
    look={
        "elements_per_token": "What does one token leave behind in one head? How many heads, in how many layers?",
        "bytes_per_token": "The elements of a token, times the bytes of one element.",
        "total_gb": "The bytes of one token, times the tokens. 1 GB is 10⁹ bytes.",
        "total_gib": "The bytes of one token, times the tokens. 1 GiB is 2³⁰ bytes.",
    },
    notice="Notice: neither the width of the MLP nor the size of the vocabulary is in it. A cache has its own formula.",
)
