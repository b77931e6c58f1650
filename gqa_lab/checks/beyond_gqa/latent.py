"""A2.latent: what a token leaves with multi-head latent attention, by hand."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart, unit_slip


def _draw(seed: int) -> dict:
    if seed == 0:
        return _numbers(60, 128, 128, 512, 64)
    rng = np.random.default_rng((103, seed))
    for _ in count():
        d = int(rng.choice([96, 112, 144, 160]))
        numbers = _numbers(
            int(rng.integers(20, 90)),
            int(rng.integers(18, 100)),
            d,
            64 * int(rng.integers(4, 13)),
            16 * int(rng.integers(2, 7)),
        )
        if tells_apart(numbers, _right, _wrong) and not _looks_like_bits(numbers):
            return numbers


def _numbers(n_layers: int, h: int, d: int, rank: int, rope: int) -> dict:
    sizes = {"n_layers": n_layers, "n_heads": h, "head_dim": d}
    return sizes | {"kv_lora_rank": rank, "qk_rope_head_dim": rope, "dtype": "bfloat16"}


def _looks_like_bits(numbers: dict) -> bool:
    right = _right(numbers)
    return any(unit_slip(m.name, m.wrong, right[m.name]) for m in _wrong(numbers))


def _right(numbers: dict) -> dict:
    h, d = numbers["n_heads"], numbers["head_dim"]
    kept = numbers["kv_lora_rank"] + numbers["qk_rope_head_dim"]
    return {
        "elements_per_layer": kept,
        "bytes_per_token": 2 * numbers["n_layers"] * kept,
        "as_kv_heads": kept / (2 * d),
        "times_smaller": 2 * h * d / kept,
    }


def _wrong(numbers: dict) -> list[Mistake]:
    n_layers, h, d = (numbers[x] for x in ("n_layers", "n_heads", "head_dim"))
    rank, rope = numbers["kv_lora_rank"], numbers["qk_rope_head_dim"]
    kept = rank + rope
    no_rope = "The part with the position is missing: it cannot be made from the latent, so it is kept as well."
    twice = "The latent is kept once: keys and values are both made from it."
    per_head = "All heads read the same latent. Nothing is kept per head."
    return [
        Mistake("elements_per_layer", rank, no_rope),
        Mistake("elements_per_layer", 2 * kept, twice),
        Mistake("elements_per_layer", 2 * rank + rope, twice),
        Mistake("elements_per_layer", kept * h, per_head),
        Mistake("elements_per_layer", rank + rope * h, "All heads share one part with the position, too."),
        Mistake("elements_per_layer", n_layers * kept, "That is all layers."),
        Mistake(
            "elements_per_layer", rank + d, "You took head_dim; the part with the position is qk_rope_head_dim wide."
        ),
        Mistake("elements_per_layer", rank - rope, "The part with the position stands beside the latent. Add it."),
        Mistake("elements_per_layer", 2 * h * d, "That is MHA: keys and values of every head."),
        Mistake("bytes_per_token", n_layers * kept, "These are numbers. Each takes 2 bytes in bfloat16."),
        Mistake("bytes_per_token", 2 * kept, "That is one layer."),
        Mistake("bytes_per_token", 2 * n_layers * rank, no_rope),
        Mistake("bytes_per_token", 4 * n_layers * kept, twice),
        Mistake("bytes_per_token", 2 * n_layers * kept * h, per_head),
        Mistake("bytes_per_token", 4 * n_layers * h * d, "That is MHA: keys and values of every head."),
        Mistake(
            "as_kv_heads",
            kept / 2,
            "You divided by 2 only. A KV head keeps a key and a value of head_dim numbers each.",
        ),
        Mistake("as_kv_heads", kept / d, "A KV head of GQA keeps a key and a value: 2 · head_dim numbers."),
        Mistake("as_kv_heads", rank / (2 * d), no_rope),
        Mistake(
            "as_kv_heads", 2 * d / kept, "Upside down: how many times do 2 · head_dim numbers fit into the latent?"
        ),
        Mistake("as_kv_heads", 2 * kept / d, "You doubled where you had to halve: a KV head keeps a key and a value."),
        Mistake("times_smaller", h * d / kept, "MHA keeps keys and values of every head."),
        Mistake("times_smaller", 2 * h * d / rank, no_rope),
        Mistake("times_smaller", kept / (2 * h * d), "Upside down: that is what is left of MHA's cache."),
        Mistake(
            "times_smaller", h, "That would be MQA with this head_dim. Divide what MHA keeps by what is kept here."
        ),
        Mistake(
            "times_smaller", h * d / rank, "Keys and values, and the part with the position: two things are missing."
        ),
        Mistake(
            "times_smaller", 100 * (1 - kept / (2 * h * d)), "That is the share saved in percent. Divide MHA by this."
        ),
        Mistake("times_smaller", 2 * d / kept, "You left out the heads: MHA keeps a key and a value for each."),
    ]


LATENT = Hand(
    id="A2.latent",
    level="by hand ●○○ 7 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "elements_per_layer": "The latent vector, and the key part that carries the position. Once, for all heads.",
        "bytes_per_token": "What a layer keeps, times layers, times the bytes of one number.",
        "as_kv_heads": "What a layer keeps, divided by what one KV head of GQA keeps, a key and a value.",
        "times_smaller": "What MHA keeps in a layer, a key and a value for each head, divided by what is kept here.",
    },
    notice="Notice: the number of heads is not in what is kept. It is in what is computed: each head makes its scores "
    "against the whole latent.",
)
