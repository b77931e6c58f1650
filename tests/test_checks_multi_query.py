"""Lesson 04: right forms pass, wrong ones are rejected and named, the figure draws Shazeer's ratio."""

import inspect
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gqa_lab import attention, plots, reference
from gqa_lab.checks import case, check
from gqa_lab.checks.answers import agrees
from gqa_lab.checks.engine import EXERCISES
from gqa_lab.checks.multi_query.broadcast import N_HEADS, attend_forgot, outcome
from gqa_lab.checks.multi_query.mqa import causal, truth
from gqa_lab.plots.ratio import shazeer_ratio_text

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # the checks hand over wrong shapes on purpose, many times
RATIO, MQA, BROADCAST, WHAT_SHRINKS = (
    EXERCISES[f"04.{name}"] for name in ("ratio", "mqa", "broadcast", "what_shrinks")
)


# ---- 04.mqa: right answers -----------------------------------------------------------------------


def by_einsum(q, k, v, mask):
    scores = torch.einsum("bhtd,bsd->bhts", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhts,bsd->bhtd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v)


def by_matmul(query, key, value, seen):
    scores = query @ key[:, None].transpose(-1, -2) * query.shape[-1] ** -0.5
    return torch.where(seen, scores, -torch.inf).softmax(-1) @ value[:, None]


def by_rows(q, k, v, mask):
    b, h, t, d = q.shape
    scores = q.reshape(b, h * t, d) @ k.mT / d**0.5
    return (scores.masked_fill(~mask.repeat(h, 1), -torch.inf).softmax(-1) @ v).view(b, h, t, d)


