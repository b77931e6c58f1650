"""01.softmax: stable, and along the right axis."""

import time
from collections.abc import Callable

import numpy as np

from gqa_lab.checks import sandbox
from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case, copied, normal
from gqa_lab.checks.functions import Build


def _cases(round_: int) -> list[Case]:
    large = np.array([[0.0, 1.0 + round_], [1000.0, 1001.0 + round_]])
    hidden = np.array([[0.5 + round_, -np.inf, 1.0], [2.0, 0.25, -np.inf]])
    arrays = [normal((11, round_), 3, 5), normal((12, round_), 3, 3), large, hidden]
    return [Case((x,), {"rows": x.shape[0], "columns": x.shape[1]}) for x in arrays]


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _with(*, largest: Callable, total: Callable, e: Callable = np.exp) -> Callable:
    """Returns a softmax whose maximum and sum are computed in another way."""

    def softmax(x: np.ndarray) -> np.ndarray:
        weights = e(x - largest(x))
        return weights / total(weights)

    return softmax


def _row_max(x: np.ndarray) -> np.ndarray:
    return x.max(-1, keepdims=True)


def _row_sum(x: np.ndarray) -> np.ndarray:
    return x.sum(-1, keepdims=True)


_OVERFLOW = (
    "NaN at scores of 1,000: e¹⁰⁰⁰ is infinite. What may be subtracted from all scores of a row without changing "
    "the weights?"
)
_INFINITE = (
    "NaN in a row with −inf: what you subtract becomes infinite there, as the minimum, the mean and the largest "
    "absolute value do. Which score of a row is never −inf?"
)
_UNDIVIDED = "The largest weight of each row is 1, so rows do not sum to 1. Divide by the sum of the row."
_LINED_UP = "NumPy lined your row {} up with columns: rows of a square input no longer sum to 1. Keep the axis."
_COLUMNS = "Columns sum to 1, rows do not. Which axis runs over the keys of one query?"

_MISTAKES = (
    Mistake("no maximum", _with(largest=lambda x: 0.0, total=_row_sum), _OVERFLOW),
    Mistake("minimum subtracted", _with(largest=lambda x: x.min(-1, keepdims=True), total=_row_sum),
            _INFINITE),
    Mistake("mean subtracted", _with(largest=lambda x: x.mean(-1, keepdims=True), total=_row_sum),
            _INFINITE),
    Mistake("largest absolute value", _with(largest=lambda x: np.abs(x).max(-1, keepdims=True), total=_row_sum),
            _INFINITE),
    Mistake("maximum of all", _with(largest=np.max, total=_row_sum),
            "Row 0 became 0/0. Each row needs its own maximum."),
    Mistake("maximum without keepdims", _with(largest=lambda x: x.max(-1), total=_row_sum),
            _LINED_UP.format("maxima")),
    Mistake("sum without keepdims", _with(largest=_row_max, total=lambda e: e.sum(-1)), _LINED_UP.format("sums")),
    Mistake("neither keeps", _with(largest=lambda x: x.max(-1), total=lambda e: e.sum(-1)),
            _LINED_UP.format("maxima and sums")),
    Mistake("axis 0", _with(largest=lambda x: x.max(0), total=lambda e: e.sum(0)), _COLUMNS),
    Mistake("axis 0, maximum of rows", _with(largest=_row_max, total=lambda e: e.sum(0)), _COLUMNS),
    Mistake("axis 0, maximum of all", _with(largest=np.max, total=lambda e: e.sum(0)), _COLUMNS),
    Mistake("axis 0, no maximum", _with(largest=lambda x: 0.0, total=lambda e: e.sum(0)), _COLUMNS),
    Mistake("one sum for all", _with(largest=_row_max, total=np.sum),
            "All weights together sum to 1; each row should."),
    Mistake("one sum and one maximum for all", _with(largest=np.max, total=np.sum),
            "All weights together sum to 1; each row should."),
    Mistake("one sum for all, no maximum", _with(largest=lambda x: 0.0, total=np.sum),
            "Two things: all weights together sum to 1, each row should; and e¹⁰⁰⁰ is infinite. Begin with the rows."),
    Mistake("logarithm", lambda x: np.log(_softmax(x)), "These are logarithms of weights."),
    Mistake("not divided", _with(largest=_row_max, total=lambda e: 1.0),
            _UNDIVIDED),
    Mistake("divided by the largest", _with(largest=_row_max, total=_row_max),
            _UNDIVIDED),
    Mistake("2 instead of e", _with(largest=_row_max, total=_row_sum, e=np.exp2),
            "You took powers of 2. Softmax takes powers of e."),
    Mistake("10 instead of e", _with(largest=_row_max, total=_row_sum, e=lambda x: 10.0**x),
            "You took powers of 10. Softmax takes powers of e."),
    Mistake("sign", _with(largest=lambda x: -x.min(-1, keepdims=True), total=_row_sum, e=lambda x: np.exp(-x)),
            "The largest score got the smallest weight: look at the sign in your exponent."),
    Mistake("sigmoid", lambda x: 1 / (1 + np.exp(-x)),
            "Each score was squashed by itself. In softmax the scores of a row share a sum of 1."),
    Mistake("scores divided", lambda x: x / x.sum(-1, keepdims=True),
            "You divided the scores themselves. Exponentiate first: weights are never negative."),
    Mistake("hard", lambda x: (x == x.max(-1, keepdims=True)).astype(float),
            "You gave everything to the largest score. Softmax is soft: every finite score gets a share."),
)  # fmt: skip


