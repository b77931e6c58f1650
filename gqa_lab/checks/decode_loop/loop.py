"""08.loop: a greedy loop out of `prefill` and `decode_step`, watched call by call."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from gqa_lab.checks import sandbox
from gqa_lab.checks.answers import Mistake, not_attempted
from gqa_lab.checks.verdict import Verdict
from gqa_lab.config import ModelConfig
from gqa_lab.generate import decode_step, prefill
from gqa_lab.model import Transformer

_SIZES = dict(n_layers=1, d_model=16, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=24, vocab_size=40, max_seq_len=256)
_CASES = (  # seed of the model, tokens of the prompt, new tokens
    ((70, 5, 5), (23, 1, 3), (52, 6, 1), (65, 4, 5)),  # the last one answers with a token of its prompt, twice
    ((48, 3, 6), (59, 4, 4)),
)
_TWICE = (
    "Your cache holds the last prompt token twice: after prefill it had all T, and your first step fed it again. What "
    "prefill returns belongs to the first new token already."
)
_LATE = "Your answer starts one token late: what prefill returns is the first new token. Keep it."
_FIRST_PLACE = "That predicts token 1 of the prompt: `logits[:, 0]` stands behind its first token. Take the last place."
_FORGETS = "It forgets all but the last token: new caches in each step. Make them once, before prefill."
_GROWS = (
    "You fed the whole text in each step, and with a cache: it grew by T, then T + 1, … Feed the newest token only."
)
_PROMPT = "The prompt is part of your answer. Return the new tokens only."
_MANY = "One token too many: prefill gives the first, so decode_step makes max_new_tokens - 1 more."
_FEW = "One token too few: prefill gives one, decode_step one each time."
_UNCACHED = (
    "Right tokens, but nothing is kept: each step read the whole text again. That is the loop without a cache. Use "
    "prefill once, then decode_step."
)
_SAME_TOKEN = "You fed the same token in each step. Feed the one that was chosen last."
_LEAST = "You took the least likely token. Greedy takes the likeliest: argmax."
_DRAWN = "Asked again, it answered otherwise. Greedy draws nothing: it takes the likeliest each time."
_KEPT = "Your caches still hold an earlier call. Each call of your function has a text of its own."
_LAST_ID = (
    "`logits` is [1, vocabulary], one row already: `logits[:, -1]` is the last id's number, and argmax of it is 0."
)
_NOT_AGAIN = (
    "You leave out tokens that the text holds already. Greedy takes the likeliest, whether it stood there or not."
)
_STEPPED_TWICE = "You call decode_step twice with each token: the cache then holds it twice."
_READY = "That is the package's `generate`. Write the loop yours, from prefill and decode_step; afterwards compare."
_SEPARATE = "Prefill filled other caches than decode_step reads. Hand both the same ones."


# ---- what the student's function is given ---------------------------------------------------------------


class Watched(Transformer):
    """A tiny model that takes down each call: the tokens it was fed, and how many its caches held before."""

    def __init__(self, seed: int):
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        super().__init__(ModelConfig(**_SIZES, rope_theta=1e4, norm_eps=1e-5))
        torch.random.set_rng_state(state)
        for p in self.parameters():
            p.requires_grad_(False)
            if p.ndim > 1:
                p.mul_(3)  # far from uniform, so that another past gives another token
        self.double()
        self.calls: list[tuple[list[int], int | None]] = []
        self.used_generate = False

    def hidden(self, token_ids, caches=None, **attention):
        """As a `Transformer`, and takes it down."""
        frame = sys._getframe(1)
        while frame is not None:
            is_loop = frame.f_code.co_name == "_stream" and frame.f_globals.get("__name__") == "gqa_lab.generate"
            self.used_generate |= is_loop
            frame = frame.f_back
        held = caches[0].host_lengths[0] if caches else None
        self.calls.append((token_ids.flatten().tolist(), held))
        return super().hidden(token_ids, caches, **attention)


def _prompt(seed: int, n: int) -> torch.Tensor:
    return torch.randint(0, _SIZES["vocab_size"], (1, n), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def right(model: Transformer, token_ids: torch.Tensor, max_new_tokens: int) -> list[int]:
    """Returns the likeliest tokens, without a cache: the truth, slow and obvious."""
    ids = token_ids
    for _ in range(max_new_tokens):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    return ids[0, token_ids.shape[1] :].tolist()


# ---- known mistakes --------------------------------------------------------------------------------------


def _caches(model, token_ids, max_new_tokens):
    return model.new_caches(1, token_ids.shape[1] * (max_new_tokens + 1) + max_new_tokens**2)


def _next(logits):
    return logits.argmax(-1)[:, None]


def fed_twice(model, token_ids, max_new_tokens):
    """Feeds the last prompt token once more before the first choice."""
    caches, answer = _caches(model, token_ids, max_new_tokens), []
    prefill(model, token_ids, caches)
    ids = token_ids[:, -1:]
    for _ in range(max_new_tokens):
        ids = _next(decode_step(model, ids, caches))
        answer.append(ids.item())
    return answer


def late(model, token_ids, max_new_tokens):
    """Drops the token that prefill predicts."""
    caches, answer = _caches(model, token_ids, max_new_tokens), []
    ids = _next(prefill(model, token_ids, caches))
    for _ in range(max_new_tokens):
        ids = _next(decode_step(model, ids, caches))
        answer.append(ids.item())
    return answer


def _loop(model, token_ids, max_new_tokens, *, first=None, caches_of=None, choose=_next, n_more=-1, feed=None):
    """The right loop with parts exchanged: `n_more` tokens beside max_new_tokens after the first."""
    caches = _caches(model, token_ids, max_new_tokens)
    logits = prefill(model, token_ids, caches) if first is None else first(model, token_ids, caches)
    ids = choose(logits)
    answer, first_ids = [ids.item()], ids
    for _ in range(max_new_tokens + n_more):
        used = caches if caches_of is None else caches_of(model, token_ids, max_new_tokens)
        logits = decode_step(model, ids if feed is None else feed(first_ids, answer), used)
        ids = choose(logits)
        answer.append(ids.item())
    return answer


def _with(**parts) -> Callable:
    return lambda model, token_ids, max_new_tokens: _loop(model, token_ids, max_new_tokens, **parts)


def _text(token_ids, answer):
    return torch.cat([token_ids, torch.tensor([answer], dtype=torch.long)], dim=1)


@torch.no_grad()
def whole_text_each_step(model, token_ids, max_new_tokens):
    """Feeds everything again in each step, over one cache."""
    caches, answer = _caches(model, token_ids, max_new_tokens), []
    for _ in range(max_new_tokens):
        logits = model(_text(token_ids, answer), caches)[:, -1]
        answer.append(_next(logits).item())
    return answer


@torch.no_grad()
def one_cache_lost(model, token_ids, max_new_tokens):
    """Decodes over caches that prefill has not filled."""
    other = _caches(model, token_ids, max_new_tokens)
    return _loop(model, token_ids, max_new_tokens, caches_of=lambda *_: other)


def stepped_twice(model, token_ids, max_new_tokens):
    """Feeds each token twice."""
    caches = _caches(model, token_ids, max_new_tokens)
    ids = _next(prefill(model, token_ids, caches))
    answer = [ids.item()]
    for _ in range(max_new_tokens - 1):
        decode_step(model, ids, caches)
        ids = _next(decode_step(model, ids, caches))
        answer.append(ids.item())
    return answer


def not_again(model, token_ids, max_new_tokens, *, also_of_the_prompt=False):
    """Answers without taking a token twice, or without any that the prompt holds either."""
    used = set(token_ids.flatten().tolist()) if also_of_the_prompt else set()

    def choose(logits):
        logits = logits.clone()
        logits[:, sorted(used)] = -torch.inf
        used.add(logits.argmax(-1).item())
        return _next(logits)

    return _loop(model, token_ids, max_new_tokens, choose=choose)


MISTAKES = (
    Mistake("last prompt token fed again", fed_twice, _TWICE),
    Mistake("prefill's token dropped", late, _LATE),
    Mistake("first place", _with(first=lambda m, ids, caches: m(ids, caches)[:, 0]), _FIRST_PLACE),
    Mistake("new caches each step", _with(caches_of=_caches), _FORGETS),
    Mistake("prefill's cache lost", one_cache_lost, _SEPARATE),
    Mistake("whole text each step", whole_text_each_step, _GROWS),
    Mistake("prompt included", lambda m, ids, n: ids[0].tolist() + _loop(m, ids, n), _PROMPT),
    Mistake("one too many", _with(n_more=0), _MANY),
    Mistake("one too few", lambda m, ids, n: _loop(m, ids, n)[:-1], _FEW),
    Mistake("no cache", right, _UNCACHED),
    Mistake("same token", _with(feed=lambda first, answer: first), _SAME_TOKEN),
    Mistake("least likely", _with(choose=lambda logits: logits.argmin(-1)[:, None]), _LEAST),
    Mistake("last id", _with(choose=lambda logits: logits[:, -1:].argmax(-1)[:, None]), _LAST_ID),
    Mistake("stepped twice", stepped_twice, _STEPPED_TWICE),
    Mistake("no token twice", not_again, _NOT_AGAIN),
    Mistake("no token of the text", partial(not_again, also_of_the_prompt=True), _NOT_AGAIN),
)


# ---- the check -------------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """One answer: what came back, what the model was asked, and what is wrong with it."""

    case: tuple[int, int, int]
    run: sandbox.Run
    calls: list = field(default_factory=list)
    used_generate: bool = False
    changed: bool = False
    expected: list[int] = field(default_factory=list)

    @property
    def value(self) -> object:
        """The answer as plain numbers, or None if it is not a list of them."""
        answer = self.run.value
        if not isinstance(answer, list | tuple) or not all(isinstance(x, int | np.integer) for x in answer):
            return None
        return [int(x) for x in answer]

    @property
    def places(self) -> list[tuple[int, int | None]]:
        """How many tokens each call fed, and after how many."""
        return [(len(ids), held) for ids, held in self.calls]

    @property
    def n_read_again(self) -> int:
        """Steps after the first that were fed more than one token."""
        return sum(len(ids) > 1 for ids, _ in self.calls[1:])


@dataclass(frozen=True)
class BuildLoop:
    """A generation loop to write."""

    id: str
    level: str
    mistakes: tuple[Mistake, ...]
    notice: str

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a function."""
        if answer is None or answer is ...:
            return not_attempted(self.id, [])
        if not callable(answer):
            text = f"Hand over the function itself, without calling it; this is of type {type(answer).__name__}."
            return Verdict("failed", text, self.id)
        with sandbox.plain_torch():
            deadline = time.monotonic() + sandbox.DEADLINE_S
            first = [attempt(answer, case, deadline) for case in _CASES[0]]
            if first[0].run.is_stub(answer):
                return not_attempted(self.id, [])
            problem = self._first_round(first, answer) or _second_round(answer, deadline)
        printed = sandbox.shown(first[0].run.printed)
        if problem:
            return Verdict("failed", problem + printed, self.id)
        tested = "Tested against the loop without a cache, on prompts and answers of 1 to 6 tokens."
        return Verdict("passed", f"{tested} {self.notice}{_spared(first[0])}{printed}", self.id)

    def _first_round(self, attempts: list[Attempt], function: Callable) -> str | None:
        if any(a.used_generate for a in attempts):
            return _READY
        found = [(a, text) for a in attempts if (text := problem_of(a))]
        if not found:
            return None
        at, text = found[0]
        seed, q_len, n_new = at.case
        detail = f"With a prompt of {q_len} tokens and max_new_tokens={n_new}: {text}"
        if isinstance(at.run.error, sandbox.TimeUp | SystemExit):
            return detail
        if mistake := self.recognise(attempts):
            return f"{mistake.diagnosis}\n{detail}"
        again = attempt(function, at.case, time.monotonic() + sandbox.DEADLINE_S)
        if any(a.calls and a.calls[0][1] for a in (at, again)):
            return f"{_KEPT}\n{detail}"
        is_drawn = again.value not in (None, at.value) and again.places == at.places
        return f"{_DRAWN}\n{detail}" if is_drawn else detail

    def recognise(self, attempts: list[Attempt]) -> Mistake | None:
        """Returns the known mistake that answers the same everywhere, if there is one."""
        if not attempts[0].calls:
            return None
        for mistake in self.mistakes:
            deadline = time.monotonic() + sandbox.DEADLINE_S
            known = ((a, attempt(mistake.wrong, a.case, deadline)) for a in attempts)  # as far as they agree
            if all(a.value is not None and a.value == b.value and a.n_read_again == b.n_read_again for a, b in known):
                return mistake
        return None


