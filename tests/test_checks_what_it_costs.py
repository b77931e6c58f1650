"""Lesson 06: right answers in every form pass, wrong ones are named, what is quoted is what the library computes."""

import inspect
import math
from fractions import Fraction
from pathlib import Path

import nbformat
import numpy as np
import pytest

from gqa_lab import costs
from gqa_lab.checks import case, check
from gqa_lab.checks.engine import EXERCISES
from gqa_lab.checks.what_it_costs import calculators, choose, step_time
from gqa_lab.costs import SHAPES

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # the checks hand over wrong types on purpose
UNSEEN, CROSSOVER, STEP_TIME, CALCULATORS, CHOOSE = (
    EXERCISES[f"06.{name}"] for name in ("unseen", "crossover", "step_time", "calculators", "choose")
)
SOLUTION = Path(__file__).parents[1] / "solutions" / "06_what_it_costs.ipynb"


# ---- 06.unseen -----------------------------------------------------------------------------------

NUMBERS = {"elements_per_token": 30_720, "bytes_per_token": 61_440, "chat_gb": 6.14, "chats": 8, "chats_as_mha": 2}


def test_the_numbers_on_paper_are_what_the_library_computes():
    numbers = case("06.unseen")
    names = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim")
    sizes = {name: numbers[name] for name in names}
    shape = costs.ModelShape(name="unseen", d_ff=1, vocab_size=1, max_seq_len=100_000, source="a test", **sizes)
    for_chat = costs.kv_cache_bytes(shape, batch_size=1, kv_len=numbers["tokens_per_chat"], bytes_per_element=2)
    assert math.isclose(UNSEEN.right(numbers)["chat_gb"], for_chat / 1e9)
    assert check("06.unseen", NUMBERS) and check("06.unseen", NUMBERS | {"chat_gb": 6.1, "chats": 8})


@pytest.mark.parametrize(
    "key, value, part",
    [
        ("elements_per_token", 122_880, "n_heads for n_kv_heads"),
        ("elements_per_token", 40_960, "head_dim as d_model / n_heads = 128"),
        ("elements_per_token", 24_576, "group_size for n_kv_heads"),
        ("elements_per_token", 15_360, "K only"),
        ("elements_per_token", 960, "one layer"),
        ("elements_per_token", 61_440, "These are bytes"),
        ("elements_per_token", 30_721, "30721 is not right"),
        ("bytes_per_token", 30_720, "one of these is missing"),
        ("bytes_per_token", 245_760, "n_heads for n_kv_heads"),
        ("bytes_per_token", 122_880, "4 bytes per element"),
        ("bytes_per_token", 491_520, "bits are not bytes"),
        ("chat_gb", 5.722, "in another unit"),
        ("chat_gb", 6.29, "1,024 tokens"),
        ("chat_gb", 6_144_000_000, "another unit"),
        ("chats", 13, "Where are the weights? They are on the card as well, and 10% stay free."),
        ("chats", 11, "And the weights?"),
        ("chats", 10, "10% were to stay free"),
        ("chats", 9, "10% of the card stay free, not of what the weights leave"),
        ("chats", 8.79, "whole chats"),
        ("chats", 2, "one KV head for each query head"),
        ("chats", 7, "Take 10% of the card and the weights away"),
        ("chats", 6, "head_dim as d_model / n_heads = 128"),
        ("chats_as_mha", 8, "shared KV heads"),
        ("chats_as_mha", 32, "fewer chats fit"),
        ("chats_as_mha", 0, "times larger twice"),
    ],
)
def test_wrong_numbers_of_an_unseen_model_are_named(key, value, part):
    case("06.unseen")
    verdict = check("06.unseen", NUMBERS | {key: value})
    assert not verdict and part in verdict.message and "Right: " in verdict.message


def test_drawn_models_state_a_head_dim_that_cannot_be_derived_and_hold_chats_however_one_rounds():
    for seed in range(1, 100):
        numbers = UNSEEN.draw(seed)
        assert numbers["head_dim"] * numbers["n_heads"] != numbers["d_model"]
        assert 1 < numbers["n_kv_heads"] < numbers["n_heads"] != numbers["n_kv_heads"] ** 2
        right = UNSEEN.right(numbers)
        assert right["chats"] > right["chats_as_mha"] >= 2
        assert UNSEEN.judge(right | {"chat_gb": float(f"{right['chat_gb']:.3g}")}, seed)


# ---- 06.crossover --------------------------------------------------------------------------------


