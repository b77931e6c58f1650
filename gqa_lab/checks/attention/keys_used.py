"""01.keys_used: how many keys a head uses, and from which head_dim on an unscaled head uses few."""

from functools import lru_cache
from itertools import count

import numpy as np

from gqa_lab import plots
from gqa_lab.checks.answers import Hand, Mistake, tells_apart

_HEAD_DIMS = (2, 4, 8, 16, 32, 64, 128, 256)
_ROWS = ((2, 4, 8, 8), (2, 4, 4), (4, 4, 4, 8, 8), (2, 8, 8, 8, 8), (2, 4, 8, 16, 16), (4, 4, 8, 8, 8, 8))
_MARGIN = 0.2  # one random draw differs from another by 5% or so, and by 11% at head_dim 4


@lru_cache
def _used(head_dim: int) -> float:
    return plots.effective_keys(plots.random_weights(head_dim, scaled=False))


def _draw(seed: int) -> dict:
    if seed == 0:
        return _numbers([2, 4, 8, 8], 6, [4, 8, 16, 64, 256])
    rng = np.random.default_rng((16, seed))
    for _ in count():
        row = rng.permutation(_ROWS[rng.integers(len(_ROWS))]).tolist()
        head_dims = sorted(int(d) for d in rng.choice(_HEAD_DIMS, size=5, replace=False))
        numbers = _numbers(row, int(rng.integers(2, 16)), head_dims)
        used = np.array([_used(d) for d in head_dims])
        is_inside = used[0] > numbers["fewer_than"] > used[-2]  # one list entry too few and one too many at least
        is_clear = np.abs(used / numbers["fewer_than"] - 1).min() > _MARGIN
        if is_inside and is_clear and tells_apart(numbers, _right, _wrong):
            return numbers


def _numbers(row: list[int], fewer_than: int, head_dims: list[int]) -> dict:
    return {"weights": [1 / n for n in row], "fewer_than": fewer_than, "head_dims": head_dims}


def _bits(numbers: dict) -> float:
    return float(-sum(w * np.log2(w) for w in numbers["weights"]))


def _right(numbers: dict) -> dict:
    few = [d for d in numbers["head_dims"] if _used(d) < numbers["fewer_than"]]
    return {"keys": round(2 ** _bits(numbers), 4), "head_dim": few[0]}


def _wrong(numbers: dict) -> list[Mistake]:
    weights, bits, right = np.array(numbers["weights"]), _bits(numbers), _right(numbers)
    base = "Base and logarithm do not belong together: 2 goes with log₂, e with the natural logarithm."
    keys = (
        (bits, "That is the entropy in bits. Take 2 to its power: then n equal weights give n."),
        (bits * np.log(2), "That is the entropy with the natural logarithm. Take e to its power."),
        (2 ** (bits * np.log(2)), base),
        (np.exp(bits), base),
        (float(len(weights)), "You counted the weights. A small weight counts for less than one key."),
        (1 / weights.max(), "That is 1 / the largest weight. Every weight has its part in the entropy."),
        (1 / (weights**2).sum(), "That is 1 / the sum of the squares: another count. This one goes by the entropy."),
        (2.0**-bits, "You lost the minus sign of the entropy. No head uses less than one key."),
    )
    still_more = (
        f"There an unscaled head still uses {numbers['fewer_than']} keys or more. Measure again, without the scale, "
        "along the keys of each query."
    )
    others = [d for d in numbers["head_dims"] if d != right["head_dim"]]
    return [Mistake("keys", round(float(value), 4), text) for value, text in keys] + [
        Mistake("head_dim", d, still_more if d < right["head_dim"] else "True there, but a smaller one does as well.")
        for d in others
    ]


KEYS_USED = Hand(
    id="01.keys_used",
    level="decide ●●○ 8 min, further",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "keys": "The entropy is −Σ w · log₂ w over the weights. Then take 2 to its power, with two decimals at least.",
        "head_dim": "For each head_dim of the list: random queries over 64 random keys, no scale, 2 to the entropy of "
        "each query, the mean. Give the first that is below the limit.",
    },
    notice="Notice: without the scale a wide head uses a few of its 64 keys whatever they hold. It cannot weigh them.",
)
