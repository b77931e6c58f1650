"""01.by_hand: three queries, three keys, a causal mask, on paper."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart

_LOWER = np.tril(np.ones((3, 3), dtype=bool))  # [query, key]: a query sees the keys up to its own


def _draw(seed: int) -> dict:
    if seed == 0:
        return _numbers([1, 2, 3], [[6, 0], [0, 6], [6, 6]])
    rng = np.random.default_rng((1, seed))
    for _ in count():
        e = [int(x) for x in rng.permutation(np.arange(1, 7))[:3]]
        numbers = _numbers(e, (3 * rng.integers(0, 5, size=(3, 2))).tolist())
        if tells_apart(numbers, _right, _wrong):
            return numbers


def _numbers(e: list[int], v: list[list[int]]) -> dict:
    return {"scores": ["0" if x == 1 else f"ln {x}" for x in e], "v": v}


def _exponentials(numbers: dict) -> np.ndarray:
    return np.array([1.0 if text == "0" else float(text.removeprefix("ln ")) for text in numbers["scores"]])


def _mix(numbers: dict, weights: np.ndarray, *, normalise: bool = True) -> list:
    """Returns weights `[query, key]`, divided by their row sums, times v."""
    total = weights.sum(-1, keepdims=True) if normalise else 1.0
    with np.errstate(invalid="ignore"):
        rows = np.nan_to_num(weights / total) @ np.array(numbers["v"], dtype=float)
    return rows.round(6).tolist()


def _right(numbers: dict) -> dict:
    return {"output": _mix(numbers, np.where(_LOWER, _exponentials(numbers), 0.0))}


def _wrong(numbers: dict) -> list[Mistake]:
    e = np.tile(_exponentials(numbers), (3, 1))
    masked, scores = np.where(_LOWER, e, 0.0), np.where(_LOWER, np.log(e), 0.0)
    ones, strict = np.where(_LOWER, 1.0, 0.0), np.where(np.tril(_LOWER, -1), e, 0.0)
    sums = masked.sum(0, keepdims=True)
    by_column = np.divide(masked, sums, out=np.zeros_like(masked), where=sums > 0)
    texts = {
        "all": "Every query saw every key. Query 0 stands before keys 1 and 2.",
        "after": "You masked after the softmax: the weights of row 0 do not sum to 1. Mask first, then normalise.",
        "zero": "You set masked scores to 0. A score of 0 still gets weight e⁰.",
        "forward": "Your mask looks forward: query 2 saw only itself.",
        "strict": "A query may look at its own position.",
        "plain": "These are plain averages: the scores were not used.",
        "scores": "You used the scores as weights. Exponentiate first.",
        "columns": "Each column sums to 1. A *query's* weights must.",
        "sums": "These are sums, not averages: divide by the sum of the weights that a query gives.",
        "e⁰": "e⁰ is 1, not 0: a score of 0 is a score like any other.",
        "last": "You gave one row three times. Each query has a row of its own.",
    }
    own = _right(numbers)["output"]
    rows = {
        "all": [_mix(numbers, e)],
        "after": [_mix(numbers, masked / e.sum(-1, keepdims=True), normalise=False)],
        "zero": [_mix(numbers, np.where(_LOWER, e, 1.0))],
        "forward": [_mix(numbers, np.where(_LOWER.T, e, 0.0))],
        "strict": [_mix(numbers, strict)],
        "plain": [_mix(numbers, ones)],
        "scores": [_mix(numbers, scores), _mix(numbers, scores, normalise=False)],
        "columns": [_mix(numbers, by_column, normalise=False)],
        "sums": [_mix(numbers, masked, normalise=False)],
        "last": [[own[0]] * 3],
    }
    v0 = [float(x) for x in numbers["v"][0]]
    rows["scores"].append([v0, *rows["scores"][0][1:]])
    if "0" in numbers["scores"]:
        rows["e⁰"] = [[v0, *_mix(numbers, np.where(masked == 1.0, 0.0, masked))[1:]]]
    return [Mistake("output", value, texts[name]) for name, values in rows.items() for value in values]


BY_HAND = Hand(
    id="01.by_hand",
    level="by hand ●○○ 6 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={"output": "Three rows of two numbers. For each query: which keys does it see, and what share does each get?"},
    notice="Notice: the mask decides what is divided by. Query 0 sees one key, so its weight is 1 whatever the score.",
)
