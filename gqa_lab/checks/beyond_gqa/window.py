"""A2.window: a window that is one key too wide, and the sequences on which nobody sees it."""

import numpy as np

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.expose import ALREADY_SHOWS, BOTH_AGREE, RIGHT_INPUTS, FindMistake

_LARGEST = 512


def window_mask(q_len, kv_len, window):
    s = np.arange(kv_len)  # 1
    position = np.arange(q_len)[:, None] + kv_len - q_len  # 2
    causal = s <= position  # 3
    near = s >= position - window  # 4
    return causal & near  # 5


def _repaired(q_len: int, kv_len: int, window: int) -> np.ndarray:
    s = np.arange(kv_len)
    position = np.arange(q_len)[:, None] + kv_len - q_len
    return (s <= position) & (s > position - window)


def _sizes(value: object) -> tuple | str:
    if type(value) is not list or [type(x) for x in value] != [int, int, int]:
        return "give three whole numbers (q_len, kv_len, window)."
    q_len, kv_len, window = value
    if min(value) < 1 or max(value) > _LARGEST:
        return f"each number lies from 1 to {_LARGEST}."
    if q_len > kv_len:
        return f"{q_len} new tokens cannot be among {kv_len} visible ones: q_len is at most kv_len."
    return q_len, kv_len, window


def _too_small(q_len: int, kv_len: int, window: int) -> str | None:
    if kv_len == 1:
        return "One key is seen by every mask. Try again with several."
    if window > kv_len + 2:
        return "The window is wider than the sequence by more than two. Try again with one that it fills, or nearly."
    return None


_GOOD = {"line": 4, "exposing": (1, 9, 4), "hiding": (4, 4, 4)}

WINDOW = FindMistake(
    id="A2.window",
    level="expose ●●○ 7 min, core",
    line=4,
    wrong=window_mask,
    right=_repaired,
    inputs=_sizes,
    too_small=_too_small,
    notice="Both masks were made for your sizes. Notice: up to as many tokens as the window has, both agree, so a test "
    "with short prompts passes. Windows one too wide were shipped so (transformers#39408, Megatron-Bridge#2656).",
    mistakes=(
        Mistake("the other comparison", _GOOD | {"line": 3}, f"`line`: Not line 3. {RIGHT_INPUTS}"),
        Mistake("the position", _GOOD | {"line": 2}, f"`line`: Not line 2. {RIGHT_INPUTS}"),
        Mistake("a full window exposes", _GOOD | {"exposing": (4, 4, 4)}, f"`exposing`: {BOTH_AGREE}"),
        Mistake("one token exposes", _GOOD | {"exposing": (1, 3, 8)}, f"`exposing`: {BOTH_AGREE}"),
        Mistake("one token hides it", _GOOD | {"hiding": (1, 9, 4)},
                f"`hiding`: {ALREADY_SHOWS.format('first at [0, 4]')}"),
        Mistake("one more than the window", _GOOD | {"hiding": (5, 5, 4)},
                f"`hiding`: {ALREADY_SHOWS.format('first at [4, 0]')}"),
        Mistake("a single key", _GOOD | {"hiding": (1, 1, 4)},
                "`hiding`: True, but too small to fool anybody. One key is seen"),
        Mistake("the sizes of the notebook's own try", _GOOD | {"hiding": (2, 5, 8)},
                "`hiding`: True, but too small to fool anybody. The window is wider"),
        Mistake("more new than visible", _GOOD | {"exposing": (5, 3, 2)},
                "`exposing`: 5 new tokens cannot be among 3 visible ones"),
    ),
)  # fmt: skip
