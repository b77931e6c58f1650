"""04.broadcast: keys that arrive with heads and tokens exchanged, and the number of tokens that hides it."""

import torch

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import normal
from gqa_lab.checks.expose import BOTH_AGREE, Expose

N_HEADS, _B, _D, _LARGEST = 6, 2, 4, 4096


def attend_forgot(q, k, v):
    """The function of the notebook: k and v should be [B, 1, S, D]."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    weights = scores.softmax(-1)
    return weights @ v


def outcome(n_tokens: int) -> str:
    """Runs it on S tokens, keys as they arrive and as they should be: "raises", "agrees" or "differs"."""
    q = torch.from_numpy(normal((43, 0), _B, N_HEADS, 1, _D))
    k, v = (torch.from_numpy(normal((43, i), _B, n_tokens, 1, _D)) for i in (1, 2))
    right = attend_forgot(q, k.transpose(1, 2), v.transpose(1, 2))
    try:
        wrong = attend_forgot(q, k, v)
    except RuntimeError:
        return "raises"
    return "agrees" if torch.allclose(wrong, right) else "differs"


_ONE_ELEMENT = "it runs, but look at the weights: each softmax has one element."
_RAISES = "it raises: the sizes of heads and tokens meet, and do not fit."
_REPLIES = {
    ("loud", "agrees"): f"{BOTH_AGREE} With one token nothing can be exchanged.",
    ("loud", "differs"): "It raises nothing here, which is worse: it runs, and the numbers are wrong.",
    ("hiding", "differs"): f"S = {{}} for hiding: {_ONE_ELEMENT}",
    ("hiding", "raises"): f"S = {{}} for hiding: {_RAISES} Which S fits, and changes nothing?",
    ("exposing", "agrees"): f"{BOTH_AGREE} Print the shape of the scores for more tokens.",
    ("exposing", "raises"): f"S = {{}} for exposing: {_RAISES} A loud mistake needs no test. When is it silent?",
}
_WANTED = {"loud": "raises", "hiding": "agrees", "exposing": "differs"}


def _examine(answer: dict) -> str | None:
    return "\n".join(filter(None, (_examine_one(key, answer[key]) for key in _WANTED))) or None


def _examine_one(key: str, n_tokens: object) -> str | None:
    if type(n_tokens) is not int or not 1 <= n_tokens <= _LARGEST:
        return f"`{key}`: give S, one whole number from 1 to {_LARGEST}."
    found = outcome(n_tokens)
    return None if found == _WANTED[key] else f"`{key}`: " + _REPLIES[key, found].format(n_tokens)


_GOOD = {"loud": 5, "hiding": 1, "exposing": N_HEADS}

BROADCAST = Expose(
    id="04.broadcast",
    level="expose ●●○ 8 min, further",
    keys=tuple(_WANTED),
    examine=_examine,
    notice="The function was run on your three S, beside the same keys in the right order. Notice: a test with one "
    "token, or with as many tokens as heads, runs without a word. Take sizes that all differ.",
    mistakes=(
        Mistake("S = H hides it", _GOOD | {"hiding": 6}, "`hiding`: S = 6 for hiding: it runs, but look"),
        Mistake("one token exposes it", _GOOD | {"exposing": 1}, f"`exposing`: {BOTH_AGREE}"),
        Mistake("S = H is loud", _GOOD | {"loud": 6}, "`loud`: It raises nothing here, which is worse"),
        Mistake("one token is loud", _GOOD | {"loud": 1}, f"`loud`: {BOTH_AGREE}"),
        Mistake("too many to be silent", _GOOD | {"exposing": 12}, f"`exposing`: S = 12 for exposing: {_RAISES}"),
        Mistake("too few to be silent", _GOOD | {"exposing": 3}, f"`exposing`: S = 3 for exposing: {_RAISES}"),
        Mistake("loud is not hidden", _GOOD | {"hiding": 7}, f"`hiding`: S = 7 for hiding: {_RAISES}"),
    ),
)
