"""04.mqa: attention in which all query heads read one K and one V."""

from functools import partial

import numpy as np
import torch

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case, normal
from gqa_lab.checks.functions import Build

SIZES = (  # the second hides what meets the wrong axis (B = H), the third too (B = 1), the last swapped axes (T = S)
    {"B": 4, "H": 6, "T": 5, "S": 7, "D": 8},
    {"B": 6, "H": 6, "T": 3, "S": 7, "D": 4},
    {"B": 1, "H": 6, "T": 4, "S": 9, "D": 2},
    {"B": 3, "H": 8, "T": 1, "S": 9, "D": 6},
    {"B": 2, "H": 8, "T": 5, "S": 5, "D": 4},
)
_WINDOW = {"B": 2, "H": 4, "T": 3, "S": 8, "D": 5}


def causal(t: int, s: int, window: int | None = None) -> np.ndarray:
    """Returns the mask `[T, S]` of the last t of s tokens; True means may look."""
    behind = np.arange(t)[:, None] + s - t - np.arange(s)
    return (behind >= 0) & (behind < (s if window is None else window))


def _cases(round_: int) -> list[Case]:
    cases = []
    for n, sizes in enumerate((*SIZES, _WINDOW)):
        b, h, t, s, d = (sizes[letter] for letter in "BHTSD")
        arrays = (normal((42, round_, n, i), *shape) for i, shape in enumerate(((b, h, t, d), (b, s, d), (b, s, d))))
        cases.append(Case((*arrays, causal(t, s, 3 if sizes is _WINDOW else 4 if round_ else None)), sizes))
    return cases