_ROWS = (
    ([[-np.inf, 2.0, 1.0]], "a row that begins with −inf"),
    ([[3.0, 3.0, 1.0]], "a row with two equal maxima"),
    ([[-1000.0, -1001.0]], "scores of −1,000"),
    ([[0.0, -2000.0, 5.0]], "a row with one very low score"),
    ([[2.5]], "a row of one score"),
)


def _further(softmax: Callable) -> str | None:
    return _unusual_rows(softmax) or _any_number_of_axes(softmax)


def _unusual_rows(softmax: Callable) -> str | None:
    deadline = time.monotonic() + sandbox.DEADLINE_S
    for row, what in _ROWS:
        run = sandbox.run(softmax, [np.array(row)], {}, deadline)
        right = _softmax(np.array(row))
        if run.error is not None:
            return f"Right so far. With {what} it fails. {run.trouble()}"
        if np.shape(run.value) != right.shape or not np.allclose(run.value, right, rtol=1e-9, atol=1e-12):
            return f"Right so far. With {what} it is not: {np.round(run.value, 3)} from {row}."
    return None


def _any_number_of_axes(softmax: Callable) -> str | None:
    deadline = time.monotonic() + sandbox.DEADLINE_S
    for shape in ((2, 3, 4), (5,)):
        x = normal((13, len(shape)), *shape)
        run = sandbox.run(softmax, [x.copy()], {}, deadline)
        if type(run.value) is not np.ndarray or run.value.shape != shape or not np.allclose(run.value, _softmax(x)):
            why = f" {run.trouble()}" if run.error else ""
            return (
                f"Right for a table of scores. For an array of shape {list(shape)} it is not: softmax runs along the "
                f"last axis, whatever stands before it.{why}"
            )
    return None


SOFTMAX = Build(
    id="01.softmax",
    level="build ●○○ 8 min, core",
    cases=_cases,
    reference=_softmax,
    names=("x",),
    axes="rn",
    mistakes=_MISTAKES,
    arguments=copied,
    result_type=np.ndarray,
    beyond=_further,
    tested="Tested on tables of 3 × 5 and 3 × 3, scores of 1,000, rows with −inf, one axis and three.",
    notice="Notice: subtracting the maximum changes no weight, because it cancels in the fraction.",
)
