"""07.spread: is a difference between two kinds of model larger than the spread over seeds? By hand."""

from itertools import count
from math import floor
from statistics import mean, median

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, agrees, tells_apart

N_SEEDS = 6
_NAMES = {"gqa": "G = 2", "mqa": "G = 1"}
_MADE_UP = {  # losses with the same six seeds, data in the same order
    "mha": [2.931, 2.948, 2.919, 2.940, 2.926, 2.936],
    "gqa": [2.935, 2.951, 2.917, 2.949, 2.931, 2.938],
    "mqa": [2.957, 2.969, 2.948, 2.961, 2.955, 2.963],
}
_ROUNDED = "Nearly right: rounded too far. Keep two significant digits."


def _draw(seed: int) -> dict:
    if seed == 0:
        return {name: list(losses) for name, losses in _MADE_UP.items()}
    rng = np.random.default_rng((71, seed))
    for _ in count():
        mha = 2.9 + 0.05 * rng.random(N_SEEDS)
        numbers = {"mha": mha} | {name: mha + rng.normal(rng.choice([0.004, 0.012]), 0.005, N_SEEDS) for name in _NAMES}
        numbers = {name: [round(float(x), 3) for x in losses] for name, losses in numbers.items()}
        if all(_is_a_fair_question(numbers, name) for name in _NAMES) and tells_apart(numbers, _right, _wrong):
            return numbers


def _is_a_fair_question(numbers: dict, name: str) -> bool:
    """True if no pair is equal, most favour MHA, and the ranges over seeds overlap."""
    apart = _pairs(numbers, name)
    overlap = min(numbers[name]) < max(numbers["mha"])
    return 0 not in apart and 4 <= sum(x > 0 for x in apart) and overlap


def _pairs(numbers: dict, name: str) -> list[float]:
    """How much larger the loss is than MHA's, for each seed; differences of numbers with three decimals have three."""
    return [round(a - b, 3) for a, b in zip(numbers[name], numbers["mha"], strict=True)]


def _right(numbers: dict) -> dict:
    answers = {}
    for name in _NAMES:
        apart = _pairs(numbers, name)
        n_worse = sum(x > 0 for x in apart)
        answers |= {
            f"{name}_worse": n_worse,
            f"{name}_difference": mean(apart),
            f"{name}_shown": n_worse in (0, N_SEEDS),
        }
    return answers


def _wrong(numbers: dict) -> list[Mistake]:
    right, found = _right(numbers), []
    for name, other in (("gqa", "mqa"), ("mqa", "gqa")):
        apart, losses, mha = _pairs(numbers, name), numbers[name], numbers["mha"]
        n_worse, difference = right[f"{name}_worse"], right[f"{name}_difference"]
        from_other = mean(a - b for a, b in zip(losses, numbers[other], strict=True))
        above_mean = sum(a > mean(mha) for a in losses)
        found += [
            Mistake(f"{name}_worse", value, text)
            for value, text in (
                (N_SEEDS - n_worse, "That counts the seeds in which it is better: a smaller loss is better."),
                (above_mean, "You compared with MHA's mean. Same seed, same data: compare pair by pair."),
                (n_worse / N_SEEDS, "That is a share of the seeds. Count them."),
            )
        ]
        found += [
            Mistake(f"{name}_difference", value, text)
            for value, text in (
                (round(difference, 3), _ROUNDED),
                (floor(1000 * difference + 1e-6) / 1000, _ROUNDED),
                (-difference, "You subtracted the other way round: positive means worse than MHA."),
                (right[f"{other}_difference"], f"That is {_NAMES[other]}; here it is {_NAMES[name]}."),
                (sum(apart) / (N_SEEDS - 1), "You divided by 5. Six seeds make six differences."),
                (10 * difference, "Off by 10: count the decimals."),
                (mean(x for x in apart if x > 0), "You left out the seeds that say the opposite."),
                (sum(apart), "That is the sum of the differences; divide by the seeds."),
                (median(apart), "That is the median of the differences; give their mean."),
                (
                    mean(map(abs, apart)),
                    "You dropped the signs. A seed that says the opposite counts against the rest.",
                ),
                (median(losses) - median(mha), "That compares the medians of two lists; compare pair by pair."),
                (min(losses) - min(mha), "You compared the best runs. Who chose these seeds? Compare all pairs."),
                (max(losses) - max(mha), "You compared the worst runs. Compare all pairs."),
                (mean(losses), "That is the mean loss. How far is it from MHA's?"),
                (from_other, f"That is against {_NAMES[other]}; compare with MHA."),
                (1000 * difference, "Off by 1,000: give nats, not thousandths."),
                (100 * difference / mean(mha), "That is in percent of MHA's loss; give nats."),
            )
        ]
        found.append(Mistake(f"{name}_shown", not right[f"{name}_shown"], _not_shown(numbers, name)))
    return _clear(found, right, two_reasons=numbers == _MADE_UP)


def _not_shown(numbers: dict, name: str) -> str:
    """Says why the other verdict is tempting, and wrong."""
    right = _right(numbers)
    if right[f"{name}_shown"]:
        low, high = min(numbers[name]), max(numbers["mha"])
        where = f"they touch at {low}" if low == high else f"from {low} to {high} they overlap"
        return f"You compared ranges across seeds ({where}). Same seed, same data: compare pairs."
    n = N_SEEDS - right[f"{name}_worse"]
    said = "One of six seeds says" if n == 1 else f"{n} of six seeds say"
    return f"{said} the opposite. A mean of {right[f'{name}_difference']:+.2g} is not yet evidence."


def _clear(mistakes: list[Mistake], right: dict, *, two_reasons: bool) -> list[Mistake]:
    """Leaves out what happens to be right here, and of two reasons for one value keeps rounding or the first.

    With `two_reasons` it keeps both, unless one is rounding.
    """
    kept = []
    for m in mistakes:
        told = [k.wrong for k in kept if k.name == m.name and (k.diagnosis == _ROUNDED or not two_reasons)]
        if not any(agrees(m.wrong, value) for value in (right[m.name], *told)):
            kept.append(m)
    return kept


SPREAD = Hand(
    id="07.spread",
    level="by hand ●●○ 8 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "gqa_worse": "Seed by seed: is the loss with G = 2 larger than MHA's? Count.",
        "gqa_difference": "The six differences, G = 2 minus MHA, and their mean, in nats; round nothing on the way.",
        "gqa_shown": "True if all six pairs agree in sign, else False.",
        "mqa_worse": "Seed by seed: is the loss with G = 1 larger than MHA's? Count.",
        "mqa_difference": "The six differences, G = 1 minus MHA, and their mean, in nats; round nothing on the way.",
        "mqa_shown": "True if all six pairs agree in sign, else False.",
    },
    notice="Notice: seeds differ by as much as kinds do, and pairing takes that away. If nothing were different, six "
    "pairs would still agree 1 time in 32.",
)
