"""The second look at every answer: sizes and numbers that nobody has seen, exact types, everybody's own numbers.

The hidden part of a check cell is one call of `recheck`. This file and `settings.json` stay in the teacher's folder,
because nbgrader prints hidden cells in its feedback (nbgrader#917), and a seed that is known is a seed that can be
answered by heart. For the right answers to somebody's own numbers:

    python hidden_checks.py ada
"""

import hashlib
import hmac
import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

SETTINGS = json.loads(Path(__file__).with_name("settings.json").read_text(encoding="utf-8"))
SEED, KEY, COURSE = SETTINGS["seed"], SETTINGS["key"], SETTINGS["course"]
PROOF = "application/vnd.gqa-lab.proof+json"
TRUE_GROUPS = ((6, 2), (8, 2), (10, 2), (10, 5), (12, 2), (12, 3), (12, 4), (12, 6), (14, 2), (15, 3))  # G is not R


class NotPassed(AssertionError):
    """An answer that passed the visible check and not this one; the message gives no case away."""


def recheck(exercise_id: str, answer: object) -> None:
    """Shows a proof that an answer has passed, or raises.

    The course is read from the disk once more, so that whatever a notebook has put in place of `check` has no say.

    Raises:
        NotPassed: for an answer that is not right for other cases, of a type that could pretend, or not the right
            one for the numbers of the person who handed it in (the environment variable GQA_LAB_STUDENT).
    """
    course = Course()
    exercise = course.engine.EXERCISES[exercise_id]
    if odd := inexact(answer):
        raise NotPassed(
            f"{exercise_id}: the answer holds something of type {odd}; hand over plain values or functions."
        )
    student = os.environ.get("GQA_LAB_STUDENT", "")
    is_drawn = isinstance(exercise, course.hand)
    try:
        passed = bool(hidden(exercise, course).judge(answer, course.engine.seed_of(student) if student else 0))
    except Exception:
        passed = False
    if not passed and is_drawn:
        raise NotPassed(
            f"{exercise_id}: not the answers to the numbers of {student!r}. Is `me` the name they hand in by?"
        )
    if not passed:
        raise NotPassed(f"{exercise_id}: right in the check that you can see, and not for other sizes or numbers.")
    from IPython.display import display

    display({"text/plain": f"✓ second check · {exercise_id}", PROOF: proof(exercise_id, student)}, raw=True)


def proof(exercise_id: str, student: str) -> str:
    """Returns what only this file can say about an answer that has passed."""
    return hmac.new(KEY.encode(), f"{exercise_id} {student}".encode(), hashlib.sha256).hexdigest()


def inexact(answer: object) -> str:
    """Returns the name of the first type that could answer comparisons in its own way, "" if there is none.

    Functions and classes may be of any kind: what they return is examined instead.
    """
    kind = type(answer)
    if callable(answer):
        return ""
    if kind in (list, tuple, dict):
        inside = [*answer, *answer.values()] if kind is dict else answer
        return next(filter(None, map(inexact, inside)), "")
    is_plain = kind in (int, float, bool, str, type(None), type(...), range)
    is_array = kind.__module__ in ("numpy", "torch", "torch.nn.parameter")
    return "" if is_plain or is_array else kind.__name__


class Course:
    """The course's own modules, as they are on the disk."""

    def __init__(self):
        def ours() -> dict:
            return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "gqa_lab"}

        notebooks = ours()
        for name in notebooks:
            del sys.modules[name]
        sys.path.insert(0, COURSE)
        try:
            self.engine = importlib.import_module("gqa_lab.checks.engine")
            self.modules = ours()
        finally:
            sys.path.remove(COURSE)
            for name in ours():
                del sys.modules[name]
            sys.modules.update(notebooks)
        self.case = self["cases"].Case
        self.hand, self.build = self["answers"].Hand, self["functions"].Build

    def __getitem__(self, name: str):
        return self.modules[f"gqa_lab.checks.{name}"]


def hidden(exercise: object, course: Course) -> object:
    """Returns the exercise with cases of our own; one that has no entry in CASES with other random numbers."""
    if exercise.id == "03.cache":
        module = course["kv_cache.cache"]
        module.FIRST, module.SECOND = (script(module.Script, Draw(exercise.id, n)) for n in (0, 1))
        return exercise
    if parts := getattr(exercise, "parts", None):
        return replace(exercise, parts={name: with_cases(part, course, exercise.id) for name, part in parts.items()})
    return with_cases(exercise, course, exercise.id) if isinstance(exercise, course.build) else exercise


def with_cases(exercise: object, course: Course, exercise_id: str) -> object:
    """Returns a function to write, judged on hidden cases; it explains nothing, for nobody reads it."""
    make = CASES.get(exercise_id)
    quiet = {"mistakes": (), "explain": lambda case, got, index: ""}
    if make:
        return replace(exercise, cases=lambda round_: list(make(Draw(exercise_id, round_), course)), **quiet)
    return replace(exercise, cases=lambda round_: other_numbers(exercise.cases, round_), **quiet)


