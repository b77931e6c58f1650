"""09.combine: the outputs of several splits, joined by their log-sum-exp."""

from collections.abc import Callable

import numpy as np

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case, copied, normal
from gqa_lab.checks.functions import Build

_SIZES = ((3, 6, 4), (5, 2, 7), (1, 4, 3))  # n_splits, H, D


def _cases(round_: int) -> list[Case]:
    drawn = [(normal((93, round_, n), *sizes), normal((94, round_, n), *sizes[:2])) for n, sizes in enumerate(_SIZES)]
    outs, lse = normal((93, round_, 7), 4, 3, 5), normal((94, round_, 7), 4, 3)
    far, some_empty, all_empty = lse.copy(), lse.copy(), lse.copy()
    far[:, 0] += 1000.0
    far[:, 2] -= 1000.0
    some_empty[1:3] = all_empty[1:3] = -np.inf
    all_empty[:, 1] = -np.inf
    empty = np.where(np.isneginf(all_empty)[..., None], 0.0, outs)
    drawn += [(outs, far), (np.where(np.isneginf(some_empty)[..., None], 0.0, outs), some_empty), (empty, all_empty)]
    names = ("", "", "one split", "scores of ±1,000", "empty splits", "a head without keys")
    return [
        Case(pair, dict(zip(("n_splits", "H", "D"), pair[0].shape, strict=True)) | ({"with": name} if name else {}))
        for pair, name in zip(drawn, names, strict=True)
    ]


def _combine(outs: np.ndarray, lse: np.ndarray) -> np.ndarray:
    weights = np.exp(lse - np.maximum(lse.max(0), -1e300))
    total = weights.sum(0)
    return (weights[..., None] * outs).sum(0) / np.where(total > 0, total, 1.0)[:, None]


def _weighted(weigh: Callable, *, normalise: bool = True) -> Callable:
    """Returns a combine that takes `weigh(lse)` as weights."""

    def combine(outs: np.ndarray, lse: np.ndarray) -> np.ndarray:
        weights = weigh(lse)
        total = weights.sum(0) if normalise else np.ones(lse.shape[1])
        return (weights[..., None] * outs).sum(0) / np.where(total == 0, 1.0, total)[:, None]

    return combine


def _softmax(x: np.ndarray, axis: int | None = 0) -> np.ndarray:
    top = x.max(axis, keepdims=True)
    e = np.exp(x - np.where(np.isneginf(top), 0.0, top))
    total = e.sum(axis, keepdims=True)
    return e / np.where(total == 0, 1.0, total)


def _plain(outs: np.ndarray, lse: np.ndarray) -> np.ndarray:
    weights = np.exp(lse - lse.max(0))
    return (weights[..., None] * outs).sum(0) / weights.sum(0)[:, None]


def _unguarded(outs: np.ndarray, lse: np.ndarray) -> np.ndarray:
    return (np.exp(lse)[..., None] * outs).sum(0) / np.exp(lse).sum(0)[:, None]


_HEADS = "Heads were mixed: your weights sum to 1 over heads. For each head they sum to 1 over its splits."
_OVERFLOW = (
    "e¹⁰⁰⁰ is infinite. What may be subtracted from the lse of all splits of a head without changing the output?"
)
_ALL_EMPTY = "NaN for a head whose splits are all empty: −inf − (−inf), or 0 / 0. Its output is 0."
_TOP_OF_ALL = (
    "One maximum for all heads: where a head's scores are far lower, all its weights vanish. Each needs its own."
)

_MISTAKES = (
    Mistake("mean", lambda outs, lse: outs.mean(0), "Plain mean: as if every split held the same weight."),
    Mistake("mean of those with keys", _weighted(lambda lse: np.isfinite(lse) * 1.0),
            "Plain mean of the splits that have keys: as if each held the same weight."),
    Mistake("sum", lambda outs, lse: outs.sum(0), "You added the outputs. Each is a mean already; weigh them."),
    Mistake("softmax over heads", _weighted(lambda lse: _softmax(lse, 1), normalise=False), _HEADS),
    Mistake("softmax over heads, divided", _weighted(lambda lse: _softmax(lse, 1)), _HEADS),
    Mistake("softmax over all", _weighted(lambda lse: _softmax(lse, None), normalise=False), _HEADS),
    Mistake("no maximum", _unguarded, _OVERFLOW),
    Mistake("no maximum, guarded", _weighted(np.exp), _OVERFLOW),
    Mistake("maximum of all", _weighted(lambda lse: np.exp(lse - lse.max())), _TOP_OF_ALL),
    Mistake("maximum of all, not guarded",
            lambda outs, lse: (np.exp(lse - lse.max())[..., None] * outs).sum(0)
            / np.exp(lse - lse.max()).sum(0)[:, None], _TOP_OF_ALL),
    Mistake("all empty", _plain, _ALL_EMPTY),
    Mistake("base 2", _weighted(lambda lse: _softmax(lse * np.log(2))),
            "You took powers of 2. This lse is a natural logarithm: powers of e."),
    Mistake("base 2, not divided",
            _weighted(lambda lse: np.exp2(lse - np.maximum(lse.max(0), -1e300)), normalise=False),
            "Powers of 2, and not divided: this lse is a natural logarithm, and weights of a head sum to 1."),
    Mistake("lse as weights", _weighted(lambda lse: np.where(np.isfinite(lse), lse, 0.0)),
            "The lse themselves were the weights. Exponentiate them."),
    Mistake("lse as weights, −inf too", lambda outs, lse: (lse[..., None] * outs).sum(0) / lse.sum(0)[:, None],
            "The lse themselves were the weights. Exponentiate them."),
    Mistake("not divided", _weighted(lambda lse: np.exp(lse - np.maximum(lse.max(0), -1e300)), normalise=False),
            "The weights of a head do not sum to 1. Divide by their sum."),
    Mistake("divided twice", lambda outs, lse: _weighted(_softmax)(outs, lse) / len(outs),
            "Divided twice: the weights sum to 1 already, and then you divided by the number of splits."),
    Mistake("sign", _weighted(lambda lse: _softmax(np.where(np.isfinite(lse), -lse, -np.inf))),
            "The split with the largest lse got the smallest weight: look at the sign in your exponent."),
    Mistake("hard", lambda outs, lse: np.take_along_axis(outs, lse.argmax(0)[None, :, None], 0)[0],
            "You took the split with the largest lse. Each split gets a share."),
    Mistake("logarithm again", _weighted(lambda lse: np.log1p(_softmax(lse)), normalise=False),
            "You took a logarithm of the weights. Weights are e to the lse, divided by their sum."),
)  # fmt: skip


def _where(case: Case, got: np.ndarray, index: tuple) -> str:
    shown = ", ".join(f"{x:.3g}" for x in case.args[1][:, index[0]])
    return f"The lse of this head's splits: {shown}."


COMBINE = Build(
    id="09.combine",
    level="build ●●○ 8 min, further",
    cases=_cases,
    reference=_combine,
    names=("outs", "lse"),
    axes="HD",
    mistakes=_MISTAKES,
    arguments=copied,
    result_type=np.ndarray,
    explain=_where,
    tested="Tested with 1, 3, 4 and 5 splits, lse of ±1,000, empty splits, and a head whose splits are all empty.",
    notice="Notice: these weights are a softmax over splits. The second kernel is an attention whose scores are the "
    "lse and whose values are the outputs.",
)
