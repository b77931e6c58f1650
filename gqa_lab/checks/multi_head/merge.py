"""02.merge: heads side by side again."""

from functools import partial

import numpy as np

from gqa_lab.checks import cases
from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.functions import Build
from gqa_lab.checks.multi_head import labels

_ADDED = "Heads are laid side by side, not added; adding is `o_proj`'s job."


def _holds(case: cases.Case, got: np.ndarray, index: tuple) -> str:
    d = case.sizes["D"]
    first = index[2] // d * d
    found = labels.origin(got[index[0], index[1], first : first + d], case.sizes)
    return found and f"Token {index[1]}, columns {first} to {first + d - 1} of your result hold {found}."


MERGE = Build(
    id="02.merge",
    level="build ●●○ 5 min, core",
    cases=partial(labels.cases, of_heads=True),
    reference=labels.merge,
    names=("x",),
    axes="BTC",
    explain=_holds,
    arguments=cases.copied,
    result_type=np.ndarray,
    mistakes=(
        Mistake(
            "reshape only",
            labels.merge_by_reshape,
            "One row of your result holds several tokens of one head. It should hold all heads of one token.",
        ),
        Mistake(
            "(D, H)",
            labels.merge_as_dh,
            "Your row starts with the first number of every head: columns as (D, H). Head 0 comes first, whole.",
        ),
        Mistake(
            "T and D swapped",
            lambda x: x.swapaxes(2, 3).reshape(len(x), x.shape[2], -1),
            "You swapped tokens and numbers inside a head. Which two axes have to change places?",
        ),
        Mistake(
            "wrong pair swapped",
            lambda x: x.swapaxes(1, 3).reshape(len(x), x.shape[2], -1),
            "You swapped heads and numbers. Which two axes have to change places?",
        ),
        Mistake("heads reversed", lambda x: labels.merge(x[:, ::-1]), "Head 0 fills the first columns."),
        Mistake("sum", lambda x: x.sum(1), _ADDED),
        Mistake("mean", lambda x: x.mean(1), _ADDED),
        Mistake("maximum", lambda x: x.max(1), "You kept the largest number of all heads. Every head is kept."),
        Mistake("only head 0", lambda x: x[:, 0], "Only head 0 is there. Every head is kept, side by side."),
        Mistake(
            "transpose only",
            lambda x: x.transpose(0, 2, 1, 3),
            "Heads are still an axis of their own: [B, T, H, D]. Merge it with the last.",
        ),
        Mistake(
            "one after the other",
            lambda x: x.reshape(len(x), -1, x.shape[3]),
            "Heads follow each other in time: [B, H·T, D]. They belong side by side.",
        ),
        Mistake(
            "columns before tokens",
            lambda x: x.swapaxes(2, 3).reshape(len(x), -1, x.shape[2]),
            "Columns stand before tokens: [B, H·D, T].",
        ),
        Mistake(
            "batch merged too",
            lambda x: labels.merge(x).reshape(-1, x.shape[1] * x.shape[3]),
            "Batch and tokens became one axis: [B·T, H·D]. Keep them apart.",
        ),
    ),
    tested="Tested with 6 heads of 4, one token, as many tokens as heads, and 3 heads of 3, then with other sizes.",
    notice="Notice: merge undoes split, number by number.",
)
