"""Lesson 01: right forms pass, mistakes that nobody listed are rejected, weak inputs are told why."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gqa_lab.checks import case, check
from gqa_lab.checks.attention.head import attend
from gqa_lab.checks.engine import EXERCISES

SOFTMAX, ATTENTION, SATURATION = (EXERCISES[f"01.{name}"] for name in ("softmax", "attention", "saturation"))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_by_rows(x):
    return np.apply_along_axis(lambda row: np.exp(row - max(row)) / sum(np.exp(row - max(row))), -1, x)


def softmax_by_loops(x):
    out = np.empty(x.shape)
    for index in np.ndindex(x.shape[:-1]):
        row = [float(np.exp(score - x[index].max())) for score in x[index]]
        for i, e in enumerate(row):
            out[(*index, i)] = e / sum(row)
    return out


def softmax_by_logarithm(x):
    return np.exp(x - np.logaddexp.reduce(x, axis=-1, keepdims=True))


def softmax_by_torch(x):
    return torch.from_numpy(x).softmax(-1).numpy()


def softmax_by_transpose(x):
    e = np.exp(x.T - x.T.max(0))
    return (e / e.sum(0)).T


def by_where(q, k, v, mask):
    return softmax(np.where(mask, q @ k.T / np.sqrt(q.shape[1]), -np.inf)) @ v


def by_adding(queries, keys, values, may_look):
    bias = np.where(may_look, 0.0, -np.inf)
    return softmax(queries @ keys.T / len(queries[0]) ** 0.5 + bias) @ values


def by_loops(q, k, v, mask):
    rows = []
    for t in range(len(q)):
        seen = [s for s in range(len(k)) if mask[t, s]]
        scores = np.array([sum(q[t] * k[s]) / len(q[t]) ** 0.5 for s in seen])
        rows.append(sum(w * v[s] for w, s in zip(softmax(scores), seen, strict=True)))
    return np.stack(rows)


def by_einsum(q, k, v, mask):
    scores = np.einsum("td,sd->ts", q * q.shape[-1] ** -0.5, k)
    return np.einsum("ts,sd->td", softmax(np.where(mask, scores, -1e30)), v)


def by_masked_exponentials(q, k, v, mask):
    scores = q @ k.T / q.shape[-1] ** 0.5
    e = np.exp(np.where(mask, scores - np.where(mask, scores, -1e30).max(-1, keepdims=True), -1e30)) * mask
    return (e @ v) / e.sum(-1, keepdims=True)


def by_sdpa(q, k, v, mask):
    arrays = (torch.from_numpy(x)[None, None] for x in (q, k, v))
    return F.scaled_dot_product_attention(*arrays, attn_mask=torch.from_numpy(mask))[0, 0].numpy()


def measured(head_dim, scale):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((1000, head_dim)), rng.standard_normal((64, head_dim))
    return softmax(q @ k.T / (head_dim**0.5 if scale else 1)).max(-1).mean()


def measured_one_by_one(head_dim, scale):
    rng, total = np.random.default_rng(0), 0.0
    for _ in range(1000):
        q, k = rng.standard_normal(head_dim), rng.standard_normal((64, head_dim))
        total += max(softmax(k @ q / (np.sqrt(head_dim) if scale else 1.0)))
    return float(total / 1000)


RIGHT = {
    "01.softmax": [softmax, softmax_by_rows, softmax_by_loops, softmax_by_logarithm, softmax_by_torch,
                   softmax_by_transpose],
    "01.attention": [by_where, by_adding, by_loops, by_einsum, by_masked_exponentials, by_sdpa],
    "01.saturation": [measured, pytest.param(measured_one_by_one, marks=pytest.mark.slow)],  # near the time limit
}  # fmt: skip


@pytest.mark.parametrize("function", [f for fs in RIGHT.values() for f in fs])
def test_every_right_form_passes(function):
    exercise_id = next(i for i, fs in RIGHT.items() if any(function in getattr(f, "values", [f]) for f in fs))
    verdict = check(exercise_id, function)
    assert verdict and "Notice" in verdict.message, verdict


def test_a_softmax_for_tables_only_is_told_about_other_axes():
    def for_tables(x):
        e = np.exp(x.T - x.max(1))
        return (e / e.sum(0)).T

    text = check("01.softmax", for_tables).message
    assert "Right for a table of scores. For an array of shape [2, 3, 4]" in text


def rounded(x):
    return softmax(x).round(4)


def in_float32(x):
    return softmax(x.astype(np.float32))


def in_place(x):
    x -= x.max(-1, keepdims=True)
    return softmax(x)


def last_weight_forgotten(x):
    weights = softmax(x)
    weights[..., -1] = 0
    return weights


UNLISTED = {
    "01.softmax": {
        "rounded": rounded,
        "float32": in_float32,
        "in place": in_place,
        "last forgotten": last_weight_forgotten,
        "first row for all": lambda x: np.broadcast_to(softmax(x[:1]), x.shape).copy(),
        "transposed": lambda x: softmax(x).T,
        "scores given back": lambda x: x.copy(),
        "uniform": lambda x: np.full(x.shape, 1 / x.shape[-1]),
        "sorted": lambda x: np.sort(softmax(x), -1),
        "temperature": lambda x: softmax(x / 2),
        "small constant": lambda x: np.exp(x - x.max(-1, keepdims=True)) / (np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True) + 1e-3),
        "a list": lambda x: softmax(x).tolist(),
        "NaN to zero": lambda x: np.nan_to_num(np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
        "clipped": lambda x: softmax(np.clip(x, -1, 1)),
        "endless": lambda x: [None for _ in iter(int, 1)],
    },
    "01.attention": {
        "scale 1/√8": lambda q, k, v, m: attend(q, k, v, m, scale=lambda t, s, d: 8**-0.5),
        "weights rounded": lambda q, k, v, m: attend(q, k, v, m, weigh=lambda x: softmax(x).round(3)),
        "float32": lambda q, k, v, m: by_where(*(x.astype(np.float32) for x in (q, k, v)), m).astype(np.float64),
        "q changed": lambda q, k, v, m: by_where(np.divide(q, 1.0000001, out=q), k, v, m),
        "the first query for all": lambda q, k, v, m: np.repeat(by_where(q, k, v, m)[:1], len(q), 0),
        "queries reversed": lambda q, k, v, m: by_where(q[::-1], k, v, m),
        "keys reversed": lambda q, k, v, m: by_where(q, k[::-1], v, m),
        "values reversed": lambda q, k, v, m: by_where(q, k, v[::-1], m),
        "the weights": lambda q, k, v, m: softmax(np.where(m, q @ k.T / q.shape[1] ** 0.5, -np.inf)),
        "sum over queries": lambda q, k, v, m: by_where(q, k, v, m).sum(0, keepdims=True),
        "transposed": lambda q, k, v, m: by_where(q, k, v, m).T,
        "first key forgotten": lambda q, k, v, m: by_where(q, k, v, m & (np.arange(m.shape[1]) > 0) | (m.sum(1, keepdims=True) == 1)),
        "cosine": lambda q, k, v, m: by_where(q / np.linalg.norm(q, axis=1, keepdims=True), k, v, m),
        "distance": lambda q, k, v, m: softmax(np.where(m, -((q[:, None] - k) ** 2).sum(-1), -np.inf)) @ v,
        "masked scores -5": lambda q, k, v, m: attend(q, k, v, m, hide=lambda x, m: np.where(m, x, -5.0)),
        "head_dim rolled": lambda q, k, v, m: np.roll(by_where(q, k, v, m), 1, -1),
        "noise": lambda q, k, v, m: by_where(q, k, v, m) + 1e-6,
    },
    "01.saturation": {
        "one query": lambda head_dim, scale: 0.5,
        "median of nothing": lambda head_dim, scale: float("nan"),
        "128 keys": lambda head_dim, scale: measured(head_dim, scale) / 2,
        "an array": lambda head_dim, scale: np.full(3, measured(head_dim, scale)),
    },
}  # fmt: skip


@pytest.mark.parametrize("exercise_id, name", [(i, n) for i, fs in UNLISTED.items() for n in fs])
def test_a_wrong_answer_that_is_not_listed_is_rejected_and_not_misnamed(exercise_id, name):
    verdict = check(exercise_id, UNLISTED[exercise_id][name])
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in EXERCISES[exercise_id].mistakes), verdict


def test_an_unlisted_mistake_is_told_where_it_begins_and_what_may_be_seen_there():
    text = check("01.attention", UNLISTED["01.attention"]["first key forgotten"]).message
    assert "Wrong first at query 1" in text and "it may look at the keys" in text


@pytest.mark.parametrize(
    "exercise_id, function, diagnosis",
    [
        ("01.softmax", lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True), "NaN at scores of 1,000"),
        ("01.softmax", lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum(0), "Columns sum to 1"),
        ("01.attention", lambda q, k, v, m: by_where(q / q.shape[1] ** 0.5, k, v, m), "Your weights are too flat"),
        ("01.attention", lambda q, k, v, m: by_where(q, k, v, ~m), "Your mask is upside down"),
        ("01.attention", lambda q, k, v, m: by_where(q, k, v, np.ones_like(m)), "Every query saw every key"),
        ("01.attention", lambda q, k, v, m: (softmax(q @ k.T / q.shape[1] ** 0.5) * m) @ v, "You masked after"),
    ],
)
def test_a_listed_mistake_is_named_however_it_is_written(exercise_id, function, diagnosis):
    assert check(exercise_id, function).message.startswith(diagnosis)


def test_the_cases_are_fair():
    for round_ in (0, 1):
        shapes, largest = [], []
        for one in ATTENTION.cases(round_):
            q, k, v, mask = one.args
            assert k.shape == v.shape and not np.allclose(k, v) and mask.any(-1).all()
            weights = softmax(np.where(mask, q @ k.T / q.shape[1] ** 0.5, -np.inf))
            full = mask.sum(-1) >= 3
            largest += weights[full].max(-1).tolist()
            shapes.append((len(q), len(k)))
        assert np.mean(largest) < 0.6
        assert any(t < s for t, s in shapes) and any(t == s for t, s in shapes) and any(t == 1 for t, s in shapes)


def test_seed_0_is_what_the_notebook_prints():
    assert case("01.by_hand") == {"scores": ["0", "ln 2", "ln 3"], "v": [[6, 0], [0, 6], [6, 6]]}
    assert check("01.by_hand", {"output": [[6, 0], [2, 4], [4, 5]]})
    assert check("01.by_hand", {"output": np.array([[6, 0], [2, 4], [4.0, 5]])})


@pytest.mark.parametrize(
    "output, part",
    [
        ([[4, 5], [4, 5], [4, 5]], "Every query saw every key"),
        ([[1, 0], [1, 2], [4, 5]], "You masked after the softmax"),
        ([[4, 4], [3, 4.5], [4, 5]], "A score of 0 still gets weight"),
        ([[4, 5], [3.6, 6], [6, 6]], "looks forward"),
        ([[0, 0], [6, 0], [2, 4]], "may look at its own position"),
        ([[6, 0], [3, 3], [4, 4]], "plain averages"),
        ([[2, 0], [2, 3], [8, 9]], "Each column sums to 1"),
        ([[6, 0], [2, 4]], "You gave 2 rows"),
        ([[6, 0], [2, 4], [4, 6]], "Row 2 is the first that is not right"),
        ([[6, 0], [0, 6], [3.6, 6]], "e⁰ is 1, not 0"),
        ("[[6, 0]]", "is text"),
    ],
)
def test_wrong_rows_are_named(output, part):
    case("01.by_hand")
    verdict = check("01.by_hand", {"output": output})
    assert not verdict and part in verdict.message, verdict


GOOD = {"line": 3, "exposing": [[0, 1, 2], [1, 0, 3]], "hiding": (100 * np.eye(3)).tolist()}


@pytest.mark.parametrize("hiding", [np.eye(5) * 1e4, [[0, 1, 2], [2, 0, 1], [1, 2, 0]], [[0, 1], [1, 0]]])
def test_every_table_that_really_hides_the_axis_passes(hiding):
    assert check("01.axis", GOOD | {"hiding": hiding})


@pytest.mark.parametrize(
    "change, part",
    [
        ({"exposing": np.eye(3) * 100}, "Both versions give the same numbers"),
        ({"hiding": [[1, 2], [3, 5]]}, "already shows here (first at [0, 0])"),
        ({"hiding": [[1.0]]}, "at least 2 queries and 2 keys"),
        ({"hiding": np.zeros((3, 3))}, "Try again with scores that differ"),
        ({"line": 1}, "Not line 1. Your inputs show it."),
        ({"line": "3"}, "write the number of one line"),
        ({"exposing": [1, 2, 3]}, "yours has shape [3]"),
        ({"exposing": [[1, 2], [3]]}, "rows of numbers of one length"),
        ({"exposing": [[1, float("nan")]]}, "finite scores"),
        ({"hiding": np.eye(100)}, "1 to 64 rows"),
        ({"exposing": "scores"}, "rows of numbers"),
    ],
)
def test_weak_scores_are_told_why(change, part):
    verdict = check("01.axis", GOOD | change)
    assert verdict.status == "failed" and part in verdict.message, verdict


@pytest.mark.parametrize("change", [{"line": None}, {"exposing": ...}, {"hiding": None}])
def test_what_is_not_yet_written_is_not_attempted(change):
    assert check("01.axis", GOOD | change).status == "not attempted"
