"""09.tail: a loop over blocks of keys that never compares with the length, and splits that get no keys."""

from math import isnan

import numpy as np

from gqa_lab.checks.cases import normal
from gqa_lab.checks.expose import FindMistake

_D, _LARGEST = 3, 4096


def split_outputs(q, k, v, length, n_keys, n_splits):
    """The function of the notebook: outputs [n_splits, D] and lse [n_splits]; k and v hold more than `length` keys."""
    n_blocks = -(-length // n_keys)  # 1
    per_split = -(-n_blocks // n_splits) * n_keys  # 2
    outs, lse = [], []  # 3
    for first in range(0, n_splits * per_split, per_split):  # 4
        peak, total, mixed = -np.inf, 0.0, np.zeros(len(q))  # 5
        for block in range(first, min(first + per_split, length), n_keys):  # 6
            s = slice(block, block + n_keys)  # 7
            peak, total, mixed = update(peak, total, mixed, k[s] @ q, v[s])  # 8
        outs.append(mixed / total)  # 9
        lse.append(peak + np.log(total))  # 10
    return np.array(outs), np.array(lse)


def update(peak, total, mixed, scores, v):
    """The state of a softmax after some more keys."""
    top = max(peak, scores.max())
    weights, shrink = np.exp(scores - top), np.exp(peak - top)
    return top, total * shrink + weights.sum(), mixed * shrink + weights @ v


def _repaired(q, k, v, length, n_keys, n_splits, *, masked: bool = True, guarded: bool = True):
    """The same with a comparison with the length, a guard for splits without keys, or both."""
    n_blocks = -(-length // n_keys)
    per_split = -(-n_blocks // n_splits) * n_keys
    outs, lse = [], []
    for first in range(0, n_splits * per_split, per_split):
        peak, total, mixed = -np.inf, 0.0, np.zeros(len(q))
        for block in range(first, min(first + per_split, length), n_keys):
            s = slice(block, min(block + n_keys, length) if masked else block + n_keys)
            peak, total, mixed = update(peak, total, mixed, k[s] @ q, v[s])
        is_empty = guarded and total == 0
        outs.append(mixed if is_empty else mixed / total)
        lse.append(-np.inf if is_empty else peak + np.log(total))
    return np.concatenate([np.array(outs), np.array(lse)[:, None]], axis=1)


def _memory(length: int, n_keys: int, beyond: float = np.nan) -> list[np.ndarray]:
    """Returns q, k and v; what stands after `length` in k and v is `beyond`."""
    q, k, v = normal((97, 0), _D), normal((97, 1), length + n_keys, _D), normal((97, 2), length + n_keys, _D)
    k[length:], v[length:] = beyond, beyond
    return [q, k, v]


def _run(length: int, n_keys: int, n_splits: int, *, masked: bool) -> np.ndarray:
    return _repaired(*_memory(length, n_keys), length, n_keys, n_splits, masked=masked)


def _sizes(value: object) -> tuple | str:
    if type(value) is not list or [type(x) for x in value] != [int, int, int]:
        return "give three whole numbers (length, n_keys, n_splits)."
    length, n_keys, n_splits = value
    if min(value) < 1 or max(value) > _LARGEST:
        return f"each number lies from 1 to {_LARGEST}."
    if n_splits > 64:
        return "64 splits are enough here."
    return length, n_keys, n_splits


def _n_empty(length: int, n_keys: int, n_splits: int) -> int:
    n_blocks = -(-length // n_keys)
    return n_splits - -(-n_blocks // -(-n_blocks // n_splits))


def _too_small(length: int, n_keys: int, n_splits: int) -> str | None:
    if length == n_keys:
        return "One block that is full. Try again with at least two."
    if n_keys == 1:
        return "A block of one key is always full. Try again with at least two keys in a block."
    if _n_empty(length, n_keys, n_splits):
        return "And the other mistake shows here: a split gets no keys. Try again with at least one block for each."
    return None


def _examine_beyond(value: object) -> str | None:
    if type(value) not in (int, float):
        return '`beyond`: give one number. Not-a-number is one, float("nan").'
    if isnan(value):
        return None
    if value == 0:
        return "`beyond`: They show it here, but only just: NaN cannot be overlooked."
    return "`beyond`: A number may be lost among numbers. Which value spoils all that it touches?"


def _examine_empty(value: object) -> str | None:
    sizes = _sizes(value)
    if isinstance(sizes, str):
        return f"`empty_split`: {sizes}"
    if _n_empty(*sizes):
        return None
    length, n_keys, n_splits = sizes
    n_blocks = -(-length // n_keys)
    return (
        f"`empty_split`: {n_blocks} blocks in {n_splits} splits: each split gets keys here. When is one left without?"
    )


TAIL = FindMistake(
    id="09.tail",
    level="expose ●●● 10 min, further",
    line=7,
    wrong=lambda *sizes: _run(*sizes, masked=False),
    right=lambda *sizes: _run(*sizes, masked=True),
    inputs=_sizes,
    too_small=_too_small,
    more={"beyond": _examine_beyond, "empty_split": _examine_empty},
    notice="Both versions were run on your sizes, NaN behind the last key. Notice: a test whose lengths are multiples "
    "of the block passes for years, until somebody's prompt is one token longer.",
)
