"""Lesson 05: exercises and predictions about grouped-query attention, with the mistakes people make."""

import time
from collections.abc import Callable
from functools import partial
from itertools import count

import numpy as np
import torch

from gqa_lab import reference
from gqa_lab.checks import sandbox, traffic_of_kv
from gqa_lab.checks.answers import Hand, Mistake, Prediction
from gqa_lab.checks.cases import SIZES, Case, as_in_a_model, normal, qkv
from gqa_lab.checks.functions import Build
from gqa_lab.checks.head_maps import GOOD_TEST, cards, divided, divided_clamped, from_the_end, neighbours
from gqa_lab.checks.wrong_attention import (
    attend,
    by_map,
    cut_as_rg,
    everything,
    group_size,
    over_group,
    rg_order,
    shared_scores,
    tokens_as_heads,
)

TITLE = "05 grouped_query"

CARDS = "You dealt KV heads out like cards. Neighbours share."
DIVIDED = "You divided by the number of KV heads; divide by the group size."
FROM_ONE = "Count from 0."
BACKWARDS = "Group 0 comes first."


# ---- 05.head_map: by hand ------------------------------------------------------------------------

_PAIRS = [(h, g) for g in range(2, 7) for h in range(2 * g, 25, g) if g != h // g]


def _draw_heads(seed: int) -> dict:
    if seed == 0:
        pairs, head, kv_head = [(6, 3), (8, 2), (12, 4)], 6, 1
    else:
        rng = np.random.default_rng((5, seed))
        for _ in count():
            pairs = [_PAIRS[i] for i in rng.integers(len(_PAIRS), size=3)]
            head, kv_head = int(rng.integers(pairs[1][0])), int(rng.integers(1, pairs[2][1]))
            if _tells_apart(numbers := _head_numbers(pairs, head, kv_head), _right_heads, _wrong_heads):
                return numbers
    return _head_numbers(pairs, head, kv_head)


def _head_numbers(pairs, head: int, kv_head: int) -> dict:
    first, second, third = ({"n_heads": h, "n_kv_heads": g} for h, g in pairs)
    return {"map": first, "kv_head": second | {"head": head}, "readers": third | {"kv_head": kv_head}}


def _tells_apart(numbers: dict, right: Callable, wrong: Callable) -> bool:
    """True if, for every key, the right value and the wrong ones with different diagnoses all differ."""
    values: dict[str, dict[str, str]] = {key: {repr(value): "right"} for key, value in right(numbers).items()}
    return all(values[m.name].setdefault(repr(m.wrong), m.diagnosis) == m.diagnosis for m in wrong(numbers))


def _right_heads(numbers: dict, rule: Callable = neighbours) -> dict:
    sizes, one, readers = numbers["map"], numbers["kv_head"], numbers["readers"]
    h, g = readers["n_heads"], readers["n_kv_heads"]
    return {
        "map": [rule(i, sizes["n_heads"], sizes["n_kv_heads"]) for i in range(sizes["n_heads"])],
        "kv_head": rule(one["head"], one["n_heads"], one["n_kv_heads"]),
        "readers": [i for i in range(h) if rule(i, h, g) == readers["kv_head"]],
    }


def _wrong_heads(numbers: dict) -> list[Mistake]:
    right, last = _right_heads(numbers), numbers["map"]["n_kv_heads"] - 1
    one_less = numbers | {"readers": numbers["readers"] | {"kv_head": numbers["readers"]["kv_head"] - 1}}
    from_one = {
        "map": [j + 1 for j in right["map"]],
        "kv_head": right["kv_head"] + 1,
        "readers": [i + 1 for i in right["readers"]],
    }
    wrong = [
        (_right_heads(numbers, cards), CARDS),
        (_right_heads(numbers, divided), DIVIDED),
        (from_one, FROM_ONE),
    ]
    return [Mistake(key, value, text) for values, text in wrong for key, value in values.items()] + [
        Mistake("map", [last - j for j in right["map"]], BACKWARDS),
        Mistake("readers", _right_heads(one_less)["readers"], FROM_ONE),
    ]


HEAD_MAP = Hand(
    id="05.head_map",
    level="by hand ●○○ 5 min, core",
    draw=_draw_heads,
    right=_right_heads,
    mistakes=_wrong_heads,
    look={
        "map": "Write one number per query head, in order: the KV head that it reads.",
        "kv_head": "How many query heads share one KV head here? Cut the row of heads into such pieces.",
        "readers": "List the query heads of one piece of the row, from left to right.",
    },
    notice="Notice: the map is as long as the query heads; the KV heads only repeat in it.",
)


# ---- 05.expand: build ----------------------------------------------------------------------------

_EXPAND_SIZES = (*SIZES, {"B": 2, "H": 9, "G": 3, "S": 5, "D": 4})


def _expand_cases(round_: int) -> list[Case]:
    cases = []
    for n, sizes in enumerate(_EXPAND_SIZES):
        kept = {letter: sizes[letter] for letter in "BHGSD"}
        k = normal((50, round_, n), *(sizes[letter] for letter in "BGSD"))
        cases.append(Case((k, sizes["H"]), kept))
    return cases


def _expanded(k: np.ndarray, n_heads: int) -> np.ndarray:
    return np.stack([k[:, neighbours(i, n_heads, k.shape[1])] for i in range(n_heads)], axis=1)


def _found_map(case: Case, got: np.ndarray, index: tuple) -> str:
    k, n_heads = case.args
    found = []
    for i in range(n_heads):
        equal = [j for j in range(k.shape[1]) if np.allclose(got[:, i], k[:, j])]
        found.append(str(equal[0]) if equal else "?")
    return f"Your heads hold the KV heads [{', '.join(found)}]."


EXPAND = Build(
    id="05.expand",
    level="build ●○○ 8 min, core",
    cases=_expand_cases,
    reference=_expanded,
    names=("k", "n_heads"),
    axes="BHSD",
    explain=_found_map,
    refusals=(
        (
            Case((normal((51,), 1, 2, 3, 4), 7), {"H": 7, "G": 2}),
            "7 heads over 2 KV heads: what should head 6 read?",
        ),
        (
            Case((normal((52,), 1, 4, 3, 4), 6), {"H": 6, "G": 4}),
            "6 heads over 4 KV heads: what should head 5 read?",
        ),
    ),
    mistakes=(
        Mistake(
            "repeat",
            lambda k, n: k.repeat(1, group_size(k, n), 1, 1),
            CARDS + " The ONNX standard itself once did this (onnx#7274); it is right only at G = 1 and G = H.",
        ),
        Mistake("i // G", partial(by_map, divided), DIVIDED),
        Mistake("groups reversed", partial(by_map, from_the_end), BACKWARDS),
        Mistake(
            "head 0 for all",
            partial(by_map, lambda i, h, g: 0),
            "Every query head got KV head 0. Each group has a KV head of its own.",
        ),
        Mistake(
            "mean of heads",
            lambda k, n: k.mean(1, keepdim=True).repeat(1, n, 1, 1),
            "Every query head got the mean of all KV heads. Nothing is averaged: each head reads one of them.",
        ),
        *(
            Mistake(f"{how} along {axis}", function, f"Your {word} became {n} long: you repeated {what}.")
            for axis, dim, word, n, what in (
                ("S", 2, "sequence", 14, "tokens"),
                ("D", 3, "head_dim", 16, "numbers inside a head"),
                ("B", 0, "batch", 8, "sequences"),
            )
            for how, function in (
                ("each", lambda k, n, dim=dim: k.repeat_interleave(group_size(k, n), dim)),
                ("all", lambda k, n, dim=dim: torch.cat([k] * group_size(k, n), dim)),
            )
        ),
        Mistake(
            "R left after G",
            lambda k, n: k[:, :, None].expand(-1, -1, group_size(k, n), -1, -1),
            "R is still an axis of its own: [B, G, R, S, D]. Merge it with G.",
        ),
        Mistake(
            "R left before G",
            lambda k, n: k[:, None].expand(-1, group_size(k, n), -1, -1, -1),
            "R is still an axis of its own, and it stands before G: [B, R, G, S, D]. Which of them moves slowly?",
        ),
        Mistake(
            "H copies",
            lambda k, n: k.repeat_interleave(n, 1),
            "You made H copies of each. Each KV head needs R copies.",
        ),
    ),
    tested="Tested with (H, G) = (6, 3), (8, 2), (8, 8), (8, 1), (9, 3), twice, and with heads that don't divide.",
    notice="Notice: at G = H nothing is copied, and at G = 1 any order of copies is right. Only a true "
    "group tests you.",
)


# ---- 05.grouped: build ---------------------------------------------------------------------------


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


# ---- 05.shapes: by hand --------------------------------------------------------------------------


def _draw_shapes(seed: int) -> dict:
    if seed == 0:
        return {"model": "Qwen3-0.6B", "d_model": 1024, "n_heads": 16, "n_kv_heads": 8, "head_dim": 128}
    rng = np.random.default_rng((55, seed))
    for _ in count():
        h, g = _PAIRS[rng.integers(len(_PAIRS))]
        c, d = h * int(rng.choice([32, 48, 64, 80])), int(rng.choice([64, 96, 128]))
        numbers = {"model": f"made up ({seed})", "d_model": c, "n_heads": h, "n_kv_heads": g, "head_dim": d}
        if c != h * d and _tells_apart(numbers, _right_shapes, _wrong_shapes):
            return numbers


def _right_shapes(numbers: dict) -> dict:
    c, h, g, d = (numbers[name] for name in ("d_model", "n_heads", "n_kv_heads", "head_dim"))
    widths = {"q_width": h * d, "k_width": g * d, "v_width": g * d, "o_in_width": h * d}
    return widths | {"parameters": 2 * c * (h + g) * d, "parameters_as_mha": 4 * c * h * d}


def _wrong_shapes(numbers: dict) -> list[Mistake]:
    c, h, g, d = (numbers[name] for name in ("d_model", "n_heads", "n_kv_heads", "head_dim"))
    head_dim = f"head_dim is {d}, not d_model / n_heads = {c // h}."
    group = "That is group_size · head_dim; the width is n_kv_heads · head_dim."
    mha, gone = "That is MHA: one K and one V for each query head.", "No query head was removed."
    keys = [Mistake(key, value, text) for key in ("k_width", "v_width") for value, text in (
        (h // g * d, group), (h * d, mha), (g * (c // h), head_dim),
    )]  # fmt: skip
    return keys + [
        Mistake("q_width", c, head_dim),
        Mistake("q_width", g * d, gone),
        Mistake("o_in_width", c, head_dim),
        Mistake("o_in_width", g * d, gone),
        Mistake("parameters", 4 * c * h * d, mha),
        Mistake("parameters", 2 * c * (h + h // g) * d, group),
        Mistake("parameters", 2 * c * (c + g * (c // h)), head_dim),
        Mistake("parameters_as_mha", 4 * c * c, head_dim),
        Mistake(
            "parameters_as_mha",
            2 * c * (h + g) * d,
            "That is with the shared KV heads. Give every query head its own.",
        ),
    ]


SHAPES = Hand(
    id="05.shapes",
    level="by hand ●○○ 6 min, further",
    draw=_draw_shapes,
    right=_right_shapes,
    mistakes=_wrong_shapes,
    look={
        "q_width": "One query per query head, each of head_dim numbers.",
        "k_width": "One key per KV head, each of head_dim numbers.",
        "v_width": "Values have the shape of keys.",
        "o_in_width": "o_proj reads the outputs of all query heads, side by side.",
        "parameters": "Four matrices, each d_model times a width from above; no biases, one layer.",
        "parameters_as_mha": "The same four matrices, if each query head had its own KV head.",
    },
    notice="Notice: only K and V became narrower, and n_heads · head_dim need not be d_model.",
)


# ---- predictions ---------------------------------------------------------------------------------

PREDICTIONS = (
    Prediction(
        "05.p1",
        {
            "a": (
                "0",
                "Tempting: a wrong rule should be wrong everywhere. The next cell counts; look at the first and "
                "the last head.",
            ),
            "b": ("2", "Tempting: the first and the last head must be right. The next cell counts whether more are."),
            "c": (
                "4",
                "Heads 0, 2, 5 and 7, as the next cell shows. With G = 1 or G = H it would be all of them: half "
                "right is "
                "enough to pass a weak test.",
            ),
        },
    ),
    Prediction(
        "05.p2",
        {
            "a": (
                "a little worse",
                "Tempting: three of nine heads are still right. Read both answers in the next cells, then "
                "compare the losses.",
            ),
            "b": (
                "unreadable",
                "Recorded on a paragraph of 123 tokens: cross-entropy 3.76 becomes 12.2, and a uniform guess is "
                "10.8. Tiling "
                "only V gives 10.3. Read both answers in the next cells.",
            ),
        },
    ),
    Prediction(
        "05.p3",
        {
            "a": (
                "the 70B keeps 25 times more",
                "Tempting: it has 25 times the parameters. Parameters are not in the formula; the next cell "
                "computes both.",
            ),
            "b": (
                "both the same",
                "327,680 bytes per token, as the next cell computes: few KV heads pay for many layers.",
            ),
            "c": (
                "Phi-2 keeps more",
                "Tempting if you noticed that Phi-2 is MHA. Count its layers and its head_dim as well; the next "
                "cell computes "
                "both.",
            ),
        },
    ),
    Prediction(
        "05.p4",
        {
            "a": (
                "nearly equal",
                "Tempting: they read the same keys. But each asks with its own query; the next cells show how "
                "far their "
                "patterns lie apart.",
            ),
            "b": (
                "clearly different",
                "Recorded on a paragraph of 123 tokens: total variation distance 0.38 inside a group and 0.46 "
                "across groups "
                "(0 equal, 1 disjoint). Sharing a memory is not sharing an opinion.",
            ),
        },
    ),
)

EXERCISES = (HEAD_MAP, EXPAND, GROUPED, GOOD_TEST, SHAPES)
