"""Lesson 07: right answers in every form pass, wrong ones are named, what is quoted is what the library computes."""

import inspect
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from gqa_lab.checks import case, check
from gqa_lab.checks.engine import EXERCISES
from gqa_lab.checks.quality import expand, pool, strided, verdict, which_layers
from gqa_lab.config import ModelConfig
from gqa_lab.convert import convert_kv_heads
from gqa_lab.model import Transformer
from gqa_lab.recorded import recorded

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # the checks hand over wrong types on purpose
SPREAD, EXPAND, POOL = (EXERCISES[f"07.{name}"] for name in ("spread", "expand", "pool"))
ROOT = Path(__file__).resolve().parents[1]
SOLUTION = {c.id: c.source for c in nbformat.read(ROOT / "solutions" / "07_quality.ipynb", as_version=4).cells}
LESSON = {c.id: c.source for c in nbformat.read(ROOT / "notebooks" / "07_quality.ipynb", as_version=4).cells}


# ---- 07.spread -----------------------------------------------------------------------------------

SPREAD_RIGHT = {
    "gqa_worse": 5, "gqa_difference": 0.0035, "gqa_shown": False,
    "mqa_worse": 6, "mqa_difference": 0.0255, "mqa_shown": True,
}  # fmt: skip


def test_the_pairs_on_paper_are_those_of_the_made_up_losses():
    case("07.spread")
    assert check("07.spread", SPREAD_RIGHT)
    assert check("07.spread", SPREAD_RIGHT | {"gqa_shown": np.bool_(False), "mqa_difference": np.float32(0.0255)})


@pytest.mark.parametrize(
    "key, value, part",
    [
        ("gqa_worse", 1, "a smaller loss is better"),
        ("gqa_worse", 4, "compare pair by pair"),
        ("gqa_worse", 6, "6 is not right. Seed by seed"),
        ("mqa_worse", 5, "5 is not right. Seed by seed"),
        ("gqa_worse", 3, "Seed by seed"),
        ("gqa_worse", 5.5, "Seed by seed"),
        ("gqa_difference", -0.0035, "the other way round"),
        ("gqa_difference", 0.021, "the sum of the differences"),
        ("gqa_difference", 0.00417, "dropped the signs"),
        ("gqa_difference", -0.002, "the best runs"),
        ("gqa_difference", 2.9368, "That is the mean loss"),
        ("gqa_difference", -0.022, "against G = 1"),
        ("gqa_difference", 3.5, "Off by 1,000"),
        ("gqa_difference", 0.004, "rounded too far"),
        ("gqa_difference", 0.003, "`gqa_difference`: Nearly right: rounded too far"),
        ("gqa_difference", 0.0037, "round nothing on the way"),
        ("mqa_difference", 0.025, "rounded too far"),
        ("mqa_difference", 0.026, "rounded too far"),
        ("gqa_difference", 0.009, "The six differences"),
        ("gqa_shown", True, "One of six seeds says the opposite. A mean of +0.0035 is not yet evidence."),
        ("gqa_worse", 5 / 6, "a share of the seeds"),
        ("gqa_worse", "5 of 6", "write a number, without quotes"),
        ("gqa_difference", 0.0255, "That is G = 1; here it is G = 2"),
        ("gqa_difference", 0.0046, "left out the seeds that say the opposite"),
        ("gqa_difference", 0.0042, "You divided by 5"),
        ("gqa_difference", 0.035, "Off by 10"),
        ("gqa_shown", "no", "write True or False, without quotes"),
        ("mqa_worse", 0, "a smaller loss is better"),
        ("mqa_difference", 0.0265, "the median"),
        ("mqa_difference", 0.022, "against G = 2"),
        ("mqa_difference", 0.869, "in percent"),
        ("mqa_difference", 0.153, "the sum of the differences"),
        ("mqa_difference", 0.029, "the best runs"),
        ("mqa_difference", 0.021, "the worst runs"),
        ("mqa_shown", False, "You compared ranges across seeds (they touch at 2.948)"),
        ("mqa_shown", 1, "True if all six pairs agree in sign"),
    ],
)
def test_wrong_readings_of_the_pairs_are_named(key, value, part):
    case("07.spread")
    verdict_ = check("07.spread", SPREAD_RIGHT | {key: value})
    assert not verdict_ and part in verdict_.message and "Right: " in verdict_.message, verdict_


