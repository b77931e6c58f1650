"""A1.per_gpu: what one of several GPUs holds, by hand."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart

_SHARED = ((64, 8), (48, 8), (72, 6), (96, 8), (60, 5), (90, 9), (84, 7))


def _draw(seed: int) -> dict:
    if seed == 0:
        return _numbers(80, 64, 8, 128, 16, 5)
    rng = np.random.default_rng((101, seed))
    for _ in count():
        h, g = _SHARED[rng.integers(len(_SHARED))]
        copies = int(rng.choice([n for n in range(3, h // g) if h // g % n == 0] or [1]))
        numbers = _numbers(
            int(rng.integers(20, 90)),
            h,
            g,
            int(rng.choice([64, 96, 112, 128])),
            g * copies,
            int(rng.integers(g * copies)),
        )
        if copies > 1 and numbers["rank"] % g != _right(numbers)["kv_head"] and tells_apart(numbers, _right, _wrong):
            return numbers


def _numbers(n_layers: int, h: int, g: int, d: int, n_gpus: int, rank: int) -> dict:
    sizes = {"n_layers": n_layers, "n_heads": h, "n_kv_heads": g, "head_dim": d, "dtype": "bfloat16"}
    return sizes | {"n_gpus": n_gpus, "rank": rank}


def _right(numbers: dict) -> dict:
    h, g, n, rank = (numbers[x] for x in ("n_heads", "n_kv_heads", "n_gpus", "rank"))
    return {
        "query_heads": h // n,
        "kv_head": rank * g // n,
        "copies": n // g,
        "per_token": 2 * numbers["n_layers"] * numbers["head_dim"] * 2,
        "as_small_on": g,
    }


def _wrong(numbers: dict) -> list[Mistake]:
    h, g, n, rank = (numbers[x] for x in ("n_heads", "n_kv_heads", "n_gpus", "rank"))
    n_layers, right = numbers["n_layers"], _right(numbers)
    one_head, first = right["per_token"], right["query_heads"] * rank
    cards = "You dealt KV heads out like cards. Which query heads does this GPU have, and which KV head do they read?"
    not_rank = "The KV head has another number than the GPU: several GPUs share one."
    wrong = [
        Mistake("query_heads", h, "Those are all query heads. The GPUs share them."),
        Mistake("query_heads", h // g, "That is group_size, H / G. The query heads are shared by the GPUs."),
        Mistake("query_heads", list(range(first, first + h // n)), "You wrote which ones they are. How many?"),
        Mistake("query_heads", 1, "More than one: H query heads on so many GPUs."),
        Mistake("kv_head", rank % g, cards),
        Mistake("kv_head", rank // g, "You divided by the number of KV heads. How many GPUs share one of them?"),
        Mistake("kv_head", rank, cards if rank < g else not_rank),
        Mistake("kv_head", first, "That is the first query head of this GPU. Which KV head does it read?"),
        Mistake("kv_head", rank * g // n + 1, "Count from 0."),
        Mistake("copies", n, "Not every GPU holds this one: the GPUs are more than the KV heads, but each holds one."),
        Mistake("copies", 1, "There are fewer KV heads than GPUs, and every GPU needs one."),
        Mistake("copies", g / n, "Upside down: how many GPUs are there for each KV head?"),
        Mistake("copies", h // n, "That is how many query heads a GPU has."),
        Mistake("copies", g, "That is how many KV heads there are. How many GPUs hold the same one?"),
        Mistake("per_token", one_head * g // n, "You gave each GPU a part of a KV head. It holds a whole one."),
        Mistake("per_token", one_head * g, "That is the whole model's. What does one GPU hold of it?"),
        Mistake("per_token", one_head // n_layers, "That is one layer."),
        Mistake("per_token", one_head / 1024, "These are KiB. Give bytes."),
        Mistake("per_token", one_head * 1000 // 1024, "You took 1,000 bytes for a KiB; it has 1,024."),
        Mistake("per_token", one_head // 2, "Half of it: K and V, or the two bytes of bfloat16, are missing."),
        Mistake("per_token", one_head * (h // n), "You counted this GPU's query heads. Only KV heads are kept."),
        Mistake("per_token", one_head * (n // g), "Each copy lies on a GPU of its own. How many does one hold?"),
        Mistake("as_small_on", n, "Fewer GPUs do. From how many on does a GPU hold one KV head?"),
        Mistake("as_small_on", h, "That is where MHA stops shrinking. How many KV heads are there to deal out?"),
        Mistake(
            "as_small_on", n // g, "That many hold the same KV head. How many are needed until each holds only one?"
        ),
        Mistake("as_small_on", 1, "One GPU holds every KV head."),
    ]
    return [m for m in wrong if m.wrong != right[m.name]]


PER_GPU = Hand(
    id="A1.per_gpu",
    level="by hand ●○○ 6 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "query_heads": "All query heads, shared evenly by all GPUs.",
        "kv_head": "Write down this GPU's query heads and divide each by group_size. Count from 0.",
        "copies": "Every GPU holds one KV head. How many GPUs are there for each?",
        "per_token": "Bytes of one GPU: K and V, layers, its KV heads, head_dim, two bytes each.",
        "as_small_on": "The smallest number of GPUs on which each holds a single KV head.",
    },
    notice="Notice: twice as many GPUs as KV heads hold the cache twice, and no GPU holds less of it. What still "
    "halves are the weights.",
)
