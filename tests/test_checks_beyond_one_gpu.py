"""Lesson A1: right answers in every form pass, wrong ones are named, what is quoted is what the library computes."""

import inspect
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from gqa_lab import costs, parallel
from gqa_lab.checks import case, check
from gqa_lab.checks.beyond_one_gpu import groups, kv_heads, wrapped
from gqa_lab.checks.engine import EXERCISES
from gqa_lab.costs import GPUS, SHAPES
from gqa_lab.generate import decode_step, prefill

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # the checks hand over wrong types on purpose
PER_GPU, KV_HEADS, GROUPS = (EXERCISES[f"A1.{name}"] for name in ("per_gpu", "kv_heads", "groups"))
SOLUTION = Path(__file__).parents[1] / "solutions" / "A1_beyond_one_gpu.ipynb"


# ---- A1.per_gpu ----------------------------------------------------------------------------------

SIXTEEN = {"query_heads": 4, "kv_head": 2, "copies": 2, "per_token": 40_960, "as_small_on": 8}


def test_the_numbers_on_paper_are_what_the_library_computes():
    numbers = case("A1.per_gpu")
    llama, sizes = SHAPES["llama-2-70b"], dict(kv_len=1, batch_size=1)
    assert [numbers[n] for n in ("n_layers", "n_heads", "n_kv_heads", "head_dim")] == [80, 64, 8, 128]
    held = {n: costs.plan(llama, GPUS["h100-sxm"], n_gpus=n, **sizes) for n in (4, 8, 16)}
    per_token = {n: p.kv_bytes_per_token * p.copies(n) / n for n, p in held.items()}
    assert per_token[16] == per_token[8] == 40_960 < per_token[4] and held[16].copies(16) == 2
    assert list(parallel.kv_heads_of(5, 16, 64, 8)) == [2]
    assert PER_GPU.right(numbers) == SIXTEEN and check("A1.per_gpu", SIXTEEN)


@pytest.mark.parametrize(
    "key, value, part",
    [
        ("query_heads", 64, "The GPUs share them"),
        ("query_heads", 8, "group_size, H / G"),
        ("query_heads", [20, 21, 22, 23], "How many?"),
        ("query_heads", 5, "All query heads, shared evenly"),
        ("kv_head", 5, "like cards. Which query heads does this GPU have, and which KV head do they read?\n"),
        ("kv_head", [2], "[2] is a list; write one value"),
        ("kv_head", 0, "How many GPUs share one of them?"),
        ("kv_head", 20, "first query head of this GPU"),
        ("kv_head", 3, "Count from 0"),
        ("copies", 16, "Not every GPU holds this one"),
        ("copies", 0.5, "Upside down"),
        ("copies", 4, "how many query heads a GPU has"),
        ("copies", 8, "how many KV heads there are"),
        ("per_token", 40, "These are KiB"),
        ("per_token", 40_000, "1,000 bytes for a KiB"),
        ("per_token", 20_480, "You gave each GPU a part of a KV head"),
        ("per_token", 327_680, "whole model's"),
        ("per_token", 512, "one layer"),
        ("per_token", 163_840, "Only KV heads are kept"),
        ("per_token", 81_920, "Each copy lies on a GPU of its own"),
        ("per_token", 40_961, "its KV heads, head_dim, two bytes each"),
        ("as_small_on", 16, "Fewer GPUs do"),
        ("as_small_on", 64, "MHA stops shrinking"),
        ("as_small_on", 2, "hold the same KV head"),
    ],
)
def test_wrong_numbers_of_one_gpu_are_named(key, value, part):
    case("A1.per_gpu")
    verdict = check("A1.per_gpu", SIXTEEN | {key: value})
    assert not verdict and part in verdict.message and "Right: " in verdict.message, verdict


# ---- A1.kv_heads ---------------------------------------------------------------------------------


def refused(P, H, G):
    return H % P or (G % P and P % G)


