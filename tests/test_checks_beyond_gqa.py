"""Lesson A2: right answers in every form pass, wrong ones are named, what is quoted is what was computed or recorded."""

import inspect
from pathlib import Path
from statistics import mean

import nbformat
import numpy as np
import pytest

from gqa_lab import costs
from gqa_lab.checks import case, check
from gqa_lab.checks.beyond_gqa import int8, pages, window
from gqa_lab.checks.engine import EXERCISES
from gqa_lab.contract import visible
from gqa_lab.costs import SHAPES
from gqa_lab.recorded import recorded

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # the checks hand over wrong types on purpose
LATENT, INT8, PAGES = (EXERCISES[f"A2.{name}"] for name in ("latent", "int8", "pages"))
SOLUTION = Path(__file__).parents[1] / "solutions" / "A2_beyond_gqa.ipynb"


# ---- A2.latent -----------------------------------------------------------------------------------

DEEPSEEK = {"elements_per_layer": 576, "bytes_per_token": 69_120, "as_kv_heads": 2.25, "times_smaller": 56.9}


def test_the_numbers_on_paper_are_those_of_deepseek_v2():
    shape, numbers = SHAPES["deepseek-v2"], case("A2.latent")
    for name in ("n_layers", "n_heads", "head_dim", "kv_lora_rank", "qk_rope_head_dim"):
        assert getattr(shape, name) == numbers[name]
    assert costs.kv_bytes_per_token(shape, bytes_per_element=2) == DEEPSEEK["bytes_per_token"]
    assert check("A2.latent", DEEPSEEK)


@pytest.mark.parametrize(
    "key, value, part",
    [
        ("elements_per_layer", 512, "The part with the position is missing"),
        ("elements_per_layer", 1152, "latent is kept once"),
        ("elements_per_layer", 1088, "latent is kept once"),
        ("elements_per_layer", 40_960, "the long way"),
        ("elements_per_layer", 73_728, "Nothing is kept per head"),
        ("elements_per_layer", 8704, "share one part with the position"),
        ("elements_per_layer", 32_768, "That is MHA"),
        ("elements_per_layer", 577, "Once, for all heads"),
        ("elements_per_layer", 34_560, "all layers"),
        ("elements_per_layer", 640, "You took head_dim"),
        ("bytes_per_token", 3_932_160, "That is MHA"),
        ("as_kv_heads", 288, "You divided by 2 only"),
        ("times_smaller", 98.2, "share saved in percent"),
        ("times_smaller", 32, "two things are missing"),
        ("bytes_per_token", 34_560, "Each takes 2 bytes"),
        ("bytes_per_token", 1152, "one layer"),
        ("bytes_per_token", 138_240, "bfloat16 takes 2 bytes"),
        ("bytes_per_token", 4_915_200, "the long way"),
        ("bytes_per_token", 61_440, "position is missing"),
        ("bytes_per_token", 552_960, "bits are not bytes"),
        ("as_kv_heads", 4.5, "keeps a key and a value"),
        ("as_kv_heads", 2.0, "position is missing"),
        ("as_kv_heads", 0.444, "Upside down"),
        ("as_kv_heads", 9, "halve"),
        ("times_smaller", 28.4, "Half: MHA keeps a key and a value"),
        ("times_smaller", 71.1, "keys of the long way"),
        ("times_smaller", 64.0, "position is missing"),
        ("times_smaller", 128, "That would be MQA"),
        ("times_smaller", 0.0176, "Upside down"),
    ],
)
def test_wrong_numbers_of_a_latent_are_named(key, value, part):
    case("A2.latent")
    verdict = check("A2.latent", DEEPSEEK | {key: value})
    assert not verdict and part in verdict.message and "Right: " in verdict.message, verdict


# ---- A2.int8 -------------------------------------------------------------------------------------


def by_max(x):
    scale = np.abs(x).max(-1, keepdims=True) / 127
    scale[scale == 0] = 1
    return np.round(x / scale).astype("int8"), scale


def by_loops(x):
    codes, scales = np.zeros(x.shape, np.int8), np.zeros((*x.shape[:2], 1))
    for g in range(x.shape[0]):
        for s in range(x.shape[1]):
            scales[g, s] = scale = max(abs(number) for number in x[g, s]) / 127
            if scale:
                codes[g, s] = [round(number / scale) for number in x[g, s]]
    return codes, scales


def by_half_up(x):
    scale = np.maximum(np.maximum(x.max(2), -x.min(2)) / 127, 1e-30)[:, :, None]
    return np.clip(np.floor(x / scale + 0.5), -127, 127).astype(np.int8), scale


