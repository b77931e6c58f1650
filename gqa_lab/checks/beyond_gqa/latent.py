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
    once = "the latent is kept once, keys and values are both made from it"
    mha = "That is MHA: keys and values of every head."
    found = []
    for wrong, text in (  # with what follows from it for the other three
        (rank, no_rope),
        (2 * rank + rope, f"Wrong by a latent: {once}."),
        (kept * h, "All heads read the same latent. Nothing is kept per head."),
        (rank + rope * h, "All heads share one part with the position, too."),
        (rank + d, "You took head_dim; the part with the position is qk_rope_head_dim wide."),
        (rank - rope, "The part with the position stands beside the latent. Add it."),
        (2 * h * d, mha),
        ((2 * d + rope) * h, "That is the long way: the keys and values of every head, which nobody has to keep."),
    ):
        found += [
            Mistake("elements_per_layer", wrong, text),
            Mistake("bytes_per_token", 2 * n_layers * wrong, text),
            Mistake("as_kv_heads", wrong / (2 * d), text),
        ]
        if wrong != kept * h:
            found.append(Mistake("times_smaller", 2 * h * d / wrong, text))
    return [
        *found,
        Mistake("elements_per_layer", 2 * kept, f"Twice as many: {once}."),
        Mistake("elements_per_layer", n_layers * kept, "That is all layers."),
        Mistake("bytes_per_token", n_layers * kept, "These are numbers. Each takes 2 bytes in bfloat16."),
        Mistake("bytes_per_token", 2 * kept, "That is one layer."),
        Mistake("bytes_per_token", 4 * n_layers * kept, f"Twice as many: bfloat16 takes 2 bytes, and {once}."),
        Mistake(
            "as_kv_heads",
            kept / 2,
            "You divided by 2 only. A KV head keeps a key and a value of head_dim numbers each.",
        ),
        Mistake("as_kv_heads", kept / d, f"Twice as many: a KV head of GQA keeps a key and a value, and {once}."),
        Mistake(
            "as_kv_heads", 2 * d / kept, "Upside down: how many times do 2 · head_dim numbers fit into the latent?"
        ),
        Mistake("as_kv_heads", 2 * kept / d, "You doubled where you had to halve: a KV head keeps a key and a value."),
        Mistake("times_smaller", h * d / kept, f"Half: MHA keeps a key and a value for every head, and {once}."),
        Mistake(
            "times_smaller",
            (2 * d + rope) * h / kept,
            "You took the keys of the long way, which have the position behind them. Those of MHA with these heads are "
            "head_dim wide.",
        ),
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
        Mistake(
            "times_smaller",
            2 * d / kept,
            "The heads cancelled: MHA keeps a key and a value for each, and here nothing is kept per head.",
        ),
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