def by_copies(q, k, v, mask):
    k, v = (x[:, None].repeat(1, q.shape[1], 1, 1) for x in (k, v))
    bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    return (torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v


def by_heads(q, k, v, mask):
    heads = []
    for i in range(q.shape[1]):
        scores = (q[:, i] @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -1e30)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(weights @ v)
    return torch.stack(heads, 1)


def by_loops(q, k, v, mask):
    out = torch.empty_like(q)
    for b in range(len(q)):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                keys, values = k[b, mask[t]], v[b, mask[t]]
                out[b, h, t] = (keys @ q[b, h, t] / q.shape[-1] ** 0.5).softmax(0) @ values
    return out


def by_sdpa(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k[:, None], v[:, None], attn_mask=mask, enable_gqa=True)


def by_sdpa_over_rows(q, k, v, mask):
    rows = F.scaled_dot_product_attention(q.flatten(1, 2), k, v, attn_mask=mask.repeat(q.shape[1], 1))
    return rows.unflatten(1, q.shape[1:3])


class ByModule(torch.nn.Module):
    def forward(self, q, k, v, mask):
        return by_einsum(q, k, v, mask)


def by_silent_broadcast(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k[:, None], v[:, None], attn_mask=mask)


RIGHT = [
    by_silent_broadcast,
    by_einsum,
    by_matmul,
    by_rows,
    by_copies,
    by_heads,
    by_loops,
    by_sdpa,
    by_sdpa_over_rows,
    ByModule(),
]


@pytest.mark.parametrize("function", RIGHT, ids=lambda f: getattr(f, "__name__", "module"))
def test_every_right_form_passes(function):
    verdict = check("04.mqa", function)
    assert verdict and "Notice" in verdict.message, verdict


# ---- 04.mqa: wrong answers that are not listed ---------------------------------------------------


def changed(q=lambda x: x, k=lambda x: x, v=lambda x: x, mask=lambda x: x, out=lambda x: x):
    return lambda q_, k_, v_, mask_: out(by_einsum(q(q_), k(k_), v(v_), mask(mask_)))


def last_head_from_the_first(q, k, v, mask):
    out = by_einsum(q, k, v, mask)
    out[:, -1] = out[:, 0]
    return out


def first_sequence_s_memory(q, k, v, mask):
    return by_einsum(q, k[:1].expand_as(k), v[:1].expand_as(v), mask)


def sliced_by_head(q, k, v, mask):
    width = max(1, k.shape[-1] // q.shape[1])
    keep = torch.arange(k.shape[-1]) < width
    return by_einsum(q, k * keep, v, mask)


UNLISTED = {
    "heads reversed": changed(out=lambda x: x.flip(1)),
    "head rolled by one": changed(out=lambda x: x.roll(1, 1)),
    "last head from the first": last_head_from_the_first,
    "batch rolled": changed(k=lambda x: x.roll(1, 0), v=lambda x: x.roll(1, 0)),
    "the first sequence's memory for all": first_sequence_s_memory,
    "queries reversed": changed(q=lambda x: x.flip(2)),
    "keys reversed": changed(k=lambda x: x.flip(1)),
    "values reversed": changed(v=lambda x: x.flip(1)),
    "numbers rolled": changed(out=lambda x: x.roll(1, -1)),
    "a slice of the keys": sliced_by_head,
    "first key hidden": changed(mask=lambda m: m & (torch.arange(m.shape[1]) > 0) | (m.sum(1, keepdim=True) == 1)),
    "hidden scores −5": lambda q, k, v, mask: torch.einsum(
        "bhts,bsd->bhtd",
        (torch.einsum("bhtd,bsd->bhts", q, k) / q.shape[-1] ** 0.5).masked_fill(~mask, -5.0).softmax(-1),
        v,
    ),
    "hard maximum": changed(q=lambda x: x * 1e4),
    "scale of the toy": changed(q=lambda x: x * x.shape[-1] ** 0.5 / 2**0.5),
    "batch dropped": changed(out=lambda x: x[:1]),
    "zeros": changed(out=torch.zeros_like),
    "queries given back": lambda q, k, v, mask: q,
    "noise of 1e-6": changed(out=lambda x: x + 1e-6),
    "mean of the values": lambda q, k, v, mask: v.mean(1)[:, None, None].expand_as(q).clone(),
    "output in float32": changed(out=lambda x: x.float()),
    "computed in float32": changed(q=lambda x: x.float(), k=lambda x: x.float(), v=lambda x: x.float(),
                                   out=lambda x: x.double()),
    "v changed in place": changed(v=lambda x: x.mul_(1.0000001)),
    "mask changed in place": changed(mask=lambda m: m.fill_(True)),
    "the package's function": lambda q, k, v, mask: attention.grouped_attention(q, k[:, None], v[:, None]),
    "no room for the mask": lambda q, k, v: by_einsum(q, k, v, torch.ones(q.shape[2], k.shape[1], dtype=torch.bool)),
    "a NumPy array": changed(out=lambda x: x.numpy()),
    "nothing": lambda q, k, v, mask: print("done"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLISTED)
def test_a_wrong_answer_that_is_not_listed_is_rejected_and_not_misnamed(name):
    verdict = check("04.mqa", UNLISTED[name])
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in MQA.mistakes), verdict


def test_an_unlisted_wrong_answer_is_told_where_it_goes_wrong():
    text = check("04.mqa", UNLISTED["last head from the first"]).message
    assert "Wrong first at batch 0, head 5, query 0. Heads 0, 1, 2, 3 and 4 are right. There it may look at" in text
    assert "keys 0…2" in text


@pytest.mark.parametrize(
    "name, part",
    [
        ("output in float32", "lost precision"),
        ("computed in float32", "lost precision"),
        ("v changed in place", "changed `v`"),
        ("mask changed in place", "changed `mask`"),
        ("the package's function", "That is the package's"),
        ("a NumPy array", "should return a torch tensor"),
        ("nothing", "returned None"),
        ("batch dropped", "Look at B"),
    ],
)
def test_what_is_beyond_values_is_told_kindly(name, part):
    assert part in check("04.mqa", UNLISTED[name]).message


@pytest.mark.parametrize(
    "function, part",
    [
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), "batch axis of k met the head axis"),
        (
            lambda q, k, v, m: (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~m, -torch.inf).softmax(-1) @ v,
            "batch axis of k met the head axis of q",
        ),
        (
            lambda q, k, v, m: torch.einsum(
                "bts,bsd->btd",
                (torch.einsum("bhtd,bsd->bts", q, k) / q.shape[-1] ** 0.5).masked_fill(~m, -torch.inf).softmax(-1),
                v,
            ),
            "lost the head axis",
        ),
        (changed(q=lambda x: x.mean(1, keepdim=True).expand_as(x)), "All heads gave the same output"),
        (changed(q=lambda x: x[:, :1].expand_as(x)), "All heads gave the same output"),
        (changed(q=lambda x: x / x.shape[-1] ** 0.5), "too flat"),
        (changed(q=lambda x: x * x.shape[-1] ** 0.5), "too sharp"),
        (changed(q=lambda x: x / x.shape[1] ** 0.5), "√(H·D)"),
        (changed(mask=torch.ones_like), "Every query sees every key"),
        (changed(mask=lambda m: ~m), "upside down"),
        (lambda q, k, v, m: by_sdpa(q, k, v, ~m), "upside down"),
        (lambda q, k, v, m: by_loops(q, k, v, ~m), "upside down"),
        (lambda q, k, v, m: by_heads(q, k, v, ~m), "upside down"),
        (changed(mask=lambda m: torch.ones_like(m).tril(m.shape[1] - m.shape[0])), "causal mask of your own"),
        (changed(out=lambda x: x.permute(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)), "You merged the heads"),
        (changed(out=lambda x: x.sum(1, keepdim=True).repeat(1, x.shape[1], 1, 1)), "You merged the heads"),
        (lambda q, k, v, m: torch.einsum("bhtd->bthd", by_einsum(q, k, v, m)), "tokens and heads changed places"),
        (lambda q, k, v, m: by_einsum(q, v, k, m), "compared queries with values"),
        (lambda q, k, v, m: by_matmul(q, k, k, m), "mixture of keys"),
    ],
)
def test_a_listed_mistake_is_named_however_it_is_written(function, part):
    assert part in check("04.mqa", function).message.split("\n")[0]