def truth(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns multi-query attention by loops, each row over the keys that its mask shows."""
    out = np.zeros_like(q)
    for b, h, t in np.ndindex(q.shape[:3]):
        scores = k[b, mask[t]] @ q[b, h, t] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, h, t] = weights / weights.sum() @ v[b, mask[t]]
    return out


def _attend(
    q, k, v, mask, *, scale=None, hide=lambda s, m: s.masked_fill(~m, -torch.inf), weigh=lambda s: s.softmax(-1)
):
    """Multi-query attention of k and v `[B, 1, S, D]`, each part replaceable by a wrong one."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale(q, k))
    return weigh(hide(scores, mask)) @ v


def _mqa(q, k, v, mask, **wrong):
    return _attend(q, k[:, None], v[:, None], mask, **wrong)


def _masked_after(q, k, v, mask, *, again: bool = False):
    weights = (q @ k[:, None].mT / q.shape[-1] ** 0.5).softmax(-1) * mask
    return (weights / weights.sum(-1, keepdim=True) if again else weights) @ v[:, None]


def _finite(scores, mask):
    return scores.masked_fill(~mask, -1e9)


def _over_heads_and_keys(scores):
    return scores.transpose(1, 2).flatten(2).softmax(-1).unflatten(2, (scores.shape[1], -1)).transpose(1, 2)


def _one_query(q, k, v, mask, *, combine, n_copies: bool = True):
    out = _mqa(combine(q), k, v, mask)
    return out.expand(-1, q.shape[1], -1, -1).clone() if n_copies else out


def _no_head_axis(q, k, v, mask, *, combine):
    return _mqa(combine(q), k, v, mask)[:, 0]


def _one_output(q, k, v, mask, *, combine, n_copies: bool = True):
    out = combine(_mqa(q, k, v, mask))
    return out.expand(-1, q.shape[1], -1, -1).clone() if n_copies else out


def _upside_down(q, k, v, mask, *, fill=-torch.inf, blind=torch.nan):
    """`blind` is what a query gets that sees no key then: NaN, or 0 as torch's own attention returns."""
    return _mqa(q, k, v, mask, hide=lambda s, m: s.masked_fill(m, fill)).nan_to_num(nan=blind)


_BATCH_MEETS_HEADS = (
    "Your batch axis of {} met the head axis of {}. It raises when B and H differ and is silent, and wrong, when "
    "B = H. Print the shapes beside each other, aligned at the right."
)
_K_MEETS, _V_MEETS = _BATCH_MEETS_HEADS.format("k", "q"), _BATCH_MEETS_HEADS.format("v", "the weights")
_SAME = "All heads gave the same output. Only keys and values are shared; each head asks its own question."
_SUMMED = "Your scores lost the head axis: the questions of all heads were added up. Each head keeps its own scores."
_MERGED = "You merged the heads. Merging is `o_proj`'s job: hand back one output per head."
_OVER_HEADS = "Your softmax runs over heads, so heads compete. A query's weights over its keys sum to 1."
_INVERTED = "Your mask is upside down. True means that the query may look."
_MASK_ZERO = "You set hidden scores to 0. A score of 0 still gets weight e⁰."
_MEAN, _SUM, _FIRST = (
    partial(torch.mean, dim=1, keepdim=True),
    partial(torch.sum, dim=1, keepdim=True),
    lambda x: x[:, :1],
)

_MISTAKES = (
    Mistake("k and v without a head axis", lambda q, k, v, m: _attend(q, k, v, m), _K_MEETS),
    Mistake("k without a head axis", lambda q, k, v, m: _attend(q, k, v[:, None], m), _K_MEETS),
    Mistake("v without a head axis", lambda q, k, v, m: _attend(q, k[:, None], v, m), _V_MEETS),
    Mistake("mean query", partial(_one_query, combine=_MEAN), _SAME),
    Mistake("sum of queries", partial(_one_query, combine=_SUM), _SAME),
    Mistake("head 0's query", partial(_one_query, combine=_FIRST), _SAME),
    Mistake("mean query, one head", partial(_one_query, combine=_MEAN, n_copies=False), _SAME),
    Mistake("sum of queries, one head", partial(_one_query, combine=_SUM, n_copies=False), _SAME),
    Mistake("head 0's query, one head", partial(_one_query, combine=_FIRST, n_copies=False), _SAME),
    Mistake(
        "scores without heads",
        partial(_no_head_axis, combine=_SUM),
        _SUMMED,
    ),
    Mistake("mean scores without heads", partial(_no_head_axis, combine=_MEAN), _SUMMED),
    Mistake("mean of outputs", partial(_one_output, combine=_MEAN), _MERGED),
    Mistake("sum of outputs", partial(_one_output, combine=_SUM), _MERGED),
    Mistake("mean of outputs, one head", partial(_one_output, combine=_MEAN, n_copies=False), _MERGED),
    Mistake("sum of outputs, one head", partial(_one_output, combine=_SUM, n_copies=False), _MERGED),
    Mistake("mean of outputs, no head axis", lambda q, k, v, m: _mqa(q, k, v, m).mean(1), _MERGED),
    Mistake("sum of outputs, no head axis", lambda q, k, v, m: _mqa(q, k, v, m).sum(1), _MERGED),
    Mistake("heads side by side", lambda q, k, v, m: _mqa(q, k, v, m).transpose(1, 2).flatten(2), _MERGED),
    Mistake(
        "tokens before heads",
        lambda q, k, v, m: _mqa(q, k, v, m).transpose(1, 2),
        "Your result is [B, T, H, D]: tokens and heads changed places. Which letters follow your arrow?",
    ),
    Mistake("softmax over heads", partial(_mqa, weigh=lambda s: s.softmax(1)), _OVER_HEADS),
    Mistake("softmax over heads, finite mask", partial(_mqa, hide=_finite, weigh=lambda s: s.softmax(1)), _OVER_HEADS),
    Mistake("softmax over heads and keys", partial(_mqa, weigh=_over_heads_and_keys), _OVER_HEADS),
    Mistake(
        "softmax over queries",
        partial(_mqa, weigh=lambda s: s.softmax(-2)),
        "Your softmax runs over queries: each column sums to 1. A query's weights over its keys must.",
    ),
    Mistake(
        "softmax over queries, finite mask",
        partial(_mqa, hide=_finite, weigh=lambda s: s.softmax(-2)),
        "Your softmax runs over queries: each column sums to 1. A query's weights over its keys must.",
    ),
    Mistake(
        "scale √(H·D)",
        partial(_mqa, scale=lambda q, k: (q.shape[1] * q.shape[3]) ** -0.5),
        "You scaled by √(H·D), the width of all queries together. Each dot product has head_dim terms.",
    ),
    Mistake(
        "no scale",
        partial(_mqa, scale=lambda q, k: 1.0),
        "Your weights are too sharp: the scale is missing. Scores grow with √D.",
    ),
    Mistake(
        "scale 1/D",
        partial(_mqa, scale=lambda q, k: 1 / q.shape[3]),
        "Your weights are too flat: you divided by D, or by its root twice. Divide by √D, once.",
    ),
    Mistake(
        "scale √S",
        partial(_mqa, scale=lambda q, k: k.shape[2] ** -0.5),
        "You scaled by √S, the number of keys. Look at the length of one dot product.",
    ),
    Mistake(
        "scale upside down",
        partial(_mqa, scale=lambda q, k: q.shape[3] ** 0.5),
        "You multiplied by √D. The scale makes scores smaller.",
    ),
    Mistake(
        "values from k",
        lambda q, k, v, m: _mqa(q, k, k, m),
        "Your output is a mixture of keys: where does v come in?",
    ),
    Mistake("keys from v", lambda q, k, v, m: _mqa(q, v, v, m), "Your queries are compared with values. Where is k?"),
    Mistake(
        "k and v exchanged",
        lambda q, k, v, m: _mqa(q, v, k, m),
        "You compared queries with values and mixed keys.",
    ),
    Mistake("mask upside down", _upside_down, _INVERTED),
    Mistake("mask upside down, blind queries 0", partial(_upside_down, blind=0.0), _INVERTED),
    Mistake("mask upside down, finite", partial(_upside_down, fill=-1e9), _INVERTED),
    Mistake(
        "mask left out",
        partial(_mqa, hide=lambda s, m: s),
        "Every query sees every key. `mask` says which ones it may look at.",
    ),
    Mistake("hidden scores 0", partial(_mqa, hide=lambda s, m: s * m), _MASK_ZERO),
    Mistake(
        "mask added as 0 and 1",
        partial(_mqa, hide=lambda s, m: s + m),
        "You added the mask itself: True counts as 1 and hides nothing.",
    ),
    Mistake(
        "mask after softmax",
        _masked_after,
        "You masked after the softmax: a query's weights no longer sum to 1. Mask first, then normalise.",
    ),
    Mistake(
        "causal mask of its own",
        lambda q, k, v, m: _mqa(q, k, v, torch.from_numpy(causal(*m.shape))),
        "You made a causal mask of your own. The one that is handed over may hide more: in the last case it is a "
        "window.",
    ),
    Mistake(
        "top-left mask of its own",
        lambda q, k, v, m: _mqa(q, k, v, torch.ones_like(m).tril()),
        "You made a mask of your own, aligned top-left, as `is_causal=True` is. Use the one that is handed over.",
    ),
)


def _who_looked(case: Case, got: np.ndarray, index: tuple) -> str:
    seen = np.flatnonzero(case.args[3][index[2]]).tolist() if len(index) == 4 else []
    return f"There it may look at keys {seen[0]}…{seen[-1]}." if seen else ""


MQA = Build(
    id="04.mqa",
    level="build ●●○ 10 min, core",
    cases=_cases,
    reference=truth,
    names=("q", "k", "v", "mask"),
    axes="BHTD",
    mistakes=_MISTAKES,
    explain=_who_looked,
    tested="Tested with B = H, B = 1 and T = 1, with T < S and T = S, and with a mask that is a window.",
    notice="Notice: the keys lost one letter and nothing else changed. Each head still has weights of its own.",
)
