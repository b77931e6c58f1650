"""05.head_map: which KV head, by hand."""

from collections.abc import Callable
from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart
from gqa_lab.checks.head_maps import BACKWARDS, CARDS, DIVIDED, FROM_ONE, TRUE_GROUPS, cards, divided, neighbours


def _draw_heads(seed: int) -> dict:
    if seed == 0:
        pairs, head, kv_head = [(6, 3), (8, 2), (12, 4)], 6, 1
    else:
        rng = np.random.default_rng((5, seed))
        for _ in count():
            pairs = [TRUE_GROUPS[i] for i in rng.integers(len(TRUE_GROUPS), size=3)]
            head, kv_head = int(rng.integers(pairs[1][0])), int(rng.integers(1, pairs[2][1]))
            if tells_apart(numbers := _head_numbers(pairs, head, kv_head), _right_heads, _wrong_heads):
                return numbers
    return _head_numbers(pairs, head, kv_head)


def _head_numbers(pairs, head: int, kv_head: int) -> dict:
    first, second, third = ({"n_heads": h, "n_kv_heads": g} for h, g in pairs)
    return {"map": first, "kv_head": second | {"head": head}, "readers": third | {"kv_head": kv_head}}


def _right_heads(numbers: dict, rule: Callable = neighbours) -> dict:
    sizes, one, readers = numbers["map"], numbers["kv_head"], numbers["readers"]
    h, g = readers["n_heads"], readers["n_kv_heads"]
    return {
        "map": [rule(i, sizes["n_heads"], sizes["n_kv_heads"]) for i in range(sizes["n_heads"])],
        "kv_head": rule(one["head"], one["n_heads"], one["n_kv_heads"]),
        "readers": [i for i in range(h) if rule(i, h, g) == readers["kv_head"]],
    }


def _wrong_heads(numbers: dict) -> list[Mistake]:
    right, last = _right_heads(numbers), numbers["map"]["n_kv_heads"] - 1
    one_less = numbers | {"readers": numbers["readers"] | {"kv_head": numbers["readers"]["kv_head"] - 1}}
    from_one = {
        "map": [j + 1 for j in right["map"]],
        "kv_head": right["kv_head"] + 1,
        "readers": [i + 1 for i in right["readers"]],
    }
    wrong = [
        (_right_heads(numbers, cards), CARDS),
        (_right_heads(numbers, divided), DIVIDED),
        (from_one, FROM_ONE),
    ]
    return [Mistake(key, value, text) for values, text in wrong for key, value in values.items()] + [
        Mistake("map", [last - j for j in right["map"]], BACKWARDS),
        Mistake("readers", _right_heads(one_less)["readers"], FROM_ONE),
    ]


HEAD_MAP = Hand(
    id="05.head_map",
    level="by hand ●○○ 5 min, core",
    draw=_draw_heads,
    right=_right_heads,
    mistakes=_wrong_heads,
    look={
        "map": "Write one number per query head, in order: the KV head that it reads.",
        "kv_head": "How many query heads share one KV head here? Cut the row of heads into such pieces.",
        "readers": "List the query heads of one piece of the row, from left to right.",
    },
    notice="Notice: the map is as long as the query heads; the KV heads only repeat in it.",
)
