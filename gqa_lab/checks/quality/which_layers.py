"""07.which_layers: ten layers to pool, from what each costs alone; the real model says what they cost together."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from gqa_lab.checkpoint import find_smollm2, load_pretrained
from gqa_lab.checks.answers import Mistake, has_blanks, listed, not_attempted, plain
from gqa_lab.checks.sandbox import plain_torch
from gqa_lab.checks.verdict import Verdict
from gqa_lab.convert import pool_layers
from gqa_lab.listen import calls_of_layers, loss_from, story
from gqa_lab.recorded import recorded

N_LAYERS, N_CHOSEN, N_TOKENS = 30, 10, 256
LIMIT = 0.7
"""Nats that ten layers may cost together, on the first tokens of the story."""
LIMIT_OF_SUM = 0.75
"""Where nothing can be measured: nats that their single damages may add up to."""
_KEYS = ("layers", "predicted")
_NOTICE = "Notice: a cost that was measured alone is a reason to choose, and no prediction of the whole."
_DONT_ADD = "damages do not add, later layers see already damaged input"
_TOO_HIGH = 3
"""A prediction above this many sums of single damages gets a remark."""


def damage() -> list[float]:
    """Returns what each layer costs alone, in nats: the list of the exercise."""
    return recorded("convert_smollm2")["layer_damage"]


def choice_of(layers: list[int]) -> dict | None:
    """Returns what was recorded of these ten layers, or None."""
    choices = recorded("convert_smollm2")["choices"]["choices"].values()
    return next((choice for choice in choices if choice["layers"] == sorted(layers)), None)


def measured(layers: list[int]) -> float | None:
    """Returns by how much the loss grows with these layers pooled, in nats; None without the real model.

    What was recorded of a choice is taken where the model is not on this machine.
    """
    path = find_smollm2()
    if path is None:
        choice = choice_of(layers)
        return choice and choice["measured_on_256_of_B"]
    with plain_torch():
        model, ids, calls = _read_by_the_model(path)
        before = loss_from(model, N_LAYERS - 1, calls[-1], ids)
        first = min(layers)
        return loss_from(pool_layers(model, 1, layers), first, calls[first], ids) - before


@lru_cache(1)
def _read_by_the_model(path: Path) -> tuple:
    model, tokenizer = load_pretrained(path, device="cpu")
    ids = torch.tensor([tokenizer.encode(story())[:N_TOKENS]])
    return model, ids, calls_of_layers(model, ids)


def _worst(layers: set[int]) -> bool:
    return layers == set(sorted(range(N_LAYERS), key=damage().__getitem__)[-N_CHOSEN:])


KNOWN: tuple[tuple[Callable[[set], bool], str], ...] = (
    (_worst, "These are the ten that cost most: you sorted the other way round."),
    (
        lambda layers: layers == set(range(N_CHOSEN)),
        "The first ten hold the two layers that cost most of all. Look at the numbers, not at the order.",
    ),
    (
        lambda layers: layers == set(range(N_LAYERS - N_CHOSEN, N_LAYERS)),
        "The last ten look cheap one by one. They stand in a row, and each reads what the one before has damaged.",
    ),
    (
        lambda layers: layers == set(range(0, N_LAYERS, 3)),
        "Every third layer is fair to all layers and takes layer 0 along. Look at the numbers.",
    ),
)
"""Choices that people make for a reason, and what to tell them."""


@dataclass(frozen=True)
class WhichLayers:
    """Ten layers and a predicted cost. The choice is run; the prediction is compared and never failed."""

    id: str
    level: str
    notice: str

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """Whole answers that people give, and what they are told."""
        order = sorted(range(N_LAYERS), key=damage().__getitem__)
        least, worst = order[:N_CHOSEN], order[-N_CHOSEN:]
        chosen = {
            "the worst": (worst, KNOWN[0][1]),
            "the first": (list(range(10)), KNOWN[1][1]),
            "the last": (list(range(20, 30)), KNOWN[2][1]),
            "every third": (list(range(0, 30, 3)), KNOWN[3][1]),
            "counted from 1": ([i + 1 for i in least], "`layers`: there is no layer 30"),
            "nine": (least[1:], "`layers`: 9 layers; choose ten."),
            "one twice": ([*least[1:], least[1]], f"`layers`: layer {least[1]} stands there twice."),
        }
        return tuple(Mistake(name, {"layers": x, "predicted": 0.5}, text) for name, (x, text) in chosen.items())

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a dict with the layers and the growth of the loss that is predicted."""
        if answer is None or answer is ... or answer == {}:
            return not_attempted(self.id, list(_KEYS))
        if not isinstance(answer, dict):
            return Verdict("failed", f"Hand over a dict with the keys {listed(_KEYS)}.", self.id)
        if missing := [key for key in _KEYS if answer.get(key) is None or has_blanks(answer[key])]:
            return not_attempted(self.id, missing)
        try:
            layers, predicted = (plain(answer[key]) for key in _KEYS)
        except TypeError as error:
            return Verdict("failed", str(error), self.id)
        if problem := _no_ten_layers(layers) or _no_growth(predicted):
            return Verdict("failed", problem, self.id)
        return self._judge_choice(layers, predicted)

    def _judge_choice(self, layers: list[int], predicted: float) -> Verdict:
        total, growth = sum(damage()[i] for i in layers), measured(layers)
        known = "".join(text for is_it, text in KNOWN if is_it(set(layers)))
        said = _compare(predicted, total, growth, choice_of(layers)) + _remark(predicted, total)
        if growth is None and total <= LIMIT_OF_SUM or growth is not None and growth <= LIMIT:
            return Verdict("passed", f"{said} {self.notice}", self.id)
        return Verdict("failed", f"{known or 'There are ten that cost less.'}\n{said}", self.id)


