"""01.axis: a softmax along the wrong axis, exposed and hidden."""

import numpy as np

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.expose import ALREADY_SHOWS, BOTH_AGREE, FindMistake

_LARGEST = 64


def over_queries(s: np.ndarray) -> np.ndarray:
    """Wrong: divides each weight by the sum of its column."""
    e = np.exp(s - s.max(axis=1, keepdims=True))
    return e / e.sum(axis=0, keepdims=True)


def over_keys(s: np.ndarray) -> np.ndarray:
    """Returns the right weights."""
    e = np.exp(s - s.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _scores(value: object) -> tuple | str:
    try:
        s = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return "Write scores as rows of numbers of one length, or as an array [T, S]."
    if s.ndim != 2 or 0 in s.shape or max(s.shape) > _LARGEST:
        return f"Scores are a table [T, S] with 1 to {_LARGEST} rows and columns; yours has shape {list(s.shape)}."
    return (s,) if np.abs(s).max() < 1e6 else "Write finite scores of a moderate size."


def _fools_nobody(s: np.ndarray) -> str | None:
    if s.size == 1:
        return "Try again with at least 2 queries and 2 keys."
    return "All scores are equal, or nearly. Try again with scores that differ." if np.ptp(s) < 0.1 else None


_EXPOSING, _HIDING = [[0.0, 1.0, 2.0], [1.0, 0.0, 3.0]], [[100.0, 0.0, 0.0], [0.0, 100.0, 0.0], [0.0, 0.0, 100.0]]
_RIGHT = {"line": 3, "exposing": _EXPOSING, "hiding": _HIDING}

AXIS = FindMistake(
    id="01.axis",
    level="expose ●●○ 8 min, further",
    line=3,
    wrong=over_queries,
    right=over_keys,
    inputs=_scores,
    too_small=_fools_nobody,
    notice="Both versions were run on your scores. Notice: with scores like 100 · I every weight is 0 or 1, and no "
    "mistake of scale or axis can show. The checks of this course use scores that spread the weights out.",
    mistakes=(
        Mistake("one-hot scores cannot expose", _RIGHT | {"exposing": _HIDING}, f"`exposing`: {BOTH_AGREE}"),
        Mistake("hiding where it shows", _RIGHT | {"hiding": _EXPOSING}, f"`hiding`: {ALREADY_SHOWS[:32]}"),
        Mistake("one score", _RIGHT | {"hiding": [[1.0]]}, "`hiding`: True, but too small to fool anybody."),
        Mistake("equal scores", _RIGHT | {"hiding": [[1.0, 1.0], [1.0, 1.0]]}, "`hiding`: True, but too small"),
        Mistake("the line above", _RIGHT | {"line": 2}, "`line`: Not line 2. Your inputs show it."),
    ),
)
