"""Lesson 09: right forms pass, wrong ones are rejected and named; nothing here needs a GPU or Triton."""

import math
from pathlib import Path

import nbformat
import numpy as np
import pytest

from gqa_lab import reference
from gqa_lab.checks import case, check
from gqa_lab.checks.engine import EXERCISES, PREDICTIONS
from gqa_lab.checks.gpu_kernel import tail

ROOT = Path(__file__).resolve().parent.parent
JOIN, ONLINE, SPLITS, COMBINE, TAIL = (
    EXERCISES[f"09.{name}"] for name in ("join", "online", "splits", "combine", "tail")
)
NAN = float("nan")

# ---- 09.online -----------------------------------------------------------------------------------


def guard_first(peak, total, mixed, scores, v):
    if scores.size == 0:
        return peak, total, mixed
    new = max(peak, scores.max())
    shrink, weights = np.exp(peak - new), np.exp(scores - new)
    return new, total * shrink + weights.sum(), mixed * shrink + weights @ v


def key_by_key(peak, total, mixed, scores, v):
    mixed = mixed.copy()
    for score, value in zip(scores, v, strict=True):
        new = max(peak, score)
        total = total * math.exp(peak - new) + math.exp(score - new)
        mixed = mixed * math.exp(peak - new) + math.exp(score - new) * value
        peak = new
    return peak, total, mixed


def all_at_once(peak, total, mixed, scores, v):
    everything = np.append(scores, peak)
    new = everything.max()
    weights = np.exp(everything - new) if np.isfinite(new) else np.zeros(everything.size)
    return [new, weights @ np.append(np.ones(len(scores)), total), weights @ np.vstack([v, mixed])]


def with_initial(peak, total, mixed, scores, v):
    new = scores.max(initial=peak)
    base = new if new > -np.inf else 0.0
    return new, total * np.exp(peak - base) + np.exp(scores - base).sum(), (
        mixed * np.exp(peak - base) + np.einsum("n,nd->d", np.exp(scores - base), v)
    )  # fmt: skip


def numbers_as_arrays(*state):
    peak, total, mixed = guard_first(*state)
    return np.array(peak), np.array(total), mixed


@pytest.mark.parametrize("function", [guard_first, key_by_key, all_at_once, with_initial, numbers_as_arrays])
def test_every_right_form_of_update_passes(function):
    verdict = check("09.online", function)
    assert verdict and "Notice" in verdict.message, verdict


def changed(peak=lambda x: x, total=lambda x: x, mixed=lambda x: x, scores=lambda x: x, v=lambda x: x):
    def update(p, t, m, s, values):
        new = guard_first(p, t, m, scores(s), v(values))
        return peak(new[0]), total(new[1]), mixed(new[2])

    return update


def in_place(peak, total, mixed, scores, v):
    new = guard_first(peak, total, mixed.copy(), scores, v)
    mixed[:] = new[2]
    return new[0], new[1], mixed


def remembers(peak, total, mixed, scores, v, seen=[]):  # noqa: B006
    seen.append(total)
    return guard_first(peak, total + (len(seen) > 8), mixed, scores, v)


WRONG_UPDATES = {
    "first key forgotten": lambda p, t, m, s, v: guard_first(p, t, m, s[1:], v[1:]),
    "last key forgotten": lambda p, t, m, s, v: guard_first(p, t, m, s[:-1], v[:-1]),
    "values reversed": changed(v=lambda v: v[::-1]),
    "numbers rolled": changed(mixed=lambda x: np.roll(x, 1)),
    "minimum": lambda p, t, m, s, v: (p, t, m) if not s.size else (
        min(p, s.min()), *guard_first(p, t, m, s, v)[1:]),
    "nothing added": lambda p, t, m, s, v: (p, t, m),
    "total doubled": changed(total=lambda t: 2 * t),
    "older state thrown away": lambda p, t, m, s, v: guard_first(-np.inf, 0.0, 0 * m, s, v) if s.size else (p, t, m),
    "mixed in float32": changed(mixed=lambda x: x.astype(np.float32)),
    "noise": changed(mixed=lambda x: x + 1e-6),
    "two things": lambda *state: guard_first(*state)[1:],
    "mixed alone": lambda *state: guard_first(*state)[2],
    "a list for mixed": changed(mixed=lambda x: x.tolist()),
    "an array for peak": changed(peak=lambda x: np.full(3, x)),
    "one array of all": lambda *state: np.concatenate([guard_first(*state)[:2], guard_first(*state)[2]]),
    "nothing back": lambda *state: print("done"),
    "in place": in_place,
    "remembers": remembers,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_UPDATES)