def by_range(rank, n_processes, n_heads, n_kv_heads):
    if refused(n_processes, n_heads, n_kv_heads):
        raise ValueError("no")
    first = rank * n_kv_heads // n_processes
    return range(first, first + max(1, n_kv_heads // n_processes))


def by_reading(rank, P, H, G):
    if refused(P, H, G):
        raise ValueError
    return {i // (H // G) for i in range(rank * H // P, (rank + 1) * H // P)}


def by_copies(rank, P, H, G):
    if refused(P, H, G):
        raise ValueError("cannot share")
    if P > G:
        return [rank // (P // G)]
    return [*range(rank * (G // P), (rank + 1) * (G // P))]


def by_numpy(rank, n_processes, n_heads, n_kv_heads):
    if refused(n_processes, n_heads, n_kv_heads):
        raise ValueError
    owners = np.repeat(np.arange(n_kv_heads), n_heads // n_kv_heads).reshape(n_processes, -1)
    return np.unique(owners[rank])


def by_torch(rank, P, H, G):
    if refused(P, H, G):
        raise ValueError
    return torch.arange(G).repeat_interleave(H // G).view(P, -1)[rank].unique()


def by_dict(rank, P, H, G):
    return tuple(dict.fromkeys(by_reading(rank, P, H, G)))


@pytest.mark.parametrize("function", [by_range, by_reading, by_copies, by_numpy, by_torch, by_dict])
def test_every_right_form_of_the_kv_heads_passes(function):
    verdict = check("A1.kv_heads", function)
    assert verdict and "Notice" in verdict.message, verdict


def test_the_truth_of_the_check_is_the_librarys():
    for round_ in (0, 1):
        for one in KV_HEADS.cases(round_):
            assert kv_heads.held(*one.args) == list(parallel.kv_heads_of(*one.args))
    for one, _ in KV_HEADS.refusals:
        with pytest.raises(ValueError):
            parallel.kv_heads_of(*one.args)


def without(change):
    """A function that is right but for `change`, which gets the right list."""
    return lambda rank, P, H, G: change(list(by_range(rank, P, H, G)), rank, P, H, G)


UNLISTED = {
    "first process alone": lambda rank, P, H, G: [0],
    "an empty list": lambda rank, P, H, G: [],
    "two too many": without(lambda x, r, P, H, G: [*x, x[-1] + 1, x[-1] + 2]),
    "negative": without(lambda x, r, P, H, G: [-1, *x]),
    "rounded to the nearest": lambda rank, P, H, G: range(round(rank * G / P), round(rank * G / P) + max(1, G // P)),
    "wrong for 16 only": without(lambda x, r, P, H, G: [7] if P == 16 else x),
    "as text": without(lambda x, r, P, H, G: str(x)),
    "as floats": without(lambda x, r, P, H, G: [float(i) for i in x]),
    "true division": lambda rank, P, H, G: [rank * G / P],
    "a number": without(lambda x, r, P, H, G: x[0]),
    "first and number": without(lambda x, r, P, H, G: {"first": x[0], "n": len(x)}),
    "a mask": without(lambda x, r, P, H, G: [i in x for i in range(G)]),
    "a table": without(lambda x, r, P, H, G: np.array([x])),
    "nothing": lambda rank, P, H, G: print(rank),
    "raises": lambda rank, P, H, G: [rank // (P - P)],
    "accepts everything": lambda rank, P, H, G: sorted({i // (H // G) for i in range(rank * H // P, (rank + 1) * H // P)}),
    "asks for P divides H only": lambda rank, P, H, G: by_reading(rank, P, H, G) if not refused(P, H, G) else
        [0] if H % P == 0 else int("x"),
    "lets KV heads be cut": lambda rank, P, H, G:
        [0] if P < G and H % P == 0 and G % P else by_reading(rank, P, H, G),
    "asks for P at most H": lambda rank, P, H, G:
        [0] if P < H and P % G == 0 and H % P else by_reading(rank, P, H, G),
    "the package's": parallel.kv_heads_of,
}  # fmt: skip


@pytest.mark.parametrize("name", UNLISTED)
def test_wrong_kv_heads_that_are_not_listed_are_rejected_and_not_misnamed(name):
    verdict = check("A1.kv_heads", UNLISTED[name])
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in KV_HEADS.mistakes), verdict


@pytest.mark.parametrize(
    "name, part",
    [
        ("two too many", "Wrong first at KV head"),
        ("negative", "You named one that does not exist"),
        ("as floats", "divide with //, not with /"),
        ("true division", "divide with //, not with /"),
        ("a number", "it should return a list of whole numbers"),
        ("accepts everything", "8 processes cannot share 12 query heads evenly. Nothing was raised"),
        ("lets KV heads be cut", "2 processes over 3 KV heads: both would need the middle one"),
        ("asks for P at most H", "8 processes cannot share 12 query heads evenly."),
        ("asks for P divides H only", "2 processes over 3 KV heads: both would need the middle one"),
        ("the package's", "That is the package's"),
        ("nothing", "returned None"),
    ],
)
def test_wrong_kv_heads_are_told_what_is_wrong(name, part):
    assert part in check("A1.kv_heads", UNLISTED[name]).message, check("A1.kv_heads", UNLISTED[name])


# ---- A1.groups -----------------------------------------------------------------------------------

SHARED = {"allowed": [1, 2, 4, 8], "chats": [80, 112, 124, 66], "choice": 4}


def test_the_chats_of_each_group_are_those_of_a_plan():
    numbers = case("A1.groups")
    gpu = costs.Gpu(name="a card", memory_gb=80, bandwidth_gb_per_s=1, dense_16bit_tflops=None, source="a test")
    names = ("n_layers", "n_heads", "n_kv_heads", "head_dim")
    shape = costs.ModelShape(
        name="shared", d_model=1, d_ff=1, vocab_size=1, max_seq_len=1, params_billion=14, mlp_matrices=None, source="a test",
        **{name: numbers[name] for name in names},
    )  # fmt: skip
    chats = []
    for n in SHARED["allowed"]:
        p = costs.plan(shape, gpu, kv_len=numbers["tokens_per_chat"], batch_size=1, n_gpus=n)
        assert p.weight_bytes == 28e9
        chats.append(p.chats * (16 // n))
    assert chats == SHARED["chats"] and GROUPS.right(numbers) == SHARED and check("A1.groups", SHARED)
    assert [n for n in parallel.allowed_processes(40, 4) if 16 % n == 0] == SHARED["allowed"]


@pytest.mark.parametrize(
    "key, value, part",
    [
        ("allowed", [1, 2, 4], "then KV heads are copied"),
        ("allowed", [1, 2, 4, 8, 16], "P has to divide the query heads as well"),
        ("allowed", [1, 2, 4, 8, 20, 40], "do not make whole groups"),
        ("allowed", [2, 4, 8], "A group may be a single GPU"),
        ("allowed", [1, 2, 4, 5, 8], "P = 5: the GPUs do not make whole groups"),
        ("allowed", [1, 4], "You gave 2 numbers"),
        ("allowed", [8, 4, 2, 1], "Rising numbers"),
        ("chats", [80, 112, 124, 132], "the group holds the cache P / G times"),
        ("chats", [5, 14, 31, 33], "That is one group"),
        ("chats", [80, 80, 84, 42], "A group shares one set of them"),
        ("chats", [128, 136, 140, 70], "Where are the weights?"),
        ("chats", [96, 128, 140, 74], "10% were to stay free"),
        ("chats", [0, 8, 12, 6], "n_heads for n_kv_heads"),
        ("chats", [0, 8, 12, 12], "and copied nothing"),
        ("chats", [85, 113, 126, 66], "after you had multiplied by the groups"),
        ("chats", [80, 112, 128, 66], "rounded to the nearest, or took the free tenth"),
        ("chats", [96, 120, 136, 72], "a card's GB for GiB"),
        ("chats", [80, 120, 136, 70], "Your chat is in GiB"),
        ("chats", {1: 80, 2: 112, 4: 124, 8: 66}, "write a list"),
        ("chats", [80, 112, 124, 67], "One number for each allowed P"),
        ("chats", [96, 120, 128, 68], "You rounded up"),
        ("chats", [85.9, 113.3, 126.9, 66.9], "Only whole chats count"),
        ("chats", [80, 56, 28, 16], "You took every group's cache P times"),
        ("chats", [32, 56, 60, 32], "4 bytes per element"),
        ("choice", 124, "That is the number of chats"),
        ("allowed", [1, 2, 4, 5, 8, 10, 20, 40], "P also has to divide the GPUs"),
        ("choice", 8, "best if nothing were copied"),
        ("choice", 16, "All GPUs in one group?"),
        ("choice", 1, "every GPU holds all the weights"),
        ("choice", 2, "The P with the most chats"),
    ],
)
def test_wrong_groups_are_named(key, value, part):
    case("A1.groups")
    verdict = check("A1.groups", SHARED | {key: value})
    assert not verdict and part in verdict.message and "Right: " in verdict.message, verdict


@pytest.mark.parametrize(
    "wrong, key, part",
    [
        ({"chats": [5, 14, 31, 33], "choice": 8}, "choice", "follows from your numbers of chats"),
        ({"allowed": [1, 2, 4], "chats": [80, 112, 124]}, "chats", "Right wherever your `allowed` is"),
        ({"allowed": [1, 2, 4, 5, 8], "chats": [80, 112, 124, 90, 66]}, "chats", "Right wherever your `allowed` is"),
        ({"allowed": [1, 2, 4], "chats": [80, 112, 140]}, "chats", "One number for each allowed P"),
        ({"allowed": [3, 5], "chats": [80, 112], "choice": 8}, "chats", "One number for each allowed P"),
        ({"allowed": [[1], 2], "chats": ["80", 112]}, "chats", "One number for each allowed P"),
        ({"allowed": [], "chats": []}, "chats", "One number for each allowed P"),
    ],
)
def test_what_follows_from_another_answer_is_told_so(wrong, key, part):
    case("A1.groups")
    lines = check("A1.groups", SHARED | wrong).message.splitlines()
    assert part in next(line for line in lines if line.startswith(f"`{key}`")), lines


def test_drawn_groups_tempt_with_copies_that_do_not_pay():
    for seed in range(1, 60):
        numbers = GROUPS.draw(seed)
        right = GROUPS.right(numbers)
        assert right["choice"] <= numbers["n_kv_heads"] < right["allowed"][-1]
        assert right["allowed"] == [
            n for n in parallel.allowed_processes(numbers["n_heads"], numbers["n_kv_heads"]) if numbers["n_gpus"] % n == 0
        ]  # fmt: skip
        no_copies = groups._chats(numbers, copies=lambda p, g: 1)
        assert right["allowed"][no_copies.index(max(no_copies))] > numbers["n_kv_heads"]


# ---- A1.wrapped ----------------------------------------------------------------------------------


def test_the_function_in_the_notebook_is_the_one_that_is_run():
    cells = {c.id: c.source for c in nbformat.read(SOLUTION, as_version=4).cells}
    assert cells["wrapped-code"] + "\n" == inspect.getsource(wrapped.kv_heads_held)
    for n in (1, 2, 4, 8, 16):
        for g in (1, 2, 4, 8):
            for rank in range(n):
                assert wrapped._repaired(rank, n, g) == list(parallel.kv_heads_of(rank, n, 16, g))


@pytest.mark.parametrize(
    "exposing, hiding",
    [((1, 4, 2), (3, 4, 2)), ((2, 4, 2), (7, 8, 2)), ([4, 16, 8], (15, 16, 8)), ((5, 9, 3), (4, 9, 3)), ((1, 6, 3), (5, 6, 3))],
)  # fmt: skip
def test_every_pair_of_processes_that_shows_and_hides_passes(exposing, hiding):
    verdict = check("A1.wrapped", {"line": 2, "exposing": exposing, "hiding": hiding})
    assert verdict, verdict


@pytest.mark.parametrize(
    "changed, part",
    [
        ({"line": 4}, "Not line 4."),
        ({"line": 5}, "Not line 5."),
        ({"line": "2"}, "write the number of one line"),
        ({"exposing": (4, 4, 2)}, "rank 4 is none of 4 processes: 0 to 3"),
        ({"exposing": (1, 3, 2)}, "3 processes cannot share 2 KV heads"),
        ({"exposing": (0, 8, 2)}, "Both versions give the same numbers"),
        ({"exposing": 1}, "give three whole numbers"),
        ({"hiding": (1, 2, 8)}, "Nothing is copied here"),
        ({"hiding": (0, 8, 2)}, "Process 0 holds the first KV head"),
        ({"hiding": (2, 4, 1)}, "a single KV head"),
        ({"hiding": (2, 4, 2)}, "already shows here (first at [0])"),
    ],
)
def test_a_weak_pair_of_processes_is_told_why(changed, part):
    verdict = check("A1.wrapped", {"line": 2, "exposing": (1, 4, 2), "hiding": (3, 4, 2)} | changed)
    assert verdict.status == "failed" and part in verdict.message, verdict


# ---- the lesson ----------------------------------------------------------------------------------


def test_the_tokens_that_the_lesson_prints_were_no_close_choice():
    model = parallel.tiny_model(1)
    caches = model.new_caches(1, 20)
    logits = prefill(model, torch.tensor([[1, 2, 3]]), caches)
    for _ in range(12):
        best, second = logits.topk(2).values[0]
        assert best - second > 1e-3
        logits = decode_step(model, logits.argmax(-1)[:, None], caches)
