"""06.crossover: the context at which a step reads as much cache as weights."""

import time
from collections.abc import Callable

import numpy as np

from gqa_lab.checks import sandbox
from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case
from gqa_lab.checks.functions import Build
from gqa_lab.costs import SHAPES, kv_cache_bytes, weight_bytes_held, weight_bytes_read

_MODELS = (  # with these batches the tokens come out whole, so that rounding them is right as well
    (("llama-3.1-8b", 1), ("llama-3.1-8b", 16), ("llama-2-7b", 1), ("qwen2.5-7b", 8)),
    (("llama-2-70b", 4), ("phi-4-mini", 3), ("llama-2-7b", 4), ("mistral-7b-v0.3", 1)),
)
_NAMES = ("weight_bytes", "kv_bytes_per_token", "batch_size")
_READ_ONLY = "Right for memory; a step never reads the input table. Use the `weight_bytes` that are handed in."
_MHA = "You divided by the MHA cache. `kv_bytes_per_token` is that of the shared KV heads already."
_NO_BATCH = "The batch makes no difference in your function. 64 sequences own 64 caches and share one set of weights."
_TIMES_BATCH = "You multiplied by the batch. 64 sequences own 64 caches: together they reach the weights sooner."
_UPSIDE_DOWN = "Upside down: that is the cache of a token for each byte of weights."
_TWICE = "Half or double: `kv_bytes_per_token` counts keys and values, in bytes, already."
_SEQUENCES = "That is the context of all sequences together. How long is each?"


def _sizes(name: str) -> tuple[int, int]:
    """Weights that a step reads, and the cache of a token, in 16 bits."""
    one_token = kv_cache_bytes(SHAPES[name], batch_size=1, kv_len=1, bytes_per_element=2)
    return weight_bytes_read(SHAPES[name], bytes_per_element=2), one_token


def _cases(round_: int) -> list[Case]:
    drawn = [(*_sizes(name), batch_size) for name, batch_size in _MODELS[round_]]
    return [Case(args, dict(zip(_NAMES, args, strict=True))) for args in drawn]


def truth(weight_bytes: int, kv_bytes_per_token: int, batch_size: int = 1) -> float:
    """Returns the tokens of each sequence at which the batch's cache is as large as the weights."""
    return weight_bytes / (batch_size * kv_bytes_per_token)


_SHAPES = {_sizes(name): SHAPES[name] for name, _ in sum(_MODELS, ())}
_HELD = {sizes: weight_bytes_held(shape, bytes_per_element=2) for sizes, shape in _SHAPES.items()}


def _of_weights_held(w: int, k: int, b: int = 1) -> float:
    return _HELD[w, k] / (b * k)


def _of_mha(w: int, k: int, b: int = 1) -> float:
    return w / (b * k * (_SHAPES[w, k].n_heads // _SHAPES[w, k].n_kv_heads))


MISTAKES = (
    Mistake("of the MHA cache", _of_mha, _MHA),
    Mistake("always a fourth", lambda w, k, b=1: w / (4 * b * k), _MHA),
    Mistake("weights held", _of_weights_held, _READ_ONLY),
    Mistake("batch ignored", lambda w, k, b=1: w / k, _NO_BATCH),
    Mistake("batch multiplied", lambda w, k, b=1: w * b / k, _TIMES_BATCH),
    Mistake("upside down", lambda w, k, b=1: b * k / w, _UPSIDE_DOWN),
    Mistake("upside down, per sequence", lambda w, k, b=1: k / w / b, _UPSIDE_DOWN),
    Mistake("upside down, no batch", lambda w, k, b=1: k / w, _UPSIDE_DOWN),
    Mistake("keys and values again", lambda w, k, b=1: w / (2 * k * b), _TWICE),
    Mistake("keys only", lambda w, k, b=1: 2 * w / (k * b), _TWICE),
    Mistake("cache in bits", lambda w, k, b=1: w / (8 * k * b), "Too small by 8: bits are not bytes."),
    Mistake("weights in bits", lambda w, k, b=1: 8 * w / (k * b), "Too large by 8: bits are not bytes."),
    Mistake("in GB", lambda w, k, b=1: w / 1e9 / (k * b), "The two sizes need one unit; both come in bytes."),
    Mistake("weights in KiB", lambda w, k, b=1: w / 1024 / (k * b), "The two sizes need one unit; both come in bytes."),
    Mistake("in KiB", lambda w, k, b=1: w / (k / 1024 * b), "The two sizes need one unit; both come in bytes."),
    Mistake("added", lambda w, k, b=1: (w + b * k) / 2, "That is a mean of bytes. When is cache as large as weights?"),
    Mistake("difference", lambda w, k, b=1: w - b * k, "That is a difference of bytes. How many tokens fill it?"),
)


def _explain(case: Case, got: np.ndarray, index: tuple) -> str:
    """One number can betray a mistake that is not made everywhere."""
    if abs(got - _of_weights_held(*case.args)) < 1:
        return _READ_ONLY
    if abs(got - _of_mha(*case.args)) < 1:
        return _MHA
    w, k, b = case.args
    return f"At that context a step reads {got * b * k / 1e9:.3g} GB of cache and {w / 1e9:.3g} GB of weights."


def _default(function: Callable) -> str | None:
    args = list(_cases(0)[0].args[:2])
    run = sandbox.run(function, args, {}, time.monotonic() + sandbox.DEADLINE_S)
    if isinstance(run.value, int | float | np.number) and abs(run.value - truth(*args)) <= 1:
        return None
    return (
        "Right with a batch size. Without one it should mean a batch of 1: is there `batch_size=1` in the first line?"
    )


CROSSOVER = Build(
    id="06.crossover",
    level="build ●●○ 8 min, core",
    cases=_cases,
    reference=truth,
    names=_NAMES,
    axes="",
    mistakes=MISTAKES,
    tested="Tested on six models in batches of 1 to 16, and without a batch.",
    notice="Notice: 15.01 GB read per step give 114,512 tokens for Llama-3.1-8B, the 16.06 GB held in memory 122,528. "
    "Both are right, for two questions: what a step reads, and what fills the card.",
    explain=_explain,
    beyond=_default,
    result_type=float,
)
