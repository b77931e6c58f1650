"""02.reshape: a split that forgets the transpose; sizes that expose it, and sizes that hide it."""

from math import prod

from gqa_lab.checks.expose import FindMistake
from gqa_lab.checks.multi_head import labels

_LARGEST = 1_000_000


def _inputs(value: object) -> tuple | str:
    if type(value) is not list or [type(x) for x in value] != [int] * 4:
        return "give four whole numbers (B, T, H, D)."
    b, t, h, d = value
    if min(value) < 1:
        return f"({b}, {t}, {h}, {d}) has a size below 1."
    if prod(value) > _LARGEST:
        return f"({b}, {t}, {h}, {d}) is more than {_LARGEST:,} numbers; smaller sizes will do."
    return labels.labelled(b, t, h * d), h


def _too_small(x, n_heads: int) -> str | None:
    if n_heads == 1:
        return "One head is no cut at all. Try again with H > 1."
    if x.shape[2] == n_heads:
        return "A head of one number is no head of a real model. Try again with D > 1."
    return None


RESHAPE = FindMistake(
    id="02.reshape",
    level="expose ●●○ 6 min, further",
    line=4,
    wrong=labels.split_by_reshape,
    right=labels.split,
    inputs=_inputs,
    too_small=_too_small,
    notice="Notice: prefill would show it, decode never. And the assert about the shape watched it happen.",
)