def other_numbers(cases: Callable, round_: int) -> list:
    """Returns cases of a round that the visible check does not use; where there are but two, one of these."""
    try:
        return cases(2 + round_ + 2 * (SEED % 1000))
    except (IndexError, KeyError):
        return cases(round_)


class Draw:
    """Sizes and numbers that follow from the seed of the class, the exercise and the round."""

    def __init__(self, exercise_id: str, round_: int):
        self.rng = np.random.default_rng([SEED, round_, *exercise_id.encode()])

    def sizes(self, letters: str, low: int = 2, high: int = 11) -> dict[str, int]:
        """Returns a size for each letter, all of them different."""
        return dict(zip(letters, (int(n) for n in self.rng.permutation(np.arange(low, high))), strict=False))

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape)

    def whole(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def grouped(self) -> list[dict[str, int]]:
        """Returns sizes of attention: two true groups, one at T < S and one at T = 1, and both ends."""
        pairs = [TRUE_GROUPS[i] for i in self.rng.permutation(len(TRUE_GROUPS))[:2]]
        h = self.whole(4, 9)
        found = []
        for n, (n_heads, n_kv_heads) in enumerate([*pairs, (h, h), (h, 1)]):
            t, more = (1, 6) if n == 1 else (self.whole(2, 5), self.whole(1, 6) if n != 2 else 0)
            one = {"B": self.whole(1, 4), "H": n_heads, "G": n_kv_heads, "T": t, "S": t + more, "D": self.whole(5, 10)}
            found.append(one)
        return found


def softmax(draw: Draw, course: Course):
    top = draw.whole(900, 1200)
    rows, columns = draw.sizes("rc").values()
    hidden_score = draw.normal(2, 4)
    hidden_score[0, 1], hidden_score[1, 3] = -np.inf, -np.inf
    large = np.array([[0.0, draw.whole(1, 4)], [top, top + draw.whole(1, 4)], [-top, -top + 2]], dtype=float)
    for x in (draw.normal(rows, columns), draw.normal(4, 4), large, hidden_score):
        yield course.case((x,), {"rows": x.shape[0], "columns": x.shape[1]})


def one_head(draw: Draw, course: Course):
    for n in range(4):
        sizes = draw.sizes("TSD") if n < 2 else {"T": n - 1, "S": n + 3, "D": draw.whole(3, 8)}
        t, s, d = sizes.values()
        if s < t:
            t, s = s, t
            sizes = {"T": t, "S": s, "D": d}
        mask = np.tril(np.ones((t, s), dtype=bool), s - t)
        if n % 2:  # any mask will do, as long as every query sees a key
            mask = draw.rng.random((t, s)) < 0.6
            mask[:, draw.whole(0, s)] = True
        yield course.case((draw.normal(t, d), draw.normal(s, d), draw.normal(s, d), mask), sizes)


def saturation(draw: Draw, course: Course):
    for scale in (False, True):
        head_dim = int(draw.rng.choice([20, 49, 100, 121]))
        yield course.case((head_dim, scale), {"head_dim": head_dim, "scale": scale})


def split(draw: Draw, course: Course, *, of_heads: bool = False):
    labels = course["multi_head.labels"]
    for n in range(3):
        sizes = draw.sizes("BTHD", 2, 8) | ({"T": 1} if n == 2 else {})
        x = labels.labelled(sizes["B"], sizes["T"], sizes["H"] * sizes["D"])
        yield course.case((labels.split(x, sizes["H"]),) if of_heads else (x, sizes["H"]), sizes)


def merge(draw: Draw, course: Course):
    return split(draw, course, of_heads=True)


def multi_head(draw: Draw, course: Course):
    for n in range(4):
        sizes = draw.sizes("BTCHD", 2, 9) | ({"H": 1} if n == 2 else {"T": 1} if n == 3 else {})
        b, t, c, h, d = sizes.values()
        weights = [draw.normal(c, h * d) / c**0.5 for _ in range(3)]
        yield course.case((draw.normal(b, t, c), *weights, draw.normal(h * d, c) / c**0.5, h), sizes)


def mask(draw: Draw, course: Course):
    for n in range(4):
        t = 1 if n == 1 else draw.whole(2, 9)
        pair = (t, t if n == 0 else t + draw.whole(1, 60))
        yield course.case(pair, dict(zip("TS", pair, strict=True)))


def rows(draw: Draw, course: Course):
    for n in range(3):
        p, new = draw.whole(2, 60), 1 if n == 2 else draw.whole(2, 90)
        for cached in (False, True):
            yield course.case((p, new, cached), {"prompt_len": p, "new_tokens": new, "cached": cached})


def script(kind: type, draw: Draw) -> object:
    """Returns sizes of a cache and calls, built as the visible ones are."""
    first, more = draw.whole(2, 5), draw.whole(1, 4)
    kept = draw.whole(1, first)
    max_seq_len = first + more + 3
    too_many = max_seq_len - kept
    calls = (("append", first), ("append", 1), ("append", more), ("rewind", kept), ("append", 1))
    sizes = {"batch_size": draw.whole(2, 4), "n_heads": int(draw.rng.choice([13, 17])), "head_dim": draw.whole(14, 17)}
    calls += (("append", too_many), ("append", too_many - 1))
    return kind(**sizes, max_seq_len=max_seq_len, calls=calls, refused=5, measured=4)


def multi_query(draw: Draw, course: Course):
    for n in range(4):
        b, h, t, s, d = draw.sizes("BHTSD", 2, 10).values()
        t, s = (1, s) if n == 1 else (min(t, s), max(t, s))
        h = b if n == 2 else h
        may_look = course["multi_query.mqa"].causal(t, s, 3 if n == 3 else None)
        args = (draw.normal(b, h, t, d), draw.normal(b, s, d), draw.normal(b, s, d), may_look)
        yield course.case(args, {"B": b, "H": h, "T": t, "S": s, "D": d})


def expand(draw: Draw, course: Course):
    for sizes in draw.grouped():
        k = draw.normal(*(sizes[letter] for letter in "BGSD"))
        yield course.case((k, sizes["H"]), {letter: sizes[letter] for letter in "BHGSD"})


def grouped(draw: Draw, course: Course):
    for sizes in draw.grouped():
        yield course["cases"].qkv(sizes, draw.whole(1_000, 1_000_000))


def crossover(draw: Draw, course: Course):
    for _ in range(3):  # whole tokens, so that rounding is right as well
        per_token, batch_size, n_tokens = 4096 * draw.whole(5, 200), draw.whole(2, 40), draw.whole(900, 90_000)
        args = (per_token * batch_size * n_tokens, per_token, batch_size)
        yield course.case(args, dict(zip(("weight_bytes", "kv_bytes_per_token", "batch_size"), args, strict=True)))


def step_time(draw: Draw, course: Course):
    names = ("weight_bytes", "kv_bytes_per_token", "batch_size", "kv_len", "bandwidth_bytes_per_s")
    for _ in range(3):
        args = (draw.whole(10**9, 10**11), 4096 * draw.whole(9, 200), draw.whole(2, 60), draw.whole(500, 90_000))
        args += (10**9 * draw.whole(100, 5000),)
        yield course.case(args, dict(zip(names, args, strict=True)))


def online(draw: Draw, course: Course):
    d = draw.whole(3, 9)
    first, later, empty = (0, draw.whole(1, 6)), (draw.whole(1, 6), draw.whole(1, 6)), (draw.whole(1, 6), 0)
    chunks = [(first, 0.0, 0.0), (first, 0.0, -1000.0), (later, 0.0, 4.0), (later, 4.0, 0.0)]
    chunks += [(later, -1000.0, -1000.0), (empty, 0.0, 0.0), ((0, 0), 0.0, 0.0)]
    for (n_before, n_new), before, after in chunks:
        scores, v = draw.normal(n_before + n_new), draw.normal(n_before + n_new, d)
        old, new = scores[:n_before] + before, scores[n_before:] + after
        peak = float(old.max()) if n_before else -np.inf
        weights = np.exp(old - peak) if n_before else old
        args = (peak, float(weights.sum()), weights @ v[:n_before], new, v[n_before:])
        yield course.case(args, {"n": n_new, "D": d})


def combine(draw: Draw, course: Course):
    for n in range(4):
        n_splits, h, d = draw.sizes("nHD", 2, 8).values()
        n_splits = 1 if n == 1 else n_splits
        outs, lse = draw.normal(n_splits, h, d), draw.normal(n_splits, h)
        if n == 2:
            lse[:, 0], lse[:, 1] = lse[:, 0] + 1000.0, lse[:, 1] - 1000.0
        if n == 3:
            lse[1], lse[:, 1] = -np.inf, -np.inf
            outs[np.isneginf(lse)] = 0.0
        yield course.case((outs, lse), {"n_splits": n_splits, "H": h, "D": d})


CASES: dict[str, Callable] = {
    "01.softmax": softmax,
    "01.attention": one_head,
    "01.saturation": saturation,
    "02.split": split,
    "02.merge": merge,
    "02.mha": multi_head,
    "03.mask": mask,
    "03.rows": rows,
    "04.mqa": multi_query,
    "05.expand": expand,
    "05.grouped": grouped,
    "06.crossover": crossover,
    "06.step_time": step_time,
    "09.online": online,
    "09.combine": combine,
}


@dataclass(frozen=True)
class Own:
    """The numbers of one exercise by hand for one person, and the right answers."""

    exercise_id: str
    numbers: dict
    right: dict


def answers_of(student: str) -> list[Own]:
    """Returns what one person was asked, exercise by exercise, and what is right."""
    course = Course()
    seed = course.engine.seed_of(student)
    hands = [e for e in course.engine.EXERCISES.values() if isinstance(e, course.hand)]
    return [Own(e.id, e.draw(seed), e.right(e.draw(seed))) for e in hands]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for own in answers_of(name):
            print(f"{name}  {own.exercise_id}\n  asked  {own.numbers}\n  right  {own.right}")
