"""09.online: a softmax that goes on with keys it has not seen before."""

from collections.abc import Callable

import numpy as np

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case, copied, normal
from gqa_lab.checks.functions import Build

_CHUNKS = (  # name, keys seen before, new keys, what is added to the scores of both
    ("the first keys", 0, 3, 0.0, 0.0),
    ("a larger score comes", 4, 2, 0.0, 3.0),
    ("smaller scores come", 3, 5, 3.0, 0.0),
    ("one key, scores near -1000", 0, 1, 0.0, -1000.0),
    ("scores near -1000", 5, 4, -1000.0, -1000.0),
    ("scores that fall by 1000", 2, 3, 0.0, -1000.0),
    ("an empty chunk", 3, 0, 0.0, 0.0),
    ("an empty chunk at the start", 0, 0, 0.0, 0.0),
)


def _cases(round_: int) -> list[Case]:
    cases, d = [], 4 + round_
    for number, (name, n_before, n_new, before, new) in enumerate(_CHUNKS):
        scores, v = (normal((95 + i, round_, number), n_before + n_new, *size) for i, size in enumerate(((), (d,))))
        state = _update(-np.inf, 0.0, np.zeros(d), scores[:n_before] + before, v[:n_before])
        cases.append(Case((*state, scores[n_before:] + new, v[n_before:]), {"n": n_new, "D": d, "with": name}))
    return cases


def _update(peak: float, total: float, mixed: np.ndarray, scores: np.ndarray, v: np.ndarray) -> tuple:
    if not len(scores):
        return peak, total, mixed
    top = max(peak, scores.max())
    weights, shrink = np.exp(scores - top), np.exp(peak - top)
    return float(top), float(total * shrink + weights.sum()), mixed * shrink + weights @ v


def _pack(value: object) -> object:
    """Returns peak, total and mixed one after the other; None for anything but two numbers and an array."""
    if type(value) not in (tuple, list) or len(value) != 3 or type(value[2]) is not np.ndarray or value[2].ndim != 1:
        return None
    numbers = [np.asarray(x) for x in value[:2]]
    if any(x.ndim or x.dtype.kind not in "iuf" for x in numbers):
        return None
    kept = value[2].dtype if value[2].dtype.kind == "f" else float
    return np.concatenate([np.array(numbers, dtype=kept), value[2]])


def _shrink(peak: float, new: float) -> float:
    return np.exp(peak - new)


def _with(*, top: Callable = max, total_factor: Callable = _shrink, mixed_factor: Callable = _shrink,
          weigh: Callable = lambda scores, top, peak: np.exp(scores - top), guard: bool = True
          ) -> Callable:  # fmt: skip
    """Returns an update that takes another maximum, other factors for the older sums, or other weights."""

    def update(peak, total, mixed, scores, v):
        if guard and not len(scores):
            return peak, total, mixed
        new = float(top(peak, scores.max()))
        weights = weigh(scores, new, peak)
        return (
            new,
            total * total_factor(peak, new) + weights.sum(),
            mixed * mixed_factor(peak, new) + weights @ v,
        )

    return update


def _keep(peak: float, new: float) -> float:
    return 1.0


def _upside_down(peak: float, new: float) -> float:
    return np.exp(new - peak)


def _upside_down_guarded(peak: float, new: float) -> float:
    return 1.0 if np.isneginf(peak) else np.exp(new - peak)


def _then(change: Callable) -> Callable:
    """Returns the right update with its result changed: `change(peak, total, mixed, state before)`."""
    return lambda peak, total, mixed, scores, v: change(*_update(peak, total, mixed, scores, v), (peak, total, mixed))


def _normalised_chunk(peak, total, mixed, scores, v):
    if not len(scores):
        return peak, total, mixed
    top = max(peak, scores.max())
    weights, shrink = np.exp(scores - top), np.exp(peak - top)
    return top, total * shrink + weights.sum(), mixed * shrink + weights / weights.sum() @ v


def _values_unweighted(peak, total, mixed, scores, v):
    top, new_total, _ = _update(peak, total, mixed, scores, v)
    return top, new_total, mixed * (np.exp(peak - top) if len(scores) else 1.0) + v.sum(0)


def _keys_counted(peak, total, mixed, scores, v):
    top, _, new_mixed = _update(peak, total, mixed, scores, v)
    return top, total * (np.exp(peak - top) if len(scores) else 1.0) + len(scores), new_mixed


def _divided_at_each_step(peak, total, mixed, scores, v):
    top, new_total, new_mixed = _update(peak, total, mixed, scores, v)
    return top, new_total, new_mixed / (new_total or 1.0)


def _running_mean(peak, total, mixed, scores, v):
    top, new_total, _ = _update(peak, total, mixed, scores, v)
    if not len(scores):
        return peak, total, mixed
    return top, new_total, (mixed * total * np.exp(peak - top) + np.exp(scores - top) @ v) / new_total


