"""Lesson 10: right answers in every form pass, wrong ones are named, what is quoted is what the library computes."""

import re
import statistics
from pathlib import Path

import nbformat
import numpy as np
import pytest

from gqa_lab import costs
from gqa_lab.checks import case, check
from gqa_lab.checks.engine import EXERCISES, PREDICTIONS
from gqa_lab.checks.kv_cache_profiler import fit as fitting
from gqa_lab.checks.kv_cache_profiler import product as products
from gqa_lab.checks.kv_cache_profiler import review, triage, triage_cards, whatif
from gqa_lab.config import divisors
from gqa_lab.costs import GPUS, SHAPES, with_kv_heads
from gqa_lab.profiler import fit_line
from gqa_lab.profiler.fit import Fit
from gqa_lab.recorded import recorded

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # the checks hand over wrong types on purpose
READ, FIT, WHATIF, TRIAGE, REVIEW = (EXERCISES[f"10.{n}"] for n in ("read", "fit", "whatif", "triage", "review"))
SOLUTION = Path(__file__).parents[1] / "solutions" / "10_kv_cache_profiler.ipynb"


# ---- the predictions -----------------------------------------------------------------------------


def reply(prediction: str, letter: str) -> str:
    return PREDICTIONS[f"10.{prediction}"].options[letter][1]


def test_the_numbers_of_the_predictions_are_what_the_library_computes():
    smollm2, llama = SHAPES["smollm2-135m"], SHAPES["llama-3.1-8b"]
    assert f"{1250 / (3 * 8192):.0%}, {1000 / 8192:.0%}, {1250 / 3000:.0%}" == "5%, 12%, 42%"
    assert sum(5000 * turn for turn in range(1, 21)) == 1_050_000
    chat = dict(batch_size=1, kv_len=100_000, bytes_per_element=2)
    sent = [costs.kv_cache_bytes(with_kv_heads(llama, g), **chat) / 50e9 for g in (8, 32)]
    assert [f"{s:.2f}" for s in sent] == ["0.26", "1.05"] and "0.26 s" in reply("p3", "c")
    gpu = GPUS["h100-sxm"]
    again = costs.prefill_s(llama, gpu, batch_size=1, q_len=100_000, share_of_peak=0.5)
    assert f"{again:.1f}" == "8.1" and "about 8" in reply("p3", "c")
    flops = [costs.prefill_flops(with_kv_heads(llama, g), batch_size=1, q_len=100_000) for g in (8, 32)]
    assert f"{1 - flops[0] / flops[1]:.0%}" == "4%" and f"{flops[0] / 1e15:.1f}" == "4.0"
    cache = costs.kv_cache_bytes(smollm2, batch_size=1, kv_len=8189, bytes_per_element=4)
    weights = costs.weight_bytes_read(smollm2, bytes_per_element=4)
    assert [f"{n / 1e6:.0f}" for n in (cache, cache + weights, cache * 2 / 3)] == ["377", "915", "252"]
    rows = recorded("profile_kv_heads")["results"]
    of_3, of_1 = (next(r["seconds"] for r in rows if (r["n_kv_heads"], r["kv_len"]) == (g, 8189)) for g in (3, 1))
    line = Fit(**recorded("profile_smollm2")["fit"])
    by_line = [line.seconds(weights + n) for n in (cache, cache / 3)]
    assert [f"{1000 * s:.0f}" for s in (of_3, of_1, by_line[1])] == ["105", "79", "68"]
    assert [f"{b / a:.2f}" for a, b in ((of_3, of_1), by_line)] == ["0.75", "0.66"]


# ---- 10.read -------------------------------------------------------------------------------------

NUMBERS = {
    "capacity_bytes": 503_316_480,
    "used_bytes": 71_270_400,
    "occupancy_percent": 14.2,
    "wasted_bytes": 432_046_080,
    "copied": False,
}


def test_the_profile_on_paper_is_what_the_library_computes():
    numbers, shape = case("10.read"), SHAPES["smollm2-360m"]
    assert all(numbers[x] == getattr(shape, x) for x in ("n_layers", "n_heads", "n_kv_heads", "head_dim"))
    used = sum(costs.kv_cache_bytes(shape, batch_size=1, kv_len=n, bytes_per_element=2) for n in numbers["tokens"])
    held = costs.kv_cache_bytes(shape, batch_size=3, kv_len=4096, bytes_per_element=2)
    assert READ.right(numbers)["used_bytes"] == used == numbers["kv_read_bytes"]
    assert READ.right(numbers)["capacity_bytes"] == held
    assert check("10.read", NUMBERS) and check("10.read", NUMBERS | {"occupancy_percent": 14.16, "copied": np.False_})


