"""07.strided: a pool that takes every n-th head; sizes that expose it, and sizes that hide it."""

import torch

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import normal
from gqa_lab.checks.expose import BOTH_AGREE, RIGHT_INPUTS, FindMistake
from gqa_lab.checks.quality.pool import pool_strided

_HEAD_DIM, _D_MODEL = 4, 5
_LARGEST = 512


def pool_neighbours(w: torch.Tensor, n_kv_heads: int, head_dim: int) -> torch.Tensor:
    """The same, repaired."""
    n_shared = len(w) // head_dim // n_kv_heads
    heads = w.view(-1, head_dim, w.shape[1])
    one_each = heads.view(n_kv_heads, n_shared, head_dim, -1).mean(1)
    return one_each.reshape(n_kv_heads * head_dim, -1)


def _inputs(value: object) -> tuple | str:
    if type(value) is not list or [type(x) for x in value] != [int] * 2:
        return "give two whole numbers: KV heads before, and after."
    before, after = value
    if min(value) < 1 or before > _LARGEST:
        return f"{before} → {after}: KV heads are 1 to {_LARGEST} here."
    if before % after:
        return f"{before} → {after}: {after} does not divide {before}, so the heads cannot be shared evenly."
    w = torch.from_numpy(normal((77, before), before * _HEAD_DIM, _D_MODEL))
    return w, after, _HEAD_DIM


def _too_small(w: torch.Tensor, n_kv_heads: int, head_dim: int) -> str | None:
    if len(w) == n_kv_heads * head_dim:
        return "Nothing is pooled there. Try again with at least two heads that become one."
    return None


_GOOD = {"line": 4, "exposing": (6, 2), "hiding": (3, 1)}

STRIDED = FindMistake(
    id="07.strided",
    level="expose ●●○ 6 min, core",
    line=4,
    wrong=pool_strided,
    right=pool_neighbours,
    inputs=_inputs,
    too_small=_too_small,
    notice="Notice: 3 → 1 is the very conversion that the lesson runs on the real model, and this bug would have "
    "changed nothing there. A dramatic demonstration can be a poor test.",
    mistakes=(
        Mistake("one group exposes nothing", _GOOD | {"exposing": (3, 1)}, f"`exposing`: {BOTH_AGREE}"),
        Mistake("nothing is pooled", _GOOD | {"exposing": (4, 4)}, f"`exposing`: {BOTH_AGREE}"),
        Mistake("two groups hide nothing", _GOOD | {"hiding": (8, 4)}, "`hiding`: The mistake already shows here"),
        Mistake("nothing pooled hides", _GOOD | {"hiding": (6, 6)}, "`hiding`: True, but too small to fool anybody."),
        Mistake("the cut is innocent", _GOOD | {"line": 3}, f"`line`: Not line 3. {RIGHT_INPUTS}"),
        Mistake("the merge is innocent", _GOOD | {"line": 5}, f"`line`: Not line 5. {RIGHT_INPUTS}"),
        Mistake("the count is innocent", _GOOD | {"line": 2}, f"`line`: Not line 2. {RIGHT_INPUTS}"),
    ),
)
