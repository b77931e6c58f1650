"""01.saturation: measure how the largest weight grows with head_dim."""

from collections.abc import Callable

import numpy as np

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case
from gqa_lab.checks.functions import Build

_N_QUERIES, _N_KEYS = 1000, 64
_FIRST = ((64, False), (256, True))
_SECOND = ((36, False), (144, True))


def _cases(round_: int) -> list[Case]:
    return [Case(one, {"head_dim": one[0], "scale": one[1]}) for one in (_SECOND if round_ else _FIRST)]


def _scores(head_dim: int, factor: float) -> np.ndarray:
    """Scores `[query, key]` of random queries and keys; every query meets keys of its own."""
    rng = np.random.default_rng(0)
    scores = np.empty((_N_QUERIES, _N_KEYS))
    for query in scores:
        query[:] = rng.standard_normal((_N_KEYS, head_dim)) @ rng.standard_normal(head_dim) * factor
    return scores


def _softmax(scores: np.ndarray, axis: int | None = -1) -> np.ndarray:
    e = np.exp(scores - scores.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _measure(summary: Callable, power: float = 0.5) -> Callable:
    """Returns a function of head_dim and scale that sums up the scores in its own way."""
    return lambda head_dim, scale: float(summary(_scores(head_dim, head_dim**-power if scale else 1.0)))


def _scaled_by(factor: Callable) -> Callable:
    return lambda d, scale: float(_softmax(_scores(d, factor(d) if scale else 1.0)).max(-1).mean())


_MISTAKES = (
    Mistake("mean of all weights", _measure(lambda s: _softmax(s).mean()),
            "Yours never exceeds 1/64: the mean of all 64 weights, or the smallest. Take the largest of each query."),
    Mistake("one maximum", _measure(lambda s: _softmax(s).max()),
            "You took one maximum over all queries. Take the largest of each query, then their mean."),
    Mistake("scores", _measure(lambda s: s.max(-1).mean()), "That is a score, not a weight: softmax comes first."),
    Mistake("softmax over queries", _measure(lambda s: _softmax(s, 0).max(-1).mean()),
            "Your softmax runs over queries: a weight is the share of one key among the 64 keys of its query."),
    Mistake("scaled by 1/D", _measure(lambda s: _softmax(s).max(-1).mean(), power=1.0),
            "With the scale, your weights are too flat: you divided by D instead of its root."),
    Mistake("scale ignored", lambda head_dim, scale: _measure(lambda s: _softmax(s).max(-1).mean())(head_dim, False),
            "`scale` changes nothing in your function."),
    Mistake("always scaled", lambda head_dim, scale: _measure(lambda s: _softmax(s).max(-1).mean())(head_dim, True),
            "`scale=False` changes nothing in your function: it always scales."),
    Mistake("fixed scale", _scaled_by(lambda d: 1 / 8),
            "You divided by 8 whatever head_dim is. There are 64 keys, but look at the length of a dot product."),
    Mistake("weights scaled", lambda d, scale: _scaled_by(lambda d: 1.0)(d, scale) / (d**0.5 if scale else 1.0),
            "You divided the weights. The scale belongs to the scores, before the softmax."),
    Mistake("scale upside down", _measure(lambda s: _softmax(s).max(-1).mean(), power=-0.5),
            "With the scale, your weights are sharper than without: you multiplied by √D."),
)  # fmt: skip

SATURATION = Build(
    id="01.saturation",
    level="decide ●○○ 6 min, further",
    cases=_cases,
    reference=_measure(lambda s: _softmax(s).max(-1).mean()),
    names=("head_dim", "scale"),
    axes="",
    mistakes=_MISTAKES,
    result_type=float,
    explain=lambda case, got, index: "A weight cannot be above 1." if got > 1 else "",
    tolerance=0.03,
    tested="Tested with head_dim from 36 to 256, with the scale and without.",
    notice="Notice: with the scale it is about 0.1 for every head_dim. Without it a head of 64 uses about two of "
    "its 64 keys.",
)