def by_norm(x):
    scale = np.linalg.norm(x, ord=np.inf, axis=-1, keepdims=True) / 127
    with np.errstate(invalid="ignore"):
        codes = np.nan_to_num(x / scale)
    return [np.rint(codes).astype(np.int8), scale]


def by_where(x):
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.round(np.where(scale > 0, x / scale, 0)).astype(np.int8), scale


def by_nan_to_num(x):
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.round(np.nan_to_num(x / scale)).astype(np.int8), scale


@pytest.mark.parametrize("function", [by_max, by_loops, by_half_up, by_norm, by_where, by_nan_to_num])
def test_every_right_form_of_quantise_passes(function):
    verdict = check("A2.int8", function)
    assert verdict and "Notice" in verdict.message, verdict


def by_luck(x):
    scale = np.abs(x).max(-1, keepdims=True) / 127
    with np.errstate(invalid="ignore"):
        return np.round(x / scale).astype(np.int8), scale


def careless(x):
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.round(x / scale).astype(np.int8), scale


def into_place(x):
    scale, codes = np.abs(x).max(-1, keepdims=True) / 127, np.zeros(x.shape, np.int8)
    codes[...] = np.round(x / scale)
    return codes, scale


@pytest.mark.parametrize("function", [careless, by_luck, into_place])
def test_zeros_divided_by_a_scale_of_zero_are_right_by_luck_only(function):
    verdict = check("A2.int8", function)
    assert verdict.status == "failed" and verdict.message.startswith("Right numbers, by luck"), verdict


@pytest.mark.parametrize(
    "scales, part",
    [
        (lambda s, x: s[..., 0], "shape [1, 6] instead of [G, S, 1]: codes · scales does not give x back"),
        (lambda s, x: np.broadcast_to(s, x.shape).copy(), "shape [1, 6, 5] instead of [G, S, 1]: each stands there D"),
    ],
)
def test_scales_of_another_shape_are_told_it_and_what_follows(scales, part):
    verdict = check("A2.int8", changed(scales=scales))
    assert verdict.status == "failed" and part in verdict.message, verdict


def test_one_scale_as_a_plain_number_is_named():
    def one_scale(x):
        scale = np.abs(x).max() / 127
        return np.round(x / scale).astype("int8"), scale

    said = check("A2.int8", one_scale).message
    assert said.startswith("You took one scale for everything."), said


def test_no_sentence_is_said_twice_of_codes_that_are_not_int8():
    said = check("A2.int8", changed(codes=lambda c, x: c.astype(float))).message
    assert said.startswith("Right codes, but not stored as int8") and said.count("as many bytes") == 1, said


def changed(codes=lambda c, x: c, scales=lambda s, x: s):
    def quantise(x):
        c, s = by_max(x.copy())
        return codes(c, x), scales(s, x)

    return quantise


def in_place(x):
    codes, scale = by_max(x)
    x /= scale
    return codes, scale


UNLISTED_INT8 = {
    "codes one too high": changed(codes=lambda c, x: np.clip(c + 1, -127, 127).astype(np.int8)),
    "codes negated": changed(codes=lambda c, x: -c),
    "codes reversed": changed(codes=lambda c, x: c[..., ::-1].copy()),
    "a small constant": changed(scales=lambda s, x: s + 1e-6),
    "scales doubled": changed(scales=lambda s, x: 2 * s),
    "codes moved up": changed(codes=lambda c, x: (c.astype(int) + 128).astype(np.uint8)),
    "a scale of the last token for all": changed(scales=lambda s, x: np.broadcast_to(s[:, -1:], s.shape).copy()),
    "absolute values": lambda x: by_max(np.abs(x)),
    "clipped at 100": changed(codes=lambda c, x: np.clip(c, -100, 100)),
    "codes alone": lambda x: by_max(x.copy())[0],
    "three things": lambda x: (*by_max(x.copy()), 0),
    "lists": lambda x: tuple(part.tolist() for part in by_max(x.copy())),
    "flat": lambda x: tuple(part.reshape(-1) for part in by_max(x.copy())),
    "nothing": lambda x: print("done"),
    "raises on zeros": lambda x: by_max(x) if x.any(-1).all() else by_max(1 / 0),
    "not a number for zeros": lambda x: (by_max(x.copy())[0], np.where(x.any(-1, keepdims=True), by_max(x.copy())[1], np.nan)),
    "in place": in_place,
}  # fmt: skip


