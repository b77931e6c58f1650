"""04.what_shrinks: how many times smaller each part becomes from MHA to MQA."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart

_SMALLER = ("cache", "k_proj", "v_proj")
_SAME = ("q_proj", "o_proj", "score_multiply_adds", "mlp")


def _draw(seed: int) -> dict:
    if seed == 0:
        return {"n_layers": 32, "d_model": 4096, "n_heads": 32, "head_dim": 128, "kv_len": 4096}
    rng = np.random.default_rng((44, seed))
    for _ in count():
        h, d = int(rng.integers(5, 97)), int(rng.choice([64, 80, 96, 128, 256]))
        n_layers, kv_len = int(rng.integers(12, 81)), 1024 * int(rng.integers(1, 33))
        numbers = {"n_layers": n_layers, "d_model": h * d, "n_heads": h, "head_dim": d, "kv_len": kv_len}
        if tells_apart(numbers, _right, _wrong):
            return numbers


def _right(numbers: dict) -> dict:
    return {key: numbers["n_heads"] for key in _SMALLER} | {key: 1 for key in _SAME}


def _wrong(numbers: dict) -> list[Mistake]:
    h, d = numbers["n_heads"], numbers["head_dim"]
    unchanged = {
        "cache": "The cache keeps keys and values of every KV head. How many KV heads are left?",
        "k_proj": "Its output has one head now.",
        "v_proj": "Its output has one head now.",
    }
    shrunk = {
        "q_proj": "How many query heads are there now?",
        "o_proj": "How many query heads are there now? Each still hands its output to o_proj.",
        "score_multiply_adds": "Count the pairs (query head, key): each still takes head_dim multiply-adds.",
        "mlp": "The MLP knows nothing of heads. Which matrices belong to attention?",
    }
    wrong = [Mistake(key, 1, text) for key, text in unchanged.items()]
    wrong += [Mistake(key, h, text) for key, text in shrunk.items()]
    wrong += [Mistake("cache", 2 * h, "K and V shrink by the same factor; you counted it twice.")]
    for key in _SMALLER:
        wrong += [
            Mistake(key, 1 / h, "That is what is left of it. Give how many times smaller it became."),
            Mistake(key, h - 1, "That many KV heads are gone. Divide what was there by what is left."),
        ]
        wrong.append(Mistake(key, d, "That is head_dim, which did not change. Count KV heads before and after."))
    for key in _SAME:
        wrong.append(Mistake(key, 0, "0 is no factor of size: divide the size before by the size after."))
    return wrong


WHAT_SHRINKS = Hand(
    id="04.what_shrinks",
    level="decide ●○○ 6 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "cache": "2 · layers · KV heads · tokens · head_dim · bytes: which of these changed?",
        "k_proj": "It makes head_dim numbers for each KV head.",
        "v_proj": "It makes head_dim numbers for each KV head.",
        "q_proj": "It makes head_dim numbers for each query head.",
        "o_proj": "It reads head_dim numbers from each query head.",
        "score_multiply_adds": "Count the pairs (query head, key): each still takes head_dim multiply-adds.",
        "mlp": "Does anything in the MLP depend on KV heads?",
    },
    notice="Notice: what is stored and read of the past shrinks, what is computed with it does not.",
)