def attempt(function: Callable, case: tuple[int, int, int], deadline: float) -> Attempt:
    """Returns what came of one call on a fresh model."""
    seed, q_len, n_new = case
    model, ids = Watched(seed), _prompt(seed, q_len)
    expected, model.calls = right(model, ids, n_new), []
    given = ids.clone()
    run = sandbox.run(function, [model, given, n_new], {}, deadline)
    return Attempt(case, run, model.calls, model.used_generate, not torch.equal(given, ids), expected)


def problem_of(one: Attempt) -> str | None:
    """Returns what is wrong with an answer, or None."""
    if one.run.error is not None:
        text = one.run.trouble()
        return f"{text} {_grew(one)}".strip() if "max_seq_len" in text or "positions" in text else text
    if one.value is None:
        value = one.run.value
        got = "None. Is a `return` missing?" if value is None else f"a {type(value).__name__}."
        if isinstance(value, list) and value:
            got = f"a list of {type(value[0]).__name__} objects."
        return f"it returned {got} It should return a list of whole numbers: `.item()` makes one of a tensor."
    if one.changed:
        return "your function changed `token_ids`. Somebody else still needs them."
    if one.value and one.value == one.expected[: len(one.value)] != one.expected:
        return f"it stopped after {len(one.value)} of {len(one.expected)} tokens, all right so far."
    if one.value != one.expected:
        n = (  # the first that differ
            [a == b for a, b in zip(one.value, one.expected, strict=False)] + [False]
        ).index(False)
        return f"it returned {one.value}, right would be {len(one.expected)} tokens; the first {n} are. {_grew(one)}"
    if one.n_read_again:
        return (
            f"{one.n_read_again} of your {len(one.calls)} calls read more than one token after the first. {_grew(one)}"
        )
    return None


