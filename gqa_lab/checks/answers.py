"""Answers that are written down as numbers on paper (`Hand`), and what all kinds of exercises share.

A lesson fills these with data. Wrong values carry a diagnosis; `draw(seed)` makes the numbers of a question, so
that a class can have its own.
"""

import math
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from gqa_lab.checks.verdict import Verdict


@dataclass(frozen=True)
class Mistake:
    """A known wrong answer and what to tell who gives it.

    Attributes:
        name: what was done, or for a `Hand` exercise the key of the dict.
        wrong: a function that makes the mistake, or the wrong value.
        diagnosis: names the mistake and where to look; never the answer.
    """

    name: str
    wrong: object
    diagnosis: str


@dataclass(frozen=True)
class Prediction:
    """A question before its answer. `options` gives for each letter what is chosen and what is replied."""

    id: str
    options: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Hand:
    """Numbers on paper. `draw(seed)` gives the question, and all else follows from what was drawn.

    Attributes:
        look: where to look when a value is wrong in an unknown way, for each key.
        follows: what to say of wrong answers that would be right if the others were: a sentence for each such key.
    """

    id: str
    level: str
    draw: Callable[[int], dict]
    right: Callable[[dict], dict]
    mistakes: Callable[[dict], list[Mistake]]
    look: dict[str, str]
    notice: str
    follows: Callable[[dict, dict], dict[str, str]] = lambda numbers, given: {}

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a dict of numbers and lists."""
        numbers = self.draw(seed)
        right = self.right(numbers)
        if answer is None or answer is ... or answer == {}:
            return not_attempted(self.id, list(right))
        if not isinstance(answer, dict):
            return Verdict("failed", f"Hand over a dict with the keys {listed(right)}.", self.id)
        if missing := [key for key in right if answer.get(key) is None or answer[key] is ...]:
            if not set(answer) & set(right):
                return Verdict("failed", f"The keys of the dict are {listed(right)}; yours are others.", self.id)
            return not_attempted(self.id, missing)
        try:
            given = {key: plain(answer[key]) for key in right}
        except TypeError as error:
            return Verdict("failed", str(error), self.id)
        wrong = [key for key in right if not agrees(given[key], right[key])]
        if not wrong:
            all_right = f"All {len(right)} answers are right." if len(right) > 1 else "Right."
            return Verdict("passed", f"{all_right} {self.notice}", self.id)
        told = self.follows(numbers, given)
        lines = [
            f"`{key}`: {told[key]}" if key in told else self._diagnose(key, given[key], right[key], numbers)
            for key in wrong
        ]
        if good := [key for key in right if key not in wrong]:
            lines.append(f"Right: {listed(good)}.")
        return Verdict("failed", "\n".join(lines), self.id)

    def _diagnose(self, key: str, value: object, right: object, numbers: dict) -> str:
        known = [m.diagnosis for m in self.mistakes(numbers) if m.name == key and agrees(value, m.wrong)]
        if slip := unit_slip(key, value, right):
            known.append(slip)
        if not known and is_rounded_too_far(value, right):
            known = [f"{value} is rounded too far. Give three digits."]
        if isinstance(value, str) and not isinstance(right, str):
            wanted = "True or False" if isinstance(right, bool) else "a number"
            known = [f"{value!r} is text; write {wanted}, without quotes."]
        if isinstance(value, dict) and isinstance(right, list):
            known = ["That is a dict; write a list, in square brackets."]
        if isinstance(value, list) and not isinstance(right, list) and not known:
            known = [f"{reprlib.repr(value)} is a list; write one value, without brackets."]
        if isinstance(right, list) and not known and isinstance(value, list) and len(value) != len(right):
            what = "rows" if isinstance(right[0], list) else "numbers"
            known = [f"You gave {len(value)} {what}. {self.look[key]}"]
        if isinstance(right, list) and isinstance(right[0], list) and not known and isinstance(value, list):
            first = next(i for i, pair in enumerate(zip(value, right, strict=True)) if not agrees(*pair))
            known = [f"Row {first} is the first that is not right. {self.look[key]}"]
        return f"`{key}`: " + (
            " Or: ".join(dict.fromkeys(known)) or f"{reprlib.repr(value)} is not right. {self.look[key]}"
        )


def tells_apart(numbers: dict, right: Callable, wrong: Callable) -> bool:
    """True if, for every key, the right value and the wrong ones with different diagnoses all differ."""
    told = [("", key, value) for key, value in right(numbers).items()]
    told += [(m.diagnosis, m.name, m.wrong) for m in wrong(numbers)]
    pairs = ((a, b) for a in told for b in told if a[0] != b[0] and a[1] == b[1])
    return not any(agrees(a[2], b[2]) for a, b in pairs)


def agrees(value: object, right: object) -> bool:
    """True if two plain values agree: lists item by item, integers exactly, other numbers to 1%."""
    if isinstance(right, list) or isinstance(value, list):
        both = isinstance(right, list) and isinstance(value, list) and len(value) == len(right)
        return both and all(map(agrees, value, right))
    if isinstance(right, int | float) and isinstance(value, int | float) and type(right) is not bool:
        exact = isinstance(right, int)
        return type(value) is not bool and (value == right if exact else math.isclose(value, right, rel_tol=0.01))
    return type(value) is type(right) and value == right


def is_rounded_too_far(value: object, right: object) -> bool:
    """True if a value is the right number with one or two digits, and not within 1% of it."""
    if type(right) is not float or type(value) not in (int, float) or agrees(value, right):
        return False
    return value in (float(f"{right:.{n}g}") for n in (1, 2))


def plain(value: object) -> object:
    """Returns the value as numbers, text, lists and dicts of Python; raises TypeError for anything else."""
    if type(value) in (int, float, bool, str, type(None)):
        return value
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return plain(value.tolist())
    if type(value) in (list, tuple, range):
        return [plain(x) for x in value]
    if type(value) is dict:
        return {key: plain(x) for key, x in value.items()}
    raise TypeError(f"Write numbers and lists; something of type {type(value).__name__} is neither.")


def unit_slip(key: str, value: object, right: object) -> str:
    """Names a slip between GB and GiB, or bits and bytes, in an answer whose key names such a unit."""
    units = key.lower().split("_")
    is_number = all(type(x) in (int, float) for x in (value, right))
    if not is_number or not right or not {"bytes", "gb", "gib", "kib", "mib", "kb", "mb"} & set(units):
        return ""
    ratio = abs(value / right)
    if any(math.isclose(ratio, factor, rel_tol=0.004) for factor in (2**30 / 1e9, 1e9 / 2**30)):
        return "Right, in another unit: 1 GB is 10⁹ bytes, 1 GiB is 2³⁰."
    if math.isclose(ratio, 8, rel_tol=0.01) or math.isclose(ratio, 1 / 8, rel_tol=0.01):
        return "You are off by 8: bits are not bytes."
    return ""


def not_attempted(exercise_id: str, missing: list[str]) -> Verdict:
    """Returns the verdict on an answer that is not there yet, or not all of it."""
    todo = f"Still empty: {listed(missing)}. Fill in" if missing else "Write the function above"
    return Verdict("not attempted", f"{todo}, then run both cells again.", exercise_id)


def has_blanks(value: object) -> bool:
    """True if something in the answer is still `...`."""
    if type(value) in (dict, list, tuple):
        return any(map(has_blanks, value.values() if type(value) is dict else value))
    return value is ...


def listed(keys: Iterable[str]) -> str:
    """Returns the keys for a sentence: `q`, `k`."""
    return ", ".join(f"`{key}`" for key in keys)
