"""01.attention: one head with a mask."""

import time
from collections.abc import Callable

import numpy as np

from gqa_lab.checks import sandbox
from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case, copied, normal
from gqa_lab.checks.functions import Build

_SIZES = ({"T": 3, "S": 11, "D": 4}, {"T": 5, "S": 5, "D": 4}, {"T": 1, "S": 7, "D": 4}, {"T": 3, "S": 3, "D": 5})


def _cases(round_: int) -> list[Case]:
    cases = []
    for n, sizes in enumerate(_SIZES):
        t, s, d = sizes.values()
        mask = np.tril(np.ones((t, s), dtype=bool), s - t)
        if n % 2 == 0:  # a mask need not be causal, and may hide keys from a single query
            mask = (np.arange(s) + np.arange(t)[:, None] + round_) % 3 > 0
        cases.append(Case((normal((44, round_, n), t, d), normal((45, round_, n), s, d),
                           normal((46, round_, n), s, d), mask), sizes))  # fmt: skip
    return cases


def _rows(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    with np.errstate(all="ignore"):
        e = np.exp(scores - scores.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)


def attend(q, k, v, mask, *, scale=lambda t, s, d: d**-0.5, hide=lambda x, m: np.where(m, x, -np.inf), weigh=_rows):
    """Returns attention. Each keyword replaces one part by a wrong one.

    Args:
        scale: `scale(T, S, D)`.
        hide: `hide(scores, mask)`, the scores that softmax gets.
        weigh: `weigh(scores)`.
    """
    return weigh(hide(q @ k.T * scale(*q.shape[:1], *k.shape), mask)) @ v


def _masked_after(q, k, v, mask):
    return attend(q, k, v, mask, hide=lambda x, m: x, weigh=lambda x: _rows(x) * mask)


def _masked_after_and_divided(q, k, v, mask):
    weights = _rows(q @ k.T / q.shape[1] ** 0.5) * mask
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-12) @ v


def _causal_instead(q, k, v, mask):
    return attend(q, k, v, np.tril(np.ones(mask.shape, dtype=bool), mask.shape[1] - mask.shape[0]))


def _top_left_instead(q, k, v, mask):
    return attend(q, k, v, np.tril(np.ones(mask.shape, dtype=bool)))


def _softmax_over(axis: int | None) -> Callable:
    return lambda x: _rows(x, axis) if axis is not None else _rows(x.ravel()).reshape(x.shape)


_SCALE = "Your weights are too {}"
_FORGOTTEN = "A hidden key still gets weight: you gave it the score 0, or multiplied by the mask, and e⁰ is 1."
_AFTER = "You masked after the softmax: a query's weights no longer sum to 1. Mask first, then normalise."
_BY_COLUMN = "Your softmax runs over queries: each column sums to 1. A query's weights over its keys must."

