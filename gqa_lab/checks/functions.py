"""Functions that the student builds, and how they are judged.

Order in a check: not attempted; raises or hangs; wrong type, shape, dtype; input changed; NaN; values; what
the exercise asks beyond values; passed. An answer that fails is compared with the known mistakes, so that the
verdict can name the one that was made.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from gqa_lab.checks import sandbox
from gqa_lab.checks.answers import Mistake, listed, not_attempted
from gqa_lab.checks.cases import Case, fresh
from gqa_lab.checks.verdict import Verdict

TOLERANCE = 1e-9
_ROUNDING = 1e-3  # errors below come from float32 or float16 in between, not from a wrong idea
AXES = {
    "B": "batch",
    "H": "head",
    "G": "KV head",
    "T": "query",
    "S": "token",
    "D": "number",
    "C": "column",
    "r": "row",
    "p": "place",
}
_NEARLY = (
    "Nearly right: you lost precision on the way. Look for a fixed dtype, a rounding, a small constant that you added, "
    "or a hidden score that is not low enough."
)
_TURNED = (
    "Right for arrays made row by row, wrong for the same numbers in another order in memory, as a transpose leaves "
    "them. Index by axes; don't count through the memory."
)
_FIRST = ("stopped", "package", "type", "dtype", "changed")  # told before any known mistake is looked for
_STAGES = ("stopped", "package", "raised", "type", "shape", "dtype", "changed", "nan", "values")


@dataclass(frozen=True)
class Build:
    """A function to write.

    Attributes:
        cases: a number of the round in, cases out; the second round has other values.
        reference: the truth, arrays in and array out.
        names: the student's arguments, for messages.
        axes: letters of the result's axes.
        mistakes: wrong functions of the student's arguments.
        tested: what a passed answer was tested on.
        notice: one thing to notice on passing.
        refusals: cases that must raise ValueError, each with what to say if they don't.
        arguments: makes the student's arguments from a case, new ones for each call.
        keywords: passed in the second round.
        by_keyword: how many of the last arguments are always passed by name.
        explain: a sentence on a wrong result, from the case, the result and the first wrong index.
        beyond: looks at more than values: `beyond(function)` returns what is missing, or None.
        result_type: torch.Tensor, np.ndarray, or float for one number of any kind.
        pack: makes one array of several results; what cannot be packed it returns as it is.
        returns: in words what should come back, where the result type does not say it.
        tolerance: of values, relative and absolute.
    """

    id: str
    level: str
    cases: Callable[[int], list[Case]]
    reference: Callable[..., np.ndarray]
    names: tuple[str, ...]
    axes: str
    mistakes: tuple[Mistake, ...]
    tested: str
    notice: str
    refusals: tuple[tuple[Case, str], ...] = ()
    arguments: Callable[[Case], list] = lambda case: [fresh(x) for x in case.args]
    keywords: Mapping[str, object] = field(default_factory=dict)
    by_keyword: int = 0
    explain: Callable[[Case, np.ndarray, tuple], str] = lambda case, got, index: ""
    beyond: Callable[[Callable], str | None] = lambda function: None
    result_type: type = torch.Tensor
    pack: Callable[[object], object] = lambda value: value
    returns: str = ""
    tolerance: float = TOLERANCE

    def array(self, value: object) -> np.ndarray | None:
        """Returns a copy of what a function returned, as one array; None if it is not of the result type."""
        return _as_array(self.pack(value), self.result_type)

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a function."""
        if answer is None or answer is ...:
            return not_attempted(self.id, [])
        if not callable(answer):
            text = f"Hand over the function itself, without calling it; this is of type {type(answer).__name__}."
            return Verdict("failed", text, self.id)
        with sandbox.plain_torch():
            deadline = time.monotonic() + sandbox.DEADLINE_S
            first = [Attempt(self, answer, case, {}, deadline) for case in self.cases(0)]
            if first[0].run.is_stub(answer):
                return not_attempted(self.id, [])
            problem = self._first_round(first) or self._later(answer, first, deadline)
        printed = sandbox.shown(first[0].run.printed)
        if problem:
            return Verdict("failed", problem + printed, self.id)
        return Verdict("passed", f"{self.tested} {self.notice}{printed}", self.id)

    def _first_round(self, attempts: list["Attempt"]) -> str | None:
        failed = sorted((a for a in attempts if a.stage), key=lambda a: _STAGES.index(a.stage))
        if not failed:
            return None
        detail = f"With {failed[0].case.name}: {failed[0].finding}"
        right = [a.case.name for a in attempts if not a.stage]
        note = "\nRight with " + "; ".join(right) + "." if right else ""
        if failed[0].stage == "package":
            return failed[0].finding
        if failed[0].stage not in _FIRST and (mistake := self.recognise(attempts)):
            return f"{mistake.diagnosis}\n{detail}{note}"
        return detail + note

    def recognise(self, attempts: list["Attempt"]) -> Mistake | None:
        """Returns the known mistake that gives the same results in every case, if there is one."""
        return next((m for m in self.mistakes if all_same(self, m, attempts)), None)

    def called(self, function: Callable, args: list, keywords: Mapping, deadline: float) -> sandbox.Run:
        """Returns what came of one call, its last arguments by name where the task says so."""
        n = len(args) - self.by_keyword
        named = dict(zip(self.names[n:], args[n:], strict=True)) if self.by_keyword else {}
        return sandbox.run(function, args[:n], named | dict(keywords), deadline)

    def _later(self, function: Callable, first: list["Attempt"], deadline: float) -> str | None:
        for case, text in self.refusals:
            run = self.called(function, self.arguments(case), {}, deadline)
            if run.error is None:
                return f"{text} Nothing was raised; stop with a ValueError."
            if not isinstance(run.error, ValueError):
                return f"{run.trouble()}\nThat is the right moment to stop. Say why with a ValueError. {text}"
        for case in reversed(self.cases(1)):
            again = Attempt(self, function, case, dict(self.keywords), deadline)
            if again.stage == "raised" and self.keywords:
                return f"{again.finding}\nIt was called with {listed(self.keywords)} as in the task's signature."
            if again.stage:
                return f"Right at first, wrong when called again with other numbers: does it remember?\n{again.finding}"
            if not any(isinstance(x, np.ndarray) and x.ndim > 1 for x in case.args):
                continue
            turned = Attempt(self, function, case, dict(self.keywords), deadline, turned=True)
            if turned.stage == "stopped":
                return turned.finding
            if turned.stage in ("values", "nan"):
                return f"{_TURNED}\n{turned.finding}"
        for attempt in first:  # once more with the same sizes and other numbers
            if not any(isinstance(x, np.ndarray) for x in attempt.case.args):
                continue
            args = tuple(-x if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in attempt.case.args)
            self.called(function, self.arguments(Case(args, attempt.case.sizes)), {}, deadline)
        if any(not _same(self.array(a.run.value), a.got, 0.0) for a in first):
            return "A later call of your function changed what an earlier one returned. Make a new array each time."
        return self.beyond(function)


