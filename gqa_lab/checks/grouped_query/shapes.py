"""05.shapes: widths and parameters of a layer, by hand."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart
from gqa_lab.checks.head_maps import TRUE_GROUPS


def _draw_shapes(seed: int) -> dict:
    if seed == 0:
        return {"model": "Qwen3-0.6B", "d_model": 1024, "n_heads": 16, "n_kv_heads": 8, "head_dim": 128}
    rng = np.random.default_rng((55, seed))
    for _ in count():
        h, g = TRUE_GROUPS[rng.integers(len(TRUE_GROUPS))]
        c, d = h * int(rng.choice([32, 48, 64, 80])), int(rng.choice([64, 96, 128]))
        numbers = {"model": f"made up ({seed})", "d_model": c, "n_heads": h, "n_kv_heads": g, "head_dim": d}
        if c != h * d and tells_apart(numbers, _right_shapes, _wrong_shapes):
            return numbers


def _right_shapes(numbers: dict) -> dict:
    c, h, g, d = (numbers[name] for name in ("d_model", "n_heads", "n_kv_heads", "head_dim"))
    widths = {"q_width": h * d, "k_width": g * d, "v_width": g * d, "o_in_width": h * d}
    return widths | {"parameters": 2 * c * (h + g) * d, "parameters_as_mha": 4 * c * h * d}


def _wrong_shapes(numbers: dict) -> list[Mistake]:
    c, h, g, d = (numbers[name] for name in ("d_model", "n_heads", "n_kv_heads", "head_dim"))
    head_dim = f"head_dim is {d}, not d_model / n_heads = {c // h}."
    group = "That is group_size · head_dim; the width is n_kv_heads · head_dim."
    mha, gone = "That is MHA: one K and one V for each query head.", "No query head was removed."
    keys = [Mistake(key, value, text) for key in ("k_width", "v_width") for value, text in (
        (h // g * d, group), (h * d, mha), (g * (c // h), head_dim),
    )]  # fmt: skip
    return keys + [
        Mistake("q_width", c, head_dim),
        Mistake("q_width", g * d, gone),
        Mistake("o_in_width", c, head_dim),
        Mistake("o_in_width", g * d, gone),
        Mistake("parameters", 4 * c * h * d, mha),
        Mistake("parameters", 2 * c * (h + h // g) * d, group),
        Mistake("parameters", 2 * c * (c + g * (c // h)), head_dim),
        Mistake("parameters_as_mha", 4 * c * c, head_dim),
        Mistake(
            "parameters_as_mha",
            2 * c * (h + g) * d,
            "That is with the shared KV heads. Give every query head its own.",
        ),
    ]


SHAPES = Hand(
    id="05.shapes",
    level="by hand ●○○ 6 min, further",
    draw=_draw_shapes,
    right=_right_shapes,
    mistakes=_wrong_shapes,
    look={
        "q_width": "One query per query head, each of head_dim numbers.",
        "k_width": "One key per KV head, each of head_dim numbers.",
        "v_width": "Values have the shape of keys.",
        "o_in_width": "o_proj reads the outputs of all query heads, side by side.",
        "parameters": "Four matrices, each d_model times a width from above; no biases, one layer.",
        "parameters_as_mha": "The same four matrices, if each query head had its own KV head.",
    },
    notice="Notice: only K and V became narrower, and n_heads · head_dim need not be d_model.",
)