_MISTAKES = (
    Mistake("no scale", lambda *a: attend(*a, scale=lambda t, s, d: 1.0),
            "Your weights are too sharp: the scale is missing. Scores grow with √D."),
    Mistake("× √D", lambda *a: attend(*a, scale=lambda t, s, d: d**0.5),
            "Your weights are far too sharp: you multiplied by √D. Divide."),
    Mistake("1/D", lambda *a: attend(*a, scale=lambda t, s, d: 1 / d),
            "Your weights are too flat: you divided by D instead of its root, or by the root twice."),
    Mistake("1/√S", lambda *a: attend(*a, scale=lambda t, s, d: s**-0.5),
            "You scaled by the number of keys; look at the length of the dot product."),
    Mistake("1/√T", lambda *a: attend(*a, scale=lambda t, s, d: t**-0.5),
            "You scaled by the number of queries; look at the length of the dot product."),
    Mistake("scale after softmax", lambda q, k, v, m: attend(q, k, v, m, scale=lambda t, s, d: 1.0) / q.shape[1] ** 0.5,
            "You scaled after the softmax, so the weights no longer sum to 1. Scale the scores."),
    Mistake("softmax over queries", lambda *a: attend(*a, weigh=_softmax_over(0)), _BY_COLUMN),
    Mistake("softmax over queries, finite mask",
            lambda *a: attend(*a, weigh=_softmax_over(0), hide=lambda x, m: np.where(m, x, -1e9)), _BY_COLUMN),
    Mistake("softmax over all", lambda *a: attend(*a, weigh=_softmax_over(None)),
            "All weights together sum to 1; those of each query should."),
    Mistake("no softmax", lambda *a: attend(*a, hide=lambda x, m: x * m, weigh=lambda x: x),
            "You used the scores as weights. Exponentiate and normalise first."),
    Mistake("not normalised", lambda *a: attend(*a, weigh=np.exp),
            "You exponentiated and did not divide: a query's weights should sum to 1."),
    Mistake("mask times scores", lambda *a: attend(*a, hide=lambda x, m: x * m), _FORGOTTEN),
    Mistake("tiny score", lambda *a: attend(*a, hide=lambda x, m: np.where(m, x, 1e-9)), _FORGOTTEN),
    Mistake("0 · ∞", lambda *a: attend(*a, hide=lambda x, m: x + (1.0 - m) * -np.inf),
            "0 · ∞ is not a number, and that is what visible keys got. Choose between two scores instead."),
    Mistake("+∞", lambda *a: attend(*a, hide=lambda x, m: np.where(m, x, np.inf)),
            "Hidden keys got +∞, the largest score there is. Which one gives the weight 0?"),
    Mistake("no mask, no scale", lambda *a: attend(*a, hide=lambda x, m: x, scale=lambda t, s, d: 1.0),
            "Two things are missing: the scale, and the mask."),
    Mistake("divided by 8", lambda *a: attend(*a, scale=lambda t, s, d: 1 / 8),
            "You scaled by a fixed number. It follows from head_dim, the length of the dot product."),
    Mistake("divided by √2", lambda *a: attend(*a, scale=lambda t, s, d: 2**-0.5),
            "You scaled by a fixed number. It follows from head_dim, the length of the dot product."),
    Mistake("divided nowhere", lambda *a: attend(*a, weigh=lambda x: np.exp(x - x.max(-1, keepdims=True))),
            "You exponentiated and did not divide: a query's weights should sum to 1."),
    Mistake("mask added", lambda *a: attend(*a, hide=lambda x, m: x + m),
            "You added the mask as 0 and 1. A hidden key needs the score −inf."),
    Mistake("mask times weights", _masked_after, _AFTER),
    Mistake("mask inverted", lambda *a: attend(*a, hide=lambda x, m: np.where(m, -np.inf, x)),
            "Your mask is upside down: True means *may look*."),
    Mistake("mask inverted, finite", lambda *a: attend(*a, hide=lambda x, m: np.where(m, -1e9, x)),
            "Your mask is upside down: True means *may look*."),
    Mistake("no mask", lambda *a: attend(*a, hide=lambda x, m: x), "Every query saw every key: use the mask."),
    Mistake("a causal mask of one's own", _causal_instead,
            "You made a causal mask of your own. Use the one that is handed over; it may hide other keys, too."),
    Mistake("a square causal mask", _top_left_instead,
            "You made a mask of your own, and query 0 saw only key 0. Use the one that is handed over."),
    Mistake("values from k", lambda q, k, v, m: attend(q, k, k, m),
            "Your output is a mixture of keys: where does v come in?"),
    Mistake("k and v exchanged", lambda q, k, v, m: attend(q, v, k, m),
            "You compared queries with values and mixed keys."),
    Mistake("keys as queries", lambda q, k, v, m: attend(k[-len(q):], k, v, m),
            "You compared keys with keys: where does q come in?"),
    Mistake("best key only", lambda *a: attend(*a, weigh=lambda x: (x == x.max(-1, keepdims=True)) * 1.0),
            "You took the value of the best key only. Every visible key gets a share."),
)  # fmt: skip


def _sees(case: Case, got: np.ndarray, index: tuple) -> str:
    keys = np.flatnonzero(case.args[3][index[0]])
    return f"There it may look at the keys {', '.join(map(str, keys))}."


def _large_scores(attention: Callable) -> str | None:
    """Not only finite, but right; a hidden key may have the largest score by far."""
    usual = "Right for scores of the usual size. At scores of ten thousand"
    deadline = time.monotonic() + sandbox.DEADLINE_S
    for case in _cases(0):
        q, k, v, mask = copied(case)
        run = sandbox.run(attention, [1e4 * q, k, v, mask], {}, deadline)
        if run.error is not None:
            return f"{usual} it fails. {run.trouble()}"
        if not np.isfinite(run.value).all():
            return f"{usual} it holds NaN: is softmax stable, and its maximum one of keys that are seen?"
        if not np.allclose(run.value, attend(1e4 * q, k, v, mask)):
            return (
                f"{usual} a hidden key is seen, or weights vanish: is a hidden score far below every other, is the "
                "mask applied before the softmax, and is no score cut off?"
            )
    return None


ATTENTION = Build(
    id="01.attention",
    level="build ●●○ 12 min, core",
    cases=_cases,
    reference=attend,
    names=("q", "k", "v", "mask"),
    axes="TD",
    mistakes=_MISTAKES,
    arguments=copied,
    result_type=np.ndarray,
    explain=_sees,
    beyond=_large_scores,
    tested="Tested with T < S, T = S, one query, a square of 3, a mask with holes, and large scores.",
    notice="Notice: nothing in it knows how many queries or keys there are. That is why a model can read any length.",
)