@pytest.mark.parametrize("name", UNLISTED_INT8)
def test_a_wrong_quantise_that_is_not_listed_is_rejected_and_not_misnamed(name):
    verdict = check("A2.int8", UNLISTED_INT8[name])
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in INT8.mistakes), verdict


@pytest.mark.parametrize(
    "name, part",
    [
        ("codes alone", "two arrays, (codes, scales)"),
        ("lists", "two arrays, (codes, scales)"),
        ("in place", "changed `x`"),
        ("codes negated", "Code 0 of this token is"),
        ("scales doubled", "The scale of this token is"),
        ("not a number for zeros", "NaN or infinity"),
        ("a small constant", "lost precision"),
        ("raises on zeros", "ZeroDivisionError"),
    ],
)
def test_a_wrong_quantise_is_told_what_is_wrong(name, part):
    assert part in check("A2.int8", UNLISTED_INT8[name]).message, check("A2.int8", UNLISTED_INT8[name])


def test_the_cases_of_int8_can_tell_a_sign_a_scale_and_a_rounding():
    for round_ in (0, 1):
        for one in INT8.cases(round_):
            [x] = one.args
            rows = x[x.any(-1)]
            largest = np.abs(rows).max(-1)
            negative = rows.min(-1) == -largest
            assert negative.any() and (one.sizes["S"] == 1 or not negative.all() or one.sizes["S"] < 2)
            assert one.sizes["S"] == 1 or largest.max() / largest.min() > 100
            codes, scale = int8._right(x)
            assert (np.abs(codes * scale - x) <= scale * 0.5000001).all()
            assert np.abs(codes.astype(int)).max() == 127


# ---- A2.window -----------------------------------------------------------------------------------


def test_the_mask_in_the_notebook_is_the_one_that_is_run_and_the_repaired_one_the_librarys():
    cells = {c.id: c.source for c in nbformat.read(SOLUTION, as_version=4).cells}
    assert cells["window-code"] + "\n" == inspect.getsource(window.window_mask)
    for sizes in ((1, 9, 4), (3, 7, 2), (5, 5, 5), (4, 4, 9), (2, 6, 1)):
        q_len, kv_len, width = sizes
        assert np.array_equal(window._repaired(*sizes), visible(q_len, kv_len, window=width).numpy())
        assert (window.window_mask(*sizes) != window._repaired(*sizes)).any() == (kv_len > width)


@pytest.mark.parametrize(
    "exposing, hiding",
    [((1, 9, 4), (4, 4, 4)), ((5, 5, 1), (1, 8, 8)), ([3, 10, 9], (2, 6, 7)), ((1, 2, 1), (2, 2, 2)), ((4, 4, 3), (1, 3, 5))],
)  # fmt: skip
def test_all_sizes_that_show_and_hide_the_wide_window_pass(exposing, hiding):
    verdict = check("A2.window", {"line": 4, "exposing": exposing, "hiding": hiding})
    assert verdict, verdict


@pytest.mark.parametrize(
    "answer, part",
    [
        ({"line": 3}, "Not line 3."),
        ({"line": 5}, "Not line 5."),
        ({"line": True}, "write the number of one line"),
        ({"exposing": (1, 4, 4)}, "Both versions give the same numbers"),
        ({"exposing": (4, 4, 0)}, "each number lies from 1"),
        ({"exposing": (9, 4, 2)}, "9 new tokens cannot be among 4"),
        ({"exposing": (1, 9)}, "give three whole numbers"),
        ({"hiding": (1, 5, 4)}, "already shows here (first at [0, 0])"),
        ({"hiding": (1, 1, 1)}, "One key is seen by every mask"),
        ({"hiding": (1, 2, 8)}, "wider than the sequence by more than two"),
    ],
)
def test_weak_sizes_of_a_window_are_told_why(answer, part):
    verdict = check("A2.window", {"line": 4, "exposing": (1, 9, 4), "hiding": (4, 4, 4)} | answer)
    assert verdict.status == "failed" and part in verdict.message, verdict


# ---- A2.pages ------------------------------------------------------------------------------------


def by_transpose(pages, table, length):
    own = pages[table].transpose(1, 0, 2, 3)
    return own.reshape(own.shape[0], -1, own.shape[3])[:, :length]


def by_concatenate(pages, table, length):
    return np.concatenate([pages[page] for page in table], axis=1)[:, :length].copy()