def test_an_update_that_is_wrong_in_another_way_is_rejected_and_not_misnamed(name):
    verdict = check("09.online", WRONG_UPDATES[name])
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in ONLINE.mistakes), verdict


@pytest.mark.parametrize(
    "name, part",
    [
        ("two things", "returned a tuple; it should return three things, (peak, total, mixed)"),
        ("nothing back", "returned None"),
        ("in place", "changed `mixed`"),
        ("mixed in float32", "lost precision"),
        ("total doubled", "Wrong first at place 1. Place 0 is `peak`, place 1 is `total`"),
    ],
)
def test_a_wrong_update_is_told_what_is_wrong_with_it(name, part):
    assert part in check("09.online", WRONG_UPDATES[name]).message


def test_the_cases_of_update_hold_what_the_task_promises():
    for round_ in (0, 1):
        cases = ONLINE.cases(round_)
        sizes = [len(one.args[3]) for one in cases]
        assert set(sizes) >= {0, 1, 5} and max(sizes) == 5
        peaks = [(one.args[0], one.args[3].max(initial=-np.inf)) for one in cases if one.args[3].size]
        assert any(new > old > -np.inf for old, new in peaks) and any(new < old for old, new in peaks)
        assert any(-1010 < new < -990 for _, new in peaks)


# ---- 09.combine ----------------------------------------------------------------------------------


def by_softmax(outs, lse):
    top = np.where(np.isneginf(lse.max(0)), 0.0, lse.max(0))
    weights = np.exp(lse - top)
    return np.einsum("nh,nhd->hd", weights / np.maximum(weights.sum(0), 1e-300), outs)


def by_update(outs, lse):
    result = []
    for head in range(lse.shape[1]):
        peak, total, mixed = -np.inf, 0.0, np.zeros(outs.shape[2])
        for out, score in zip(outs[:, head], lse[:, head], strict=True):
            if score > -np.inf:
                peak, total, mixed = key_by_key(peak, total, mixed, np.array([score]), out[None])
        result.append(mixed / total if total else mixed)
    return np.stack(result)


def by_logaddexp(outs, lse):
    joint = np.logaddexp.reduce(lse, axis=0)
    weights = np.exp(lse - np.where(np.isneginf(joint), 0.0, joint))
    return (weights[:, :, None] * outs).sum(axis=0)


def by_pairs(outs, lse):
    out, top = outs[0], lse[0]
    for other, score in zip(outs[1:], lse[1:], strict=True):
        share = np.where(np.isneginf(score), 0.0, 1 / (1 + np.exp(np.minimum(top - score, 700))))[:, None]
        out, top = out * (1 - share) + other * share, np.logaddexp(top, score)
    return out


@pytest.mark.parametrize("function", [by_softmax, by_update, by_logaddexp, by_pairs])
def test_every_right_form_of_combine_passes(function):
    verdict = check("09.combine", function)
    assert verdict and "Notice" in verdict.message, verdict


WRONG_COMBINES = {
    "last split forgotten": lambda outs, lse: by_softmax(outs[:-1], lse[:-1]) if len(outs) > 1 else by_softmax(outs, lse),
    "splits reversed": lambda outs, lse: by_softmax(outs[::-1], lse),
    "heads rolled": lambda outs, lse: np.roll(by_softmax(outs, lse), 1, 0),
    "first split": lambda outs, lse: outs[0].copy(),
    "lse cut off": lambda outs, lse: by_softmax(outs, np.clip(lse, -50, 50)),
    "half the weight": lambda outs, lse: by_softmax(outs, lse) / 2,
    "temperature": lambda outs, lse: by_softmax(outs, lse / 2),
    "a head short": lambda outs, lse: by_softmax(outs, lse)[1:],
    "transposed": lambda outs, lse: by_softmax(outs, lse).T,
    "float32": lambda outs, lse: by_softmax(outs, lse).astype(np.float32),
    "not a number for the empty head": lambda outs, lse: np.where(
        np.isneginf(lse.max(0))[:, None], 7.0, by_softmax(outs, lse)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_COMBINES)
def test_a_combine_that_is_wrong_in_another_way_is_rejected_and_not_misnamed(name):
    verdict = check("09.combine", WRONG_COMBINES[name])
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in COMBINE.mistakes), verdict


def test_a_wrong_combine_is_shown_the_lse_of_the_head():
    text = check("09.combine", WRONG_COMBINES["half the weight"]).message
    assert "Wrong first at head 0. No head is right everywhere. The lse of this head's splits: " in text