def _nan_at_an_empty_start(peak, total, mixed, scores, v):
    top = max(peak, scores.max(initial=-np.inf))
    weights, shrink = np.exp(scores - top), np.exp(peak - top)
    return top, total * shrink + weights.sum(), mixed * shrink + weights @ v


_MIXED = "`mixed` was not rescaled: it still counts from the older maximum."
_TOTAL = "`total` was not rescaled: it still counts from the older maximum."
_FACTOR = "Your factor is upside down: older sums must shrink when a larger score comes."
_EMPTY = (
    "An empty chunk has no largest score. Without new keys nothing changes; at the start you would subtract −inf from "
    "−inf, which is NaN."
)
_ZERO = (
    "You started from a peak of 0: at scores of −1,000 nothing was ever as large as your 0, all weights are 0, and "
    "0 / 0 is NaN."
)
_OWN_MAXIMUM = (
    "Your `peak` is the maximum of the new scores alone. It is the largest of all so far; where scores fall by 1,000, "
    "your older sums overflow."
)
_DIVIDED = "You divided at each step. `mixed` is not the output yet: divide once, at the end."
_OLD_PEAK = "The new weights count from the older maximum. All sums count from the new one."

_MISTAKES = (
    Mistake("mixed not rescaled", _with(mixed_factor=_keep), _MIXED),
    Mistake("total not rescaled", _with(total_factor=_keep), _TOTAL),
    Mistake("neither", _with(total_factor=_keep, mixed_factor=_keep),
            "Neither `total` nor `mixed` was rescaled: both still count from the older maximum."),
    Mistake("upside down", _with(total_factor=_upside_down, mixed_factor=_upside_down), _FACTOR),
    Mistake("upside down, guarded",
            _with(total_factor=_upside_down_guarded, mixed_factor=_upside_down_guarded), _FACTOR),
    Mistake("peak from 0", _with(top=lambda peak, new: max(peak, new, 0.0)), _ZERO),
    Mistake("−inf taken for 0", _with(top=lambda peak, new: max(0.0 if np.isneginf(peak) else peak, new)), _ZERO),
    Mistake("divided at each step", _divided_at_each_step, _DIVIDED),
    Mistake("running mean", _running_mean, _DIVIDED),
    Mistake("an empty chunk raises", _with(guard=False), _EMPTY),
    Mistake("an empty start is NaN", _nan_at_an_empty_start, _EMPTY),
    Mistake("maximum of the chunk", _with(top=lambda peak, new: new), _OWN_MAXIMUM),
    Mistake("peak stays", _then(lambda peak, total, mixed, old: (old[0], total, mixed)),
            "You handed back the older `peak`. The next chunk has to know from what the sums are measured."),
    Mistake("weights from the old peak", _with(weigh=lambda scores, top, peak: np.exp(scores - peak)), _OLD_PEAK),
    Mistake("weights from the old peak, guarded",
            _with(weigh=lambda scores, top, peak: np.exp(scores - (top if np.isneginf(peak) else peak))), _OLD_PEAK),
    Mistake("no maximum",
            _with(weigh=lambda scores, top, peak: np.exp(scores), total_factor=_keep, mixed_factor=_keep),
            "You took e to the score itself. Subtract `peak`, or e¹⁰⁰⁰ is infinite and e⁻¹⁰⁰⁰ is 0."),
    Mistake("base 2", _with(weigh=lambda scores, top, peak: np.exp2(scores - top),
                            total_factor=lambda peak, new: np.exp2(peak - new),
                            mixed_factor=lambda peak, new: np.exp2(peak - new)),
            "You took powers of 2. These scores want powers of e."),
    Mistake("chunk normalised", _normalised_chunk,
            "You divided the new weights by their own sum. Divide once, at the end, by the sum of all."),
    Mistake("values not weighted", _values_unweighted, "You added the new values without their weights."),
    Mistake("keys counted", _keys_counted, "`total` counts keys. It is the sum of their weights, e^(score − `peak`)."),
    Mistake("order", _then(lambda peak, total, mixed, old: (total, peak, mixed)),
            "Hand back `peak` first, then `total`, then `mixed`."),
)  # fmt: skip


def _what(case: Case, got: np.ndarray, index: tuple) -> str:
    return f"Place 0 is `peak`, place 1 is `total`, then comes `mixed`. The older `peak` is {case.args[0]:.4g}."


ONLINE = Build(
    id="09.online",
    level="build ●●○ 12 min, core",
    cases=_cases,
    reference=lambda *args: _pack(_update(*args)),
    names=("peak", "total", "mixed", "scores", "v"),
    axes="p",
    mistakes=_MISTAKES,
    arguments=copied,
    result_type=np.ndarray,
    pack=_pack,
    returns="three things, (peak, total, mixed): two numbers and an array of D numbers",
    explain=_what,
    tested="Tested with 0 to 5 keys: maxima that grow and fall, scores near −1,000, and empty chunks.",
    notice="Notice: the state is D + 2 numbers however many keys have passed. That is why a program needs no row of "
    "scores.",
)
