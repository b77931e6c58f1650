"""02.columns: which columns head h owns, and what a reshape does instead, by hand."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart
from gqa_lab.checks.head_maps import FROM_ONE


def _draw(seed: int) -> dict:
    if seed == 0:
        return _numbers(n_heads=6, head_dim=2, head=4, n_tokens=3, query=0)
    rng = np.random.default_rng((2, seed))
    for _ in count():
        h, d, t = int(rng.integers(3, 9)), int(rng.integers(2, 6)), int(rng.integers(3, 8))
        numbers = _numbers(h, d, int(rng.integers(2, h)), t, int(rng.integers(t)))
        if h != d and h * d <= 40 and tells_apart(numbers, _right, _wrong):
            return numbers


def _numbers(n_heads: int, head_dim: int, head: int, n_tokens: int, query: int) -> dict:
    sizes = {"n_heads": n_heads, "head_dim": head_dim}
    x, cut = f"x[{n_tokens}, {n_heads * head_dim}]", f"reshape({n_heads}, {n_tokens}, {head_dim})[{head}, {query}]"
    return {
        "columns": sizes | {"head": head},
        "token_and_column": sizes | {"n_tokens": n_tokens, "head": head, "query": query, "code": f"{x}.{cut}"},
    }


def _right(numbers: dict) -> dict:
    one, cut = numbers["columns"], numbers["token_and_column"]
    d, width = one["head_dim"], cut["n_heads"] * cut["head_dim"]
    place = (cut["head"] * cut["n_tokens"] + cut["query"]) * cut["head_dim"]
    return {
        "columns": list(range(one["head"] * d, (one["head"] + 1) * d)),
        "token_and_column": list(divmod(place, width)),
    }


def _wrong(numbers: dict) -> list[Mistake]:
    one, cut = numbers["columns"], numbers["token_and_column"]
    h, d, head, t = one["n_heads"], one["head_dim"], one["head"], cut["n_tokens"]
    right = _right(numbers)
    from_one = "You counted heads from 1. " + FROM_ONE
    columns = [
        (list(range(head, h * d, h)), "You cut columns as (D, H): neighbours went to different heads."),
        ([c - d for c in right["columns"]], from_one),
        (list(range(head, head + d)), f"Head {head} starts after {head} whole heads."),
        ([c + 1 for c in right["columns"]], "You counted columns from 1. " + FROM_ONE),
        (list(range((h - 1 - head) * d, (h - head) * d)), "Head 0 comes first, on the left."),
        (list(range(head * d, (head + 1) * d + 1)), "That is one column too many: the next head starts there."),
    ]
    place = (cut["head"] * t + cut["query"]) * d
    places = [
        (
            [cut["query"], cut["head"] * d],
            "That is what a right split would put there. A reshape keeps the reading order: how many stand before?",
        ),
        (right["token_and_column"][::-1], "First the token, then the column."),
        (list(divmod(place - t * d, h * d)), from_one),
        (
            list(divmod(cut["head"] * t + cut["query"], h * d)),
            "You counted pieces. Each piece before yours holds head_dim numbers.",
        ),
        ([place // (h * d), place], "The column starts anew with each token."),
    ]
    return [Mistake("columns", *pair) for pair in columns] + [Mistake("token_and_column", *pair) for pair in places]


COLUMNS = Hand(
    id="02.columns",
    level="by hand ●○○ 5 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "columns": "Write a row of n_heads · head_dim columns and cut it into n_heads pieces of neighbours.",
        "token_and_column": "A reshape keeps the reading order: token 0 first with all its columns, then token 1. "
        "How many numbers stand before this one?",
    },
    notice="Notice: the first answer looks along one token, the second runs on into the next. A reshape keeps the "
    "reading order.",
)