@pytest.mark.parametrize("value", [0.003, 0.004])
def test_a_rounded_difference_is_told_nothing_else(value):
    case("07.spread")
    assert " Or: " not in check("07.spread", SPREAD_RIGHT | {"gqa_difference": value}).message


def test_drawn_losses_hold_shown_and_not_shown_differences_and_ranges_that_overlap():
    seen = set()
    for seed in range(1, 100):
        numbers = SPREAD.draw(seed)
        right = SPREAD.right(numbers)
        assert SPREAD.judge(right, seed)
        for name in ("gqa", "mqa"):
            seen.add((name, right[f"{name}_shown"]))
            assert min(numbers[name]) < max(numbers["mha"]) and 4 <= right[f"{name}_worse"]
            assert all(a != b for a, b in zip(numbers[name], numbers["mha"], strict=True))
    assert len(seen) == 4


# ---- 07.expand -----------------------------------------------------------------------------------


def expand_by_slices(w, n_heads, head_dim):
    heads = w.split(head_dim)
    return torch.cat([heads[i * len(heads) // n_heads] for i in range(n_heads)])


def expand_by_view(w, n_heads, head_dim):
    n_kv_heads = w.shape[0] // head_dim
    heads = w.reshape(n_kv_heads, 1, head_dim, -1)
    return heads.expand(-1, n_heads // n_kv_heads, -1, -1).reshape(n_heads * head_dim, -1)


def expand_by_index(w, n_heads, head_dim):
    rows = torch.arange(n_heads * head_dim)
    return w[rows // head_dim // (n_heads // (len(w) // head_dim)) * head_dim + rows % head_dim]


def expand_by_kron(w, n_heads, head_dim):
    n_kv_heads = len(w) // head_dim
    ones = torch.ones(n_heads // n_kv_heads, 1, dtype=w.dtype)
    matrix = torch.kron(torch.eye(n_kv_heads, dtype=w.dtype), torch.kron(ones, torch.eye(head_dim, dtype=w.dtype)))
    return matrix @ w


def expand_row_by_row(w, n_heads, head_dim):
    group_size = n_heads * head_dim // len(w)
    out = torch.empty(n_heads * head_dim, w.shape[1], dtype=w.dtype)
    for i in range(n_heads):
        for d in range(head_dim):
            out[i * head_dim + d] = w[i // group_size * head_dim + d]
    return out


def expand_by_einsum(w, n_heads, head_dim):
    heads = w.unflatten(0, (-1, head_dim))
    which = torch.arange(n_heads) // (n_heads // len(heads))
    chosen = torch.nn.functional.one_hot(which, len(heads)).to(w.dtype)
    return torch.einsum("hg,gdc->hdc", chosen, heads).flatten(0, 1)


@pytest.mark.parametrize(
    "function",
    [expand_by_slices, expand_by_view, expand_by_index, expand_by_kron, expand_row_by_row, expand_by_einsum],
)
def test_every_right_way_to_expand_passes(function):
    verdict_ = check("07.expand", function)
    assert verdict_ and "Notice" in verdict_.message, verdict_


def tiny(n_kv_heads):
    torch.manual_seed(0)
    config = ModelConfig(
        n_layers=1, d_model=20, n_heads=6, n_kv_heads=n_kv_heads, head_dim=4, d_ff=16, vocab_size=30, max_seq_len=16,
        rope_theta=1e2, norm_eps=1e-5,
    )  # fmt: skip
    return Transformer(config).double().eval().requires_grad_(False)


def test_the_references_are_what_the_library_does_and_expanding_keeps_the_models_output():
    model = tiny(3)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    weights = {n: convert_kv_heads(model, n).layers[0].attention.k_proj.weight.numpy() for n in (1, 3, 6)}
    assert np.allclose(expand.expand_weight(weights[3], 6, 4), weights[6], atol=0)
    assert np.allclose(pool.pool_weight(weights[3], 1, 4), weights[1], atol=1e-12)
    torch.testing.assert_close(convert_kv_heads(model, 6)(ids), model(ids), atol=1e-10, rtol=0)
    assert (convert_kv_heads(model, 1)(ids) - model(ids)).abs().max() > 1e-3


UNLISTED_EXPAND = {
    "a copy between strangers": lambda w, n, d: expand_by_slices(w, n, d).roll(d, 0),
    "the last head once more": lambda w, n, d: torch.cat([w, w[-d:].repeat(n - len(w) // d, 1)]),
    "rows of a head upside down": lambda w, n, d: expand_by_slices(w, n, d).unflatten(0, (n, d)).flip(1).flatten(0, 1),
    "a little noise": lambda w, n, d: expand_by_slices(w, n, d) + 1e-3 * torch.sin(torch.arange(float(n * d)))[:, None],
    "scaled by R": lambda w, n, d: expand_by_slices(w, n, d) * (n * d // len(w)),
    "neighbours averaged": lambda w, n, d: (expand_by_slices(w, n, d) + expand_by_slices(w, n, d).roll(d, 0)) / 2,
    "transposed": lambda w, n, d: expand_by_slices(w, n, d).T,
    "heads cut from columns": lambda w, n, d: w.repeat_interleave(n * d // len(w), 0)[:, torch.randperm(w.shape[1])],
    "float32": lambda w, n, d: expand_by_slices(w, n, d).float(),
    "into w": lambda w, n, d: w.mul_(1.5).repeat_interleave(n * d // len(w), 0),
    "numpy": lambda w, n, d: expand_by_slices(w, n, d).numpy(),
    "a list of heads": lambda w, n, d: list(expand_by_slices(w, n, d).split(d)),
    "nothing": lambda w, n, d: print("done"),
    "zero": lambda w, n, d: w.new_zeros(n * d, w.shape[1]),
    "raises": lambda w, n, d: w.view(n, d, -1).flatten(0, 1),
    "one argument": lambda w: w,
}  # fmt: skip


@pytest.mark.parametrize("name", UNLISTED_EXPAND)
def test_a_wrong_expansion_that_is_not_listed_is_rejected_and_not_misnamed(name):
    verdict_ = check("07.expand", UNLISTED_EXPAND[name])
    assert verdict_.status == "failed", verdict_
    assert not any(verdict_.message.startswith(m.diagnosis) for m in EXPAND.mistakes), verdict_


@pytest.mark.parametrize(
    "function, part",
    [
        (lambda w, n, d: w.repeat(n * d // len(w), 1), "You dealt KV heads out like cards"),
        (lambda w, n, d: torch.cat([row[None].expand(n * d // len(w), -1) for row in w]), "You copied rows"),
        (lambda w, n, d: expand_by_slices(w, n, d) * len(w) / n / d, "must not get shorter"),
        (lambda w, n, d: torch.nn.functional.pad(w, (0, 0, 0, n * d - len(w))), "Your new heads are zero"),
        (lambda w, n, d: w.repeat(n, 1), "You made n_heads copies"),
        (lambda w, n, d: torch.stack([w] * (n * d // len(w))), "The copies are an axis of their own"),
        (lambda w, n, d: -expand_by_slices(w, n, d), "[-1 times 0, -1 times 0, -1 times 0, -1 times 1,"),
        (UNLISTED_EXPAND["a copy between strangers"], "yours are the KV heads [1, 0, 0, 0, 1, 1]"),
        (UNLISTED_EXPAND["transposed"], "Axes r and C look swapped"),
        (UNLISTED_EXPAND["float32"], "You lost precision"),
        (UNLISTED_EXPAND["into w"], "Your function changed `w`"),
        (UNLISTED_EXPAND["nothing"], "returned None"),
        (lambda w, n, d: w.reshape(-1, d, w.shape[1]).repeat(n * d // len(w), axis=0), "is torch's `repeat_interleave"),
        (
            lambda w, n, d: w.view(d, -1, w.shape[1]).repeat_interleave(n * d // len(w), 1).flatten(0, 1),
            "cut heads first",
        ),
        (
            lambda w, n, d: w.view(d, -1, w.shape[1]).repeat_interleave(n * d // len(w), 0).flatten(0, 1),
            "Head axis first",
        ),
    ],
)
def test_a_wrong_expansion_is_named_however_it_is_written(function, part):
    assert part in check("07.expand", function).message, check("07.expand", function)


# ---- 07.pool -------------------------------------------------------------------------------------


def pool_by_slices(w, n_kv_heads, head_dim):
    heads = list(w.split(head_dim))
    shared = len(heads) // n_kv_heads
    return torch.cat([sum(heads[g * shared : (g + 1) * shared]) / shared for g in range(n_kv_heads)])


def pool_by_view(w, n_kv_heads, head_dim):
    return w.reshape(n_kv_heads, -1, head_dim, w.shape[1]).mean(dim=1).reshape(n_kv_heads * head_dim, w.shape[1])


def pool_by_chunks(w, n_kv_heads, head_dim):
    return torch.cat([torch.stack(part.split(head_dim)).mean(0) for part in w.chunk(n_kv_heads)])


def pool_by_product(w, n_kv_heads, head_dim):
    shared = len(w) // head_dim // n_kv_heads
    one = torch.ones(1, shared, dtype=w.dtype) / shared
    return torch.kron(torch.kron(torch.eye(n_kv_heads, dtype=w.dtype), one), torch.eye(head_dim, dtype=w.dtype)) @ w


def pool_in_place(w, n_kv_heads, head_dim):
    shared, out = len(w) // head_dim // n_kv_heads, torch.zeros(n_kv_heads * head_dim, w.shape[1], dtype=w.dtype)
    for row in range(len(w)):
        head, d = divmod(row, head_dim)
        out[head // shared * head_dim + d] += w[row] / shared
    return out


def pool_by_index_add(w, n_kv_heads, head_dim):
    rows = torch.arange(len(w))
    shared = len(w) // head_dim // n_kv_heads
    target = rows // head_dim // shared * head_dim + rows % head_dim
    return torch.zeros(n_kv_heads * head_dim, w.shape[1], dtype=w.dtype).index_add(0, target, w / shared)


@pytest.mark.parametrize(
    "function", [pool_by_slices, pool_by_view, pool_by_chunks, pool_by_product, pool_in_place, pool_by_index_add]
)
def test_every_right_way_to_pool_passes(function):
    verdict_ = check("07.pool", function)
    assert verdict_ and "only pooling loses" in verdict_.message, verdict_


UNLISTED_POOL = {
    "two of each group": lambda w, n, d: w.reshape(n, -1, d, w.shape[1])[:, :2].sum(1).flatten(0, 1) / 1.9,
    "weights 2 to 1": lambda w, n, d: (w.reshape(n, -1, d, w.shape[1]).mean(1) * 0.9
                                       + 0.1 * w.reshape(n, -1, d, w.shape[1])[:, 0]).flatten(0, 1),
    "geometric": lambda w, n, d: w.reshape(n, -1, d, w.shape[1]).abs().log().mean(1).exp().flatten(0, 1),
    "root of the mean square": lambda w, n, d: w.reshape(n, -1, d, w.shape[1]).square().mean(1).sqrt().flatten(0, 1),
    "groups rolled": lambda w, n, d: pool_by_view(w.roll(d, 0), n, d),
    "rows of a head upside down": lambda w, n, d: pool_by_view(w, n, d).unflatten(0, (n, d)).flip(1).flatten(0, 1),
    "smallest": lambda w, n, d: w.reshape(n, -1, d, w.shape[1]).amin(1).flatten(0, 1),
    "halves of neighbours that overlap": lambda w, n, d: ((w + w.roll(-d, 0)) / 2)[: n * d],
    "zero": lambda w, n, d: w.new_zeros(n * d, w.shape[1]),
    "transposed": lambda w, n, d: pool_by_view(w, n, d).T,
    "float32": lambda w, n, d: pool_by_view(w, n, d).float(),
    "numpy": lambda w, n, d: pool_by_view(w, n, d).numpy(),
    "into w": lambda w, n, d: w.mul_(2).reshape(n, -1, d, w.shape[1]).mean(1).flatten(0, 1),
    "raises": lambda w, n, d: w.view(d, d, d),
    "nothing": lambda w, n, d: None or print("done"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLISTED_POOL)
def test_a_wrong_pool_that_is_not_listed_is_rejected_and_not_misnamed(name):
    verdict_ = check("07.pool", UNLISTED_POOL[name])
    assert verdict_.status == "failed", verdict_
    assert not any(verdict_.message.startswith(m.diagnosis) for m in POOL.mistakes), verdict_


@pytest.mark.parametrize(
    "function, part",
    [
        (strided.pool_strided, "Heads that will share stand side by side"),
        (lambda w, n, d: torch.cat([torch.stack(w.split(d)[g::n]).mean(0) for g in range(n)]), "stand side by side"),
        (lambda w, n, d: pool_by_slices(w, n, d) * len(w) / d / n, "That is the sum"),
        (lambda w, n, d: pool_by_slices(w, n, d) * (len(w) / d / n) ** 0.5, "You repaired the length"),
        (lambda w, n, d: torch.cat([p.split(d)[0] for p in w.chunk(n)]), "That is `first`, not `mean`"),
        (lambda w, n, d: w[: n * d] + 0, "these stand all in the first groups"),
        (lambda w, n, d: w.view(-1, n, d, w.shape[1]).mean(1).flatten(0, 1), "You made groups of n_kv_heads heads"),
        (lambda w, n, d: pool_by_view(w, n, d).repeat(len(w) // d // n, 1), "Right means, copied back"),
        (
            lambda w, n, d: w.reshape(n, -1, d, w.shape[1]).mean(2).reshape(-1, w.shape[1]),
            "averaged rows inside a head",
        ),
        (lambda w, n, d: w.reshape(-1, 2, d, w.shape[1]).mean(1).flatten(0, 1), "one head of every 2"),
        (UNLISTED_POOL["weights 2 to 1"], "Your new head 0 is 0.4 of head 0, 0.3 of head 1, 0.3 of head 2."),
        (UNLISTED_POOL["geometric"], "no mixture of whole heads"),
        (UNLISTED_POOL["zero"], "Your new head 0 is zero"),
        (UNLISTED_POOL["into w"], "Your function changed `w`"),
    ],
)
def test_a_wrong_pool_is_named_however_it_is_written(function, part):
    assert part in check("07.pool", function).message, check("07.pool", function)


# ---- 07.strided ----------------------------------------------------------------------------------


def test_the_function_in_the_notebook_is_the_one_that_is_run():
    printed = re.search(r"```\n(.*?)```", SOLUTION["strided"], re.S)[1].splitlines()
    source = [line for line in inspect.getsource(pool.pool_strided).splitlines() if '"""' not in line]
    assert [line[3:] for line in printed[1:]] == source[1:]
    assert printed[0] == "1  def pool_weight(w, n_kv_heads, head_dim):" and printed[3].startswith("4  ")


def test_only_the_line_that_is_asked_for_differs_from_the_repaired_function():
    wrong, right = (inspect.getsource(f).splitlines() for f in (pool.pool_strided, strided.pool_neighbours))
    body = [[line for line in lines[1:] if '"""' not in line] for lines in (wrong, right)]
    differ = [n for n, pair in enumerate(zip(*body, strict=True), start=2) if pair[0] != pair[1]]
    assert differ == [EXERCISES["07.strided"].line]


@pytest.mark.parametrize(
    "exposing, hiding",
    [((6, 2), (3, 1)), ((8, 4), (64, 1)), ([12, 3], (2, 1)), ((512, 2), (9, 1)), ((4, 2), (12, 1))],
)
def test_sizes_that_show_and_hide_pass(exposing, hiding):
    verdict_ = check("07.strided", {"line": 4, "exposing": exposing, "hiding": hiding})
    assert verdict_ and "poor test" in verdict_.message, verdict_


@pytest.mark.parametrize(
    "changed, part",
    [
        ({"exposing": (3, 1)}, "Both versions give the same numbers"),
        ({"exposing": (2, 2)}, "Both versions give the same numbers"),
        ({"hiding": (6, 3)}, "The mistake already shows here"),
        ({"hiding": (5, 5)}, "too small to fool anybody"),
        ({"hiding": (1, 1)}, "too small to fool anybody"),
        ({"exposing": (6, 4)}, "4 does not divide 6"),
        ({"exposing": (2, 6)}, "6 does not divide 2"),
        ({"exposing": (0, 1)}, "KV heads are 1 to 512"),
        ({"exposing": 6}, "two whole numbers"),
        ({"exposing": (6.0, 2)}, "two whole numbers"),
        ({"exposing": (6, 2, 4)}, "two whole numbers"),
        ({"line": 3}, "Not line 3"),
        ({"line": "4"}, "the number of one line"),
    ],
)
def test_weak_sizes_are_told_why(changed, part):
    answer = {"line": 4, "exposing": (6, 2), "hiding": (3, 1)} | changed
    verdict_ = check("07.strided", answer)
    assert verdict_.status == "failed" and part in verdict_.message, verdict_


# ---- 07.verdict ----------------------------------------------------------------------------------


def test_the_sentences_in_the_notebook_are_those_that_are_judged():
    printed = dict(re.findall(r"^- `(\w)` (.*)$", SOLUTION["verdict-sentences"], re.M))
    assert printed == {key: sentence.text for key, sentence in verdict.SENTENCES.items()}


def published() -> dict:
    """The scores that the lesson copies from the four papers."""
    names: dict = {}
    exec(LESSON["tables-code"], names)
    return names["TABLES"]


def test_the_tables_of_the_exercise_are_those_of_the_lesson():
    tables = published()
    (t5,), (deepseek,), (llama,), (gemma,) = (
        [rows for name, rows in tables.items() if part in name] for part in ("T5", "DeepSeek", "Llama", "Gemma")
    )
    text = SOLUTION["verdict"]
    for label, kind in (("T5-XXL, 64 KV heads", "MHA"), ("8 KV heads", "GQA"), ("1 KV head", "MQA")):
        [row] = re.findall(rf"^\| {label} \| [\d.]+ \| (.*) \| [\d.]+ \|$", text, re.M)
        assert [float(x) for x in row.split(" | ")] == t5[kind]
    for label, kind in (("MHA", "MHA"), ("GQA, 8 KV heads", "GQA"), ("MQA", "MQA")):
        assert [float(x) for x in re.search(rf"^\| {label} \| (.*) \|$", text, re.M)[1].split(" | ")] == deepseek[kind]
    means = ", ".join(f"{kind} {np.mean(llama[kind]):.2f}" for kind in ("MHA", "GQA", "MQA"))
    assert f"our means of its eleven tasks): {means}" in text and len(llama["MHA"]) == 11
    assert f"MHA {gemma['MHA'][0]}, GQA {gemma['GQA'][0]}" in text


def test_the_verdicts_follow_from_the_tables():
    tables = published()
    t5 = next(rows for name, rows in tables.items() if "T5" in name)
    deepseek = next(rows for name, rows in tables.items() if "DeepSeek" in name)
    assert abs(np.mean(t5["MHA"]) - np.mean(t5["GQA"])) < 0.1 and round(np.mean(t5["MQA"]), 2) == 46.76
    assert all(a > b > c for a, b, c in zip(deepseek["MHA"], deepseek["GQA"], deepseek["MQA"], strict=True))


@pytest.mark.parametrize(
    "changed",
    [
        {"c": ("not tested", "none")},
        {"c": "not tested"},
        {"e": ("not_tested", "gqa-1")},
        {"a": ("Supported", "GQA 1")},
        {"b": ["contradicted", "DeepSeek2 8"]},
        {"d": ("contradicted ", " gqa-1")},
    ],
)
def test_verdicts_in_other_words_pass(changed):
    assert check("07.verdict", verdict.GOOD | changed), check("07.verdict", verdict.GOOD | changed)


@pytest.mark.parametrize(
    "changed, part",
    [
        ({"a": ("supported", None)}, "`a`: the verdict is right. Name the table"),
        ({"a": "supported"}, "`a`: the verdict is right. Name the table"),
        ({"a": ("supported", "deepseek2-8")}, "deepseek2-8 does not say it. Which table has T5 in it?"),
        ({"a": ("supported", "table 1")}, "'table 1' is no table here"),
        ({"a": ("true", "gqa-1")}, "'true' is no verdict"),
        ({"a": (True, "gqa-1")}, "give a verdict and a table"),
        ({"a": ("supported", 1)}, "give a verdict and a table"),
        ({"b": ("supported", "llama2-18")}, "The tables disagree"),
        ({"b": ("not tested", None)}, "Judge by scores alone"),
        ({"b": ("contradicted", "llama2-18")}, "That one is of 30B"),
        ({"c": ("supported", "deepseek2-8")}, "two sizes of the same model"),
        ({"d": ("supported", "llama2-18")}, "0.28 is how much more than 0.24?"),
        ({"e": ("supported", "gqa-1")}, "followed by fine-tuning"),
        ({"f": ("supported", "gqa-1")}, "Add the seven numbers"),
    ],
)
def test_a_wrong_verdict_is_told_where_to_look(changed, part):
    verdict_ = check("07.verdict", verdict.GOOD | changed)
    assert verdict_.status == "failed" and part in verdict_.message and "Right: " in verdict_.message, verdict_


# ---- 07.which_layers -----------------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(which_layers, "find_smollm2", lambda: None)


def choose(name):
    return recorded("convert_smollm2")["choices"]["choices"][name]["layers"]


def test_the_real_model_pays_for_a_choice_what_is_recorded():
    if which_layers.find_smollm2() is None:
        pytest.skip("the real model is not on this machine")
    choices = recorded("convert_smollm2")["choices"]["choices"]
    for name in ("least", "last"):
        found = which_layers.measured(choices[name]["layers"])
        assert found == pytest.approx(choices[name]["measured_on_256_of_B"], abs=2e-3)


def test_the_cheapest_ten_pass_and_are_told_of_the_change_of_text_and_that_damages_do_not_add(no_model):
    total = sum(which_layers.damage()[i] for i in choose("least"))
    for predicted, part in (
        (total, "You predicted the sum of their single damages on another text"),
        (0.6, "Predicted 0.6, got 0.59 nats on 256 tokens of the story. Their single damages sum to 0.46 on"),
        (0.6, "where together they cost 0.62"),
        (-0.3, "Below 0 the pooled model would be the better one"),
        (4.0, "more than 3 times that sum"),
    ):
        verdict_ = check("07.which_layers", {"layers": choose("least"), "predicted": predicted})
        assert verdict_ and part in verdict_.message and "damages do not add" in verdict_.message, verdict_
        assert f"{total:.2f}" in verdict_.message
    shuffled = choose("least")[::-1]
    assert check("07.which_layers", {"layers": tuple(shuffled), "predicted": np.float64(1)})


def test_without_the_model_other_choices_are_judged_by_their_sum_and_told_so(no_model):
    order = sorted(range(30), key=which_layers.damage().__getitem__)
    near, far = [*order[:9], order[10]], [*order[:8], *order[-2:]]
    passed = check("07.which_layers", {"layers": near, "predicted": 0.5})
    failed = check("07.which_layers", {"layers": far, "predicted": 0.5})
    assert passed and failed.status == "failed"
    assert "was not measured" in passed.message and "was not measured" in failed.message


@pytest.mark.parametrize("name", ["worst", "first", "last", "every_third"])
def test_choices_made_for_a_poor_reason_are_named(no_model, name):
    verdict_ = check("07.which_layers", {"layers": choose(name), "predicted": 1})
    assert verdict_.status == "failed" and "There are ten that cost less" not in verdict_.message, verdict_
    assert "Their single damages sum to" in verdict_.message


@pytest.mark.parametrize(
    "layers, predicted, part",
    [
        (list(range(9)), 1, "9 layers; choose ten"),
        (list(range(1, 31, 3)) + [5], 1, "11 layers"),
        ([*range(21, 31)], 1, "there is no layer 30"),
        ([-1, *range(9)], 1, "there is no layer -1"),
        ([1, 1, *range(2, 10)], 1, "layer 1 stands there twice"),
        ([0.0, *range(1, 10)], 1, "ten whole numbers"),
        (["0", *range(1, 10)], 1, "ten whole numbers"),
        (10, 1, "ten whole numbers"),
        ({1, 2}, 1, "neither"),
        (list(range(10)), "1", "`predicted`: write one number"),
        (list(range(10)), float("nan"), "`predicted`: write one number"),
        (list(range(10)), [1], "`predicted`: write one number"),
        (list(range(10)), True, "`predicted`: write one number"),
    ],
)
def test_what_is_no_choice_of_ten_layers_is_told_so(no_model, layers, predicted, part):
    verdict_ = check("07.which_layers", {"layers": layers, "predicted": predicted})
    assert verdict_.status == "failed" and part in verdict_.message, verdict_


def test_the_named_choices_are_poor_for_the_reasons_that_are_told(no_model):
    damage, choices = which_layers.damage(), recorded("convert_smollm2")["choices"]["choices"]
    assert sorted(range(30), key=damage.__getitem__)[-2:] in ([0, 1], [1, 0])
    assert choices["last"]["measured"] > 2 * choices["last"]["sum_of_single"]
    costs = {name: choice["measured_on_256_of_B"] for name, choice in choices.items()}
    assert costs["least"] == min(costs.values()) < which_layers.LIMIT < min(costs["last"], costs["every_third"])
    assert choices["least"]["sum_of_single"] < which_layers.LIMIT_OF_SUM < choices["last"]["sum_of_single"]
