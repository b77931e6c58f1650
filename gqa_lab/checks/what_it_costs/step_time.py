"""06.step_time: seconds of a decode step from bytes, and the tokens per second that follow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from gqa_lab.checks.answers import Mistake, listed, not_attempted
from gqa_lab.checks.cases import Case
from gqa_lab.checks.functions import Build
from gqa_lab.checks.verdict import Verdict

_NAMES = ("weight_bytes", "kv_bytes_per_token", "batch_size", "kv_len", "bandwidth_bytes_per_s")
_LLAMA = 15_009_316_864  # bytes of weights that a step of Llama-3.1-8B reads in 16 bits: all but the input table
_H100 = 3_350_000_000_000  # bytes per second of an H100 SXM's memory

_WEIGHTS_TIMES_BATCH = (
    "You multiplied the weights by the batch. One read of the weights serves the batch; that is why one batches."
)
_NO_BATCH = "The batch is missing from the cache term: every sequence reads a cache of its own."
_MAX = "You took the larger of the two. Both come through the same wire, one after the other: add them."
_NO_LENGTH = "You read the cache of one token. A step reads that of every token so far."
_PER_TOKEN = "You divided by the batch. Every sequence waits for the whole step."
_OFF_1E9 = "Off by 10⁹: bytes and bandwidth need one unit. Here both come in bytes, not in GB."
_MILLISECONDS = "These are milliseconds. The name ends in `_s`: give seconds."
_BITS = "Off by 8: bits are not bytes."
_WEIGHTS_ONLY = "Only the weights. The step reads the cache as well."
_CACHE_ONLY = "Only the cache. The step reads the weights as well."
_UPSIDE_DOWN = "Upside down: steps per second. How long does one take?"
_TWICE = "You doubled or halved the cache: `kv_bytes_per_token` counts keys and values, in bytes, already."
_SECONDS = "That is the time of a step. Tokens per second: more is better."
_MULTIPLIED = "Divide by the time; a longer step makes fewer tokens per second."
_READ_NOT_MADE = "You counted the tokens that are read. A step makes one for each sequence."
_STEP_OF_ONE = "You took the step of one sequence. With a batch the step is longer."
_ONE_ALONE = (
    "That is what one sequence makes alone; or you read the weights once for each sequence. One read serves the batch."
)
_ONE_OF_THE_BATCH = "That is 1 / step. A step makes batch_size tokens."


def _cases(round_: int) -> list[Case]:
    """Round 0 is Llama-3.1-8B with 8 and with as many bytes as 32 KV heads would keep, in batches of 1 and 32."""
    sizes = (
        [(_LLAMA, cache, batch_size, 8192) for batch_size in (1, 32) for cache in (131_072, 524_288)],
        [(137_426_370_560, 327_680, 3, 4000), (1_191_968_768, 114_688, 7, 900)],
    )
    bandwidth = _H100 if round_ == 0 else 300_000_000_000
    return [Case((*one, bandwidth), dict(zip(_NAMES, (*one, bandwidth), strict=True))) for one in sizes[round_]]


def step_s(weight_bytes, kv_bytes_per_token, batch_size, kv_len, bandwidth_bytes_per_s):
    """Returns the seconds of one read of the weights and of every sequence's cache."""
    return (weight_bytes + batch_size * kv_len * kv_bytes_per_token) / bandwidth_bytes_per_s


def tokens(weight_bytes, kv_bytes_per_token, batch_size, kv_len, bandwidth_bytes_per_s):
    """Returns the tokens per second of the batch."""
    return batch_size / step_s(weight_bytes, kv_bytes_per_token, batch_size, kv_len, bandwidth_bytes_per_s)


def _wrong(rule: Callable) -> Callable:
    """Makes a function of the student's signature from a rule on weights, cache of one token, B, S and bandwidth."""

    def wrong(weight_bytes, kv_bytes_per_token, batch_size, kv_len, bandwidth_bytes_per_s):
        return rule(weight_bytes, kv_bytes_per_token, batch_size, kv_len, bandwidth_bytes_per_s)

    return wrong