def test_the_diagnoses_are_many_and_never_the_answer():
    texts = {m.diagnosis for m in MQA.mistakes}
    assert len(texts) >= 15
    assert not any(word in text for text in texts for word in ("bsd", "[:, None]", "unsqueeze", "enable_gqa"))


# ---- 04.mqa: cases -------------------------------------------------------------------------------


def test_the_truth_is_the_packages_reference_where_the_mask_is_causal():
    for one in [*MQA.cases(0), *MQA.cases(1)]:
        q, k, v, mask = one.args
        (window,) = [w for w in (None, 4, 3) if np.array_equal(mask, causal(*mask.shape, w))][:1]
        expected = reference.attention(q, k[:, None], v[:, None], window=window)
        assert np.allclose(truth(q, k, v, mask), expected, rtol=0, atol=1e-12)


def test_the_cases_are_fair():
    for round_ in (0, 1):
        sizes = [one.sizes for one in MQA.cases(round_)]
        assert len(set(sizes[0].values())) == 5
        assert any(s["B"] == s["H"] for s in sizes) and any(s["B"] == 1 for s in sizes)
        assert any(s["T"] == s["S"] for s in sizes) and any(s["T"] == 1 for s in sizes)
        for one in MQA.cases(round_):
            q, k, v, mask = one.args
            assert q.dtype == k.dtype == v.dtype == np.float64 and mask.dtype == bool and mask.any(1).all()
            assert not np.allclose(k, v)
            scores = np.where(mask, q @ k[:, None].transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            assert weights[:, :, mask.sum(1) >= 3].max(-1).mean() < 0.6


# ---- by hand -------------------------------------------------------------------------------------

NUMBERS = {"mha": 0.28125, "mqa": 0.04785, "largest": "1/b", "gain": 5.88}
FACTORS = {"cache": 32, "k_proj": 32, "v_proj": 32, "q_proj": 1, "o_proj": 1, "score_multiply_adds": 1, "mlp": 1}


def test_seed_0_is_what_the_notebook_prints():
    assert case("04.ratio") == {"n": 256, "d": 1024, "h": 16, "b": 32}
    assert case("04.what_shrinks")["n_heads"] == 32
    assert check("04.ratio", NUMBERS) and check("04.what_shrinks", FACTORS)


@pytest.mark.parametrize(
    "exercise_id, right, change, part",
    [
        ("04.ratio", NUMBERS, {"mha": 0.25}, "1/b is missing"),
        ("04.ratio", NUMBERS, {"mqa": 0.0166}, "1/b is missing"),
        ("04.ratio", NUMBERS, {"mqa": 0.0469}, "1/d is missing"),
        ("04.ratio", NUMBERS, {"gain": 6.0}, "1/d is missing"),
        ("04.ratio", NUMBERS, {"mqa": 0.28125}, "That is MHA's"),
        ("04.ratio", NUMBERS, {"largest": "n/d"}, "n/d is a term of MHA."),
        ("04.ratio", NUMBERS, {"mqa": 0.0176}, "Only the cache term is divided by h."),
        ("04.ratio", NUMBERS, {"gain": 16}, "Only one term shrinks 16 times"),
        ("04.ratio", NUMBERS, {"mha": 32.25}, "You added b instead of 1/b"),
        ("04.ratio", NUMBERS, {"mqa": 32.0166}, "You added b instead of 1/b"),
        ("04.ratio", NUMBERS, {"mha": 4.031}, "upside down"),
        ("04.ratio", NUMBERS, {"gain": 0.1701}, "Upside down"),
        ("04.ratio", NUMBERS, {"gain": 0.2334}, "difference"),
        ("04.ratio", NUMBERS, {"largest": "n/(dh)"}, "compare"),
        ("04.ratio", NUMBERS, {"largest": "1/d"}, "compare"),
        ("04.ratio", NUMBERS, {"largest": "the weights"}, "as text"),
        ("04.ratio", NUMBERS, {"largest": 0.03125}, "as text"),
        ("04.ratio", NUMBERS, {"mha": "0.28125"}, "without quotes"),
        ("04.ratio", NUMBERS, {"mqa": 0.2}, "0.2 is not right"),
        ("04.what_shrinks", FACTORS, {"score_multiply_adds": 32}, "Count the pairs (query head, key)"),
        ("04.what_shrinks", FACTORS, {"q_proj": 32}, "How many query heads are there now?"),
        ("04.what_shrinks", FACTORS, {"o_proj": 32}, "How many query heads are there now?"),
        ("04.what_shrinks", FACTORS, {"cache": 64}, "K and V shrink by the same factor"),
        ("04.what_shrinks", FACTORS, {"k_proj": 1}, "Its output has one head"),
        ("04.what_shrinks", FACTORS, {"v_proj": 1 / 32}, "what is left"),
        ("04.what_shrinks", FACTORS, {"k_proj": 128}, "That is head_dim"),
        ("04.what_shrinks", FACTORS, {"mlp": 32}, "knows nothing of heads"),
        ("04.what_shrinks", FACTORS, {"mlp": 0}, "0 is no factor"),
        ("04.what_shrinks", FACTORS, {"cache": 7}, "7 is not right"),
    ],
)
def test_wrong_numbers_are_named(exercise_id, right, change, part):
    case(exercise_id)
    verdict = check(exercise_id, right | change)
    assert not verdict and part in verdict.message and "Right: " in verdict.message


def test_drawn_ratios_obey_shazeers_assumption_and_have_every_ruler_that_can_be():
    drawn = [RATIO.draw(seed) for seed in range(100)]
    assert all(x["n"] <= x["d"] and x["d"] % x["h"] == 0 for x in drawn)
    assert {RATIO.right(x)["largest"] for x in drawn} == {"n/(dh)", "1/b"}
    for numbers in drawn:
        right = RATIO.right(numbers)
        assert not any(agrees(m.wrong, right[m.name]) for m in RATIO.mistakes(numbers))


def test_the_formulas_are_what_the_factors_say():
    """A layer of the package, and its cache, shrink as `what_shrinks` claims."""
    mha, mqa = (attention.GroupedQueryAttention(64, 8, n_kv_heads) for n_kv_heads in (8, 1))
    right = WHAT_SHRINKS.right({"n_heads": 8})
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        before, after = (getattr(layer, name).weight.numel() for layer in (mha, mqa))
        assert before / after == right[name]


# ---- expose --------------------------------------------------------------------------------------


def answer(loud=5, hiding=1, exposing=6):
    return {"loud": loud, "hiding": hiding, "exposing": exposing}


@pytest.mark.parametrize("n_tokens", [2, 3, 4, 5, 7, 12, 1000])
def test_every_loud_number_of_tokens_passes(n_tokens):
    assert outcome(n_tokens) == "raises"
    assert check("04.broadcast", answer(loud=n_tokens))


def test_silence_is_at_one_token_and_at_as_many_as_heads():
    assert [n for n in range(1, 40) if outcome(n) != "raises"] == [1, N_HEADS]
    assert outcome(1) == "agrees" and outcome(N_HEADS) == "differs"


def test_the_function_in_the_notebook_is_the_one_that_is_run():
    path = Path(__file__).parents[1] / "solutions" / "04_multi_query.ipynb"
    [cell] = [c for c in nbformat.read(path, as_version=4).cells if c.id == "broadcast-code"]
    printed = [line.split("  #")[0] for line in cell.source.split("\n\n")[0].splitlines()]
    assert printed[1:] == inspect.getsource(attend_forgot).splitlines()[2:]


@pytest.mark.parametrize(
    "wrong, part",
    [
        (answer(hiding=6), "S = 6 for hiding: it runs, but look at the weights: each softmax has one element."),
        (answer(hiding=5), "S = 5 for hiding: it raises"),
        (answer(loud=6), "`loud`: It raises nothing here, which is worse"),
        (answer(loud=1), "`loud`: Both versions give the same numbers here."),
        (answer(exposing=1), "`exposing`: Both versions give the same numbers here."),
        (answer(exposing=12), "A loud mistake needs no test."),
        (answer(loud=0), "one whole number from 1"),
        (answer(loud=-3), "one whole number from 1"),
        (answer(loud=10**12), "one whole number from 1"),
        (answer(loud=True), "one whole number from 1"),
        (answer(exposing=6.0), "one whole number from 1"),
        (answer(exposing="6"), "one whole number from 1"),
        (answer(exposing=[6]), "one whole number from 1"),
        (answer(hiding=None), "one whole number from 1"),
        (answer(loud=object()), "neither"),
        ([5, 1, 6], "Hand over a dict"),
    ],
)
def test_weak_inputs_are_told_why(wrong, part):
    verdict = check("04.broadcast", wrong)
    assert verdict.status == "failed" and part in verdict.message, verdict


@pytest.mark.parametrize("blank", [None, {}, answer(..., ..., ...), answer(hiding=...), {"loud": 5}])
def test_an_answer_not_yet_written_is_not_attempted(blank):
    assert check("04.broadcast", blank).status == "not attempted"
    assert BROADCAST.keys == ("loud", "hiding", "exposing")


# ---- the figure ----------------------------------------------------------------------------------


def test_the_figure_draws_both_sums_and_their_four_terms():
    axes = plots.shazeer_ratio(2048, 4096, 32, batch_sizes=(1, 2, 8))
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert np.allclose(drawn["MHA"], [1.5, 1.0, 0.625])
    assert np.allclose(drawn["MQA"], [x + 1 / 4096 + 1 / 64 for x in (1, 0.5, 0.125)])
    assert len(axes.lines) == 6
    assert axes.get_label() == shazeer_ratio_text(2048, 4096, 32, batch_sizes=(1, 2, 8))


def test_the_figure_gives_each_kind_its_own_style_and_renders_to_the_same_bytes():
    axes = plots.shazeer_ratio(512, 1024, 16)
    lines = {line.get_label(): line for line in axes.lines}
    for kind in ("mha", "mqa"):
        assert lines[kind.upper()].get_color() == plots.STYLE[kind]["color"]
        assert lines[kind.upper()].get_marker() == plots.STYLE[kind]["marker"]
    assert plots.Picture(axes).png == plots.Picture(axes).png
