"""02.split: columns into heads."""

from functools import partial

import numpy as np

from gqa_lab.checks import cases
from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.functions import Build
from gqa_lab.checks.multi_head import labels

_TOKENS = "Your heads are made of whole tokens. Cut the last axis, then swap two axes."


def _cut(x: np.ndarray, n_heads: int) -> np.ndarray:
    return x.reshape(*x.shape[:2], n_heads, -1)  # [B, T, H, D]


def _holds(case: cases.Case, got: np.ndarray, index: tuple) -> str:
    found = labels.origin(got[index[:3]], case.sizes)
    return found and f"Head {index[1]}, token {index[2]} of your result holds {found}."


SPLIT = Build(
    id="02.split",
    level="build ●●○ 5 min, core",
    cases=partial(labels.cases, of_heads=False),
    reference=labels.split,
    names=("x", "n_heads"),
    axes="BHTD",
    explain=_holds,
    arguments=cases.copied,
    result_type=np.ndarray,
    mistakes=(
        Mistake("reshape only", labels.split_by_reshape, _TOKENS),
        Mistake(
            "(D, H)",
            labels.split_as_dh,
            "You cut the columns as (D, H), so a head got every n_heads-th column. Head axis first, then head_dim.",
        ),
        Mistake(
            "(D, H), then reshape",
            lambda x, n: labels.split_by_reshape(labels.merge(labels.split_as_dh(x, n)), n),
            "Two mistakes: a head got every n_heads-th column, and heads are made of whole tokens. Cut as (H, D), then "
            "swap two axes.",
        ),
        Mistake(
            "swapped before the cut",
            lambda x, n: x.transpose(0, 2, 1).reshape(len(x), n, x.shape[1], -1),
            "You swapped tokens and columns first and cut afterwards, so one row mixes tokens. Cut the last axis "
            "while it is last.",
        ),
        Mistake(
            "no transpose",
            _cut,
            "The cut is right, but tokens still stand before heads: [B, T, H, D]. Attention loops over heads first.",
        ),
        Mistake(
            "T and D swapped",
            lambda x, n: _cut(x, n).transpose(0, 2, 3, 1),
            "Inside a head, tokens and numbers are exchanged: [B, H, D, T]. Swap two axes only.",
        ),
        Mistake(
            "heads before batch",
            lambda x, n: _cut(x, n).transpose(2, 0, 1, 3),
            "Heads stand before the batch: [H, B, T, D]. The batch stays first.",
        ),
        Mistake(
            "batch and tokens swapped",
            lambda x, n: _cut(x, n).transpose(1, 2, 0, 3),
            "Batch and tokens changed places: [T, H, B, D]. The batch stays first.",
        ),
        Mistake(
            "n_heads as head_dim",
            lambda x, n: _cut(x, x.shape[-1] // n).transpose(0, 2, 1, 3),
            "You made heads of n_heads columns each: 6 heads of 4 became 4 heads of 6. Which number counts the heads?",
        ),
        Mistake(
            "batch and heads in one axis",
            lambda x, n: labels.split(x, n).reshape(-1, x.shape[1], x.shape[2] // n),
            "Batch and heads are one axis: [B·H, T, D]. Keep them apart.",
        ),
        Mistake("heads reversed", lambda x, n: labels.split(x, n)[:, ::-1], "Head 0 owns the first columns."),
        Mistake(
            "same columns for all",
            lambda x, n: np.repeat(labels.split(x, n)[:, :1], n, axis=1),
            "Every head got the columns of head 0. Each head owns columns of its own.",
        ),
        Mistake(
            "only head 0",
            lambda x, n: labels.split(x, n)[:, :1],
            "Only head 0 is there. All heads stand side by side in the second axis.",
        ),
        Mistake(
            "tokens cut",
            lambda x, n: np.stack(np.split(x, n, axis=1), axis=1),
            "You cut the tokens among the heads. Every head sees all tokens; what is cut is the columns.",
        ),
    ),
    tested="Tested with 6 heads of 4, one token, as many tokens as heads, and 3 heads of 3, then with other sizes.",
    notice="Notice: with one token, the plain reshape would have passed.",
)
