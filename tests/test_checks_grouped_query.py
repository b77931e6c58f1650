"""Lesson 05: each listed mistake is rejected with its own diagnosis, others too, right answers pass."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gqa_lab import attention, reference
from gqa_lab.checks import case, check
from gqa_lab.checks.cases import SIZES, qkv
from gqa_lab.checks.engine import EXERCISES
from gqa_lab.checks.grouped_query.good_test import smallest_exposing_both
from gqa_lab.checks.head_maps import CARDS

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # the checks hand over wrong shapes on purpose, many times
EXPAND, GROUPED, GOOD_TEST, HEAD_MAP, SHAPES = (
    EXERCISES[f"05.{name}"] for name in ("expand", "grouped", "good_test", "head_map", "shapes")
)
BUILDS = {e.id: e for e in (EXPAND, GROUPED)}
HANDS = (HEAD_MAP, SHAPES)
VERDICTS = {"right": [], "wrong": []}  # filled by the tests below, counted by test_kill_score
LISTED = [(e.id, m.name) for e in BUILDS.values() for m in e.mistakes]


# ---- right answers -------------------------------------------------------------------------------


def checked(k, n_heads):
    if n_heads % k.shape[1]:
        raise ValueError(f"n_heads ({n_heads}) must be a multiple of {k.shape[1]}")
    return n_heads // k.shape[1]


def expand_interleave(k, n_heads):
    return k.repeat_interleave(checked(k, n_heads), dim=1)


def expand_view(k, n_heads):
    r = checked(k, n_heads)
    return k[:, :, None].expand(-1, -1, r, -1, -1).reshape(k.shape[0], n_heads, *k.shape[2:])


def expand_index(k, n_heads):
    return k[:, torch.arange(n_heads) // checked(k, n_heads)]


def expand_loop(k, n_heads):
    r, heads = checked(k, n_heads), []
    for j in range(k.shape[1]):
        for _ in range(r):
            heads.append(k[:, j])
    return torch.stack(heads, dim=1)


def expand_einsum(keys, heads):
    r = checked(keys, heads)
    return torch.einsum("bgsd,r->bgrsd", keys, torch.ones(r, dtype=keys.dtype)).flatten(1, 2)


def expand_input_itself_at_the_end(k, n_heads):
    return k if checked(k, n_heads) == 1 else expand_interleave(k, n_heads)


def seen(t, s):
    return torch.arange(s) <= torch.arange(t)[:, None] + s - t


def by_einsum(q, k, v, *, lengths=None, window=None):
    q5 = q.unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("bgrtd,bgsd->bgrts", q5, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen(q.shape[2], k.shape[2]), -torch.inf).softmax(-1)
    return torch.einsum("bgrts,bgsd->bgrtd", weights, v).flatten(1, 2)


def by_packed_rows(query, key, value, lengths=None, window=None):
    (b, h, t, d), (g, s) = query.shape, key.shape[1:3]
    scores = query.reshape(b, g, -1, d) @ key.transpose(-1, -2) * d**-0.5
    mask = seen(t, s).repeat(h // g, 1)
    return (torch.where(mask, scores, -torch.inf).softmax(-1) @ value).reshape(b, h, t, d)


def by_sdpa(q, k, v, *, lengths=None, window=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen(q.shape[2], k.shape[2]), enable_gqa=True)


def by_loops(q, k, v, **ignored):
    out, r = torch.zeros_like(q), q.shape[1] // k.shape[1]
    (b, _, t, d), s = q.shape, k.shape[2]
    for i in range(b):
        for j in range(k.shape[1]):
            for n in range(t):
                rows, stop = slice(j * r, (j + 1) * r), s - t + n + 1
                weights = (q[i, rows, n] @ k[i, j, :stop].T / d**0.5).softmax(-1)
                out[i, rows, n] = weights @ v[i, j, :stop]
    return out


def by_kv_head(q, k, v, lengths=None, window=None):
    t, s, r = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    bias = torch.zeros(t, s).masked_fill(seen(t, s).logical_not(), -1e30)
    heads = []
    for j in range(k.shape[1]):
        scores = torch.einsum("brtd,bsd->brts", q[:, j * r : (j + 1) * r], k[:, j]) / d_root(q) + bias
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(torch.einsum("brts,bsd->brtd", weights, v[:, j]))
    return torch.cat(heads, dim=1)


def d_root(q):
    return torch.sqrt(torch.tensor(q.shape[-1], dtype=q.dtype))


class ByModule(torch.nn.Module):
    def forward(self, q, k, v, lengths=None, window=None):
        return by_einsum(q, k, v)


RIGHT = {
    "05.expand": [
        expand_interleave,
        expand_view,
        expand_index,
        expand_loop,
        expand_einsum,
        expand_input_itself_at_the_end,
        lambda k, n_heads: expand_interleave(k, n_heads).contiguous(),
    ],
    "05.grouped": [by_einsum, by_packed_rows, by_sdpa, by_loops, by_kv_head, ByModule()],
}


@pytest.mark.parametrize("exercise_id, function", [(i, f) for i, fs in RIGHT.items() for f in fs])
def test_every_right_form_passes(exercise_id, function):
    verdict = check(exercise_id, function)
    VERDICTS["right"].append(verdict)
    assert verdict, verdict
    assert "Notice" in verdict.message


# ---- wrong answers that are listed ---------------------------------------------------------------


def test_the_diagnoses_are_many_and_never_the_answer():
    for exercise in BUILDS.values():
        texts = {m.diagnosis for m in exercise.mistakes}
        assert len(texts) >= 8
        assert not any(word in text for text in texts for word in ("repeat_interleave", "// (", "enable_gqa"))


def test_the_map_that_was_found_is_printed():
    assert "KV heads [0, 1, 2, 0, 1, 2]" in check("05.expand", lambda k, n: k.repeat(1, n // k.shape[1], 1, 1)).message


def test_the_same_mistake_written_differently_gets_the_same_diagnosis():
    def axis_before_g(k, n):
        return k[:, None].expand(-1, n // k.shape[1], -1, -1, -1).reshape(k.shape[0], n, *k.shape[2:])

    assert check("05.expand", axis_before_g).message.startswith(CARDS)


def refuses_without_a_number(k, n):
    if n % k.shape[1]:
        raise ValueError("these heads do not divide")
    return k.repeat_interleave(n // k.shape[1], 1)


def refuses_by_accident(k, n):
    return k.repeat_interleave(n // k.shape[1], 1).view(k.shape[0], n, *k.shape[2:])


@pytest.mark.parametrize(
    "function, part",
    [
        (lambda k, n: k.repeat_interleave(-(-n // k.shape[1]), 1)[:, :n], "what should head 6 read?"),
        (lambda k, n: k.repeat_interleave(n // k.shape[1], 1), "what should head 6 read?"),
        (refuses_by_accident, "Say why with a ValueError"),
        (refuses_without_a_number, "put both numbers into the text"),
    ],
)  # fmt: skip
def test_heads_that_do_not_divide_have_to_be_refused(function, part):
    verdict = check("05.expand", function)
    assert not verdict and part in verdict.message


# ---- wrong answers that are not listed -----------------------------------------------------------


def changed(q=lambda x: x, k=lambda x: x, v=lambda x: x, out=lambda x: x, core=by_einsum):
    return lambda q_, k_, v_, lengths=None, window=None: out(core(q(q_), k(k_), v(v_)))


def masked(keep, fill=-torch.inf):
    def attend(q, k, v, lengths=None, window=None):
        scores = torch.einsum("bgrtd,bgsd->bgrts", q.unflatten(1, (k.shape[1], -1)), k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~keep(q.shape[2], k.shape[2]), fill).softmax(-1).nan_to_num()
        return torch.einsum("bgrts,bgsd->bgrtd", weights, v).flatten(1, 2)

    return attend


def precise_in_name_only(q, k, v, lengths=None, window=None):
    scores = torch.einsum("bgrtd,bgsd->bgrts", q.unflatten(1, (k.shape[1], -1)), k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen(q.shape[2], k.shape[2]), -torch.inf).float().softmax(-1).double()
    return torch.einsum("bgrts,bgsd->bgrtd", weights, v).flatten(1, 2)


def masked_after_softmax(q, k, v, lengths=None, window=None):
    scores = torch.einsum("bgrtd,bgsd->bgrts", q.unflatten(1, (k.shape[1], -1)), k) / q.shape[-1] ** 0.5
    weights = scores.softmax(-1) * seen(q.shape[2], k.shape[2])
    return torch.einsum("bgrts,bgsd->bgrtd", weights, v).flatten(1, 2)


def shuffled_pairs(q, k, v, lengths=None, window=None):
    return by_einsum(q, k, v)[:, [i ^ 1 for i in range(q.shape[1])]]


def only_the_last_group(q, k, v, lengths=None, window=None):
    out = by_einsum(q, k, v)
    out[:, -1] = out[:, 0]
    return out


def copied_table(q, k, v, lengths=None, window=None):
    answer = reference.attention(q.numpy(), k.numpy(), v.numpy())
    return torch.from_numpy(answer)


def scaled_keys(q, k, v, lengths=None, window=None):
    return by_einsum(q * q.shape[-1] ** 0.5, k / q.shape[-1] ** 0.5, v)


UNLISTED = {
    "heads reversed": changed(out=lambda x: x.flip(1)),
    "pairs of heads exchanged": shuffled_pairs,
    "last head copied from the first": only_the_last_group,
    "head rolled by one": changed(out=lambda x: x.roll(1, 1)),
    "queries reversed": changed(q=lambda x: x.flip(2), out=lambda x: x),
    "keys reversed": changed(k=lambda x: x.flip(2)),
    "values reversed": changed(v=lambda x: x.flip(2)),
    "first batch for all": changed(out=lambda x: x[:1].expand_as(x).clone()),
    "batch dropped": changed(out=lambda x: x[:1]),
    "head_dim rolled": changed(out=lambda x: x.roll(1, -1)),
    "scale √S": changed(q=lambda x: x * x.shape[-1] ** 0.5 / 7**0.5),
    "scale upside down": changed(q=lambda x: x * x.shape[-1]),
    "scale of the toy": changed(q=lambda x: x * x.shape[-1] ** 0.5 / 2**0.5),
    "query does not see itself": masked(lambda t, s: torch.arange(s) < torch.arange(t)[:, None] + s - t),
    "first key forgotten": masked(lambda t, s: seen(t, s) & (torch.arange(s) > 0)),
    "mask upside down": masked(lambda t, s: ~seen(t, s)),
    "window of three": masked(lambda t, s: seen(t, s).triu(s - t - 2)),
    "masked scores −5": masked(seen, -5.0),
    "softmax in float32": precise_in_name_only,
    "output in float32": changed(out=lambda x: x.float()),
    "everything in bfloat16": changed(out=lambda x: x.bfloat16().double()),
    "no attention": lambda q, k, v, **ignored: expand_interleave(v, q.shape[1])[:, :, -q.shape[2] :],
    "zeros": changed(out=torch.zeros_like),
    "queries given back": lambda q, k, v, lengths=None, window=None: q,
    "heads and tokens exchanged": changed(out=lambda x: x.transpose(1, 2)),
    "merged like o_proj's input": changed(out=lambda x: x.transpose(1, 2).flatten(2)),
    "sum of heads": changed(out=lambda x: x.sum(1, keepdim=True).expand_as(x).clone()),
    "first key only": lambda q, k, v, lengths=None, window=None: by_einsum(q, k[:, :, :1].expand_as(k), v),
    "noise of 1e-6": changed(out=lambda x: x + 1e-6),
    "hard maximum": changed(q=lambda x: x * 1e4),
    "v changed in place": lambda q, k, v, **ignored: by_einsum(q, k, v.mul_(1.0000001)),
    "the package's function": lambda q, k, v, lengths=None, window=None: attention.grouped_attention(q, k, v),
    "the reference": copied_table,
    "no room for lengths": lambda q, k, v: by_einsum(q, k, v),
    "keys copied by scaling": scaled_keys,
    "keys expanded": lambda q, k, v, lengths=None, window=None: by_einsum(
        q, expand_interleave(k, q.shape[1]), expand_interleave(v, q.shape[1])
    ),
    "keys expanded by broadcasting": lambda q, k, v, lengths=None, window=None: (
        (q.unflatten(1, (k.shape[1], -1)) @ k[:, :, None].mT / q.shape[-1] ** 0.5)
        .masked_fill(~seen(q.shape[2], k.shape[2]), -torch.inf)
        .softmax(-1)
        @ v[:, :, None]
    ).flatten(1, 2),
    "keys made contiguous": changed(k=lambda x: x.contiguous()),
    "one read per query head": lambda q, k, v, lengths=None, window=None: torch.cat(
        [by_einsum(q[:, i : i + 1], *(x[:, i // (q.shape[1] // k.shape[1])][:, None] for x in (k, v)))
         for i in range(q.shape[1])], dim=1),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLISTED)
def test_a_wrong_answer_that_is_not_listed_is_rejected(name):
    verdict = check("05.grouped", UNLISTED[name])
    VERDICTS["wrong"].append(verdict)
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in GROUPED.mistakes), verdict


def test_an_unlisted_wrong_answer_is_told_where_it_goes_wrong():
    text = check("05.grouped", UNLISTED["last head copied from the first"]).message
    assert "Wrong first at batch 0, head 5, query 0. Heads 0, 1, 2, 3 and 4 are right." in text
    assert "keys 0…2" in text


@pytest.mark.parametrize(
    "function, diagnosis",
    [
        (lambda q, k, v, lengths=None, window=None: by_einsum(q, v, k), "You compared queries with values"),
        (changed(q=lambda x: x / x.shape[-1] ** 0.5), "Your weights are too flat"),
        (
            masked(lambda t, s: torch.arange(s) <= torch.arange(t)[:, None] + s - t + 1),
            "Each query sees one key too many",
        ),
        (masked_after_softmax, "You masked after the softmax"),
        (
            lambda q, k, v, lengths=None, window=None: by_einsum(
                q.reshape(len(q), -1, k.shape[1], *q.shape[2:]).transpose(1, 2).reshape(q.shape), k, v
            ),
            "You dealt KV heads out like cards. Neighbours share. You cut q's heads into (R, G)",
        ),
    ],
)
def test_a_listed_mistake_is_named_however_it_is_written(function, diagnosis):
    assert check("05.grouped", function).message.startswith(diagnosis)


def test_an_answer_that_fails_only_in_the_real_models_dtype_is_told_so():
    def fixed_mask(q, k, v, *, lengths=None, window=None):
        hide = torch.full((q.shape[2], k.shape[2]), -torch.inf, dtype=torch.float64).triu(k.shape[2] - q.shape[2] + 1)
        weights = (
            torch.einsum("bgrtd,bgsd->bgrts", q.unflatten(1, (k.shape[1], -1)), k) / q.shape[3] ** 0.5 + hide
        ).softmax(-1)
        return torch.einsum("bgrts,bgsd->bgrtd", weights, v.to(weights.dtype)).flatten(1, 2)

    verdict = check("05.grouped", fixed_mask)
    assert verdict.status == "failed" and "From float32 it makes torch.float64" in verdict.message


@pytest.mark.parametrize(
    "name, parts",
    [
        ("keys expanded", ["Right numbers. But it also wrote 4 copies of K and V", "5,184", "Which letter"]),
        ("keys expanded by broadcasting", ["Right numbers. But it also wrote 4 copies of K and V", "clone"]),
        ("keys made contiguous", ["Right numbers. But it also wrote 0.5 copies of K and V"]),
        ("one read per query head", ["Right numbers. But it read K and V 4 times", "Fetch it once"]),
        ("the package's function", ["That is the package's"]),
        ("the reference", ["That is the package's"]),
        ("no room for lengths", ["unexpected keyword argument 'lengths'", "signature"]),
        ("v changed in place", ["changed `v`"]),
        ("output in float32", ["lost precision", "float64 in, float32 out"]),
        ("softmax in float32", ["Nearly right", "lost precision"]),
    ],
)
def test_what_is_beyond_values_is_told_kindly(name, parts):
    text = check("05.grouped", UNLISTED[name]).message
    assert all(part in text for part in parts), text


def test_kill_score(capsys):
    n_wrong = sum(verdict.status != "passed" for verdict in VERDICTS["wrong"])
    n_right = sum(verdict.status == "passed" for verdict in VERDICTS["right"])
    with capsys.disabled():
        print(
            f"\nlesson 05: {n_wrong} of {len(VERDICTS['wrong'])} wrong functions rejected ({len(LISTED)} "
            f"are listed), "
            f"{n_right} of {len(VERDICTS['right'])} right ones passed"
        )
    assert n_wrong == len(VERDICTS["wrong"]) and n_right == len(VERDICTS["right"])


# ---- cases ---------------------------------------------------------------------------------------


def test_the_cases_are_fair():
    for exercise in BUILDS.values():
        for one in [*exercise.cases(0), *exercise.cases(1)]:
            arrays = [x for x in one.args if isinstance(x, np.ndarray)]
            assert all(x.dtype == np.float64 for x in arrays)
    for sizes in SIZES[:2]:
        assert len(set(sizes.values())) == len(sizes) - (sizes["G"] * sizes["G"] == sizes["H"])
    for one in [*GROUPED.cases(0), *GROUPED.cases(1)]:
        q, k, v = one.args
        assert not np.allclose(k, v)
        weights, s = reference.attention_weights(q, k), k.shape[2]
        full = [t for t in range(q.shape[2]) if len(reference.visible_keys(t, q.shape[2], s)) >= 3]
        assert weights[:, :, full].max(-1).mean() < 0.6


def test_every_call_gets_new_arguments_with_the_strides_of_a_model():
    one = qkv(SIZES[0], 0)
    first, second = GROUPED.arguments(one), GROUPED.arguments(one)
    for a, b, array in zip(first, second, one.args, strict=True):
        assert a.data_ptr() != b.data_ptr() and not a.is_contiguous()
        assert np.array_equal(a.numpy(), array) and not np.shares_memory(a.numpy(), array)


# ---- by hand -------------------------------------------------------------------------------------

HEADS = {"map": [0, 0, 1, 1, 2, 2], "kv_head": 1, "readers": [3, 4, 5]}
WIDTHS = {"q_width": 2048, "k_width": 1024, "v_width": 1024, "o_in_width": 2048,
          "parameters": 6_291_456, "parameters_as_mha": 8_388_608}  # fmt: skip


def test_seed_0_is_what_the_notebook_prints():
    assert case("05.head_map") == {
        "map": {"n_heads": 6, "n_kv_heads": 3},
        "kv_head": {"n_heads": 8, "n_kv_heads": 2, "head": 6},
        "readers": {"n_heads": 12, "n_kv_heads": 4, "kv_head": 1},
    }
    shapes = {"model": "Qwen3-0.6B", "d_model": 1024, "n_heads": 16, "n_kv_heads": 8, "head_dim": 128}
    assert case("05.shapes") == shapes
    assert check("05.head_map", HEADS) and check("05.shapes", WIDTHS)


@pytest.mark.parametrize(
    "exercise_id, right, change, part",
    [
        ("05.head_map", HEADS, {"map": [0, 1, 2, 0, 1, 2]}, "like cards"),
        ("05.head_map", HEADS, {"kv_head": 0}, "like cards"),
        ("05.head_map", HEADS, {"readers": [1, 5, 9]}, "like cards"),
        ("05.head_map", HEADS, {"map": [0, 0, 0, 1, 1, 1]}, "divide by the group size"),
        ("05.head_map", HEADS, {"kv_head": 3}, "divide by the group size"),
        ("05.head_map", HEADS, {"map": [1, 1, 2, 2, 3, 3]}, "Count from 0."),
        ("05.head_map", HEADS, {"map": [2, 2, 1, 1, 0, 0]}, "Group 0 comes first."),
        ("05.head_map", HEADS, {"kv_head": 5}, "5 is not right"),
        ("05.shapes", WIDTHS, {"q_width": 1024}, "head_dim is 128, not d_model / n_heads = 64."),
        ("05.shapes", WIDTHS, {"k_width": 256}, "That is group_size · head_dim"),
        ("05.shapes", WIDTHS, {"k_width": 2048}, "That is MHA"),
        ("05.shapes", WIDTHS, {"v_width": 2048}, "That is MHA"),
        ("05.shapes", WIDTHS, {"o_in_width": 1024}, "No query head was removed."),
        ("05.shapes", WIDTHS, {"parameters": 8_388_608}, "That is MHA"),
        ("05.shapes", WIDTHS, {"parameters_as_mha": 4_194_304}, "head_dim is 128"),
    ],
)
def test_wrong_numbers_are_named(exercise_id, right, change, part):
    case(exercise_id)
    verdict = check(exercise_id, right | change)
    assert not verdict and part in verdict.message and "Right: " in verdict.message


def test_another_seed_is_checked_against_its_own_numbers():
    numbers = case("05.head_map", seed=3)
    assert not check("05.head_map", HEADS)
    assert check("05.head_map", HEAD_MAP.right(numbers))
    case("05.head_map")


# ---- expose --------------------------------------------------------------------------------------


def good_test(modulo=((8, 2), None), division=((6, 3), (4, 2)), smallest=(6, 3)):
    maps = {"i % G": modulo, "i // G": division}
    return {n: dict(zip(("exposes", "hides"), pair, strict=True)) for n, pair in maps.items()} | {"smallest": smallest}


@pytest.mark.parametrize("pair", [(4, 2), (9, 3), (64, 8)])
def test_good_tests_pass(pair):
    assert check("05.good_test", good_test(division=((12, 4), pair)))
    assert check("05.good_test", good_test(modulo=([12, 4], None), division=((8, 8), list(pair))))


def test_smallest_is_found_by_search():
    assert smallest_exposing_both() == (6, 3)


@pytest.mark.parametrize(
    "answer, part",
    [
        (good_test(smallest=(4, 2)), "llama.cpp#3364"),
        (good_test(smallest=(6, 2)), "It raises; a loud mistake needs no test."),
        (good_test(smallest=(8, 8)), "No group at all."),
        (good_test(smallest=(12, 4)), "There is a smaller pair"),
        (good_test(modulo=((8, 8), None)), "Both versions give the same numbers here."),
        (good_test(modulo=((8, 2), (8, 4))), "The mistake already shows here (first at head 1)"),
        (good_test(modulo=((8, 2), (8, 8))), "too small to fool anybody"),
        (good_test(division=((4, 2), (4, 2))), "Both versions give the same numbers here."),
        (good_test(division=((8, 2), (4, 2))), "It raises"),
        (good_test(division=((6, 3), None)), "does hide it"),
        (good_test(division=((6, 3), (8, 2))), "It raises"),
        (good_test(division=((6, 3), (12, 4))), "already shows here"),
        (good_test(modulo=((7, 2), None)), "cannot share"),
        (good_test(modulo=((10**9, 10), None)), "1 ≤ G ≤ H"),
        (good_test(modulo=((2, 8), None)), "1 ≤ G ≤ H"),
        (good_test(modulo=((8, 2, 1), None)), "give a pair"),
        (good_test(modulo=(("8", "2"), None)), "give a pair"),
        (good_test(modulo=((8.0, 2.0), None)), "give a pair"),
        (good_test(modulo=(None, None)), "give a pair"),
        (good_test() | {"i % G": (8, 2)}, "needs a dict"),
        (good_test() | {"smallest": None}, "give a pair"),
        (good_test() | {"smallest": object()}, "neither"),
        ([1, 2], "Hand over a dict"),
    ],
)
def test_weak_tests_are_told_why(answer, part):
    verdict = check("05.good_test", answer)
    assert verdict.status == "failed" and part in verdict.message, verdict


@pytest.mark.parametrize("answer", [None, good_test((..., ...), (..., ...), ...), good_test((None, ...)), {}])
def test_a_test_not_yet_written_is_not_attempted(answer):
    assert check("05.good_test", answer).status == "not attempted"
    assert GOOD_TEST.keys == ("i % G", "i // G", "smallest")
