"""07.expand: a projection with more KV heads, and the same model."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case, normal
from gqa_lab.checks.functions import Build
from gqa_lab.checks.head_maps import (
    BACKWARDS,
    CARDS,
    DIVIDED,
    cards,
    divided,
    divided_clamped,
    from_the_end,
    neighbours,
)

_SIZES = (  # the rows are G·D; G = 1 and G = H hide mistakes, the first two do not
    {"H": 6, "G": 2, "D": 4, "C": 11},
    {"H": 8, "G": 4, "D": 3, "C": 10},
    {"H": 3, "G": 1, "D": 8, "C": 5},
    {"H": 4, "G": 4, "D": 8, "C": 9},
)
_ROWS = "You copied rows; copy blocks of head_dim rows. A head is head_dim rows, side by side; cut heads first."
_AS_DH = "You cut the rows as (head_dim, heads), so a head got every G-th row. Head axis first, then head_dim."
_ZERO = "Your new heads are zero: a zero key has score 0, not weight 0. Each query head needs a copy of its KV head."
_SHORTER = "A shared key must not get shorter: every query head reads the KV head as it was. Don't divide."
_COPIES = "You made n_heads copies of each KV head. Each needs one for every query head of its group."
_COLUMNS = "You copied columns. A column belongs to a number that comes in; heads are made of rows."


def _cases(round_: int) -> list[Case]:
    cases = []
    for n, sizes in enumerate(_SIZES):
        w = normal((75, round_, n), sizes["G"] * sizes["D"], sizes["C"])
        cases.append(Case((w, sizes["H"], sizes["D"]), sizes))
    return cases


def expand_weight(w: np.ndarray, n_heads: int, head_dim: int) -> np.ndarray:
    """Returns the KV head of every query head, one below the other."""
    n_kv_heads = len(w) // head_dim
    heads = [neighbours(i, n_heads, n_kv_heads) for i in range(n_heads)]
    return np.concatenate([w[g * head_dim : (g + 1) * head_dim] for g in heads])


def _heads(w: Tensor, head_dim: int) -> Tensor:
    return w.unflatten(0, (-1, head_dim))  # [G, D, C]


def _shared(w: Tensor, n_heads: int, head_dim: int) -> int:
    return n_heads // (len(w) // head_dim)


def _by_map(rule, w, n_heads, head_dim) -> Tensor:
    heads = _heads(w, head_dim)
    return torch.cat([heads[rule(i, n_heads, len(heads))] for i in range(n_heads)])


def _right(w, n_heads, head_dim) -> Tensor:
    return _by_map(neighbours, w, n_heads, head_dim)


def _zero_but(keep, w, n_heads, head_dim) -> Tensor:
    """Zeros for every head but those for which `keep(i, R, G)` holds."""
    n_shared, n_kv_heads = _shared(w, n_heads, head_dim), len(w) // head_dim
    blocks = _right(w, n_heads, head_dim).unflatten(0, (n_heads, head_dim)).clone()
    for i in range(n_heads):
        if not keep(i, n_shared, n_kv_heads):
            blocks[i] = 0
    return blocks.flatten(0, 1)


def _padded(w, n_heads, head_dim) -> Tensor:
    return torch.cat([w, w.new_zeros(n_heads * head_dim - len(w), w.shape[1])])


def _as_dh(w, n_heads, head_dim) -> Tensor:
    """Takes row j for a number of head j % G."""
    heads = w.unflatten(0, (head_dim, -1)).transpose(0, 1)  # [G, D, C]
    return heads.repeat_interleave(_shared(w, n_heads, head_dim), 0).flatten(0, 1)


def _found_heads(case: Case, got: np.ndarray, index: tuple) -> str:
    w, n_heads, head_dim = case.args
    kv_heads, found = w.reshape(-1, head_dim, w.shape[1]), []
    for head in got.reshape(n_heads, head_dim, -1):
        shares = {g: (head * kv).sum() / (kv * kv).sum() for g, kv in enumerate(kv_heads)}
        alike = [(g, x) for g, x in shares.items() if np.allclose(head, x * kv_heads[g]) and abs(x) > 1e-6]
        found += [str(g) if np.isclose(x, 1) else f"{x:.2g} times {g}" for g, x in alike[:1]] or ["?"]
    return f"Cut into blocks of {head_dim} rows, yours are the KV heads [{', '.join(found)}]."


EXPAND = Build(
    id="07.expand",
    level="build ●●○ 6 min, core",
    cases=_cases,
    reference=expand_weight,
    names=("w", "n_heads", "head_dim"),
    axes="rC",
    explain=_found_heads,
    mistakes=(
        Mistake(
            "rows repeated one by one",
            lambda w, n, d: w.repeat_interleave(_shared(w, n, d), 0),
            _ROWS,
        ),
        Mistake(
            "blocks tiled",
            partial(_by_map, cards),
            CARDS + " Right at G = 1 and G = H only.",
        ),
        Mistake("i // G", partial(_by_map, divided), DIVIDED),
        Mistake("i // G, clamped", partial(_by_map, divided_clamped), DIVIDED),
        Mistake("groups reversed", partial(_by_map, from_the_end), BACKWARDS),
        Mistake(
            "head 0 for all",
            partial(_by_map, lambda i, h, g: 0),
            "Every head became KV head 0. Each group has a KV head of its own.",
        ),
        Mistake("divided by R", lambda w, n, d: _right(w, n, d) / _shared(w, n, d), _SHORTER),
        Mistake("divided by the root of R", lambda w, n, d: _right(w, n, d) / _shared(w, n, d) ** 0.5, _SHORTER),
        Mistake(
            "times the root of R",
            lambda w, n, d: _right(w, n, d) * _shared(w, n, d) ** 0.5,
            "You made the copies longer. A copy is as long as the head it is a copy of; don't multiply.",
        ),
        Mistake(
            "i % R",
            partial(_by_map, lambda i, h, g: i % (h // g)),
            "You took the place inside the group, i % R. The KV head is the number of the group.",
        ),
        Mistake("zeros between", partial(_zero_but, lambda i, r, g: i % r == 0), _ZERO),
        Mistake("zeros at the end", _padded, _ZERO),
        Mistake(
            "mean of heads",
            lambda w, n, d: _heads(w, d).mean(0).repeat(n, 1),
            "Every head became the mean of all KV heads. More heads need no mean: each is a copy of one.",
        ),
        Mistake(
            "cut as (D, G)",
            _as_dh,
            _AS_DH,
        ),
        Mistake(
            "cut as (D, G), numbers repeated",
            lambda w, n, d: w.unflatten(0, (d, -1)).repeat_interleave(_shared(w, n, d), 0).flatten(0, 1),
            _AS_DH,
        ),
        Mistake("columns one by one", lambda w, n, d: w.repeat_interleave(_shared(w, n, d), 1), _COLUMNS),
        Mistake("columns tiled", lambda w, n, d: w.repeat(1, _shared(w, n, d)), _COLUMNS),
        Mistake(
            "rows come out as (D, H)",
            lambda w, n, d: _right(w, n, d).unflatten(0, (n, d)).transpose(0, 1).flatten(0, 1),
            "Right heads, laid out number by number: row 1 is number 0 of head 1. A head's rows stand together.",
        ),
        Mistake("H times all", lambda w, n, d: w.repeat(n, 1), _COPIES),
        Mistake(
            "copies on an axis of their own",
            lambda w, n, d: torch.stack([w] * _shared(w, n, d)),
            "The copies are an axis of their own, and it stands before the heads. A projection is a matrix, and in it "
            "the copies of a head stand side by side.",
        ),
        Mistake(
            "H copies",
            lambda w, n, d: _heads(w, d).repeat_interleave(n, 0).flatten(0, 1),
            _COPIES,
        ),
        Mistake(
            "unchanged",
            lambda w, n, d: w.clone(),
            "Nothing was copied: there are still G heads. The result has n_heads · head_dim rows.",
        ),
        Mistake(
            "heads left as an axis",
            lambda w, n, d: _heads(w, d).repeat_interleave(_shared(w, n, d), 0),
            "Right heads, still an axis of their own: [H, D, C]. A projection is a matrix: merge H and D.",
        ),
    ),
    tested="Tested with (H, G) = (6, 2), (8, 4), (3, 1), (4, 4), twice, and with weights that lie by columns.",
    notice="Notice: the converted model computes the same as before, from a larger cache. More KV heads give room to "
    "learn, and no new information.",
)
