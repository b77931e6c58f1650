"""02.mha: multi-head attention from x to the output of `o_proj`."""

from collections.abc import Callable
from functools import partial

import numpy as np

from gqa_lab import reference
from gqa_lab.checks import cases
from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case, normal
from gqa_lab.checks.functions import Build
from gqa_lab.checks.multi_head import labels

_SIZES = (  # H·D ≠ C; H·D = C; T = H = D, the square that hides axis mistakes; one head; one token
    {"B": 3, "T": 7, "C": 8, "H": 6, "D": 2},
    {"B": 2, "T": 5, "C": 12, "H": 6, "D": 2},
    {"B": 2, "T": 3, "C": 9, "H": 3, "D": 3},
    {"B": 2, "T": 5, "C": 6, "H": 1, "D": 4},
    {"B": 3, "T": 1, "C": 10, "H": 4, "D": 2},
)


def _cases(round_: int) -> list[Case]:
    return [_case(sizes, (20, round_, n)) for n, sizes in enumerate(_SIZES)]


def _case(sizes: dict[str, int], seed: tuple[int, ...]) -> Case:
    b, t, c, h, d = sizes.values()
    x = normal((*seed, 0), b, t, c)
    w_q, w_k, w_v, w_o = (normal((*seed, i), c, h * d) / c**0.5 for i in range(1, 5))
    return Case((x, w_q, w_k, w_v, w_o.T.copy(), h), sizes)


def _reference(x, w_q, w_k, w_v, w_o, n_heads: int) -> np.ndarray:
    q, k, v = (labels.split(x @ w, n_heads) for w in (w_q, w_k, w_v))
    return labels.merge(reference.attention(q, k, v)) @ w_o


