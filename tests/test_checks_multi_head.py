"""Lesson 02: right answers pass however they are written, wrong ones are rejected and named only if they are known."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gqa_lab import reference
from gqa_lab.attention import GroupedQueryAttention
from gqa_lab.checks import case, check
from gqa_lab.checks.engine import EXERCISES
from gqa_lab.checks.multi_head import labels

ROOT = Path(__file__).resolve().parents[1]
COLUMNS, SPLIT, MERGE, MHA, RESHAPE, PARAMS = (
    EXERCISES[f"02.{name}"] for name in ("columns", "split", "merge", "mha", "reshape", "params")
)


# ---- right answers -------------------------------------------------------------------------------


def split_plain(x, n_heads):
    return x.reshape(x.shape[0], x.shape[1], n_heads, -1).transpose(0, 2, 1, 3)


def split_swapaxes(x, n_heads):
    return np.ascontiguousarray(x.reshape(*x.shape[:-1], n_heads, -1).swapaxes(1, 2))


def split_slices(x, n_heads):
    d = x.shape[2] // n_heads
    return np.stack([x[:, :, h * d : (h + 1) * d] for h in range(n_heads)], axis=1)


def split_numpy(x, n_heads):
    return np.array(np.split(x, n_heads, axis=-1)).transpose(1, 0, 2, 3)


def split_columns_first(x, n_heads):
    b, t, c = x.shape
    return x.transpose(0, 2, 1).reshape(b, n_heads, c // n_heads, t).transpose(0, 1, 3, 2)


def split_loops(x, n_heads):
    (b, t, c), d = x.shape, x.shape[2] // n_heads
    out = np.empty((b, n_heads, t, d))
    for column in range(c):
        out[:, column // d, :, column % d] = x[:, :, column]
    return out


def split_einsum(x, n_heads):
    return np.einsum("bthd->bhtd", x.reshape(*x.shape[:2], n_heads, x.shape[2] // n_heads))


def split_torch(x, n_heads):
    return torch.from_numpy(x).unflatten(-1, (n_heads, -1)).transpose(1, 2).numpy()


def merge_plain(x):
    b, h, t, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, t, h * d)


def merge_concatenate(x):
    return np.concatenate(list(x.swapaxes(0, 1)), axis=-1)


def merge_hstack(heads):
    return np.stack([np.hstack([head for head in sequence]) for sequence in heads])


def merge_einsum(x):
    return np.einsum("bhtd->bthd", x).reshape(len(x), x.shape[2], -1)


def merge_loops(x):
    b, h, t, d = x.shape
    out = np.zeros((b, t, h * d))
    for head in range(h):
        for n in range(d):
            out[..., head * d + n] = x[:, head, :, n]
    return out


def merge_torch(x):
    return torch.from_numpy(x).transpose(1, 2).flatten(2).numpy()


def softmax(scores, axis=-1):
    e = np.exp(scores - scores.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def causal(t):
    return np.tril(np.ones((t, t), dtype=bool))


def mha_einsum(x, w_q, w_k, w_v, w_o, n_heads):
    q, k, v = (split_plain(x @ w, n_heads) for w in (w_q, w_k, w_v))
    scores = np.einsum("bhtd,bhsd->bhts", q, k) / np.sqrt(q.shape[-1])
    weights = softmax(np.where(causal(x.shape[1]), scores, -np.inf))
    return merge_plain(np.einsum("bhts,bhsd->bhtd", weights, v)) @ w_o


def mha_adding_infinity(x, w_q, w_k, w_v, w_o, n_heads):
    q, k, v = (split_slices(x @ w, n_heads) for w in (w_q, w_k, w_v))
    scores = q / q.shape[-1] ** 0.5 @ k.swapaxes(-1, -2) + np.triu(np.full((x.shape[1],) * 2, -np.inf), 1)
    return merge_loops(softmax(scores) @ v) @ w_o


def mha_large_negative(x, w_q, w_k, w_v, w_o, n_heads):
    q, k, v = (split_plain(x @ w, n_heads) for w in (w_q, w_k, w_v))
    scores = q @ k.swapaxes(2, 3) * q.shape[3] ** -0.5
    scores[..., ~causal(x.shape[1])] = -1e30
    return np.einsum("bhts,bhsd,hdc->btc", softmax(scores), v, w_o.reshape(n_heads, -1, w_o.shape[1]))


def mha_loops(x, w_q, w_k, w_v, w_o, n_heads):
    d, out = w_q.shape[1] // n_heads, np.zeros_like(x)
    for b in range(len(x)):
        for h in range(n_heads):
            own = slice(h * d, (h + 1) * d)
            q, k, v = x[b] @ w_q[:, own], x[b] @ w_k[:, own], x[b] @ w_v[:, own]
            for t in range(x.shape[1]):
                out[b, t] += softmax(k[: t + 1] @ q[t] / d**0.5) @ v[: t + 1] @ w_o[own]
    return out


def mha_cut_matrices(x, w_q, w_k, w_v, w_o, n_heads):
    q, k, v = (np.einsum("btc,chd->bhtd", x, w.reshape(len(w), n_heads, -1)) for w in (w_q, w_k, w_v))
    weights = np.exp(np.einsum("bhtd,bhsd->bhts", q, k) / q.shape[3] ** 0.5) * causal(x.shape[1])
    weights = weights / weights.sum(-1, keepdims=True)
    return merge_einsum(weights @ v) @ w_o


def mha_sdpa(x, w_q, w_k, w_v, w_o, n_heads):
    q, k, v = (torch.from_numpy(split_plain(x @ w, n_heads).copy()) for w in (w_q, w_k, w_v))
    return merge_plain(F.scaled_dot_product_attention(q, k, v, is_causal=True).numpy()) @ w_o


def mha_other_column_order(x, w_q, w_k, w_v, w_o, n_heads):
    """Permutes all four matrices and uses the (D, H) cut: the same layer."""
    order = np.arange(w_q.shape[1]).reshape(n_heads, -1).T.ravel()
    q, k, v = (labels.split_as_dh(x @ w[:, order], n_heads) for w in (w_q, w_k, w_v))
    return labels.merge_as_dh(attend(q, k, v)) @ w_o[order]


def attend(q, k, v, scale=None, mask=None, axis=-1):
    scores = q @ k.swapaxes(2, 3) / (q.shape[3] ** 0.5 if scale is None else scale)
    return softmax(np.where(causal(q.shape[2]) if mask is None else mask(q.shape[2]), scores, -np.inf), axis) @ v


RIGHT = {
    "02.split": [
        split_plain,
        split_swapaxes,
        split_slices,
        split_numpy,
        split_columns_first,
        split_loops,
        split_einsum,
        split_torch,
    ],
    "02.merge": [merge_plain, merge_concatenate, merge_hstack, merge_einsum, merge_loops, merge_torch],
    "02.mha": [
        mha_einsum,
        mha_adding_infinity,
        mha_large_negative,
        mha_loops,
        mha_cut_matrices,
        mha_sdpa,
        mha_other_column_order,
    ],
}


@pytest.mark.parametrize("exercise_id, function", [(i, f) for i, fs in RIGHT.items() for f in fs])
def test_every_right_form_passes(exercise_id, function):
    verdict = check(exercise_id, function)
    assert verdict, verdict
    assert "Notice" in verdict.message


# ---- wrong answers that are not listed -----------------------------------------------------------


def of_mha(q=lambda x: x, k=lambda x: x, v=lambda x: x, out=lambda x: x, **parts):
    """Multi-head attention with one part changed."""

    def function(x, w_q, w_k, w_v, w_o, n_heads):
        heads = (split_plain(x @ w, n_heads) for w in (w_q, w_k, w_v))
        changed = (change(y) for change, y in zip((q, k, v), heads, strict=True))
        return merge_plain(out(attend(*changed, **parts))) @ w_o

    return function


def last_weight_forgotten(x, w_q, w_k, w_v, w_o, n_heads):
    return mha_einsum(x, w_q, w_k, w_v, np.vstack([w_o[:-1], np.zeros_like(w_o[-1:])]), n_heads)


UNLISTED = {
    "02.split": {
        "raises everywhere": lambda x, n: 1 / 0,
        "heads rolled": lambda x, n: np.roll(split_plain(x, n), 1, axis=1),
        "tokens reversed": lambda x, n: split_plain(x[:, ::-1], n),
        "numbers in a head reversed": lambda x, n: split_plain(x, n)[..., ::-1],
        "columns rolled": lambda x, n: split_plain(np.roll(x, 1, axis=-1), n),
        "batch reversed": lambda x, n: split_plain(x[::-1], n),
        "first sequence for all": lambda x, n: split_plain(np.repeat(x[:1], len(x), axis=0), n),
        "last head doubled": lambda x, n: split_plain(x, n)[:, [*range(n - 1), n - 2 if n > 1 else 0]],
        "pairs of heads exchanged": lambda x, n: split_plain(x, n)[:, [i ^ 1 if i ^ 1 < n else i for i in range(n)]],
        "zeros": lambda x, n: np.zeros_like(split_plain(x, n)),
        "in float32": lambda x, n: split_plain(x.astype(np.float32), n),
        "six heads always": lambda x, n: split_plain(x, 6),
        "a list of heads": lambda x, n: np.split(x, n, axis=-1),
        "a tensor": lambda x, n: torch.from_numpy(x).unflatten(-1, (n, -1)).transpose(1, 2),
        "x itself": lambda x, n: x,
        "nothing": lambda x, n: print(),
        "x changed": lambda x, n: split_plain(np.multiply(x, 2, out=x) / 2, n),
        "a negative of one number": lambda x, n: split_plain(np.where(x == 1, -1, x), n),
        "shifted by 1e-3": lambda x, n: split_plain(x, n) + 1e-2,
    },
    "02.merge": {
        "heads rolled": lambda x: merge_plain(np.roll(x, 1, axis=1)),
        "tokens reversed": lambda x: merge_plain(x[:, :, ::-1]),
        "numbers in a head reversed": lambda x: merge_plain(x[..., ::-1]),
        "columns rolled": lambda x: np.roll(merge_plain(x), 1, axis=-1),
        "columns reversed": lambda x: merge_plain(x)[..., ::-1],
        "first sequence for all": lambda x: np.repeat(merge_plain(x)[:1], len(x), axis=0),
        "last head doubled": lambda x: merge_plain(x[:, [*range(x.shape[1] - 1), 0]]),
        "zeros": lambda x: np.zeros_like(merge_plain(x)),
        "in float32": lambda x: merge_plain(x).astype(np.float32),
        "batch and head exchanged": lambda x: x.transpose(2, 0, 1, 3).reshape(len(x), x.shape[2], -1),
        "a tensor": lambda x: torch.from_numpy(x).transpose(1, 2).flatten(2),
        "a list": lambda x: merge_plain(x).tolist(),
        "x itself": lambda x: x,
        "x changed": lambda x: merge_plain(np.multiply(x, 2, out=x)) / 2,
        "tokens side by side": lambda x: x.transpose(0, 2, 1, 3).reshape(len(x), -1),
    },
    "02.mha": {
        "raises everywhere": lambda *a: 1 / 0,
        "heads rolled": of_mha(out=lambda y: np.roll(y, 1, axis=1)),
        "pairs of heads exchanged": of_mha(out=lambda y: y[:, [i ^ 1 if i ^ 1 < y.shape[1] else i for i in range(y.shape[1])]]),
        "keys reversed": of_mha(k=lambda k: k[:, :, ::-1]),
        "values reversed": of_mha(v=lambda v: v[:, :, ::-1]),
        "values rolled in a head": of_mha(v=lambda v: np.roll(v, 1, axis=-1)),
        "queries' heads rolled": of_mha(q=lambda q: np.roll(q, 1, axis=1)),
        "window of two": of_mha(mask=lambda t: np.tril(np.triu(np.ones((t, t)), -1)) > 0),
        "scale of the toy": of_mha(scale=2**0.5),
        "scale 8": of_mha(scale=8.0),
        "hard maximum": of_mha(scale=1e-5),
        "equal weights": of_mha(scale=1e9),
        "last column forgotten": last_weight_forgotten,
        "first sequence for all": of_mha(out=lambda y: np.repeat(y[:1], len(y), axis=0)),
        "in float32": lambda *a: mha_einsum(*(y.astype(np.float32) for y in a[:5]), a[5]),
        "output in float32": lambda *a: mha_einsum(*a).astype(np.float32),
        "softmax in float32": lambda *a: mha_einsum(*(y.astype(np.float32) for y in a[:5]), a[5]).astype(float),
        "w_o of head 0 for all": lambda x, q, k, v, o, n: mha_einsum(x, q, k, v, np.tile(o[: len(o) // n], (n, 1)), n),
        "six heads always": lambda *a: mha_einsum(*a[:5], 6),
        "x changed": lambda x, *a: mha_einsum(np.multiply(x, 2, out=x) / 2, *a),
        "zeros": lambda *a: np.zeros_like(a[0]),
        "x itself": lambda *a: a[0],
        "noise of 1e-6": lambda *a: mha_einsum(*a) + 1e-6,
        "doubled": lambda *a: 2 * mha_einsum(*a),
        "no attention": lambda x, q, k, v, o, n: x @ v @ o,
        "the reference": lambda x, q, k, v, o, n: merge_plain(reference.attention(*(split_plain(x @ w, n) for w in (q, k, v)))) @ o,
    },
}  # fmt: skip


@pytest.mark.parametrize("exercise_id, name", [(i, name) for i, table in UNLISTED.items() for name in table])
def test_a_wrong_answer_that_is_not_listed_is_rejected_and_not_misnamed(exercise_id, name):
    verdict = check(exercise_id, UNLISTED[exercise_id][name])
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in EXERCISES[exercise_id].mistakes), verdict


@pytest.mark.parametrize(
    "exercise_id, name, parts",
    [
        ("02.split", "in float32", ["lost precision"]),
        ("02.split", "x changed", ["changed `x`"]),
        ("02.split", "a tensor", ["returned a Tensor", "NumPy array"]),
        ("02.split", "a list of heads", ["returned a list"]),
        ("02.split", "nothing", ["returned None", "`return`"]),
        ("02.split", "heads rolled", ["Head 0, token 0 of your result holds token 0, columns 20, 21, 22, 23."]),
        ("02.split", "tokens reversed", ["Head 0, token 0 of your result holds token 2, columns 0, 1, 2, 3."]),
        (
            "02.split",
            "last head doubled",
            ["Wrong first at batch 0, head 5, query 0. Heads 0, 1, 2, 3 and 4 are right."],
        ),
        ("02.merge", "heads rolled", ["Token 0, columns 0 to 3 of your result hold token 0, columns 20, 21, 22, 23."]),
        ("02.mha", "the reference", ["That is the package's"]),
        ("02.mha", "softmax in float32", ["Nearly right", "lost precision"]),
        ("02.mha", "window of two", ["Wrong first at batch 0, query 2", "There it may look at tokens 0, 1, 2."]),
        ("02.mha", "noise of 1e-6", ["Nearly right"]),
        ("02.mha", "heads rolled", ["Wrong first at batch 0, query 0", "There it may look at token 0."]),
    ],
)
def test_what_is_wrong_is_told(exercise_id, name, parts):
    text = check(exercise_id, UNLISTED[exercise_id][name]).message
    assert all(part in text for part in parts), text


# ---- listed mistakes, written in another way -----------------------------------------------------


@pytest.mark.parametrize(
    "exercise_id, function, diagnosis",
    [
        ("02.split", lambda x, n: np.resize(x, (len(x), n, x.shape[1], x.shape[2] // n)), "Your heads are made of whole tokens"),
        ("02.split", lambda x, n: np.stack([x[..., h::n] for h in range(n)], axis=1), "You cut the columns as (D, H)"),
        ("02.split", lambda x, n: np.stack(np.split(x, n, -1), 2), "The cut is right, but tokens still stand before heads"),
        ("02.split", lambda x, n: np.array(np.split(x, n, -1)), "Heads stand before the batch"),
        ("02.merge", lambda x: x.ravel().reshape(len(x), x.shape[2], -1), "One row of your result holds several tokens"),
        ("02.merge", lambda x: np.stack(list(x.swapaxes(0, 1)), -1).reshape(len(x), x.shape[2], -1), "Your row starts with the first number of every head"),
        ("02.merge", lambda x: np.einsum("bhtd->btd", x), "Heads are laid side by side, not added"),
        ("02.merge", lambda x: np.concatenate(list(x.swapaxes(0, 1)), axis=1), "Heads follow each other in time"),
        ("02.mha", of_mha(mask=lambda t: np.ones((t, t), dtype=bool)), "Every query sees every key"),
        ("02.mha", of_mha(q=lambda q: q * q.shape[3] ** 0.5), "Your weights are too sharp"),
        ("02.mha", of_mha(q=lambda q: q / q.shape[3] ** 0.5), "Your weights are too flat"),
        ("02.mha", of_mha(q=lambda q: q / q.shape[1] ** 0.5), "You scaled by √(n_heads · head_dim)"),
        ("02.mha", of_mha(out=lambda y: y / y.shape[1]), "You averaged over heads"),
        ("02.mha", lambda x, q, k, v, o, n: merge_plain(attend(*((x @ w).reshape(*x.shape[:2], n, x.shape[2] // n).swapaxes(1, 2) for w in (q, k, v)))) @ o, "You took head_dim to be d_model / n_heads"),
        ("02.mha", of_mha(axis=2), "Your softmax runs over queries"),
        ("02.mha", of_mha(mask=lambda t: np.tril(np.ones((t, t)), 1) > 0), "Each query sees one key too many"),
        ("02.mha", lambda x, q, k, v, o, n: merge_plain(attend(*(split_plain(x @ w, n) for w in (q, k, v)))), "`w_o` is missing"),
        ("02.mha", lambda x, q, k, v, o, n: mha_einsum(x, q, v, k, o, n), "You compared queries with values"),
    ],
)  # fmt: skip
def test_a_listed_mistake_is_named_however_it_is_written(exercise_id, function, diagnosis):
    verdict = check(exercise_id, function)
    assert verdict.status == "failed" and verdict.message.startswith(diagnosis), verdict


def test_the_diagnoses_are_many_and_never_the_answer():
    for exercise, at_least in ((SPLIT, 12), (MERGE, 11), (MHA, 30)):
        texts = {m.diagnosis for m in exercise.mistakes}
        assert len(texts) >= at_least
        assert not any(word in text for text in texts for word in ("transpose(0", "swapaxes", "** -0.5", "einsum"))


def test_right_with_one_token_is_said_when_the_transpose_is_missing():
    text = check("02.split", labels.split_by_reshape).message
    assert "Head 0, token 0 of your result holds token 0, columns 0, 1, 2, 3." not in text
    assert "Right with B=3 T=1 H=6 D=2." in text


# ---- fair cases ----------------------------------------------------------------------------------


@pytest.mark.parametrize("round_", [0, 1])
def test_the_cases_of_attention_are_unsaturated(round_):
    for one in MHA.cases(round_):
        x, w_q, w_k, w_v, w_o, n_heads = one.args
        q, k = (labels.split(x @ w, n_heads) for w in (w_q, w_k))
        rows = reference.attention_weights(q, k)[:, :, 2:]
        assert not rows.size or rows.max(-1).mean() < 0.6, one.name
        assert not any(np.array_equal(a, b) for a, b in ((w_q, w_k), (w_k, w_v), (w_v, w_o.T)))


def test_the_cases_have_different_axes_and_the_square_that_hides_mistakes():
    sizes = [one.sizes for one in MHA.cases(0)]
    assert len(set(sizes[0].values())) == 5 and sizes[0]["H"] * sizes[0]["D"] != sizes[0]["C"]
    assert any(s["H"] * s["D"] == s["C"] and s["H"] > 1 for s in sizes)
    assert any(s["T"] == s["H"] == s["D"] for s in sizes) and any(s["T"] == 1 for s in sizes)
    for of_heads in (False, True):
        for round_ in (0, 1):
            for one in labels.cases(round_, of_heads):
                values = one.args[0]
                assert len(np.unique(values)) == values.size
    assert len(set(labels.SIZES[0].values())) == 4


# ---- numbers on paper ----------------------------------------------------------------------------


def test_seed_0_has_the_numbers_of_the_notebook():  # and `case` makes it the seed of the checks
    assert COLUMNS.right(case("02.columns")) == {"columns": [8, 9], "token_and_column": [2, 0]}
    assert case("02.columns")["token_and_column"]["code"] == "x[3, 12].reshape(6, 3, 2)[4, 0]"
    assert PARAMS.right(case("02.params")) == {"first": 2_359_296, "second": 8_388_608}


@pytest.mark.parametrize("seed", range(12))
def test_the_numbers_on_paper_are_what_numpy_does(seed):
    numbers = COLUMNS.draw(seed)
    one, cut = numbers["columns"], numbers["token_and_column"]
    h, d, t = cut["n_heads"], cut["head_dim"], cut["n_tokens"]
    x = labels.labelled(1, t, h * d)[0]
    found = x.reshape(h, t, d)[cut["head"], cut["query"], 0]
    owned = labels.split(x[None], h)[0, one["head"], 0]
    right = {"columns": owned.astype(int).tolist(), "token_and_column": [int(n) for n in divmod(found, 100)]}
    assert COLUMNS.right(numbers) == right and COLUMNS.judge(right, seed)


@pytest.mark.parametrize("seed", range(4))
def test_the_parameters_on_paper_are_those_of_the_packages_layer(seed):
    layers = PARAMS.draw(seed)
    for key, sizes in layers.items():
        with torch.device("meta"):
            layer = GroupedQueryAttention(n_kv_heads=sizes["n_heads"], **sizes)
        assert PARAMS.right(layers)[key] == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize(
    "exercise_id, answer, part",
    [
        ("02.columns", {"columns": [4, 10], "token_and_column": [2, 0]}, "You cut columns as (D, H)"),
        ("02.columns", {"columns": [6, 7], "token_and_column": [2, 0]}, "You counted heads from 1"),
        ("02.columns", {"columns": [4, 5], "token_and_column": [2, 0]}, "Head 4 starts after 4 whole heads"),
        ("02.columns", {"columns": [8, 9], "token_and_column": (0, 8)}, "That is what a right split would put there."),
        ("02.columns", {"columns": (8, 9, 10), "token_and_column": (2, 0)}, "one column too many"),
        ("02.columns", {"columns": [8], "token_and_column": (2, 0)}, "You gave 1 numbers"),
        ("02.params", {"first": 2_359_296, "second": 4_194_304}, "You assumed n_heads · head_dim = d_model"),
        ("02.params", {"first": 2_359_296, "second": 6_291_456}, "Three of four projections"),
        ("02.params", {"first": 12 * 2_359_296, "second": 8_388_608}, "More heads are narrower heads"),
        ("02.params", {"first": 2_362_368, "second": 8_388_608}, "Right with biases; the question is without"),
    ],
)
def test_a_wrong_number_is_named(exercise_id, answer, part):
    verdict = EXERCISES[exercise_id].judge(answer)
    assert verdict.status == "failed" and part in verdict.message, verdict


# ---- find the mistake ----------------------------------------------------------------------------


def find(line=4, exposing=(1, 2, 2, 2), hiding=(4, 1, 6, 2)):
    return {"line": line, "exposing": exposing, "hiding": hiding}


@pytest.mark.parametrize("exposing", [(1, 2, 2, 2), (2, 3, 6, 2), (1, 4, 4, 4), (1, 7, 3, 1), [5, 2, 9, 3]])
@pytest.mark.parametrize("hiding", [(1, 1, 2, 2), (8, 1, 32, 128)])
def test_sizes_that_show_and_hide_the_reshape_pass(exposing, hiding):
    assert check("02.reshape", find(exposing=exposing, hiding=hiding))


@pytest.mark.parametrize(
    "answer, part",
    [
        (find(exposing=(4, 1, 6, 2)), "Both versions give the same numbers here"),
        (find(exposing=(4, 5, 1, 2)), "Both versions give the same numbers here"),
        (find(hiding=(4, 2, 6, 2)), "The mistake already shows here (first at [0, 0, 1, 0])"),
        (find(hiding=(4, 4, 4, 4)), "The mistake already shows here"),
        (find(hiding=(4, 5, 1, 2)), "One head is no cut at all. Try again with H > 1."),
        (find(hiding=(4, 1, 6, 1)), "Try again with D > 1."),
        (find(line=5), "Not line 5. Your inputs show it."),
        (find(line=5, exposing=(4, 1, 6, 2)), "not line 5."),
        (find(line="4"), "write the number of one line"),
        (find(exposing=(4, 2, 6)), "give four whole numbers (B, T, H, D)"),
        (find(exposing=(4, 2, 6, 2.0)), "give four whole numbers"),
        (find(exposing="4, 2, 6, 2"), "give four whole numbers"),
        (find(hiding=(0, 1, 6, 2)), "a size below 1"),
        (find(hiding=(1000, 1, 1000, 1000)), "smaller sizes will do"),
        (find(hiding=np.zeros((2, 2))), "give four whole numbers"),
        ([4], "Hand over a dict"),
    ],
)
def test_weak_inputs_are_told_why(answer, part):
    verdict = check("02.reshape", answer)
    assert verdict.status == "failed" and part in verdict.message, verdict


@pytest.mark.parametrize("answer", [{}, find(line=...), find(exposing=None), {"line": 4}])
def test_a_search_not_finished_is_not_attempted(answer):
    assert check("02.reshape", answer).status == "not attempted"


def test_the_function_printed_in_the_notebook_is_the_one_that_is_run():
    notebook = nbformat.read(ROOT / "solutions" / "02_multi_head.ipynb", as_version=4)
    [source] = [cell.source for cell in notebook.cells if cell.id == "reshape-wrong"]
    space = {}
    exec(source, space)
    x = labels.labelled(2, 3, 12)
    assert np.array_equal(space["colleagues_split"](x, 6), labels.split_by_reshape(x, 6))
    assert "reshape" in source.splitlines()[RESHAPE.line] and source.splitlines()[RESHAPE.line].endswith(
        f"# {RESHAPE.line}"
    )