@pytest.mark.parametrize(
    "key, value, part",
    [
        ("capacity_bytes", 15_728_640, "One layer"),
        ("capacity_bytes", 167_772_160, "`capacity_bytes`: One sequence. The buffer holds 3 of them.\n"),
        ("capacity_bytes", 100_663_296, "`capacity_bytes`: That is one KV head.\n"),
        ("capacity_bytes", 1_509_949_440, "n_heads"),
        ("capacity_bytes", 251_658_240, "Half of it"),
        ("capacity_bytes", 1_006_632_960, "Twice too much"),
        ("capacity_bytes", 12_288, "These are slots"),
        ("capacity_bytes", 503.3, "These are MB"),
        ("capacity_bytes", 0.503, "These are GB"),
        ("capacity_bytes", 503_316_481, "503316481 is not right"),
        ("used_bytes", 1740, "These are tokens"),
        ("used_bytes", 49_152_000, "Only the longest"),
        ("used_bytes", 147_456_000, "as long as the longest"),
        ("used_bytes", 71_393_280, "after the step"),
        ("used_bytes", 71_147_520, "The new tokens count too"),
        ("used_bytes", 503_316_480, "That is what was allocated"),
        ("used_bytes", 570_163_200, "bits are not bytes"),
        ("occupancy_percent", 29.3, "Only the longest"),
        ("occupancy_percent", 48.3, "divided by the longest"),
        ("occupancy_percent", 42.5, "slots of one sequence"),
        ("occupancy_percent", 0.1416, "share of 1"),
        ("occupancy_percent", 85.8, "stands empty"),
        ("occupancy_percent", 706, "Upside down"),
        ("wasted_bytes", 454_164_480, "Only the longest"),
        ("wasted_bytes", 503_316_480, "all that was allocated"),
        ("wasted_bytes", 85.8, "a share, in percent"),
        ("wasted_bytes", 10_548, "These are slots"),
        ("wasted_bytes", 432_000_000, "What was allocated and holds no token"),
        ("occupancy_percent", 14, "whole percents are too coarse"),
        ("copied", True, "A copy would be written"),
        ("copied", "no", "write True or False, without quotes"),
        ("copied", 0, "True or False."),
    ],
)
def test_wrong_numbers_of_a_profile_are_named(key, value, part):
    case("10.read")
    verdict = check("10.read", NUMBERS | {key: value})
    assert not verdict and part in verdict.message and "Right: " in verdict.message, verdict


def test_drawn_profiles_copy_expand_or_read_empty_slots_and_only_writing_tells():
    seen = set()
    for seed in range(1, 100):
        numbers = READ.draw(seed)
        right = READ.right(numbers)
        read_more = numbers["kv_read_bytes"] > right["used_bytes"]
        seen.add((right["copied"], read_more))
        [diagnosis] = [m.diagnosis for m in READ.mistakes(numbers) if m.name == "copied"]
        assert ("empty slots are read as well" in diagnosis) == (read_more and not right["copied"])
        if right["copied"]:
            assert numbers["kv_read_bytes"] == right["used_bytes"] + numbers["kv_written_bytes"] - _new(numbers)
    assert seen == {(False, False), (True, True), (False, True)}


def _new(numbers) -> int:
    sizes = (numbers[x] for x in ("n_layers", "n_kv_heads", "head_dim", "bytes_per_element"))
    return 2 * int(np.prod(list(sizes))) * len(numbers["tokens"])


# ---- 10.fit --------------------------------------------------------------------------------------


def by_polyfit(read_bytes, seconds, ceiling_bytes_per_s):
    kept = read_bytes / seconds <= ceiling_bytes_per_s
    slope, t0_s = np.polyfit(read_bytes[kept], seconds[kept], 1)
    return t0_s, 1 / slope


def by_lstsq(read_bytes, seconds, ceiling_bytes_per_s):
    kept = np.flatnonzero(read_bytes <= ceiling_bytes_per_s * seconds)
    a = np.stack([np.ones(len(kept)), read_bytes[kept] / 1e6], axis=1)
    t0_s, per_mb = np.linalg.lstsq(a, seconds[kept], rcond=None)[0]
    return [t0_s, 1e6 / per_mb]


