"""09.join: two halves of the keys, each with its own softmax, joined on paper."""

from functools import lru_cache
from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart


def _draw(seed: int) -> dict:
    return _numbers(*_drawn(seed))


@lru_cache
def _drawn(seed: int) -> tuple:
    """Returns e to the scores, the values, and after how many keys the first half ends."""
    if seed == 0:
        return [1, 2, 6], [3, 6, 12], 2
    rng = np.random.default_rng((91, seed))
    for _ in count():
        e = [int(x) for x in rng.permutation(np.arange(1, 10))[:4]]
        split_after = int(rng.integers(1, 4))
        drawn = e, [int(x) for x in 3 * rng.permutation(np.arange(1, 12))[:4]], split_after
        numbers = _numbers(*drawn)
        if split_after != 2 and tells_apart(numbers, _right, _wrong):  # halves of one length hide a wrong weight
            return drawn


def _numbers(e: list[int], values: list[int], split_after: int) -> dict:
    return {"scores": ["0" if x == 1 else f"ln {x}" for x in e], "values": list(values), "split_after": split_after}


def _halves(numbers: dict) -> tuple[np.ndarray, ...]:
    """Returns e to the score and the value of each key, of the first half and of the second."""
    e = np.array([1.0 if text == "0" else float(text.removeprefix("ln ")) for text in numbers["scores"]])
    v, n = np.array(numbers["values"], dtype=float), numbers["split_after"]
    return e[:n], v[:n], e[n:], v[n:]


def _state(e: np.ndarray, v: np.ndarray) -> tuple[float, float, float]:
    """Returns e to the largest score, then `total` and `mixed`, both measured from that score."""
    largest = e.max()
    return float(largest), float(e.sum() / largest), float(e @ v / largest)


def _right(numbers: dict) -> dict:
    e1, v1, e2, v2 = _halves(numbers)
    (m1, l1, acc1), (m2, l2, acc2) = _state(e1, v1), _state(e2, v2)
    top = max(m1, m2)
    return {
        "total": l1,
        "mixed": acc1,
        "outputs": [acc1 / l1, acc2 / l2],
        "e_lse": [float(e1.sum()), float(e2.sum())],
        "joint": float((e1 @ v1 + e2 @ v2) / (e1.sum() + e2.sum())),
        "updated": [(l1 * m1 + l2 * m2) / top, (acc1 * m1 + acc2 * m2) / top],
    }


def _wrong(numbers: dict) -> list[Mistake]:
    e1, v1, e2, v2 = _halves(numbers)
    (m1, l1, acc1), (m2, l2, acc2) = _state(e1, v1), _state(e2, v2)
    right, top = _right(numbers), max(m1, m2)
    outputs, sums = right["outputs"], np.array(right["e_lse"])
    lse, ends = np.log(sums), np.array([m1, m2])

    def joined(*weights) -> float:
        return float(np.dot(weights, outputs) / np.sum(weights))

    l2_, acc2_ = l2 * m2 / top, acc2 * m2 / top  # what the second half adds, seen from the largest score
    old, upside_down = m1 / top, top / m1
    joints = [
        (joined(1, 1), "Plain mean: as if both halves weighed the same."),
        (joined(len(e1), len(e2)), "Weighted by the number of keys. What weighs a key is e to its score."),
        (joined(m1, m2), "Weighted by e^peak: the totals are missing."),
        (joined(l1, l2), "Weighted by the `total` of each half, but the two were measured from different maxima."),
        (joined(*lse), "The lse themselves were the weights: exponentiate them."),
        (joined(*2**lse), "2 to a natural logarithm: one base only."),
        (sum(outputs), "That is the sum of the outputs. Divide by what the weights sum to."),
    ]
    updates = [
        ([right["updated"][0], acc1 + acc2_], "`mixed` was not rescaled: it still counts from the older maximum."),
        ([l1 + l2_, right["updated"][1]], "`total` was not rescaled: it still counts from the older maximum."),
        ([l1 + l2_, acc1 + acc2_], "Neither `total` nor `mixed` was rescaled when the larger score came."),
        ([l1 * upside_down + l2_, acc1 * upside_down + acc2_],
         "The factor is upside down: older sums must shrink when a larger score comes."),
        ([right["updated"][0], right["joint"]], "The second number is divided already; `mixed` waits for the end."),
        ([right["updated"][0], outputs[0] * old + acc2_],
         "You went on from the output of the first half, not from its `mixed`."),
    ]  # fmt: skip
    is_new = top > m1  # otherwise nothing has to be rescaled, and these are no mistakes
    return [
        Mistake("total", float(e1.sum()), "That is the sum of e^score. Measure from the largest: e^(score − peak)."),
        Mistake("total", float(len(e1)), "That is how many keys there are. Add their weights, e^(score − peak)."),
        Mistake("mixed", float(e1 @ v1), "You weighted by e^score. Measure from the largest: e^(score − peak)."),
        Mistake("mixed", outputs[0], "That is the output already. `mixed` is what stands above the fraction line."),
        Mistake("mixed", float(v1.sum()), "You added the values without their weights."),
        Mistake("outputs", [acc1, acc2], "These are `mixed`. An output is mixed / total."),
        Mistake("outputs", [float(v1.mean()), float(v2.mean())], "These are plain means: the scores were not used."),
        Mistake("e_lse", [l1, l2], "These are totals. The lse is peak + ln total, so e^lse is total times e^peak."),
        Mistake("e_lse", lse.tolist(), "That is the lse itself. Here e to it is asked for: it has no logarithm."),
        Mistake("e_lse", ends.tolist(), "That is e^peak: the totals are missing."),
        *(Mistake("joint", value, text) for value, text in joints),
        *(Mistake("updated", value, text) for value, text in updates if is_new),
    ]  # fmt: skip


JOIN = Hand(
    id="09.join",
    level="by hand ●●○ 8 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "total": "Of the first half: each key counts e^(score − peak), where peak is its largest score.",
        "mixed": "Of the first half: the same weights as in `total`, each times its value, added up.",
        "outputs": "Two numbers, one for each half as if the other did not exist: mixed / total.",
        "e_lse": "Two numbers, one for each half: total · e^peak, which is the sum of e^score.",
        "joint": "Weigh the two outputs by e^lse and divide by the sum of these weights.",
        "updated": "[total, mixed] after the rest of the keys has joined the first half by `update`. Which score is "
        "the largest now, and what happens to the older sums?",
    },
    notice="Notice: the two ways agree, for updated mixed / total is the joint output. Joining needs of each half only "
    "its output and one number.",
)