def by_division(weight_bytes, kv_bytes_per_token, batch_size=1):
    return weight_bytes / (batch_size * kv_bytes_per_token)


def by_whole_tokens(w, k, b=1):
    return w // (k * b)


def by_rounding_up(w, k, b=1):
    return math.ceil(w / k / b)


def by_sharing_the_weights(w, k, b=1):
    return (w / b) / k


def by_numpy(w, k, b=1):
    return np.divide(np.float64(w), k * b)


def by_bisection(w, k, b=1):
    low, high = 0, w
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle * b * k <= w else (low, middle)
    return low


def by_slope(w, k, b=1):
    step = [w + b * k * kv_len for kv_len in (0, 1000)]
    return 1000 * step[0] / (step[1] - step[0])


def with_names(weight_bytes, kv_bytes_per_token, *more, **named):
    [batch_size] = more or named.values() or [1]
    return by_division(weight_bytes, kv_bytes_per_token, batch_size)


@pytest.mark.parametrize(
    "function",
    [
        by_division,
        by_whole_tokens,
        by_rounding_up,
        by_sharing_the_weights,
        by_numpy,
        by_bisection,
        by_slope,
        with_names,
    ],
)
def test_every_right_crossover_passes(function):
    verdict = check("06.crossover", function)
    assert verdict and "Notice" in verdict.message, verdict


def test_the_two_crossovers_told_on_passing_are_those_of_the_library():
    llama = SHAPES["llama-3.1-8b"]
    [read], [held] = (
        [f(llama, bytes_per_element=2)] for f in (costs.weight_bytes_read, costs.weight_bytes_held)
    )  # fmt: skip
    assert (by_whole_tokens(read, 131_072), by_whole_tokens(held, 131_072)) == (114_512, 122_528)
    assert by_whole_tokens(read, 131_072, 64) == 1789
    assert (round(read / 1e9, 2), round(held / 1e9, 2)) == (15.01, 16.06)
    assert "114,512" in CROSSOVER.notice and "122,528" in CROSSOVER.notice


def fraction_of_the_cache(w, k, b=1):
    return w / (w + b * k)


UNLISTED_CROSSOVERS = {
    "a share": fraction_of_the_cache,
    "square of the batch": lambda w, k, b=1: w / (b * b * k),
    "one token off by a hundred": lambda w, k, b=1: w / (b * k) + 100,
    "a constant": lambda w, k, b=1: 1000,
    "batches beyond 8 forgotten": lambda w, k, b=1: w / (min(b, 8) * k),
    "head_dim of another model": lambda w, k, b=1: w / (b * k) * 128 / 80,
    "negative": lambda w, k, b=1: -w / (b * k),
    "not a number": lambda w, k, b=1: float("nan"),
    "infinite": lambda w, k, b=1: float("inf"),
    "True": lambda w, k, b=1: True,
    "a fraction": lambda w, k, b=1: Fraction(w, k * b),
    "text": lambda w, k, b=1: f"{w // k // b}",
    "a list": lambda w, k, b=1: [w / k / b],
    "nothing": lambda w, k, b=1: print("done"),
    "raises": lambda w, k, b=1: w / 0,
    "no batch in the first line": lambda w, k: w / k,
    "the package's": lambda w, k, b=1: (
        costs.weight_bytes_read(SHAPES["llama-3.1-8b"], bytes_per_element=2) / k / b
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLISTED_CROSSOVERS)
def test_a_wrong_crossover_that_is_not_listed_is_rejected_and_not_misnamed(name):
    verdict = check("06.crossover", UNLISTED_CROSSOVERS[name])
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in CROSSOVER.mistakes), verdict