_STEP_MISTAKES = tuple(
    Mistake(name, _wrong(rule), text)
    for name, rule, text in (
        ("weights times batch", lambda w, k, b, s, bw: b * (w + s * k) / bw, _WEIGHTS_TIMES_BATCH),
        ("weights times batch, one cache", lambda w, k, b, s, bw: (b * w + s * k) / bw, _WEIGHTS_TIMES_BATCH),
        ("one cache", lambda w, k, b, s, bw: (w + s * k) / bw, _NO_BATCH),
        ("maximum", lambda w, k, b, s, bw: max(w, b * s * k) / bw, _MAX),
        ("no length", lambda w, k, b, s, bw: (w + b * k) / bw, _NO_LENGTH),
        ("no length, no batch", lambda w, k, b, s, bw: (w + k) / bw, _NO_LENGTH),
        ("per token", lambda w, k, b, s, bw: (w + b * s * k) / bw / b, _PER_TOKEN),
        ("GB against bytes", lambda w, k, b, s, bw: (w + b * s * k) / 1e9 / bw, _OFF_1E9),
        ("bytes against GB", lambda w, k, b, s, bw: (w + b * s * k) / (bw / 1e9), _OFF_1E9),
        ("times 10⁹", lambda w, k, b, s, bw: (w + b * s * k) / (bw * 1e9), _OFF_1E9),
        ("milliseconds", lambda w, k, b, s, bw: 1000 * (w + b * s * k) / bw, _MILLISECONDS),
        ("bits", lambda w, k, b, s, bw: 8 * (w + b * s * k) / bw, _BITS),
        ("bits per second", lambda w, k, b, s, bw: (w + b * s * k) / bw / 8, _BITS),
        ("weights only", lambda w, k, b, s, bw: w / bw, _WEIGHTS_ONLY),
        ("cache only", lambda w, k, b, s, bw: b * s * k / bw, _CACHE_ONLY),
        ("upside down", lambda w, k, b, s, bw: bw / (w + b * s * k), _UPSIDE_DOWN),
        ("keys and values again", lambda w, k, b, s, bw: (w + 2 * b * s * k) / bw, _TWICE),
        ("keys only", lambda w, k, b, s, bw: (w + b * s * k / 2) / bw, _TWICE),
    )
)
_TOKENS_MISTAKES = tuple(
    Mistake(name, _wrong(rule), text)
    for name, rule, text in (
        ("one of the batch", lambda *a: 1 / step_s(*a), _ONE_OF_THE_BATCH),
        ("seconds", lambda *a: step_s(*a), _SECONDS),
        ("seconds per token", lambda *a: 1 / tokens(*a), "Upside down: that is seconds per token."),
        ("seconds of the batch", lambda w, k, b, s, bw: b * step_s(w, k, b, s, bw), _MULTIPLIED),
        ("read, not made", lambda w, k, b, s, bw: b * s / step_s(w, k, b, s, bw), _READ_NOT_MADE),
        ("one sequence read", lambda w, k, b, s, bw: s / step_s(w, k, b, s, bw), _READ_NOT_MADE),
        ("milliseconds", lambda *a: tokens(*a) / 1000, "You counted milliseconds. How many in a second?"),
        ("step of one", lambda w, k, b, s, bw: b / step_s(w, k, 1, s, bw), _STEP_OF_ONE),
        ("weights times batch", lambda w, k, b, s, bw: bw / (w + s * k), _ONE_ALONE),
    )
)


def _explain(case: Case, got: np.ndarray, index: tuple) -> str:
    if np.isclose(got, step_s(*case.args), rtol=0.02) or np.isclose(got, tokens(*case.args), rtol=0.02):
        return "Nearly right: was it rounded? Return the number as it is."
    w, k, b, s, _ = case.args
    return (
        f"A step there reads {w / 1e9:.3g} GB of weights, and of each sequence ({b}) a cache of {s * k / 1e9:.3g} GB."
    )


def _part(name: str, reference: Callable, mistakes: tuple[Mistake, ...]) -> Build:
    return Build(
        id=f"06.step_time ({name})",
        level="",
        cases=_cases,
        reference=reference,
        names=_NAMES,
        axes="",
        mistakes=mistakes,
        tested="",
        notice="",
        explain=_explain,
        by_keyword=3,
        result_type=float,
    )


PARTS = {
    "decode_step_s": _part("decode_step_s", step_s, _STEP_MISTAKES),
    "tokens_per_s": _part("tokens_per_s", tokens, _TOKENS_MISTAKES),
}


@dataclass(frozen=True)
class Pair:
    """Functions to write, handed over in a dict; the second is looked at when the first is right."""

    id: str
    level: str
    parts: Mapping[str, Build]
    notice: str

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """Whole answers: one part wrong, the other right."""
        return tuple(
            Mistake(m.name, {k: p.reference for k, p in self.parts.items()} | {key: m.wrong}, f"`{key}`: {m.diagnosis}")
            for key, part in self.parts.items()
            for m in part.mistakes
        )

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a dict of functions."""
        if answer is None or answer is ... or answer == {}:
            return not_attempted(self.id, list(self.parts))
        if not isinstance(answer, dict) or (odd := set(answer) - set(self.parts)):
            there = f" There is no {listed(sorted(map(str, odd)))} in it." if isinstance(answer, dict) else ""
            text = f"Hand over a dict with the keys {listed(self.parts)}, each with its function.{there}"
            return Verdict("failed", text, self.id)
        for key, part in self.parts.items():
            verdict = part.judge(answer.get(key), seed)
            if verdict.status == "not attempted":
                return not_attempted(self.id, [key])
            if not verdict:
                return Verdict("failed", f"`{key}`: {verdict.message}", self.id)
        return Verdict("passed", self.notice, self.id)


STEP_TIME = Pair(
    id="06.step_time",
    level="build ●●○ 10 min, core",
    parts=PARTS,
    notice="Tested on three models, batches of 1 to 32, two bandwidths. Notice: four times less cache gave "
    "5.8 → 4.8 ms at batch 1 and 45.5 → 14.7 ms at batch 32. Sharing is worth little where weights fill the wire.",
)