def by_tokens(pages, table, length):
    s = np.arange(length)
    return pages[np.array(table)[s // pages.shape[2]], :, s % pages.shape[2]].transpose(1, 0, 2)


def by_filling(pages, table, length):
    _, g, size, d = pages.shape
    out = np.empty((g, len(table) * size, d))
    for n, page in enumerate(table):
        out[:, n * size : (n + 1) * size] = pages[page]
    return out[:, :length]


def by_einops(pages, table, length):
    return np.einsum("ngsd->gnsd", pages[list(table)]).reshape(pages.shape[1], -1, pages.shape[3])[:, :length]


@pytest.mark.parametrize("function", [by_transpose, by_concatenate, by_tokens, by_filling, by_einops])
def test_every_right_form_of_gather_passes(function):
    verdict = check("A2.pages", function)
    assert verdict and "Notice" in verdict.message, verdict


UNLISTED_PAGES = {
    "rolled": lambda p, t, n: np.roll(by_transpose(p, t, n), 1, axis=1),
    "zeros behind": lambda p, t, n: np.where(np.arange(len(t) * p.shape[2])[:, None] < n, np.concatenate(p[t], 1), 0.0),
    "one token short": lambda p, t, n: by_transpose(p, t, n - 1),
    "mean of the heads": lambda p, t, n: np.broadcast_to(by_transpose(p, t, n).mean(0), by_transpose(p, t, n).shape).copy(),
    "heads reversed": lambda p, t, n: by_transpose(p, t, n)[::-1].copy(),
    "tokens first": lambda p, t, n: by_transpose(p, t, n).transpose(1, 0, 2),
    "pages reversed inside": lambda p, t, n: np.concatenate([p[i][:, ::-1] for i in t], 1)[:, :n],
    "in float32": lambda p, t, n: by_transpose(p, t, n).astype(np.float32),
    "a list": lambda p, t, n: by_transpose(p, t, n).tolist(),
    "nothing": lambda p, t, n: print(t),
    "table doubled": lambda p, t, n: by_transpose(p, [*t, *t], n)[:, -n:] * 1.0 + 1e-3,
    "the first table only": lambda p, t, n, seen=[]: seen.append(t) or by_transpose(p, seen[0], n),  # noqa: B006
}  # fmt: skip


@pytest.mark.parametrize("name", UNLISTED_PAGES)
def test_a_wrong_gather_that_is_not_listed_is_rejected_and_not_misnamed(name):
    verdict = check("A2.pages", UNLISTED_PAGES[name])
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in PAGES.mistakes), verdict


def test_a_key_in_the_wrong_place_is_told_where_it_came_from():
    said = check("A2.pages", lambda p, t, n: by_transpose(p, sorted(t), n)).message
    assert "There you have page 0, KV head 0, slot 0; the table is [5, 0, 2]." in said


def test_pages_of_the_cases_are_out_of_order_and_last_pages_are_full_and_not():
    for round_ in (0, 1):
        tables = [one.args[1] for one in PAGES.cases(round_)]
        assert any(list(t) != sorted(t) for t in tables) and any(list(t) != sorted(t)[::-1] for t in tables)
        assert {one.args[2] % one.args[0].shape[2] == 0 for one in PAGES.cases(round_)} == {True, False}
        for one in PAGES.cases(round_):
            assert np.array_equal(by_transpose(one.args[0], list(one.args[1]), one.args[2]), pages.gathered(*one.args))


# ---- the record that the lesson quotes -------------------------------------------------------------


def test_int8_costs_less_than_a_hundredth_of_a_nat_and_in_4_bits_keys_suffer_until_scales_are_per_place():
    losses = recorded("kv_int8")["losses"]
    more = {
        run: {text: mean(value[text]) - mean(losses["original"][text]) for text in "AB"}
        for run, value in losses.items()
    }
    for run, by_text in more.items():
        assert "4" in run or max(map(abs, by_text.values())) < 0.01, run
    both = more["K 8, V 8, a scale per token"]
    assert [f"{both[text]:.4f}" for text in "AB"] == ["0.0016", "0.0006"]
    for text in "AB":
        keys, values = (more[f"{run}, a scale per token"][text] for run in ("K 4, V full", "K full, V 4"))
        assert keys > 30 * values > 0
        keys_by_place, values_by_place = (
            more[f"{run}, a scale per place"][text] for run in ("K 4, V full", "K full, V 4")
        )
        assert keys_by_place < keys / 4 and values_by_place > values


def test_the_record_was_made_of_windows_that_add_up_to_what_the_lesson_says():
    record = recorded("kv_int8")
    assert [record["texts"][text]["n_tokens"] for text in "AB"] == [2048, 1024]
    assert all(len(value["A"]) == 4 and len(value["B"]) == 2 for value in record["losses"].values())
