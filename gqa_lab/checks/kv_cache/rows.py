"""03.rows: how many rows go through a projection, with and without a cache."""

from collections.abc import Callable
from itertools import product

import numpy as np

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case
from gqa_lab.checks.functions import Build

_SIZES = (((20, 100), (5, 1), (3, 4), (12, 7)), ((1, 6), (9, 2), (20, 130), (4, 25)))
_LAST = "You also fed the last new token; nobody reads what comes after it."
_EARLY = "Early passes are shorter than the last."
_WITHOUT: tuple[tuple[str, Callable, str], ...] = (  # name, rows of p prompt and n new tokens, diagnosis
    ("right", lambda p, n: sum(p + i for i in range(n)), ""),
    ("last too", lambda p, n: sum(p + i for i in range(n + 1)), _LAST),
    (
        "one late",
        lambda p, n: sum(p + i for i in range(1, n + 1)),
        "The first pass reads the prompt alone, and nobody reads what comes after the last new token.",
    ),
    ("all full", lambda p, n: (p + n) * n, _EARLY),
    ("all as the last", lambda p, n: (p + n - 1) * n, _EARLY),
    ("all as the first", lambda p, n: p * n, "The text grows with each pass."),
    ("last pass", lambda p, n: p + n - 1, "That is the last pass alone. Every pass projects all its tokens again."),
    ("one too few", lambda p, n: sum(p + i for i in range(n - 1)), "One pass is missing: each new token needs one."),
    ("new only", lambda p, n: sum(range(n)), "The prompt is read again in every pass."),
)
_WITH: tuple[tuple[str, Callable, str], ...] = (
    ("right", lambda p, n: p + n - 1, ""),
    ("last too", lambda p, n: p + n, _LAST),
    ("new only", lambda p, n: n, "The prompt has to be read once."),
    ("new but the last", lambda p, n: n - 1, "The prompt has to be read once."),
    ("prompt only", lambda p, n: p, "Each new token that is read back is projected once, too."),
    ("one step", lambda p, n: 1, "That is one step. Count all of them, and the prompt."),
    (
        "no cache",
        _WITHOUT[0][1],
        "That is without a cache. With one, how often is a token projected?",
    ),
)


def _mistakes() -> tuple[Mistake, ...]:
    """Each pair of slips, since the two ways of counting are two branches of a student's function."""
    mistakes = []
    for (name, without, said), (name_2, with_, said_2) in product(_WITHOUT, _WITH):
        told = [f"{where}: {text}" for where, text in (("Without a cache", said), ("With a cache", said_2)) if text]
        if told:
            wrong = lambda p, n, cached, a=without, b=with_: (b if cached else a)(p, n)  # noqa: E731
            mistakes.append(Mistake(f"{name}, {name_2}", wrong, " ".join(told)))
    return tuple(mistakes)


def _rows_cases(round_: int) -> list[Case]:
    return [
        Case((p, n, cached), {"prompt_len": p, "new_tokens": n, "cached": cached})
        for p, n in _SIZES[round_]
        for cached in (False, True)
    ]


def _rows(prompt_len: int, new_tokens: int, cached: bool) -> np.ndarray:
    branch = _WITH if cached else _WITHOUT
    return np.array(branch[0][1](prompt_len, new_tokens))


ROWS = Build(
    id="03.rows",
    level="decide ●○○ 5 min, further",
    cases=_rows_cases,
    reference=_rows,
    names=("prompt_len", "new_tokens", "cached"),
    axes="",
    result_type=float,
    mistakes=_mistakes(),
    tested="Tested with four prompts, with a cache and without, twice.",
    notice="Notice: one formula grows with the square of the new tokens, the other with the tokens: 58 times less at "
    "(20, 100).",
)