def by_normal_equations(x, t, ceiling):
    pairs = [(a, b) for a, b in zip(x, t, strict=True) if a / b < ceiling]
    n, sx, st = len(pairs), sum(a for a, _ in pairs), sum(b for _, b in pairs)
    sxx, sxt = sum(a * a for a, _ in pairs), sum(a * b for a, b in pairs)
    slope = (n * sxt - sx * st) / (n * sxx - sx * sx)
    return (st - slope * sx) / n, 1 / slope


def by_statistics(x, t, ceiling):
    kept = [i for i in range(len(x)) if x[i] / t[i] <= ceiling]
    line = statistics.linear_regression(x[kept], t[kept])
    return line.intercept, 1 / line.slope


def by_polynomial(x, t, ceiling):
    kept = x / t <= ceiling
    t0_s, slope = np.polynomial.Polynomial.fit(x[kept], t[kept], 1).convert().coef
    return np.array([t0_s, 1 / slope])


def as_the_package(x, t, ceiling):
    """The package's rule flags above 110%."""
    kept = x / t <= 1.1 * ceiling
    covariance = np.cov(x[kept], t[kept])
    slope = covariance[0, 1] / covariance[0, 0]
    return t[kept].mean() - slope * x[kept].mean(), 1 / slope


def sorted_first(x, t, ceiling):
    order = np.argsort(x)
    return by_polyfit(x[order], t[order], ceiling)


RIGHT_FITS = [
    by_polyfit, by_lstsq, by_normal_equations, by_statistics, by_polynomial, as_the_package, sorted_first
]  # fmt: skip


@pytest.mark.parametrize("function", RIGHT_FITS)
def test_every_right_fit_passes(function):
    verdict = check("10.fit", function)
    assert verdict and "Notice" in verdict.message, verdict


def test_the_reference_is_the_librarys_line_and_the_three_points_are_those_of_the_task():
    for round_ in (0, 1):
        for one in FIT.cases(round_):
            read_bytes, seconds, ceiling = one.args
            line = fit_line(list(read_bytes), list(seconds), ceiling_bytes_per_s=ceiling)
            assert np.allclose(fitting.fit(*one.args), (line.t0_s, line.bytes_per_s))
            assert set(line.flagged) == set(np.flatnonzero(~fitting.honest(*one.args)))
    t0_s, bytes_per_s = fitting.fit(*FIT.cases(0)[0].args)
    assert round(1000 * t0_s, 6) == 1 and f"{bytes_per_s / 1e9:.1f}" == "33.3"


def theil_sen(x, t, ceiling):
    kept = x / t <= ceiling
    x, t = x[kept], t[kept]
    slopes = [(t[j] - t[i]) / (x[j] - x[i]) for i in range(len(x)) for j in range(i)]
    slope = np.median(slopes)
    return np.median(t - slope * x), 1 / slope


def quadratic(x, t, ceiling):
    kept = x / t <= ceiling
    _, slope, t0_s = np.polyfit(x[kept], t[kept], min(2, kept.sum() - 1))
    return t0_s, 1 / slope


def by_log(x, t, ceiling):
    kept = x / t <= ceiling
    power, at_1 = np.polyfit(np.log(x[kept]), np.log(t[kept]), 1)
    return np.exp(at_1), 1 / power


def weighted(x, t, ceiling):
    kept = x / t <= ceiling
    slope, t0_s = np.polyfit(x[kept], t[kept], 1, w=1 / t[kept])
    return t0_s, 1 / slope


def inverted(x, t, ceiling):
    kept = x / t > ceiling
    slope, t0_s = np.polyfit(x[kept], t[kept], 1)
    return t0_s, 1 / slope


def the_fastest_dropped(x, t, ceiling):
    kept = np.arange(len(x)) != np.argmax(x / t)
    return by_polyfit(x[kept], t[kept], np.inf)


def through_its_ends(x, t, ceiling):
    kept = x / t <= ceiling
    (x1, *_, x2), (t1, *_, t2) = x[kept], t[kept]
    return t1 - x1 * (t2 - t1) / (x2 - x1), (x2 - x1) / (t2 - t1)


def no_t0(x, t, ceiling):
    return by_polyfit(x, t, ceiling)[1]