class Attempt:
    """One call of the student's function on one case: what came back, and the first thing wrong with it."""

    def __init__(
        self, exercise: Build, function: Callable, case: Case, keywords: dict, deadline: float, *, turned: bool = False
    ):
        self.exercise, self.case = exercise, case
        args = [_turned(x) if turned else x for x in exercise.arguments(case)]
        self.run = exercise.called(function, args, keywords, deadline)
        self.got = exercise.array(self.run.value)
        self.expected = np.asarray(exercise.reference(*case.args))
        self.changed = [i for i, (now, was) in enumerate(zip(args, case.args, strict=True)) if _differs(now, was)]
        self.stage, self.finding = self._examine()

    def _examine(self) -> tuple[str, str]:
        run, got, expected = self.run, self.got, self.expected
        if isinstance(run.error, sandbox.TimeUp | SystemExit):
            return "stopped", run.trouble()
        if run.used_package:
            return "package", "That is the package's. Write yours; afterwards compare."
        if run.error is not None:
            return "raised", run.trouble()
        if got is None:
            return "type", type_message(run.value, self.exercise.result_type, self.exercise.returns)
        if got.shape != expected.shape:
            return "shape", shape_message(got.shape, expected.shape, self.exercise.axes)
        if got.dtype != expected.dtype and self.exercise.result_type is not float:
            return "dtype", _dtype_message(got.dtype, expected.dtype)
        if self.changed:
            names = listed(self.exercise.names[i] for i in self.changed)
            return (
                "changed",
                f"Your function changed {names}. Somebody else still needs it: build a new array.",
            )
        wrong = ~_close(got, expected, self.exercise.tolerance)
        if not wrong.any():
            return "", ""
        is_tensor = got.ndim > 0 and got.dtype != bool
        with np.errstate(invalid="ignore"):  # ∞ - ∞ where both are infinite
            is_near = is_tensor and np.abs(got - expected).max() < _ROUNDING
        if is_near:
            return "dtype", _NEARLY
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        text = _where(wrong, index, self.exercise.axes) if got.ndim else f"It returned {got.item():.4g}."
        explained = self.exercise.explain(self.case, got, index)
        stage = "values" if np.isfinite(got[wrong]).all() else "nan"
        hint = "" if stage == "values" else " Your result holds NaN or infinity."
        return stage, f"{text}{hint}{' ' + explained if explained else ''}"