def _grew(one: Attempt) -> str:
    """Says what the model was fed, call by call."""
    fed = [f"{len(ids)}" + (f" after {held}" if held else "") for ids, held in one.calls[:4]]
    return "Tokens fed, call by call: " + ", ".join(fed) + (", …" if len(one.calls) > 4 else "") + "." if fed else ""


def _spared(one: Attempt) -> str:
    """Says what the same answer could do without."""
    (_, q_len, n_new), fed = one.case, [len(ids) for ids, _ in one.calls]
    if fed and fed[0] < q_len:
        n = len(fed)
        return f" Your {n} calls read all the weights {n} times; with the prompt in one prefill {n_new} do."
    if len(fed) > n_new:
        return " Your last step made logits that nobody read: one step fewer gives the same answer."
    return ""


def _second_round(function: Callable, deadline: float) -> str | None:
    for case in _CASES[1]:
        if text := problem_of(attempt(function, case, deadline)):
            return f"Right at first, wrong with another model: does it remember?\n{text}"
    return None


LOOP = BuildLoop(
    id="08.loop",
    level="build ●●○ 12 min, core",
    mistakes=MISTAKES,
    notice="Notice: prefill can read T tokens in one call, each step reads one. `generate` is this loop with several "
    "sequences, a sampler and stop tokens.",
)