def _softmax(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        e = np.exp(scores - scores.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)


def _causal(q_len: int, kv_len: int) -> np.ndarray:
    return np.tril(np.ones((q_len, kv_len), dtype=bool), kv_len - q_len)


def _visible(hidden_is: float, shift: int = 0) -> Callable:
    return lambda scores: np.where(np.tril(np.ones(scores.shape[-2:]), shift) > 0, scores, hidden_is)


_hidden_future = _visible(-np.inf)


def _multi_head(
    x,
    w_q,
    w_k,
    w_v,
    w_o,
    n_heads: int,
    *,
    split=labels.split,
    merge=labels.merge,
    split_q=None,
    scale: Callable = lambda c, h, d, t: d**-0.5,
    mask: Callable = _hidden_future,
    weigh: Callable = _softmax,
    project: Callable = np.matmul,
) -> np.ndarray:
    """Returns multi-head attention; each keyword replaces one part by a wrong one."""
    q, k, v = (split(x @ w, n_heads) for w in (w_q, w_k, w_v))
    if split_q is not None:
        q = split_q(x @ w_q, n_heads)
    c, t = x.shape[2], x.shape[1]
    factor = scale(c, n_heads, w_q.shape[1] // n_heads, t)
    return project(merge(weigh(mask(q @ k.swapaxes(2, 3) * factor)) @ v), w_o)


def _no_swap(x, n_heads: int) -> np.ndarray:
    return x.reshape(*x.shape[:2], n_heads, -1)


def _side_by_side(x) -> np.ndarray:
    return x.reshape(*x.shape[:2], -1)


def _after_softmax(scores) -> np.ndarray:
    return _softmax(scores) * _causal(*scores.shape[-2:])


def _weights(**parts) -> partial:
    return partial(_multi_head, **parts)


_HEAD_DIM = "Each dot product has head_dim terms"
_DERIVED = (
    "You took head_dim to be d_model / n_heads. That holds in many models, not in all: read the width of the heads off "
    "`w_q`."
)
_COMPETE = "Heads compete in your version: your softmax runs over heads. They do not know of each other."
_ZERO = "You set masked scores to 0, or multiplied them by the mask. A score of 0 still gets weight e⁰."

_MISTAKES = (
    # ---- which numbers belong to which head
    Mistake(
        "split and merge as (D, H)",
        _weights(split=labels.split_as_dh, merge=labels.merge_as_dh),
        "Consistent with itself, so it would even train: you split and merged columns as (D, H). It is a different "
        "order of columns: no published checkpoint would run.",
    ),
    Mistake(
        "split as (D, H)",
        _weights(split=labels.split_as_dh),
        "You split columns as (D, H): each head got every n_heads-th column. Your merge is right.",
    ),
    Mistake(
        "merged as (D, H)",
        _weights(merge=labels.merge_as_dh),
        "Your heads are right, but you merged them as (D, H): the first number of every head came first.",
    ),
    Mistake(
        "split and merged by reshape",
        _weights(split=labels.split_by_reshape, merge=labels.merge_by_reshape),
        "You split and merged by reshape alone. The shapes close, but your heads are made of whole tokens.",
    ),
    Mistake(
        "split by reshape",
        _weights(split=labels.split_by_reshape),
        "Your split is a reshape alone, so your heads are made of whole tokens. Your merge is right.",
    ),
    Mistake(
        "merged by reshape",
        _weights(merge=labels.merge_by_reshape),
        "Your heads are right, but your merge is a reshape alone: one row holds several tokens of one head.",
    ),
    Mistake(
        "q split by reshape",
        _weights(split_q=labels.split_by_reshape),
        "Your queries are split by reshape alone, your keys and values are not. Use one split for all three.",
    ),
    Mistake(
        "heads look at heads",
        _weights(split=_no_swap, merge=_side_by_side),
        "In your version the heads of one token look at each other: tokens still stand before heads when you "
        "multiply. No token sees another.",
    ),
    Mistake(
        "heads look at heads, no mask",
        _weights(split=_no_swap, merge=_side_by_side, mask=lambda s: s),
        "In your version the heads of one token look at each other, unmasked: tokens still stand before heads when "
        "you multiply. No token sees another.",
    ),
    Mistake(
        "one wide head",
        lambda *a: _multi_head(*a[:5], 1),
        "You computed one head of n_heads · head_dim numbers. Where do you cut?",
    ),
    Mistake(
        "heads merged backwards", _weights(merge=lambda x: labels.merge(x[:, ::-1])), "Head 0 fills the first columns."
    ),
    # ---- scale
    Mistake(
        "scale √d_model",
        _weights(scale=lambda c, h, d, t: c**-0.5),
        f"You scaled by √d_model. {_HEAD_DIM}, not d_model.",
    ),
    Mistake(
        "head_dim from d_model",
        lambda *a: _multi_head(*a, split=lambda x, n: labels.split_to(x, n, a[0].shape[2] // n)),
        _DERIVED,
    ),
    Mistake("scale √(d_model / n_heads)", _weights(scale=lambda c, h, d, t: (c / h) ** -0.5), _DERIVED),
    Mistake("scale √(d_model // n_heads)", _weights(scale=lambda c, h, d, t: (c // h) ** -0.5), _DERIVED),
    Mistake(
        "scale √(H·D)",
        _weights(scale=lambda c, h, d, t: (h * d) ** -0.5),
        f"You scaled by √(n_heads · head_dim), the width of all heads together. {_HEAD_DIM}.",
    ),
    Mistake(
        "scale √H",
        _weights(scale=lambda c, h, d, t: h**-0.5),
        f"You scaled by √n_heads. {_HEAD_DIM}, however many heads.",
    ),
    Mistake(
        "scale √T", _weights(scale=lambda c, h, d, t: t**-0.5), f"You scaled by √T, the number of tokens. {_HEAD_DIM}."
    ),
    Mistake("no scale", _weights(scale=lambda c, h, d, t: 1.0), "Your weights are too sharp: the scale is missing."),
    Mistake(
        "scale 1/D",
        _weights(scale=lambda c, h, d, t: 1 / d),
        "Your weights are too flat: you divided by head_dim, or by its root twice.",
    ),
    Mistake("times √D", _weights(scale=lambda c, h, d, t: d**0.5), "You multiplied by √head_dim. Divide."),
    # ---- softmax and mask
    Mistake("softmax over heads", _weights(weigh=partial(_softmax, axis=1)), _COMPETE),
    Mistake(
        "softmax over heads, finite mask", _weights(weigh=partial(_softmax, axis=1), mask=_visible(-1e9)), _COMPETE
    ),
    Mistake(
        "softmax over queries",
        _weights(weigh=partial(_softmax, axis=2)),
        "Your softmax runs over queries: each column sums to 1. A query's weights over its keys must.",
    ),
    Mistake(
        "softmax over heads and keys",
        _weights(
            weigh=lambda s: (
                _softmax(s.swapaxes(1, 2).reshape(len(s), s.shape[2], -1))
                .reshape(len(s), s.shape[2], s.shape[1], -1)
                .swapaxes(1, 2)
            )
        ),
        "The weights of all heads together sum to 1; each head's should.",
    ),
    Mistake(
        "shared weights",
        _weights(weigh=lambda s: np.broadcast_to(_softmax(s.sum(1, keepdims=True)), s.shape)),
        "Your heads share one row of weights: the scores of all heads are added before the softmax.",
    ),
    Mistake("no mask", _weights(mask=lambda s: s), "Every query sees every key. Query 0 stands before keys 1, 2, …"),
    Mistake(
        "mask after softmax",
        _weights(mask=lambda s: s, weigh=_after_softmax),
        "You masked after the softmax: the weights of a row no longer sum to 1. Mask first, then normalise.",
    ),
    Mistake("masked scores 0", _weights(mask=_visible(0.0)), _ZERO),
    Mistake(
        "mask looks forward",
        _weights(mask=lambda s: np.where(np.triu(np.ones(s.shape[-2:])) > 0, s, -np.inf)),
        "Your mask looks forward: the last query saw only itself.",
    ),
    Mistake("mask one too short", _weights(mask=_visible(-np.inf, -1)), "A query may look at its own position."),
    Mistake("mask one too short, finite", _weights(mask=_visible(-1e9, -1)), "A query may look at its own position."),
    Mistake(
        "mask one too far",
        _weights(mask=_visible(-np.inf, 1)),
        "Each query sees one key too many: the token after its own.",
    ),
    # ---- projections
    Mistake(
        "o_proj forgotten",
        _weights(project=lambda y, w: y),
        "`w_o` is missing: you returned the merged heads. The shape is right only where n_heads · head_dim = d_model.",
    ),
    Mistake(
        "w_o transposed",
        _weights(project=lambda y, w: y @ w.T),
        "You multiplied by `w_o` transposed; that fits only where n_heads · head_dim = d_model. Here a projection "
        "is x @ w.",
    ),
    Mistake(
        "all transposed",
        lambda x, q, k, v, o, n: _multi_head(x, q.T, k.T, v.T, o.T, n),
        "You transposed the matrices. Here a projection is x @ w, with w of shape [in, out].",
    ),
    Mistake("keys made with w_q", lambda x, q, k, v, o, n: _multi_head(x, q, q, v, o, n), "You made keys with `w_q`."),
    Mistake(
        "queries made with w_k", lambda x, q, k, v, o, n: _multi_head(x, k, k, v, o, n), "You made queries with `w_k`."
    ),
    Mistake(
        "values made with w_k",
        lambda x, q, k, v, o, n: _multi_head(x, q, k, k, o, n),
        "You made values with `w_k`: where does `w_v` come in?",
    ),
    Mistake(
        "k and v swapped",
        lambda x, q, k, v, o, n: _multi_head(x, q, v, k, o, n),
        "You compared queries with values and mixed keys: k and v are exchanged.",
    ),
    Mistake(
        "q and k swapped",
        lambda x, q, k, v, o, n: _multi_head(x, k, q, v, o, n),
        "Queries and keys are exchanged. Without a mask the scores would be transposed.",
    ),
    Mistake(
        "heads averaged",
        lambda *a: _multi_head(*a) / a[5],
        "You averaged over heads. `w_o` adds what the heads say; nothing is divided.",
    ),
    Mistake(
        "only head 0",
        _weights(merge=lambda x: labels.merge(x * (np.arange(x.shape[1]) == 0)[:, None, None])),
        "Only head 0 reaches the output. What did the other heads find?",
    ),
    Mistake(
        "residual added", lambda *a: a[0] + _multi_head(*a), "You added x. That is the layer's job, after attention."
    ),
)


def _hint(case: Case, got: np.ndarray, index: tuple) -> str:
    seen = ", ".join(map(str, range(index[1] + 1)))
    return f"There it may look at token{'s'[: index[1]]} {seen}."


MHA = Build(
    id="02.mha",
    level="build ●●○ 12 min, core",
    cases=_cases,
    reference=_reference,
    names=("x", "w_q", "w_k", "w_v", "w_o", "n_heads"),
    axes="BTC",
    explain=_hint,
    arguments=cases.copied,
    result_type=np.ndarray,
    mistakes=_MISTAKES,
    tested="Tested with n_heads · head_dim different from d_model and equal to it, with T = H = D, one head and one "
    "token, twice.",
    notice="Notice: with one head no wrong cut shows, and with one token no missing mask.",
)
