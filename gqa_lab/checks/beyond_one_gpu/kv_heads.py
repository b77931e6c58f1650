"""A1.kv_heads: which KV heads a process holds, and which numbers of processes cannot share the heads."""

import numpy as np
import torch

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case
from gqa_lab.checks.functions import Build

_NAMES = ("rank", "n_processes", "n_heads", "n_kv_heads")
_ROUNDS = (
    ((0, 1, 6, 3), (2, 3, 12, 6), (1, 2, 8, 8), (1, 4, 8, 2), (2, 4, 8, 2), (5, 16, 64, 8), (7, 8, 8, 1)),
    ((0, 1, 8, 2), (1, 3, 18, 6), (3, 4, 8, 8), (6, 8, 16, 2), (1, 8, 16, 2), (13, 16, 64, 8), (3, 6, 6, 1)),
)  # fmt: skip
_MOST = 128  # KV heads that a result can name; the last place counts what is none


def _cases(round_: int) -> list[Case]:
    return [Case(args, dict(zip(("rank", "P", "H", "G"), args, strict=True))) for args in _ROUNDS[round_]]


def held(rank: int, n_processes: int, n_heads: int, n_kv_heads: int) -> list[int]:
    """Returns the KV heads that the process's query heads read."""
    each, group_size = n_heads // n_processes, n_heads // n_kv_heads
    return sorted({i // group_size for i in range(rank * each, (rank + 1) * each)})


def _pack(value: object) -> object:
    """Returns how often each KV head is named; None for anything but whole numbers in a row or a set."""
    if isinstance(value, np.ndarray | torch.Tensor):
        value = value.tolist() if value.ndim == 1 else None
    if type(value) not in (list, tuple, range, set, frozenset) and type(value) is not type({}.keys()):
        return None
    heads = [x.item() if isinstance(x, np.integer) else x for x in value]
    if any(type(x) is not int for x in heads):
        return None
    counts = np.zeros(_MOST + 1, dtype=np.int64)
    for x in heads:
        counts[x if 0 <= x < _MOST else _MOST] += 1
    return counts


def _reference(*args: int) -> np.ndarray:
    return _pack(held(*args))


def _own(rank: int, n: int, h: int) -> range:
    return range(rank * h // n, (rank + 1) * h // n)


def _share(rank: int, n: int, g: int) -> range:
    return range(rank * g // n, (rank + 1) * g // n)


def _refusing_copies(rank: int, n: int, h: int, g: int) -> range:
    if g % n:
        raise ValueError("more processes than KV heads")
    return _share(rank, n, g)


_CARDS = (
    "You dealt KV heads out like cards. A process has neighbouring query heads, and these read neighbouring KV heads."
)
_COPIES = (
    "Right while nothing is copied. Where G < P you dealt the copies out like cards; here, too, neighbours share one."
)
_NONE = "With more processes than KV heads, some of yours hold none. What do their query heads read?"
_BEYOND = (
    "With more processes than KV heads, yours name KV heads that do not exist. Several processes hold the same one."
)
_MISTAKES = (
    Mistake("cards", lambda r, n, h, g: range(r, g, n) if n <= g else [r % g], _CARDS),
    Mistake("cards, none left", lambda r, n, h, g: range(r, g, n), _CARDS),
    Mistake("tiled", lambda r, n, h, g: {i % g for i in _own(r, n, h)},
            "You used i % G for the KV head of query head i. Neighbours share: which division gives that?"),
    Mistake("copies like cards", lambda r, n, h, g: _share(r, n, g) if n <= g else [r % g], _COPIES),
    Mistake("wrapped around", lambda r, n, h, g: [x % g for x in range(r * max(1, g // n), (r + 1) * max(1, g // n))],
            _COPIES),
    Mistake("copies refused", _refusing_copies,
            "You refuse to copy. Where G divides P they can share: P // G processes hold the same KV head."),
    Mistake("nothing copied", lambda r, n, h, g: _share(r, n, g), _NONE),
    Mistake("G // P of them", lambda r, n, h, g: range(r * (g // n), (r + 1) * (g // n)), _NONE),
    Mistake("those that exist", lambda r, n, h, g: [r] if n > g and r < g else [] if n > g else _share(r, n, g), _NONE),
    Mistake("one each", lambda r, n, h, g: range(r * max(1, g // n), (r + 1) * max(1, g // n)), _BEYOND),
    Mistake("rank", lambda r, n, h, g: [r],
            "Process r holds KV head r only where there are as many processes as KV heads."),
    Mistake("rank where nothing is copied", lambda r, n, h, g: [r] if n < g else [r * g // n],
            "With fewer processes than KV heads each holds several; process r does not hold KV head r alone."),
    Mistake("rounded up", lambda r, n, h, g: range(-(-r * g // n), -(-(r + 1) * g // n)),
            "You rounded up: processes that hold the same KV head have to come out at the same number."),
    Mistake("one more", lambda r, n, h, g: [*held(r, n, h, g), held(r, n, h, g)[-1] + 1],
            "One KV head too many: a range ends before its second number."),
    Mistake("copies by G", lambda r, n, h, g: _share(r, n, g) if n <= g else [r // g],
            "Right while nothing is copied. Copies: how many processes share one KV head? Divide the rank by that."),
    Mistake("copies by query heads", lambda r, n, h, g: _share(r, n, g) if n <= g else [r // (h // n)],
            "Right while nothing is copied. You divided the rank by the query heads of a process, not by P // G."),
    Mistake("group_size of them", lambda r, n, h, g: range(r * g // n, r * g // n + h // g),
            "You named group_size KV heads; that many query heads read one. A process holds max(1, G // P)."),
    Mistake("everything", lambda r, n, h, g: range(g),
            "Every process holds all KV heads in your version. Then no cache would shrink."),
    Mistake("query heads", lambda r, n, h, g: _own(r, n, h), "These are query heads. Which KV heads do they read?"),
    Mistake("query heads like cards", lambda r, n, h, g: {i // (h // g) for i in range(r, h, n)},
            "You dealt query heads out like cards. A process has neighbours: the r-th of P equal runs."),
    Mistake("i // G", lambda r, n, h, g: {i // g for i in _own(r, n, h)},
            "You divided query heads by the number of KV heads; divide by group_size."),
    Mistake("one KV head for each query head", lambda r, n, h, g: [i // (h // g) for i in _own(r, n, h)],
            "The right heads, but named once for each query head that reads them. Name each once."),
    Mistake("only the first", lambda r, n, h, g: [r * g // n],
            "Where G > P a process holds several KV heads; you named the first."),
    Mistake("only the last", lambda r, n, h, g: [((r + 1) * h // n - 1) // (h // g)],
            "Where G > P a process holds several KV heads; you named the last."),
    Mistake("from 1", lambda r, n, h, g: [x + 1 for x in held(r, n, h, g)], "Count KV heads from 0."),
    Mistake("ranks from 1", lambda r, n, h, g: held(max(r - 1, 0), n, h, g), "Ranks count from 0."),
    Mistake("backwards", lambda r, n, h, g: held(n - 1 - r, n, h, g), "Process 0 holds the first heads, not the last."),
    Mistake("left over for the last", lambda r, n, h, g: _share(r, n, g) if n <= g else [min(r, g - 1)],
            "With more processes than KV heads, all that were left over share your last KV head. Share them evenly."),
)  # fmt: skip


def _refusal(*args: int) -> Case:
    return Case(args, dict(zip(("rank", "P", "H", "G"), args, strict=True)))


def _explain(case: Case, got: np.ndarray, index: tuple) -> str:
    rank, n, h, _ = case.args
    own = _own(rank, n, h)
    heads = f"query head {own[0]}" if len(own) == 1 else f"query heads {own[0]} to {own[-1]}"
    beyond = " You named one that does not exist." if got[_MOST] else ""
    return f"This process has {heads}.{beyond}"


KV_HEADS = Build(
    id="A1.kv_heads",
    level="build ●●○ 9 min, core",
    cases=_cases,
    reference=_reference,
    names=_NAMES,
    axes="G",
    mistakes=_MISTAKES,
    refusals=(
        (_refusal(0, 8, 12, 4), "8 processes cannot share 12 query heads evenly."),
        (_refusal(0, 2, 6, 3), "2 processes over 3 KV heads: both would need the middle one."),
        (
            _refusal(1, 3, 12, 2),
            "3 processes over 2 KV heads: the middle one would need both, the others one.",
        ),
        (
            _refusal(0, 6, 12, 4),
            "6 processes over 4 KV heads: some would hold a KV head for two query heads, some two.",
        ),
        (_refusal(0, 16, 8, 8), "16 processes cannot share 8 query heads: some would have none."),
        (_refusal(0, 10, 40, 4), "10 processes over 4 KV heads: neither number divides the other."),
    ),
    tested="Tested on 1 to 16 processes with more, as many and fewer KV heads, and with numbers that cannot be shared.",
    notice="Notice: one rule does it, with copies and without: rank · G // P is the first of max(1, G // P).",
    arguments=lambda case: list(case.args),
    explain=_explain,
    pack=_pack,
    result_type=np.ndarray,
    returns="a list of whole numbers (divide with //, not with /)",
)