def all_same(exercise: Build, mistake: Mistake, attempts: list[Attempt]) -> bool:
    """True if the mistake gives what the student's function gave in all cases, wrong in at least one."""
    seen_wrong = False
    for attempt in attempts:
        try:
            with np.errstate(all="ignore"):
                value = exercise.array(mistake.wrong(*exercise.arguments(attempt.case)))
        except Exception:
            if attempt.stage != "raised":
                return False
            seen_wrong = True
            continue
        if attempt.got is None or not _same(value, attempt.got, exercise.tolerance):
            return False
        seen_wrong |= not _same(value, attempt.expected, exercise.tolerance)
    return seen_wrong


def _as_array(value: object, kind: type) -> np.ndarray | None:
    """Returns a copy of a plain tensor, array or number, None for anything else; a subclass could pretend."""
    if type(value) in (torch.Tensor, torch.nn.Parameter) and kind is torch.Tensor:
        if value.layout != torch.strided or value.device.type == "meta":
            return None
        value = value.float() if value.dtype == torch.bfloat16 else value
        return value.detach().cpu().resolve_conj().resolve_neg().numpy().copy()
    if kind is float and not isinstance(value, bool) and isinstance(value, int | float | np.integer | np.floating):
        return np.array(value)
    if kind is np.ndarray and type(value) is np.ndarray and value.dtype.kind in "biuf":
        return value.copy()
    return None


def _turned(x: object) -> object:
    """Returns the same array with its numbers in another order in memory, its first axis fastest."""
    if isinstance(x, torch.Tensor) and x.ndim > 1:
        axes = list(reversed(range(x.ndim)))
        return x.permute(axes).contiguous().permute(axes)
    return np.asfortranarray(x) if isinstance(x, np.ndarray) else x


def _differs(now: object, was: object) -> bool:
    if not isinstance(was, np.ndarray):
        return False
    array = now.detach().numpy() if isinstance(now, torch.Tensor) else now
    return array.shape != was.shape or not np.array_equal(array, was)


def _close(a: np.ndarray, b: np.ndarray, tolerance: float) -> np.ndarray:
    """Returns where two arrays of one shape agree."""
    if bool in (a.dtype, b.dtype):
        return np.asarray(a == b)
    return np.asarray(np.isclose(a, b, rtol=tolerance, atol=tolerance))


def _same(a: np.ndarray | None, b: np.ndarray, tolerance: float) -> bool:
    """True if two results are the same, NaN where the other is NaN too."""
    if a is None or a.shape != b.shape:
        return False
    return bool((_close(a, b, tolerance) | ((a != a) & (b != b))).all())


def type_message(value: object, kind: type, returns: str = "") -> str:
    """Says what a function returned, and what it should have: `returns` in words, or of this `kind`."""
    if value is None:
        return "Your function returned None. Is a `return` missing?"
    kinds = {torch.Tensor: "a torch tensor", np.ndarray: "a NumPy array of numbers", float: "one number"}
    wanted = returns or kinds[kind]
    return f"Your function returned a {type(value).__name__}; it should return {wanted}."


def _dtype_message(got: np.dtype, expected: np.dtype) -> str:
    if bool in (got, expected):
        return f"Your result holds {got}; it should hold {expected}: True and False."
    return f"You lost precision: look for a fixed dtype. ({expected} in, {got} out.)"


def shape_message(got: tuple, expected: tuple, axes: str) -> str:
    """Says how a shape differs from the expected one, whose `axes` are named by a letter each."""
    text = f"Your result has shape {list(got)}; it should be [{', '.join(axes)}] = {list(expected)}."
    swapped = [i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b]
    if len(got) != len(expected):
        return f"{text} It has {len(got)} ax{'i' if len(got) == 1 else 'e'}s instead of {len(expected)}."
    if len(swapped) == 2 and sorted(got) == sorted(expected):
        return f"{text} Axes {axes[swapped[0]]} and {axes[swapped[1]]} look swapped."
    if sorted(got) == sorted(expected):
        return f"{text} All the sizes are there, in another order."
    return f"{text} Look at {' and '.join(axes[i] for i in swapped)}."


def _where(wrong: np.ndarray, index: tuple, axes: str) -> str:
    """Says where the first wrong number stands, and which heads are right everywhere."""
    named = list(zip(axes, index, strict=True))[: max(1, len(axes) - 1)]
    text = "Wrong first at " + ", ".join(f"{AXES.get(letter, letter)} {i}" for letter, i in named) + "."
    if "H" not in axes:
        return text
    per_head = np.moveaxis(wrong, axes.index("H"), 0).reshape(wrong.shape[axes.index("H")], -1).any(1)
    right = [str(i) for i in np.flatnonzero(~per_head)]
    if not right:
        return f"{text} No head is right everywhere."
    verb = "Head {} is right." if len(right) == 1 else "Heads {} are right."
    return f"{text} " + verb.format(" and ".join(filter(None, [", ".join(right[:-1]), right[-1]])))