def test_splits_of_an_attention_combined_are_the_attention():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((1, 2, 1, 4)), *rng.standard_normal((2, 1, 1, 9, 4))
    scores = (q[0, :, 0] @ k[0, 0].T) / 2
    cuts = [slice(0, 2), slice(2, 3), slice(3, 9)]
    outs = np.stack([np.exp(scores[:, c]) @ v[0, 0, c] / np.exp(scores[:, c]).sum(1, keepdims=True) for c in cuts])
    lse = np.stack([np.log(np.exp(scores[:, c]).sum(1)) for c in cuts])
    truth = reference.attention(q, k, v)[0, :, 0]
    for combine in (COMBINE.reference, by_softmax):
        np.testing.assert_allclose(combine(outs, lse), truth, atol=1e-12)


# ---- 09.join and 09.splits -----------------------------------------------------------------------

JOINED = {"total": 1.5, "mixed": 7.5, "outputs": [5, 12], "e_lse": [3, 6], "joint": 29 / 3, "updated": [1.5, 14.5]}
CHOSEN = {"cost": [39, 20, 10, 16, 10], "choice": 4}


def test_seed_0_is_what_the_notebook_prints():
    assert case("09.join") == {"scores": ["0", "ln 2", "ln 6"], "values": [3, 6, 12], "split_after": 2}
    assert case("09.splits") == {"n_slots": 12, "n_kv_heads": 3, "n_blocks": 39, "n_splits": [1, 2, 4, 5, 8]}
    assert check("09.join", JOINED) and check("09.splits", CHOSEN)


@pytest.mark.parametrize(
    "exercise_id, right, change, part",
    [
        ("09.join", JOINED, {"joint": 8.5}, "Plain mean"),
        ("09.join", JOINED, {"joint": 7.333}, "number of keys"),
        ("09.join", JOINED, {"joint": 10.25}, "e^peak: the totals are missing"),
        ("09.join", JOINED, {"joint": 7.8}, "different maxima"),
        ("09.join", JOINED, {"joint": 9.34}, "exponentiate"),
        ("09.join", JOINED, {"joint": 9.32}, "one base only"),
        ("09.join", JOINED, {"joint": 17}, "sum of the outputs"),
        ("09.join", JOINED, {"updated": [1.5, 19.5]}, "`mixed` was not rescaled"),
        ("09.join", JOINED, {"updated": [2.5, 14.5]}, "`total` was not rescaled"),
        ("09.join", JOINED, {"updated": [5.5, 34.5]}, "upside down"),
        ("09.splits", CHOSEN, {"choice": 1}, "9 of them stand idle"),
        ("09.splits", CHOSEN, {"choice": 5}, "15 programs: 3 of them wait for a second wave"),
        ("09.splits", CHOSEN, {"choice": 8}, "What does it cost to join"),
        ("09.splits", CHOSEN, {"choice": 12}, "3 KV heads already make 3 programs per split"),
        ("09.splits", CHOSEN, {"choice": 39}, "One block each, 10 waves, and 39 partial results"),
        ("09.splits", CHOSEN, {"cost": [39, 20, 10, 8, 5]}, "Waves are missing"),
        ("09.splits", CHOSEN, {"cost": [9.75, 9.75, 9.75, 9.75, 9.75]}, "takes a whole one"),
        ("09.splits", CHOSEN, {"cost": [39, 19.5, 9.75, 15.6, 9.75]}, "10 whole blocks, not 9.75"),
        ("09.splits", CHOSEN, {"cost": [39, 19, 9, 14, 8]}, "Blocks are left over"),
        ("09.splits", CHOSEN, {"cost": [39, 20, 10, 16]}, "You gave 4 numbers"),
    ],
)
def test_wrong_numbers_are_named(exercise_id, right, change, part):
    case(exercise_id)
    verdict = check(exercise_id, right | change)
    assert not verdict and part in verdict.message and "Right: " in verdict.message, verdict


def test_updating_and_joining_agree_for_every_seed():
    for seed in range(1, 30):
        right = JOIN.right(JOIN.draw(seed))
        total, mixed = right["updated"]
        assert math.isclose(mixed / total, right["joint"], rel_tol=1e-12)


# ---- 09.tail -------------------------------------------------------------------------------------

GOOD = {"line": 7, "exposing": (70, 32, 2), "hiding": (128, 32, 2), "beyond": NAN, "empty_split": (70, 32, 4)}


@pytest.mark.parametrize(
    "change",
    [{}, {"exposing": [33, 32, 1]}, {"hiding": (96, 32, 3)}, {"empty_split": (5, 8, 2)}, {"beyond": np.nan},
     {"hiding": (64, 32, 1)}],
)  # fmt: skip
def test_good_sizes_pass(change):
    assert check("09.tail", GOOD | change)


