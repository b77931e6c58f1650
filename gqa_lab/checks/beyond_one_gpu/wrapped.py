"""A1.wrapped: copies of KV heads dealt out by wrapping around, and the processes on which nobody sees it."""

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.expose import BOTH_AGREE, RIGHT_INPUTS, FindMistake

_LARGEST = 1024


def kv_heads_held(rank, n_processes, n_kv_heads):
    n_held = max(1, n_kv_heads // n_processes)  # 1
    first = rank * n_held  # 2
    if first >= n_kv_heads:  # 3
        first = first % n_kv_heads  # 4
    return list(range(first, first + n_held))  # 5


def _repaired(rank: int, n_processes: int, n_kv_heads: int) -> list[int]:
    n_held = max(1, n_kv_heads // n_processes)
    first = rank * n_kv_heads // n_processes
    return list(range(first, first + n_held))


def _sizes(value: object) -> tuple | str:
    if type(value) is not list or [type(x) for x in value] != [int, int, int]:
        return "give three whole numbers (rank, n_processes, n_kv_heads)."
    rank, n, g = value
    if min(n, g) < 1 or max(n, g) > _LARGEST:
        return f"processes and KV heads lie from 1 to {_LARGEST}."
    if not 0 <= rank < n:
        return f"rank {rank} is none of {n} processes: 0 to {n - 1}."
    if n % g and g % n:
        return f"{n} processes cannot share {g} KV heads: one number has to divide the other."
    return rank, n, g


def _too_small(rank: int, n_processes: int, n_kv_heads: int) -> str | None:
    if n_processes <= n_kv_heads:
        return "Nothing is copied here. Try again with more processes than KV heads."
    if n_kv_heads == 1:
        return "With a single KV head there is nothing to mix up. Try again with at least two."
    if rank == 0:
        return "Process 0 holds the first KV head whatever the rule. Try another process."
    return None


_GOOD = {"line": 2, "exposing": (1, 4, 2), "hiding": (3, 4, 2)}

WRAPPED = FindMistake(
    id="A1.wrapped",
    level="expose ●●○ 7 min, further",
    line=2,
    wrong=kv_heads_held,
    right=_repaired,
    inputs=_sizes,
    too_small=_too_small,
    notice="Both versions were run on your processes. Notice: a test of the first and the last process passes. Line 4 "
    "looks like the place, but it only keeps line 2 from being found out by an IndexError.",
    mistakes=(
        Mistake("the line that wraps", _GOOD | {"line": 4}, f"`line`: Not line 4. {RIGHT_INPUTS}"),
        Mistake("the test that wraps", _GOOD | {"line": 3}, f"`line`: Not line 3. {RIGHT_INPUTS}"),
        Mistake("nothing copied exposes", _GOOD | {"exposing": (3, 4, 8)}, f"`exposing`: {BOTH_AGREE}"),
        Mistake("the last exposes", _GOOD | {"exposing": (15, 16, 8)}, f"`exposing`: {BOTH_AGREE}"),
        Mistake("nothing copied hides", _GOOD | {"hiding": (3, 8, 8)},
                "`hiding`: True, but too small to fool anybody. Nothing is copied here."),
        Mistake("one KV head hides", _GOOD | {"hiding": (5, 8, 1)},
                "`hiding`: True, but too small to fool anybody. With a single KV head"),
        Mistake("process 0 hides", _GOOD | {"hiding": (0, 4, 2)},
                "`hiding`: True, but too small to fool anybody. Process 0 holds the first"),
        Mistake("it shows", _GOOD | {"hiding": (1, 4, 2)}, "`hiding`: The mistake already shows here (first at [0])"),
        Mistake("not to be shared", _GOOD | {"exposing": (1, 6, 4)},
                "`exposing`: 6 processes cannot share 4 KV heads"),
    ),
)  # fmt: skip
