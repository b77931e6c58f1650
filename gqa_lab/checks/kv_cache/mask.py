"""03.mask: which keys the new tokens may look at."""

import numpy as np
import torch

from gqa_lab import reference
from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case
from gqa_lab.checks.functions import Build
from gqa_lab.checks.wrong_attention import bottom_right, everything

_SIZES = (((3, 3), (1, 5), (2, 5), (3, 7)), ((4, 4), (1, 6), (2, 80), (5, 8)))
_TOP_LEFT = "Query 0 is not token 0: S − T tokens came before it. Your mask is right at T = S only."
_INVERTED = "Your True means must not look; here True means may look."
_FORWARD = "Your mask looks forward: a query sees what comes after it."


def _mask_cases(round_: int) -> list[Case]:
    return [Case(pair, dict(zip("TS", pair, strict=True))) for pair in _SIZES[round_]]


def _mask(q_len: int, kv_len: int) -> np.ndarray:
    seen = np.zeros((q_len, kv_len), dtype=bool)
    for t in range(q_len):
        seen[t, list(reference.visible_keys(t, q_len, kv_len))] = True
    return seen


def _ones(t: int, s: int):
    return torch.ones(t, s, dtype=torch.bool)


def _is_new(t: int, s: int):
    return (torch.arange(s) >= s - t).expand(t, s)


def _row(case: Case, got: np.ndarray, index: tuple) -> str:
    row = " ".join("1" if x else "0" for x in got[index[0]])
    return f"Your row there is {row}."


MASK = Build(
    id="03.mask",
    level="build ●●○ 8 min, core",
    cases=_mask_cases,
    reference=_mask,
    names=("q_len", "kv_len"),
    axes="TS",
    explain=_row,
    mistakes=(
        Mistake("top-left", lambda t, s: _ones(t, s).tril(), _TOP_LEFT),
        Mistake(
            "top-left, none at T = 1",
            lambda t, s: _ones(t, s).tril(0 if t > 1 else s),
            "Right for one query. Where T > 1, your query 0 is token 0: but S − T tokens came before it.",
        ),
        Mistake("nothing hidden", everything, "Query 0 sees query 1's token. Right at T = 1 only."),
        Mistake(
            "strict",
            lambda t, s: _ones(t, s).tril(s - t - 1),
            "A query sees itself: it may look at its own token, too.",
        ),
        Mistake(
            "one too far",
            lambda t, s: _ones(t, s).tril(s - t + 1),
            "One too far: each query sees the token after its own.",
        ),
        Mistake(
            "shifted back",
            lambda t, s: _ones(t, s).tril(t - s),
            "You shifted the diagonal the wrong way. A longer past shows more keys, not fewer.",
        ),
        Mistake("diagonal T", lambda t, s: _ones(t, s).tril(t), "You shifted by the new tokens. How many came before?"),
        Mistake(
            "diagonal S - 1", lambda t, s: _ones(t, s).tril(s - 1), "Query 0 sees query 1's token. Right at T = 1 only."
        ),
        Mistake(
            "only the new ones",
            lambda t, s: bottom_right(t, s) & _is_new(t, s),
            "The past is hidden. What is in the cache is there to be looked at.",
        ),
        Mistake(
            "only the new ones, all of them",
            _is_new,
            "The past is hidden, and query 0 sees query 1's token.",
        ),
        Mistake("only the past", lambda t, s: ~_is_new(t, s), "The new tokens are hidden from themselves."),
        Mistake(
            "only itself",
            lambda t, s: bottom_right(t, s) & ~_ones(t, s).tril(s - t - 1),
            "Each query sees only itself. It may look at everything up to itself.",
        ),
        Mistake("inverted", lambda t, s: ~bottom_right(t, s), _INVERTED),
        Mistake("top-left, inverted", lambda t, s: _ones(t, s).triu(1), f"{_INVERTED} And query 0 is not token 0."),
        Mistake("triu", lambda t, s: _ones(t, s).triu(), _FORWARD),
        Mistake("triu, shifted", lambda t, s: _ones(t, s).triu(s - t), _FORWARD),
        Mistake(
            "transposed",
            lambda t, s: bottom_right(t, s).mT,
            "Your rows are keys and your columns are queries. Each query needs a row.",
        ),
        Mistake(
            "all S rows",
            lambda t, s: _ones(s, s).tril(),
            "You made a row for each of the S tokens. Only the T new ones ask; which rows are theirs?",
        ),
        Mistake(
            "T columns",
            lambda t, s: _ones(t, t).tril(),
            "Your mask has no columns for the past. Each query needs one for each of the S keys.",
        ),
    ),
    tested="Tested with (T, S) = (3, 3), (1, 5), (2, 5), (3, 7), and with four other pairs.",
    notice="Notice: at T = S it is the triangle you know, at T = 1 nothing is hidden. Only 1 < T < S tests all of it.",
)
