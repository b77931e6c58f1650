"""Inputs that expose a mistake, and inputs that hide it although they look like a fair test.

The wrong version and the right one are run on what the student hands over.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gqa_lab.checks.answers import Mistake, has_blanks, listed, not_attempted, plain
from gqa_lab.checks.verdict import Verdict

BOTH_AGREE = "Both versions give the same numbers here. Which sizes or values make the two lines do different work?"
ALREADY_SHOWS = "The mistake already shows here ({}). Look for sizes or values where the two lines mean the same."
RIGHT_INPUTS = "Your inputs show it. Run the function line by line on them: where do the numbers first differ?"


@dataclass(frozen=True)
class Expose:
    """Inputs that show a mistake and inputs that hide it; `...` stands where nothing was written yet.

    Attributes:
        keys: the keys of the answer.
        examine: runs the wrong versions and the right one on the answer; returns what is wrong, or None.
        mistakes: whole answers that people give, and what they are told.
    """

    id: str
    level: str
    keys: tuple[str, ...]
    examine: Callable[[dict], str | None]
    notice: str
    mistakes: tuple[Mistake, ...] = ()

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a dict of inputs."""
        if answer is None or answer is ...:
            return not_attempted(self.id, list(self.keys))
        if not isinstance(answer, dict):
            return Verdict("failed", f"Hand over a dict with the keys {listed(self.keys)}.", self.id)
        if missing := [key for key in self.keys if key not in answer or has_blanks(answer[key])]:
            return not_attempted(self.id, missing)
        try:
            problem = self.examine({key: plain(answer[key]) for key in self.keys})
        except TypeError as error:
            problem = str(error)
        return Verdict("failed", problem, self.id) if problem else Verdict("passed", self.notice, self.id)


@dataclass(frozen=True)
class FindMistake:
    """A plausible wrong function: its line, inputs that expose the mistake, and inputs that hide it.

    The answer is `{"line": int, "exposing": inputs, "hiding": inputs}`.

    Attributes:
        line: the wrong line, numbered as printed in the notebook.
        wrong: the function as printed.
        right: the same, repaired.
        inputs: turns what was written into the arguments of both, or returns a sentence on why it cannot.
        too_small: says what is missing in hiding inputs that fool nobody, or returns None.
        more: further keys, each with what examines its value: a sentence, or None.
        mistakes: whole answers that people give, and what they are told.
    """

    id: str
    level: str
    line: int
    wrong: Callable
    right: Callable
    inputs: Callable[[object], tuple | str]
    too_small: Callable[..., str | None]
    notice: str
    more: dict[str, Callable[[object], str | None]] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the answer."""
        return "line", "exposing", "hiding", *self.more

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a line and inputs."""
        return Expose(self.id, self.level, self.keys, self._examine, self.notice).judge(_none_is_blank(answer), seed)

    def _examine(self, answer: dict) -> str | None:
        problems = [self._exposing(answer["exposing"]), self._hiding(answer["hiding"])]
        problems += [examine(answer[key]) for key, examine in self.more.items()]
        line = answer["line"]
        if type(line) is not int:
            problems.append("`line`: write the number of one line.")
        elif line != self.line:
            problems.append("`line`: " + (f"not line {line}." if any(problems) else f"Not line {line}. {RIGHT_INPUTS}"))
        return "\n".join(filter(None, problems)) or None

    def _exposing(self, value: object) -> str | None:
        args = self.inputs(value)
        if isinstance(args, str):
            return f"`exposing`: {args}"
        outcome = self._outcome(args)
        if outcome == "raises":
            return "`exposing`: The wrong version raises here; a loud mistake needs no test."
        return f"`exposing`: {BOTH_AGREE}" if outcome == "agrees" else None

    def _hiding(self, value: object) -> str | None:
        args = self.inputs(value)
        if isinstance(args, str):
            return f"`hiding`: {args}"
        outcome = self._outcome(args)
        if outcome != "agrees":
            return f"`hiding`: {ALREADY_SHOWS.format(outcome)}"
        small = self.too_small(*args)
        return f"`hiding`: True, but too small to fool anybody. {small}" if small else None

    def _outcome(self, args: tuple) -> str:
        """Returns "agrees", "raises", or where the two versions first differ."""
        try:
            with np.errstate(all="ignore"):
                wrong, right = np.asarray(self.wrong(*args)), np.asarray(self.right(*args))
        except (ValueError, IndexError, RuntimeError):
            return "raises"
        if wrong.shape != right.shape:
            return f"shape {list(wrong.shape)} instead of {list(right.shape)}"
        apart = ~np.isclose(wrong, right, rtol=1e-9, atol=1e-9, equal_nan=True)
        return f"first at {[int(i) for i in np.argwhere(apart)[0]]}" if apart.any() else "agrees"


def _none_is_blank(answer: object) -> object:
    """Here None is no answer; in an `Expose` it can be one."""
    if isinstance(answer, dict):
        return {key: ... if value is None else value for key, value in answer.items()}
    return answer