@pytest.mark.parametrize(
    "change, part",
    [
        ({"exposing": (64, 32, 2)}, "Both versions give the same numbers here"),
        ({"exposing": (64, 32, 4)}, "Both versions give the same numbers here"),
        ({"hiding": (70, 32, 2)}, "The mistake already shows here"),
        ({"hiding": (32, 32, 1)}, "too small to fool anybody. One block that is full"),
        ({"hiding": (10, 1, 2)}, "A block of one key is always full"),
        ({"hiding": (64, 32, 3)}, "the other mistake shows here: a split gets no keys"),
        ({"beyond": 0}, "They show it here, but only just: NaN cannot be overlooked."),
        ({"beyond": 1e4}, "A number may be lost among numbers"),
        ({"beyond": "NaN"}, "give one number"),
        ({"empty_split": (70, 32, 3)}, "3 blocks in 3 splits: each split gets keys here"),
        ({"empty_split": (0, 32, 3)}, "each number lies from 1"),
        ({"line": 6}, "Not line 6. Your inputs show it"),
        ({"line": 9, "beyond": 0}, "not line 9."),
        ({"exposing": (70, 32)}, "give three whole numbers"),
        ({"exposing": (70, 32, 1000)}, "64 splits are enough"),
    ],
)
def test_weak_sizes_are_told_why(change, part):
    verdict = check("09.tail", GOOD | change)
    assert verdict.status == "failed" and part in verdict.message, verdict


@pytest.mark.parametrize("answer", [None, {}, GOOD | {"line": None}, GOOD | {"beyond": ...}])
def test_sizes_not_yet_written_are_not_attempted(answer):
    assert check("09.tail", answer).status == "not attempted"


def test_the_function_printed_makes_both_mistakes_and_the_check_runs_them_apart():
    for sizes in ((128, 32, 2), (96, 32, 3), (70, 32, 2), (70, 32, 4)):
        memory = tail._memory(sizes[0], sizes[1])
        with np.errstate(all="ignore"):
            outs, lse = tail.split_outputs(*memory, *sizes)
            both = tail._repaired(*memory, *sizes, masked=False, guarded=False)
        np.testing.assert_array_equal(np.concatenate([outs, lse[:, None]], 1), both)
    q, k, v = tail._memory(70, 32)
    right = tail._repaired(q, k, v, 70, 32, 4)
    joint = COMBINE.reference(right[:, None, :-1], right[:, -1:])
    truth = reference.attention(np.sqrt(3) * q[None, None, None], k[None, None, :70], v[None, None, :70])
    np.testing.assert_allclose(joint, truth[0, 0], atol=1e-12)


def test_the_notebook_prints_the_function_that_the_check_runs():
    cells = nbformat.read(ROOT / "solutions" / "09_gpu_kernel.ipynb", as_version=4).cells
    sources = {cell.id: cell.source for cell in cells}
    space = {"np": np}
    exec(sources["tail-code"], space)
    for sizes in ((70, 32, 2), (70, 32, 4), (128, 32, 2)):
        memory = tail._memory(sizes[0], sizes[1], beyond=0.5)
        with np.errstate(all="ignore"):
            results = [f(*memory, *sizes) for f in (space["split_outputs"], tail.split_outputs)]
        np.testing.assert_array_equal(results[0][0], results[1][0])
        np.testing.assert_array_equal(results[0][1], results[1][1])
    numbered = {int(line.split("# ")[-1]): line for line in sources["tail-code"].splitlines() if "  # " in line}
    assert "slice(block, block + n_keys)" in numbered[TAIL.line]


# ---- all of them ---------------------------------------------------------------------------------


def test_the_right_prediction_is_the_one_that_the_lesson_proves():
    right = {p: [x for x, (_, reply) in PREDICTIONS[p].options.items() if "Tempting" not in reply] for p in PREDICTIONS}
    assert [right[f"09.p{n}"] for n in (1, 2, 3)] == [["b"], ["b"], ["b"]]


def test_kill_score(capsys):
    wrong = [("09.online", f) for f in WRONG_UPDATES.values()] + [("09.combine", f) for f in WRONG_COMBINES.values()]
    wrong += [(e.id, m.wrong) for e in (ONLINE, COMBINE) for m in e.mistakes]
    n_rejected = sum(check(exercise_id, function).status == "failed" for exercise_id, function in wrong)
    with capsys.disabled():
        print(f"\nlesson 09: {n_rejected} of {len(wrong)} wrong functions rejected")
    assert n_rejected == len(wrong)
