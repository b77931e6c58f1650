"""05.grouped: attention for every number of KV heads, without a copy of K or V."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from gqa_lab import reference
from gqa_lab.checks import sandbox, traffic_of_kv
from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import SIZES, Case, as_in_a_model, qkv
from gqa_lab.checks.functions import Build
from gqa_lab.checks.head_maps import BACKWARDS, CARDS, DIVIDED, cards, divided, divided_clamped, from_the_end
from gqa_lab.checks.wrong_attention import (
    attend,
    cut_as_rg,
    everything,
    over_group,
    rg_order,
    shared_scores,
    tokens_as_heads,
)

_SUMMED = "Your heads of a group share one row of scores. Each query head must keep its own scores."
_SWAPPED = (
    "Tokens and heads changed places: q holds all tokens of head 0 first, then those of head 1. Right at T = 1 only."
)
_OVER_R = "Your softmax runs over the heads of a group, so they compete. A query's weights over its keys sum to 1."
_OVER_G = "Your softmax runs over KV heads, so groups compete. A query's weights over its keys sum to 1."
_FINITE = -1e9

_GROUPED_MISTAKES = (
    Mistake("tile", partial(attend, keys=cards, values=cards), CARDS + " Your queries read the wrong K and V."),
    Mistake("tile V", partial(attend, values=cards), "Your weights are right, the values are another head's."),
    Mistake("tile K", partial(attend, keys=cards), "Your values are right, the keys are another head's."),
    Mistake("i // G", partial(attend, keys=divided, values=divided), DIVIDED),
    Mistake(
        "cut (R, G), joined (G, R)",
        cut_as_rg,
        CARDS + " You cut q's heads into (R, G); which of the two moves slowly?",
    ),
    Mistake(
        "head 0 for all",
        partial(attend, keys=lambda i, h, g: 0, values=lambda i, h, g: 0),
        "Every query head read KV head 0. Each group has a KV head of its own.",
    ),
    Mistake(
        "mean of heads",
        lambda q, k, v: attend(q, k.mean(1, keepdim=True), v.mean(1, keepdim=True)),
        "Every query head read the mean of all KV heads. Nothing is averaged: each head reads one of them.",
    ),
    Mistake("groups reversed", partial(attend, keys=from_the_end, values=from_the_end), BACKWARDS),
    Mistake("i // G, clamped", partial(attend, keys=divided_clamped, values=divided_clamped), DIVIDED),
    Mistake(
        "(R, G) order",
        rg_order,
        "Right rows, wrong places: at (H, G) = (8, 2), head 1's output stands at head 2.",
    ),
    Mistake("q as (G, T, R)", partial(tokens_as_heads, back=True), _SWAPPED),
    Mistake("q as (G, T, R), out as (G, R, T)", partial(tokens_as_heads, back=False), _SWAPPED),
    Mistake("scores summed", shared_scores, _SUMMED),
    Mistake("scores averaged", partial(shared_scores, combine="mean"), _SUMMED),
    Mistake("scores summed, G heads", partial(shared_scores, n_copies=False), _SUMMED),
    Mistake("scores averaged, G heads", partial(shared_scores, combine="mean", n_copies=False), _SUMMED),
    Mistake("softmax over r", partial(attend, weigh=over_group), _OVER_R),
    Mistake("softmax over r, finite mask", partial(attend, weigh=over_group, fill=_FINITE), _OVER_R),
    Mistake("softmax over g", partial(attend, weigh=partial(over_group, dim=1)), _OVER_G),
    Mistake(
        "softmax over g, finite mask",
        partial(attend, weigh=partial(over_group, dim=1), fill=_FINITE),
        _OVER_G,
    ),
    Mistake(
        "softmax over t",
        partial(attend, weigh=lambda scores, g: scores.softmax(-2)),
        "Your softmax runs over queries: each column sums to 1. A query's weights over its keys must.",
    ),
    Mistake(
        "scale √(R·D)",
        partial(attend, scale=lambda r, g, d: (r * d) ** -0.5),
        "You scaled by √(R·D). Each dot product has head_dim terms, however many heads share the keys.",
    ),
    Mistake(
        "scale √(G·D)",
        partial(attend, scale=lambda r, g, d: (g * d) ** -0.5),
        "You scaled by √(G·D), the width of all keys together. Each dot product has head_dim terms.",
    ),
    Mistake(
        "no scale",
        partial(attend, scale=lambda r, g, d: 1.0),
        "Your weights are too sharp: the scale is missing. Scores grow with √D.",
    ),
    Mistake(
        "scale 1/D",
        partial(attend, scale=lambda r, g, d: 1 / d),
        "Your weights are too flat: you divided by D, or by its root twice. Divide by √D, once.",
    ),
    Mistake(
        "scale √S",
        lambda q, k, v: attend(q, k, v, scale=lambda r, g, d: k.shape[2] ** -0.5),
        "You scaled by √S, the number of keys. Look at the length of one dot product.",
    ),
    Mistake(
        "top-left mask, none at T = 1",
        partial(attend, mask=lambda t, s: torch.ones(t, s, dtype=torch.bool).tril(0 if t > 1 else s)),
        "Your mask is aligned top-left where T > 1, as `is_causal=True` is. S − T tokens came before query 0.",
    ),
    Mistake(
        "mask one too far",
        partial(attend, mask=lambda t, s: torch.ones(t, s, dtype=torch.bool).tril(s - t + 1)),
        "Each query sees one key too many: the token after its own.",
    ),
    Mistake(
        "mask one too short",
        partial(attend, mask=lambda t, s: torch.ones(t, s, dtype=torch.bool).tril(s - t - 1)),
        "Your mask is one too short. A query may look at its own position.",
    ),
    Mistake(
        "mask after softmax",
        partial(attend, mask=everything, weigh=lambda w, g: w.softmax(-1).tril(w.shape[-1] - w.shape[-2])),
        "You masked after the softmax: a query's weights no longer sum to 1. Mask first, then normalise.",
    ),
    Mistake("k and v exchanged", lambda q, k, v: attend(q, v, k), "You compared queries with values and mixed keys."),
    Mistake(
        "top-left mask",
        partial(attend, mask=lambda t, s: torch.ones(t, s, dtype=torch.bool).tril()),
        "Your mask is aligned top-left. Query 0 is not token 0: S − T tokens came before it.",
    ),
    Mistake(
        "no mask",
        partial(attend, mask=everything),
        "Every query sees every key, so query 0 sees query 1's token. Right at T = 1 only.",
    ),
    Mistake(
        "masked scores 0",
        partial(attend, fill=0.0),
        "You set masked scores to 0. A score of 0 still gets weight e⁰.",
    ),
    Mistake(
        "values from k",
        lambda q, k, v: attend(q, k, k),
        "Your output is a mixture of keys: where does v come in?",
    ),
)


def _as_model_arguments(case: Case) -> list:
    """q as it leaves the projection, k and v as a cache returns them: views, like in the real model."""
    q, k, v = case.args
    return [
        torch.from_numpy(q.transpose(0, 2, 1, 3).copy()).transpose(1, 2),
        as_in_a_model(k),
        as_in_a_model(v),
    ]


def _visible_keys(case: Case, got: np.ndarray, index: tuple) -> str:
    seen = reference.visible_keys(index[2], case.sizes["T"], case.sizes["S"])
    return f"There it may look at keys {seen.start}…{seen.stop - 1}."


def _beyond_values(function: Callable) -> str | None:
    return _in_float32(function) or _bytes_moved(function)


def _in_float32(function: Callable) -> str | None:
    """The real model computes in float32; a mask or a number of fixed float64 passes all else."""
    deadline = time.monotonic() + sandbox.DEADLINE_S
    for case in GROUPED.cases(0):
        run = sandbox.run(function, [x.float() for x in _as_model_arguments(case)], {}, deadline)
        if run.error is not None:
            return f"Right in float64. In float32, as the real model computes, it fails. {run.trouble()}"
        if (made := getattr(run.value, "dtype", None)) != torch.float32:
            return f"Right in float64. From float32 it makes {made}: look for a fixed dtype."
    return None


def _bytes_moved(function: Callable) -> str | None:
    moved = traffic_of_kv.measure(function, _as_model_arguments)
    if moved is None or isinstance(moved, str):
        return moved
    if moved.written > 0.01:
        copies = f"{moved.written:.3g} {'copy' if round(moved.written, 2) == 1 else 'copies'} of K and V"
        return (
            f"Right numbers. But it also wrote {copies}: here is the table (K and V are {moved.kv_bytes:,} bytes "
            f"here).\n"
            f"{moved.table}\nWhich letter do your keys carry that they don't need? (A matmul that broadcasts "
            f"them copies them, too.)"
        )
    if moved.read > 1.01:
        return (
            f"Right numbers. But it read K and V {moved.read:.3g} times: here is the table (they are "
            f"{moved.kv_bytes:,} bytes "
            f"here).\n{moved.table}\nWho needs a KV head? Fetch it once, for all the query heads of its "
            f"group."
        )
    if moved.read < 0.99:
        return "Right numbers, but the traffic meter saw too few reads of K and V: it counts torch operations only."
    return None


GROUPED = Build(
    id="05.grouped",
    level="build ●●○ 15 min, core",
    cases=lambda round_: [qkv(sizes, 10 * round_ + n) for n, sizes in enumerate(SIZES)],
    reference=reference.attention,
    names=("q", "k", "v"),
    axes="BHTD",
    mistakes=_GROUPED_MISTAKES,
    arguments=_as_model_arguments,
    keywords={"lengths": None, "window": None},
    explain=_visible_keys,
    beyond=_beyond_values,
    tested="Tested with (H, G) = (6, 3), (8, 2), (8, 8), (8, 1) and T < S, in float64 and float32; no "
    "operation copied K or V, and each was handed over once.",
    notice="Notice: one function, no `if`, and both ends came for free: G = H is MHA, G = 1 is MQA.",
)