UNLISTED_FITS = {
    "median of slopes": theil_sen,
    "quadratic": quadratic,
    "powers": by_log,
    "weighted": weighted,
    "only the bandwidth": no_t0,
    "a dict": lambda x, t, c: {"t0_s": 0.001, "bytes_per_s": 33e9},
    "the ceiling": lambda x, t, c: (by_polyfit(x, t, c)[0], c),
    "rounded": lambda x, t, c: (round(by_polyfit(x, t, c)[0], 3), round(by_polyfit(x, t, c)[1], -9)),
    "t0 never below 2 ms": lambda x, t, c: (max(0.002, by_polyfit(x, t, c)[0]), by_polyfit(x, t, c)[1]),
    "GiB": lambda x, t, c: (by_polyfit(x, t, c)[0], by_polyfit(x, t, c)[1] * 1e9 / 2**30),
    "bits": lambda x, t, c: (by_polyfit(x, t, c)[0], by_polyfit(x, t, c)[1] * 8),
    "of the last three": lambda x, t, c: by_polyfit(x[-3:], t[-3:], c),
    "constant": lambda x, t, c: (0.001, 33.3e9),
    "no ceiling": lambda x, t: by_polyfit(x, t, np.inf),
    "the package's": lambda x, t, c: fit_line(list(x), list(t)),
}


@pytest.mark.parametrize("name", UNLISTED_FITS)
def test_a_wrong_fit_that_is_not_listed_is_rejected_and_not_misnamed(name):
    verdict = check("10.fit", UNLISTED_FITS[name])
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in FIT.mistakes), verdict


@pytest.mark.parametrize(
    "function, part",
    [
        (lambda x, t, c: (0.0, np.mean(x / t)), "the fixed cost hides in it"),
        (lambda x, t, c: (0, (x @ x) / (x @ t)), "A line through zero"),
        (lambda x, t, c: (0, sum(x) / sum(t)), "All bytes over all seconds"),
        (lambda x, t, c: np.polyfit(x, t, 1), "Hand back t0 first, then the bandwidth. Your second number"),
        (lambda x, t, c: np.polyfit(x, t, 1)[::-1], "seconds per byte"),
        (lambda x, t, c: by_polyfit(x, t, np.inf), "stayed in the CPU's cache"),
        (lambda x, t, c: by_polyfit(x, t, c)[::-1], "Hand back t0 first"),
        (lambda x, t, c: np.array(by_polyfit(x, t, c)) * (1000, 1e-9), "no milliseconds, no GB"),
        (lambda x, t, c: by_polyfit(x[1:], t[1:], np.inf), "whatever it is"),
        (no_t0, "it should return two numbers, (t0_s, bytes_per_s)"),
        (UNLISTED_FITS["a dict"], "it should return two numbers"),
        (UNLISTED_FITS["the package's"], "That is the package's"),
        (theil_sen, "Least squares: all points that are left count alike"),
        (lambda x, t, c: (max(0, by_polyfit(x, t, c)[0]), by_polyfit(x, t, c)[1]), "Your t0 never falls below zero"),
        (lambda x, t, c: by_polyfit(x, np.maximum(t, x / c), np.inf), "You moved the fast points onto the ceiling"),
        (inverted, "the other way round"),
        (the_fastest_dropped, "You leave out the fastest point"),
        (through_its_ends, "through two of the points"),
        (lambda x, t, c: (by_polyfit(x, t, c)[0], min(c, by_polyfit(x, t, c)[1])), "You cap the bandwidth"),
        (lambda x, t, c: x.sort() or by_polyfit(x, t, c), "Your function changed `read_bytes`"),
    ],
)
def test_a_wrong_fit_is_named_however_it_is_written(function, part):
    verdict = check("10.fit", function)
    assert verdict.status == "failed" and part in verdict.message, verdict


# ---- 10.whatif -----------------------------------------------------------------------------------


def by_parts(t0_ms, bandwidth_gb_per_s, weight_mb, kv_mb, n_kv_heads, new_n_kv_heads):
    per_head = kv_mb / n_kv_heads
    return t0_ms + weight_mb / bandwidth_gb_per_s + per_head * new_n_kv_heads / bandwidth_gb_per_s


def by_difference(t0, bw, w, kv, g, new):
    return t0 + (w + kv) / bw + (new / g - 1) * kv / bw