@pytest.mark.parametrize(
    "function, part",
    [
        (lambda w, k, b=1: 122_528 / b, "a step never reads the input table"),
        (lambda w, k, b=1: 28_628 / b, "You divided by the MHA cache"),
        (lambda w, k, b=1: w * b // k, "You multiplied by the batch"),
        (lambda w, k, b=1: round(w / k), "64 sequences own 64 caches and share one set of weights"),
        (lambda w, k, b=1: b * k / w, "Upside down"),
        (lambda w, k, b=1: (w * 16.06 / 15.01) / (k * b), "It returned"),
        (lambda w, k, b: w / (k * b), "is there `batch_size=1` in the first line?"),
        (lambda w, k, b=2: w / (k * b), "is there `batch_size=1` in the first line?"),
        (UNLISTED_CROSSOVERS["the package's"], "That is the package's"),
        (UNLISTED_CROSSOVERS["text"], "it should return one number"),
        (UNLISTED_CROSSOVERS["nothing"], "returned None"),
    ],
)
def test_a_wrong_crossover_is_named_however_it_is_written(function, part):
    assert part in check("06.crossover", function).message, check("06.crossover", function)


# ---- 06.step_time --------------------------------------------------------------------------------


def my_step(weight_bytes, kv_bytes_per_token, *, batch_size, kv_len, bandwidth_bytes_per_s):
    return (weight_bytes + batch_size * kv_len * kv_bytes_per_token) / bandwidth_bytes_per_s


def my_tokens(weight_bytes, kv_bytes_per_token, *, batch_size, kv_len, bandwidth_bytes_per_s):
    sizes = {"batch_size": batch_size, "kv_len": kv_len, "bandwidth_bytes_per_s": bandwidth_bytes_per_s}
    return batch_size / my_step(weight_bytes, kv_bytes_per_token, **sizes)


def step_in_two_times(w, k, *, batch_size, kv_len, bandwidth_bytes_per_s):
    return w / bandwidth_bytes_per_s + sum(kv_len * k / bandwidth_bytes_per_s for _ in range(batch_size))


def step_by_any_names(*sizes, **named):
    return np.float64(step_time.step_s(*sizes, **named))


def tokens_in_one_line(w, k, batch_size, kv_len, bandwidth_bytes_per_s):
    return batch_size * bandwidth_bytes_per_s / (w + batch_size * kv_len * k)


def pair(step=my_step, tokens=my_tokens):
    return {"decode_step_s": step, "tokens_per_s": tokens}


@pytest.mark.parametrize("step", [my_step, step_in_two_times, step_by_any_names])
@pytest.mark.parametrize("tokens", [my_tokens, tokens_in_one_line])
def test_every_right_pair_passes(step, tokens):
    verdict = check("06.step_time", pair(step, tokens))
    assert verdict and "5.8 → 4.8 ms" in verdict.message, verdict


def test_the_four_times_told_on_passing_are_those_of_the_first_prediction():
    times = {one.sizes["batch_size"]: [] for one in step_time._cases(0)}
    for one in step_time._cases(0):
        times[one.sizes["batch_size"]].append(f"{1000 * step_time.step_s(*one.args):.1f}")
    assert times == {1: ["4.8", "5.8"], 32: ["14.7", "45.5"]}
    llama = SHAPES["llama-3.1-8b"]
    assert step_time._LLAMA == costs.weight_bytes_read(llama, bytes_per_element=2)


@pytest.mark.parametrize(
    "answer, part",
    [
        (pair(step=lambda *a, **k: my_step(*a, **k) * 2), "It returned"),
        (pair(step=lambda *a, **k: round(my_step(*a, **k), 4)), "was it rounded?"),
        (pair(step=lambda w, k, batch_size, kv_len: 1.0), "unexpected keyword argument 'bandwidth_bytes_per_s'"),
        (pair(step=lambda *a, **k: print("done")), "`decode_step_s`: With"),
        (pair(step=lambda *a, **k: math.inf), "NaN or infinity"),
        (pair(step=lambda *a, **k: my_step(*a, **k) + 3e-6), "It returned"),
        (pair(tokens=lambda *a, **k: 1 / my_step(*a, **k)), "A step makes batch_size tokens"),
        (pair(tokens=lambda *a, **k: my_tokens(*a, **k) / k["kv_len"]), "`tokens_per_s`: With"),
        (pair(tokens=my_step), "That is the time of a step"),
        (pair(step=my_tokens, tokens=my_step), "`decode_step_s`: "),
        ({"decode_step_s": my_step, "tokens": my_tokens}, "There is no `tokens` in it"),
        ([my_step, my_tokens], "Hand over a dict"),
        (my_step, "Hand over a dict"),
        (pair(step=0.0048), "`decode_step_s`: Hand over the function itself"),
        (pair(tokens=costs.tokens_per_s_ceiling), "`tokens_per_s`: "),
    ],
)
def test_a_wrong_pair_is_told_which_of_the_two_and_why(answer, part):
    verdict = check("06.step_time", answer)
    assert verdict.status == "failed" and part in verdict.message, verdict


def stub(weight_bytes, kv_bytes_per_token, *, batch_size, kv_len, bandwidth_bytes_per_s):
    raise NotImplementedError


@pytest.mark.parametrize(
    "answer", [{}, pair(stub, stub), pair(tokens=stub), {"decode_step_s": my_step}, pair(step=...)]
)
def test_a_pair_not_yet_written_is_not_attempted(answer):
    assert check("06.step_time", answer).status == "not attempted"


@pytest.mark.parametrize("part", step_time.PARTS.values(), ids=lambda part: part.id)
def test_each_part_knows_its_mistakes_apart(part):
    assert len({m.diagnosis for m in part.mistakes}) >= 4
    results = {}
    for mistake in part.mistakes:
        key = tuple(f"{mistake.wrong(*one.args):.9g}" for one in part.cases(0))
        assert results.setdefault(key, mistake.diagnosis) == mistake.diagnosis
        assert any(not np.isclose(mistake.wrong(*one.args), part.reference(*one.args)) for one in part.cases(0))


# ---- 06.calculators ------------------------------------------------------------------------------


def test_the_right_calculator_is_the_librarys():
    for shape in SHAPES.values():
        if shape.kv_lora_rank is None:
            for kv_len in (1, 500, shape.max_seq_len):
                expected = costs.kv_cache_bytes(shape, batch_size=1, kv_len=kv_len, bytes_per_element=2)
                assert calculators.right(shape, kv_len) == expected


@pytest.mark.parametrize(
    "key, exposes, hides",
    [
        ("a", ("gemma-7b", 1), ("llama-2-7b", 10)),
        ("a", ("qwen3-4b", 40_960), ("phi-2", 2048)),
        ("b", ("falcon-7b", 100), ("phi-3.5-mini", 100_000)),
        ("c", ("llama-2-7b", 100), ("qwen3-32b", 100)),
        ("c", ["smollm2-360m", 8192], ["command-r-08-2024", 9]),
        ("d", ("gemma-3-27b", 1025), ("gemma-3-27b", 1024)),
        ("d", ("Phi-3-mini-4k", 4096), ("gpt-oss-20b", 128)),
    ],
)
def test_every_pair_of_models_that_shows_and_hides_passes(key, exposes, hides):
    verdict = check("06.calculators", calculators.GOOD | {key: {"exposes": exposes, "hides": hides}})
    assert verdict, verdict


@pytest.mark.parametrize(
    "key, what, value, part",
    [
        ("c", "exposes", ("llama-2-70b", 4096), "64 / 8 = 8"),
        ("c", "exposes", ("llama-3.1-70b", 4096), "64 / 8 = 8"),
        ("c", "hides", ("mistral-7b-v0.1", 4096), "already shows here (0.25 GiB instead of 0.5)"),
        ("b", "hides", ("llama-2-70b", 4096), "already shows here (10 GiB instead of 1.25)"),
        ("a", "hides", ("qwen3-0.6b", 4096), "already shows here"),
        ("d", "exposes", ("mistral-7b-v0.3", 32768), "it has no window"),
        ("d", "hides", ("mistral-7b-v0.1", 4097), "already shows here"),
        ("d", "hides", ("llama-3.1-8b", 4096), "True, but too small to fool anybody"),
        ("d", "exposes", ("mistral-7b-v0.1", 40_000), "reads 1 to 32,768 tokens, not 40,000"),
        ("a", "exposes", ("deepseek-v3", 1), "keeps a latent vector"),
        ("a", "exposes", ("mistral-8b", 1), "SHAPES has no 'mistral-8b'"),
        ("a", "exposes", "qwen3-0.6b", "give a pair"),
        ("a", "exposes", ("qwen3-0.6b", 4096.0), "give a pair"),
        ("a", "exposes", ("qwen3-0.6b", True), "give a pair"),
        ("a", "exposes", ("qwen3-0.6b", 0), "reads 1 to 40,960 tokens"),
        ("a", "exposes", None, "give a pair"),
    ],
)
def test_a_weak_model_is_told_why(key, what, value, part):
    answer = calculators.GOOD | {key: calculators.GOOD[key] | {what: value}}
    verdict = check("06.calculators", answer)
    assert verdict.status == "failed" and part in verdict.message and f"`{key}` {what}" in verdict.message, verdict


def test_the_calculators_in_the_notebook_are_those_that_are_run():
    cells = {c.id: c.source for c in nbformat.read(SOLUTION, as_version=4).cells}
    printed = "\n\n\n".join([cells["calculators-code"], cells["calculators-more"]]).split("\n\n\n")
    for text, function in zip(
        printed, (calculators.kept, *(c.wrong for c in calculators.CALCULATOR.values())), strict=True
    ):
        body = [line for line in inspect.getsource(function).splitlines()[1:] if '"""' not in line]
        assert text.splitlines()[1:] == body and text.startswith(f"def {function.__name__}(shape")


def test_every_bug_is_silent_on_a_model_that_is_no_small_case():
    for key, calculator in calculators.CALCULATOR.items():
        for what, same in (("exposes", False), ("hides", True)):
            name, kv_len = calculators.GOOD[key][what]
            shape = SHAPES[name]
            assert (calculator.wrong(shape, kv_len) == calculators.right(shape, kv_len)) is same


def test_an_entry_without_its_two_keys_is_told_so():
    assert '"b" needs a dict' in check("06.calculators", calculators.GOOD | {"b": ("llama-2-7b", 1)}).message
    assert check("06.calculators", calculators.GOOD | {"b": {"exposes": ..., "hides": ...}}).status == "not attempted"


# ---- 06.choose -----------------------------------------------------------------------------------


def chosen(n_kv_heads, size=2, reason="four chats fit and the step is fast", **changed):
    numbers = choose.PRODUCT | {"n_kv_heads": n_kv_heads, "bytes_per_element": size}
    choice = {"n_kv_heads": n_kv_heads, "bytes_per_element": size, "reason": reason}
    return choice | choose.right(numbers) | changed


def test_the_table_of_chats_by_memory():
    fits = {g: chosen(g)["chats"] for g in choose.CHOICES}
    assert fits == {40: 0, 10: 2, 8: 2, 5: 4, 2: 10, 1: 21}
    assert f"{chosen(5)['ms_per_token']:.1f}" == "20.6" and chosen(8, 1)["chats"] == 5


@pytest.mark.parametrize(
    "n_kv_heads, size, part",
    [
        (5, 2, "4 chats fit and a step takes 20.6 ms: the product is met. What happens when one"),
        (2, 2, "What does lesson 07 say"),
        (1, 2, "What does lesson 07 say"),
        (8, 2, "2 chats fit, 4 are wanted and 27.9 ms, 25 are wanted. With a one-byte cache it would be met"),
        (10, 2, "do not meet the product"),
        (40, 2, "no chats fit, 4 are wanted and 106 ms, 25 are wanted. Notice"),
        (40, 1, "1 chat fits, 4 are wanted"),
        (8, 1, "5 chats fit and a step takes 18.1 ms"),
        (10, 1, "4 chats fit"),
        (5, 1, "What does a one-byte cache cost?"),
    ],
)
def test_every_choice_with_right_numbers_passes_with_its_own_reply(n_kv_heads, size, part):
    verdict = check("06.choose", chosen(n_kv_heads, size))
    assert verdict and part in verdict.message, verdict


@pytest.mark.parametrize(
    "answer, part",
    [
        (chosen(5, bytes_per_token=102_401), "`bytes_per_token`: 102401 is not right"),
        (chosen(5, bytes_per_token=819_200), "Count your KV heads"),
        (chosen(5, bytes_per_token=163_840), "group_size"),
        (chosen(5, bytes_per_token=51_200), "Half of it"),
        (chosen(5, chats=7), "Where are the weights?"),
        (chosen(5, chats=5), "10% were to stay free"),
        (chosen(5, chats=4.3), "Only whole chats"),
        (chosen(5, ms_per_token=11.4), "One chat"),
        (chosen(5, ms_per_token=45.7), "One read of the weights serves all four"),
        (chosen(5, ms_per_token=12.2), "Both come through the same wire"),
        (chosen(5, ms_per_token=5.15), "Every chat waits"),
        (chosen(5, ms_per_token=0.0206), "seconds"),
        (chosen(4), "`n_kv_heads`: choose one of"),
        (chosen(5) | {"n_kv_heads": 7}, "`n_kv_heads`: choose one of"),
        (chosen(5) | {"n_kv_heads": "5"}, "`n_kv_heads`: choose one of"),
        (chosen(5) | {"bytes_per_element": 4}, "`bytes_per_element`"),
        (chosen(5, reason="fast"), "`reason`"),
        (chosen(5, reason=5), "`reason`"),
        (chosen(5) | {"chats": object()}, "neither"),
        ([5, 2], "Hand over a dict"),
    ],
)
def test_a_choice_with_wrong_numbers_is_told_which(answer, part):
    verdict = check("06.choose", answer)
    assert verdict.status == "failed" and part in verdict.message, verdict


@pytest.mark.parametrize("blank", [{}, chosen(5) | {"reason": ""}, chosen(5) | {"chats": ...}, {"n_kv_heads": 5}])
def test_a_choice_not_yet_made_is_not_attempted(blank):
    assert check("06.choose", blank).status == "not attempted"
