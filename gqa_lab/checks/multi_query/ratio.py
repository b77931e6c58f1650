"""04.ratio: Shazeer's memory-to-compute ratio, by hand."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart

TERMS = ("1/d", "n/(dh)", "1/b")

_NO_WEIGHTS = "1/b is missing: the weights are read too, once per step for all b sequences."
_NOT_ONLY_THE_CACHE = "Only the cache term is divided by h."
_NO_ACTIVATIONS = "1/d is missing: beside a cache so narrow the rows of the new tokens count as well."
_UPSIDE_DOWN = "n/d is upside down: a longer context means more to read."
_TIMES_B = "You added b instead of 1/b. Does a larger batch make the weights cost each sequence more, or less?"
_WIDTH_OF_A_HEAD = "You divided n by h alone. Each of its n tokens is weighed against d, the width of the layer."


def _draw(seed: int) -> dict:
    if seed == 0:
        return _numbers(256, 1024, 16, 32)
    rng = np.random.default_rng((41, seed))
    for _ in count():
        d = int(rng.choice([512, 768, 1024, 1536, 2048, 3072, 4096]))
        n, h, b = (
            32 * int(rng.integers(2, d // 32 + 1)),
            int(rng.choice([4, 6, 8, 12, 16, 24, 32])),
            4 * int(rng.integers(1, 17)),
        )
        numbers = _numbers(n, d, h, b)
        if d % h == 0 and _one_rules(numbers) and tells_apart(numbers, _right, _wrong):
            return numbers


def _numbers(n: int, d: int, h: int, b: int) -> dict:
    return {"n": n, "d": d, "h": h, "b": b}


def _one_rules(numbers: dict) -> bool:
    """True if one term is clearly the largest."""
    second, largest = sorted(_terms(numbers).values())[-2:]
    return largest > 1.5 * second


def _terms(numbers: dict) -> dict[str, float]:
    n, d, h, b = (numbers[letter] for letter in "ndhb")
    return dict(zip(TERMS, (1 / d, n / (d * h), 1 / b), strict=True))


def _right(numbers: dict) -> dict:
    terms = _terms(numbers)
    mha, mqa = numbers["n"] / numbers["d"] + terms["1/b"], sum(terms.values())
    return {"mha": mha, "mqa": mqa, "largest": max(terms, key=terms.get), "gain": mha / mqa}


def _wrong(numbers: dict) -> list[Mistake]:
    n, d, h, b = (numbers[letter] for letter in "ndhb")
    right, terms = _right(numbers), _terms(numbers)
    cache = terms["1/d"] + terms["n/(dh)"]
    replies = {
        "1/d": "1/d is one activation against d multiply-adds. Write the three terms as decimals and compare.",
        "n/(dh)": "The cache is h times narrower now. Write the three terms as decimals and compare.",
        "1/b": "Here the weights are not the largest term. Write the three terms as decimals and compare.",
    }
    return [
        Mistake("mha", n / d, _NO_WEIGHTS),
        Mistake("mha", d / n + 1 / b, _UPSIDE_DOWN),
        Mistake("mha", n / d + b, _TIMES_B),
        Mistake("mha", right["mqa"], "That is MQA's: in MHA nothing is divided by h."),
        Mistake("mqa", right["mha"], "That is MHA's: with one KV head the cache is h times narrower."),
        Mistake("mqa", cache, _NO_WEIGHTS),
        Mistake("mqa", right["mqa"] - 1 / d, _NO_ACTIVATIONS),
        Mistake("mqa", right["mha"] / h, _NOT_ONLY_THE_CACHE),
        Mistake("mqa", cache + b, _TIMES_B),
        Mistake("mqa", 1 / d + d / (n * h) + 1 / b, _UPSIDE_DOWN),
        Mistake("mqa", 1 / d + n * h / d + 1 / b, "You multiplied the cache term by h. Sharing makes it smaller."),
        Mistake("mqa", 1 / d + n / h + 1 / b, _WIDTH_OF_A_HEAD),
        Mistake("largest", "n/d", "n/d is a term of MHA. Look at the three terms that are left with one KV head."),
        *(Mistake("largest", term, text) for term, text in replies.items() if term != right["largest"]),
        Mistake("gain", h, f"Only one term shrinks {h} times. Divide one ratio by the other."),
        Mistake("gain", right["mqa"] / right["mha"], "Upside down: how many times smaller is MQA's ratio?"),
        Mistake("gain", n / d / cache, _NO_WEIGHTS),
        Mistake("gain", right["mha"] / (right["mqa"] - 1 / d), _NO_ACTIVATIONS),
        Mistake("gain", right["mha"] - right["mqa"], "That is the difference. How many times smaller is MQA's ratio?"),
    ]


RATIO = Hand(
    id="04.ratio",
    level="by hand ●●○ 8 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "mha": "Two terms: n/d for the cache, 1/b for the weights.",
        "mqa": "Three terms: 1/d, n/(dh) and 1/b. Which of MHA's two terms changed?",
        "largest": 'Write "1/d", "n/(dh)" or "1/b", as text.',
        "gain": "Divide the ratio of MHA by the ratio of MQA.",
    },
    notice="Notice: the gain is smaller than h, because the cache is not all that is read. Which term rules decides "
    "what sharing is worth; lesson 06 asks it of real models.",
)