def in_seconds_first(t0, bw, w, kv, g, new):
    seconds = t0 / 1e3 + (w * 1e6 + kv * 1e6 * new / g) / (bw * 1e9)
    return np.float64(1e3 * seconds)


def kv_times_first(t0, bw, w, kv, g, new):
    return t0 + (w + (kv * new) / g) / bw


@pytest.mark.parametrize("function", [by_parts, by_difference, in_seconds_first, kv_times_first])
def test_every_right_estimate_passes(function):
    assert check("10.whatif", function), check("10.whatif", function)


def test_the_estimates_of_the_task():
    ms = [f"{whatif.predicted(1, 33.3, 538, 46.08, 3, new):.1f}" for new in (3, 9, 1)]
    assert ms == ["18.5", "21.3", "17.6"] and all(number in WHATIF.notice for number in ms)
    six, four = (whatif.predicted(2.0, 25.0, 90.0, 755.0, 6, new) for new in (6, 4))
    assert f"{1 - four / six:.0%}" == "28%" and "28%" in WHATIF.notice.replace("\n", " ")


UNLISTED_ESTIMATES = {
    "root": lambda t, bw, w, k, g, n: t + (w + k * (n / g) ** 0.5) / bw,
    "square": lambda t, bw, w, k, g, n: t + (w + k * (n / g) ** 2) / bw,
    "ceiling": lambda t, bw, w, k, g, n: t + (w + k * -(-n // g)) / bw,
    "subtracted": lambda t, bw, w, k, g, n: t + (w - k * n / g) / bw,
    "t0 twice": lambda t, bw, w, k, g, n: 2 * t + (w + k * n / g) / bw,
    "t0 divided": lambda t, bw, w, k, g, n: (t + w + k * n / g) / bw,
    "bits": lambda t, bw, w, k, g, n: t + 8 * (w + k * n / g) / bw,
    "a constant": lambda t, bw, w, k, g, n: 18.5,
    "a list": lambda t, bw, w, k, g, n: [t + (w + k * n / g) / bw],
    "text": lambda t, bw, w, k, g, n: "18.5",
    "nothing": lambda t, bw, w, k, g, n: print("done"),
    "projections too": lambda t, bw, w, k, g, n: t + (0.9 * w + 0.1 * w * n / g + k * n / g) / bw,
    "rounded": lambda t, bw, w, k, g, n: round(t + (w + k * n / g) / bw, 1),
}


@pytest.mark.parametrize("name", UNLISTED_ESTIMATES)
def test_a_wrong_estimate_that_is_not_listed_is_rejected_and_not_misnamed(name):
    verdict = check("10.whatif", UNLISTED_ESTIMATES[name])
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in WHATIF.mistakes), verdict


@pytest.mark.parametrize(
    "function, part",
    [
        (lambda t, bw, w, k, g, n: (t + (w + k) / bw) / g * n, "Everything was scaled"),
        (lambda t, bw, w, k, g, n: t + w / bw + k / bw * (g / n), "fewer heads, more time?"),
        (lambda t, bw, w, k, g, n: t + w / bw + k * (n // g) / bw, "1 // 3 is 0"),
        (lambda t, bw, w, k, g, n: t + (w + k // (g // n)) / bw, "ZeroDivisionError"),
        (lambda t, bw, w, k, g, n: w / bw + k * n / g / bw, "t0 is missing"),
        (lambda t, bw, w, k, g, n: 1000 / (t + (w + k * n / g) / bw), "tokens per second"),
        (lambda t, bw, w, k, g, n: max(0, t) + (w + k * n / g) / bw, "Your t0 never falls below zero"),
        (lambda t, bw, w, k, g, n: t + (w + k * min(n / g, 1)) / bw, "Your cache can only shrink"),
        (lambda t, bw, w, k, g, n: t + (w + k * n / g) * 1024**2 / 1e6 / bw, "powers of 1,024"),
        (lambda t, bw, w, k, g, n: t + (w + k * n / g) / (bw * 2**30 / 1e9) * 2**20 / 1e6, "powers of 1,024"),
        (UNLISTED_ESTIMATES["rounded"], "was it rounded?"),
        (UNLISTED_ESTIMATES["root"], "Without any cache the step takes"),
    ],
)
def test_a_wrong_estimate_is_named_however_it_is_written(function, part):
    verdict = check("10.whatif", function)
    assert verdict.status == "failed" and part in verdict.message, verdict


# ---- 10.triage -----------------------------------------------------------------------------------


def test_every_card_speaks_about_every_other_place():
    for card in triage.CARDS.values():
        assert card.test in triage.TESTS and set(card.places) | set(card.wrong) == set(triage.PLACES)
        assert not set(card.places) & set(card.wrong)
    assert {card.test for card in triage.CARDS.values()} == set(triage.TESTS)
    assert {place for card in triage.CARDS.values() for place in card.places} == set(triage.PLACES)


@pytest.mark.parametrize("letter", triage.CARDS)
def test_every_right_place_of_a_card_passes(letter):
    card = triage.CARDS[letter]
    for place in card.places:
        assert check("10.triage", TRIAGE.right | {letter: (card.test.upper(), f" {place}")})


def test_the_page_shows_cards_tests_and_places_and_no_answers():
    text = repr(triage_cards())
    for shown in (*(card.symptom for card in triage.CARDS.values()), *triage.TESTS, *triage.PLACES):
        assert shown in text
    assert not any(sentence in text for card in triage.CARDS.values() for sentence in (card.look, *card.wrong.values()))


@pytest.mark.parametrize(
    "change, part",
    [
        ({"b": ("count", "model")}, "Prefill is compute-bound"),
        ({"e": ("short", "model")}, "A short context is lost, too: sharing is not the cause"),
        ({"a": ("bytes", "model")}, '"bytes" does not tell here, or costs more'),
        ({"a": ("bytes", "data")}, 'leaves. "bytes" does not tell'),
        ({"a": ("model", "time")}, "First the test, then the place"),
        ({"a": "model"}, "write a pair of words"),
        ({"a": ("time",)}, "write a pair of words"),
        ({"a": ("time", 3)}, "write a pair of words"),
        ({"a": ("stopwatch", "model")}, "there is no test 'stopwatch'"),
        ({"a": ("time", "hardware")}, "there is no place 'hardware'"),
        ({"c": ("bytes", "model"), "g": ("degree", "model")}, "Right: `a`, `b`, `d`, `e`, `f`, `h`."),
        ({"h": {1}}, "neither"),
    ],
)
def test_a_wrong_card_is_told_why(change, part):
    verdict = check("10.triage", TRIAGE.right | change)
    assert verdict.status == "failed" and part in verdict.message, verdict


@pytest.mark.parametrize(
    "answer", [{}, {"a": ("time", "model")}, TRIAGE.right | {"h": (None, None)}, TRIAGE.right | {"h": ...}]
)
def test_cards_not_yet_placed_are_not_attempted(answer):
    assert check("10.triage", answer).status == "not attempted"


# ---- 10.review -----------------------------------------------------------------------------------


def page(n_kv_heads=4, **changed):
    return review.example(products.draw(0), n_kv_heads) | changed


def test_the_products_numbers_are_what_the_library_computes():
    product = case("10.review")
    sizes = {name: product[name] for name in ("n_layers", "d_model", "n_heads", "head_dim")}
    for g in divisors(product["n_heads"]):
        shape = costs.ModelShape(
            name="unseen", n_kv_heads=g, d_ff=1, vocab_size=1, max_seq_len=10**6, source="a test", **sizes
        )
        numbers = products.right(product | {"n_kv_heads": g, "bytes_per_element": 2, "price_per_hour": 4.0})
        chat = costs.kv_cache_bytes(shape, batch_size=1, kv_len=product["tokens_per_agent"], bytes_per_element=2)
        assert numbers["bytes_per_token"] == costs.kv_bytes_per_token(shape, bytes_per_element=2)
        assert numbers["chat_gb"] == chat / 1e9
        step_s = (34e9 + 14 * chat) / 4800e9
        assert np.isclose(numbers["ms_per_token"], 1000 * step_s)
        assert np.isclose(14 * numbers["crossover_tokens"] * numbers["bytes_per_token"], 34e9)
        assert np.isclose(numbers["cost_per_million"], 4 / 3600 * step_s * 1e6 / 14)
    gpu = GPUS["h200"]
    assert (product["card_gb"], product["bandwidth_gb_per_s"]) == (
        gpu.memory_bytes / 1e9,
        gpu.bandwidth_bytes_per_s / 1e9,
    )


def test_what_the_solution_says_of_the_first_product():
    numbers = {g: products.right(products.draw(0) | {"n_kv_heads": g, "bytes_per_element": b, "price_per_hour": 4.0})
               for g, b in ((4, 2), (6, 1))}  # fmt: skip
    assert (numbers[4]["chats"], f"{numbers[4]['ms_per_token']:.1f}", numbers[4]["bytes_per_token"]) == (
        16,
        "20.9",
        78_848,
    )
    assert f"{numbers[4]['crossover_tokens']:,.0f}" == "30,801" and f"{numbers[4]['cost_per_million']:.2f}" == "1.66"
    assert (numbers[6]["chats"], f"{numbers[6]['ms_per_token']:.1f}") == (22, "17.4")
    assert page(6)["chats"] == 11 and products.meets(products.draw(0), 4) and not products.meets(products.draw(0), 6)


@pytest.mark.parametrize("seed", range(20))
def test_a_page_about_any_product_passes_with_a_choice_that_meets_it_and_no_other(seed):
    product = case("10.review", seed)
    heads = divisors(product["n_heads"])
    best = max(g for g in heads if products.meets(product, g))
    met = check("10.review", review.example(product, best))
    assert met and "No more KV heads would meet it at 2 bytes an element." in met.message, met
    missed = check("10.review", review.example(product, product["n_heads"]))
    assert not missed and "Numbers right. But the choice does not meet the product" in missed.message
    fewer = check("10.review", review.example(product, 1))
    assert fewer and f"{best} KV heads would meet it, too: why fewer?" in fewer.message
    case("10.review")


def test_a_one_byte_cache_a_price_of_ones_own_and_a_first_token_a_tenth_sooner_pass():
    chosen = {"n_kv_heads": 6, "bytes_per_element": 1, "price_per_hour": 2}
    answer = page(6) | chosen | products.right(products.draw(0) | chosen) | {"first_token_speedup": 1.09}
    verdict = check("10.review", answer)
    assert verdict and "What does a one-byte cache cost?" in verdict.message, verdict


@pytest.mark.parametrize(
    "answer, part",
    [
        (page(bytes_per_token=946_176), "all query heads"),
        (page(bytes_per_token=236_544), "group_size"),
        (page(bytes_per_token=90_112), "head_dim as d_model / n_heads = 128"),
        (page(bytes_per_token=39_424), "Half of it"),
        (page(bytes_per_token=78_847), "78847 is not right"),
        (page(chat_gb=4.406), "another unit"),
        (page(chat_gb=66.2), "Give one"),
        (page(chats=23), "Where are the weights?"),
        (page(chats=22), "A part of the card was to stay free"),
        (page(chats=18), "not of what the weights leave"),
        (page(chats=16.66), "Only whole chats"),
        (page(chats=17), "Rounded up"),
        (
            page(48),
            "Numbers right. But the choice does not meet the product: 1 chat of 14 fit and 173 ms instead of 40.",
        ),
        (page(8), "does not meet the product: 8 chats of 14 fit."),
        (page(8, stop_rule="stop at 2"), "`stop_rule`: too short to act on; write a sentence.\nNumbers right. But"),
        (page(first_token_speedup=1.3), "at equal weights"),
        (page(ms_per_token=8.07), "All agents' caches"),
        (page(ms_per_token=113.0), "One read of the weights"),
        (page(ms_per_token=13.80), "add"),
        (page(ms_per_token=1.492), "waits for the whole step"),
        (page(ms_per_token=0.0209), "seconds"),
        (page(crossover_tokens=431_209), "own a cache each"),
        (page(crossover_tokens=2567), "MHA's crossover"),
        (page(first_token_speedup=12), "the arithmetic of the prompt does not"),
        (page(first_token_speedup=0.5), "How many times sooner"),
        (page(cost_per_million=23.2), "a token for every agent"),
        (page(cost_per_million=5966.2), "The price is for an hour"),
        (page(cost_per_million=1.657e-06), "Give a million"),
        (page(table_for="deepseek2-8"), "That speaks against fewer KV heads"),
        (page(table_against="llama2-18"), "That speaks for fewer KV heads"),
        (page(table_against="deepseek2-9"), "does not compare the quality"),
        (page(table_for="my own"), "take one of gqa-1"),
        (page(n_kv_heads=5), "choose a number that divides 48"),
        (page() | {"n_kv_heads": "4"}, "choose a number that divides 48"),
        (page(bytes_per_element=4), "`bytes_per_element`"),
        (page(price_per_hour=0), "`price_per_hour`"),
        (page(signals_help=page()["signals_help"][:2]), "2 of at least 3"),
        (page(signals_harm=[("recall", "worse", "go back to MHA")] * 2), "A threshold is a number"),
        (page(signals_harm=[("ms per token", "p90 as before", "go back")] * 2), "A threshold is a number"),
        (page(signals_harm=[("recall", "under 90", "hm")] * 2), "and what do you do then?"),
        (page(signals_harm=[("recall", "under 90", "go back")] * 2), "stands there twice"),
        (page(signals_harm=[page()["signals_help"][0], ("recall", "under 90", "go back")]), "stands there twice"),
        (page(signals_help="memory, time, bytes"), "write a list of triples"),
        (page(signals_help=[("memory", "80 GB")] * 3), "signal 1 is no triple"),
        (
            page(signals_help=[("agents at once", 14, "keep it")]),
            "14 is no text; write 'threshold with a number' in quotes",
        ),
        (page(stop_rule="when it gets too bad we stop it"), "A rule without one stops nobody"),
        (page(stop_rule="In 2026 we will see."), "A rule without one stops nobody"),
        (page(stop_rule="90"), "too short to act on"),
        (page(not_measured="recall"), "`not_measured`: too short to act on; write a sentence.\nNumbers right."),
        (page(test_to_run="run a benchmark"), "`test_to_run`: too short to act on"),
        (page(test_to_run=7), "`test_to_run`: no text; write a sentence"),
        (page(chats=object()), "neither"),
        ([4, 2], "Hand over a dict"),
    ],
)
def test_a_page_with_a_gap_or_a_wrong_number_is_told_which(answer, part):
    case("10.review")
    verdict = check("10.review", answer)
    assert verdict.status == "failed" and part in verdict.message, verdict


@pytest.mark.parametrize(
    "changed",
    [
        dict(stop_rule="Drop it if more than two facts are lost"),
        dict(signals_help=[("agents at once", "fourteen", "keep"), *page()["signals_help"][1:]]),
        dict(signals_harm=[("recall", "under 90", "rollback"), ("jumps of the loss", "1 in 1,000", "stop")]),
        dict(first_token_speedup=1.16),
        dict(first_token_speedup=1.2),
    ],
)
def test_a_number_in_words_an_action_of_one_word_and_narrower_projections_pass(changed):
    case("10.review")
    assert check("10.review", page(**changed)), check("10.review", page(**changed))


@pytest.mark.parametrize(
    "text",
    "ninety percent, forty, a quarter, a third, half of it, thirteen, a thousand steps, sixty-five, more than one "
    "jump, one percent, one loss jump in a day, 3".split(", "),
)
def test_numbers_in_words_are_numbers(text):
    assert review._has_number(f"Stop at {text}."), text


@pytest.mark.parametrize(
    "text",
    ["when no one likes the answers any more", "at the canteen", "worse than one would like", "if one believes in it",
     "on the one-byte cache", "if it often fails", "when nobody attends", "no one answer is right", "p90 as before",
     "until 2027"],
)  # fmt: skip
def test_words_that_hold_a_number_by_chance_are_none(text):
    assert not review._has_number(f"Stop {text}."), text


@pytest.mark.parametrize(
    "blank",
    [{}, page(stop_rule=" "), page(chats=...), {"n_kv_heads": 4}, page(signals_help=[]),
     page(signals_harm=[("recall", None, "go back"), (None, None, None)])],
)  # fmt: skip
def test_a_page_not_yet_written_is_not_attempted(blank):
    assert check("10.review", blank).status == "not attempted"


def test_a_test_without_seeds_or_far_recall_is_reminded_of_them_and_passes():
    verdict = check("10.review", page(test_to_run="ask a few colleagues whether they like it"))
    assert verdict and "how many seeds or a recall of facts from far back" in verdict.message
    assert "Your test does not say" not in check("10.review", page()).message


def test_the_notebook_lists_every_table_and_says_no_verdict_of_it():
    cells = {cell.id: cell.source for cell in nbformat.read(SOLUTION, as_version=4).cells}
    assert re.findall(r"^\| `([\w-]+)` \|", cells["review-tables"], re.M) == list(
        sorted(review.TABLES, key=cells["review-tables"].index)
    )
    assert set(re.findall(r"^\| `([\w-]+)` \|", cells["review-tables"], re.M)) == set(review.TABLES)