def _no_ten_layers(layers: object) -> str:
    if type(layers) is not list or any(type(i) is not int for i in layers):
        return "`layers`: write a list of ten whole numbers."
    if len(layers) != N_CHOSEN:
        return f"`layers`: {len(layers)} layers; choose ten."
    if outside := [i for i in layers if i not in range(N_LAYERS)]:
        return f"`layers`: there is no layer {outside[0]}; they are 0 to {N_LAYERS - 1}. Did you count from 1?"
    if twice := [i for i in layers if layers.count(i) > 1]:
        return f"`layers`: layer {twice[0]} stands there twice."
    return ""


def _no_growth(predicted: object) -> str:
    if type(predicted) not in (int, float) or not math.isfinite(predicted):
        return "`predicted`: write one number, the growth of the loss in nats."
    return ""


def _remark(predicted: float, total: float) -> str:
    """Says what is odd about a prediction; it is never failed."""
    if predicted < 0:
        return " Below 0 the pooled model would be the better one."
    return f" Your prediction is more than {_TOO_HIGH} times that sum." if predicted > _TOO_HIGH * total else ""


def _compare(predicted: float, total: float, growth: float | None, choice: dict | None) -> str:
    """Says what was predicted, what the single damages add up to, and what came."""
    if growth is None:
        return (
            f"Their single damages add up to {total:.2f} nats; you predicted {predicted:.2g}. What they cost together "
            "was not measured: the real model is not on this machine, and these ten are not among the recorded choices."
        )
    is_sum = math.isclose(predicted, total, rel_tol=0.03, abs_tol=0.006)
    sum_is = "You predicted the sum of their single damages" if is_sum else f"Their single damages sum to {total:.2f}"
    together = f", where together they cost {choice['measured']:.2f}: {_DONT_ADD}." if choice else f"; and {_DONT_ADD}."
    return (
        f"Predicted {predicted:.2g}, got {growth:.2f} nats on {N_TOKENS} tokens of the story. {sum_is} on "
        f"another text, Python's documentation{together}"
    )


WHICH_LAYERS = WhichLayers(id="07.which_layers", level="decide ●●● 10 min, further", notice=_NOTICE)
