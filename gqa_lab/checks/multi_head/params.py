"""02.params: the parameters of four projections, by hand."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart


def _draw(seed: int) -> dict:
    if seed == 0:
        return _numbers((768, 12, 64), (1024, 16, 128))
    rng = np.random.default_rng((26, seed))
    for _ in count():
        (h, h2), (d, d2) = rng.integers(4, 25, size=2), rng.choice([32, 48, 64, 80, 96, 128], size=2)
        c2 = int(rng.choice([512, 640, 768, 896, 1024, 1280]))
        numbers = _numbers((int(h * d), int(h), int(d)), (c2, int(h2), int(d2)))
        if c2 != h2 * d2 and tells_apart(numbers, _right, _wrong):
            return numbers


def _numbers(*layers: tuple[int, int, int]) -> dict:
    names = ("d_model", "n_heads", "head_dim")
    return {key: dict(zip(names, sizes, strict=True)) for key, sizes in zip(("first", "second"), layers, strict=True)}


def _right(numbers: dict) -> dict:
    return {key: 4 * s["d_model"] * s["n_heads"] * s["head_dim"] for key, s in numbers.items()}


def _wrong(numbers: dict) -> list[Mistake]:
    mistakes = []
    for key, sizes in numbers.items():
        c, h, d = sizes.values()
        all_four = 4 * c * h * d
        narrower = "More heads are narrower heads: all of them together share the width of a projection."
        assumed = "You assumed n_heads · head_dim = d_model."
        derived = [(4 * c * c, assumed), (4 * (h * d) ** 2, assumed), (3 * c * h * d + c * c, assumed)]
        rows = (derived if c != h * d else []) + [
            (all_four * h, narrower),
            (3 * c * h * d, "Three of four projections: the heads' outputs are projected, too."),
            (c * h * d, "One of four projections."),
            (2 * c * h * d, "Two of four projections."),
            (4 * c * d, "That is one head. Count all of them."),
            (all_four + 3 * h * d + c, "Right with biases; the question is without."),
            (all_four // 4 * 6, "Six projections are too many. Which four are there?"),
        ]
        mistakes += [Mistake(key, *row) for row in rows]
    return mistakes


PARAMS = Hand(
    id="02.params",
    level="by hand ●○○ 6 min, further",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "first": "Each of the four projections is one matrix. How many rows, how many columns?",
        "second": "Three projections go from d_model to the width of all heads, the fourth goes back.",
    },
    notice="Notice: only the product n_heads · head_dim is in the formula. How it is cut costs nothing.",
)
