"""05.expand: copy the KV heads."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from gqa_lab.checks import sandbox
from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import SIZES, Case, normal
from gqa_lab.checks.functions import Build
from gqa_lab.checks.head_maps import BACKWARDS, CARDS, DIVIDED, divided, from_the_end, neighbours
from gqa_lab.checks.wrong_attention import by_map, group_size

_EXPAND_SIZES = (*SIZES, {"B": 1, "H": 9, "G": 3, "S": 5, "D": 4})


def _expand_cases(round_: int) -> list[Case]:
    cases = []
    for n, sizes in enumerate(_EXPAND_SIZES):
        kept = {letter: sizes[letter] for letter in "BHGSD"}
        k = normal((50, round_, n), *(sizes[letter] for letter in "BGSD"))
        cases.append(Case((k, sizes["H"]), kept))
    return cases


def _expanded(k: np.ndarray, n_heads: int) -> np.ndarray:
    return np.stack([k[:, neighbours(i, n_heads, k.shape[1])] for i in range(n_heads)], axis=1)


def _found_map(case: Case, got: np.ndarray, index: tuple) -> str:
    k, n_heads = case.args
    found = []
    for i in range(n_heads):
        equal = [j for j in range(k.shape[1]) if np.allclose(got[:, i], k[:, j])]
        found.append(str(equal[0]) if equal else "?")
    return f"Your heads hold the KV heads [{', '.join(found)}]."


def _says_which(function: Callable) -> str | None:
    run = sandbox.run(function, [torch.zeros(1, 2, 3, 4), 7], {}, time.monotonic() + sandbox.DEADLINE_S)
    if all(number in str(run.error) for number in "72"):
        return None
    return "You refuse 7 heads over 2 KV heads. Say so: put both numbers into the text of your ValueError."


EXPAND = Build(
    id="05.expand",
    level="build ●○○ 8 min, core",
    cases=_expand_cases,
    reference=_expanded,
    names=("k", "n_heads"),
    axes="BHSD",
    explain=_found_map,
    refusals=(
        (
            Case((normal((51,), 1, 2, 3, 4), 7), {"H": 7, "G": 2}),
            "7 heads over 2 KV heads: what should head 6 read?",
        ),
        (
            Case((normal((52,), 1, 4, 3, 4), 6), {"H": 6, "G": 4}),
            "6 heads over 4 KV heads: what should head 5 read?",
        ),
        (
            Case((normal((53,), 1, 6, 3, 4), 3), {"H": 3, "G": 6}),
            "3 heads over 6 KV heads: who reads the last three?",
        ),
    ),
    mistakes=(
        Mistake(
            "repeat",
            lambda k, n: k.repeat(1, group_size(k, n), 1, 1),
            CARDS + " The ONNX standard itself once did this (onnx#7274); it is right only at G = 1 and G = H.",
        ),
        Mistake("i // G", partial(by_map, divided), DIVIDED),
        Mistake("groups reversed", partial(by_map, from_the_end), BACKWARDS),
        Mistake(
            "head 0 for all",
            partial(by_map, lambda i, h, g: 0),
            "Every query head got KV head 0. Each group has a KV head of its own.",
        ),
        Mistake(
            "mean of heads",
            lambda k, n: k.mean(1, keepdim=True).repeat(1, n, 1, 1),
            "Every query head got the mean of all KV heads. Nothing is averaged: each head reads one of them.",
        ),
        *(
            Mistake(f"{how} along {axis}", function, f"Your {word} became {n} long: you repeated {what}.")
            for axis, dim, word, n, what in (
                ("S", 2, "sequence", 14, "tokens"),
                ("D", 3, "head_dim", 16, "numbers inside a head"),
                ("B", 0, "batch", 8, "sequences"),
            )
            for how, function in (
                ("each", lambda k, n, dim=dim: k.repeat_interleave(group_size(k, n), dim)),
                ("all", lambda k, n, dim=dim: torch.cat([k] * group_size(k, n), dim)),
            )
        ),
        Mistake(
            "R left after G",
            lambda k, n: k[:, :, None].expand(-1, -1, group_size(k, n), -1, -1),
            "R is still an axis of its own: [B, G, R, S, D]. Merge it with G.",
        ),
        Mistake(
            "R left before G",
            lambda k, n: k[:, None].expand(-1, group_size(k, n), -1, -1, -1),
            "R is still an axis of its own, and it stands before G: [B, R, G, S, D]. Which of them moves slowly?",
        ),
        Mistake(
            "H copies",
            lambda k, n: k.repeat_interleave(n, 1),
            "You made H copies of each. Each KV head needs R copies.",
        ),
    ),
    beyond=_says_which,
    tested="Tested with (H, G) = (6, 3), (8, 2), (8, 8), (8, 1), (9, 3), twice, and with heads that don't divide.",
    notice="Notice: at G = H nothing is copied, and at G = 1 any order of copies is right. Only a true "
    "group tests you.",
)
