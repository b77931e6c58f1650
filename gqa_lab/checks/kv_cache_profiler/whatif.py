"""10.whatif: the time of a step with another number of KV heads, from a fitted line."""

from collections.abc import Callable

import numpy as np

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case
from gqa_lab.checks.functions import Build

_NAMES = ("t0_ms", "bandwidth_gb_per_s", "weight_mb", "kv_mb", "n_kv_heads", "new_n_kv_heads")
_ROUNDS = (
    [(1.0, 33.3, 538.0, 46.08, 3, new) for new in (3, 9, 1)]
    + [(0.4, 3000.0, 15_009.0, 13_107.2, 8, 32), (0.4, 3000.0, 15_009.0, 13_107.2, 8, 2)]
    + [(2.0, 25.0, 90.0, 755.0, 6, 4), (-23.0, 7.27, 538.0, 377.5, 3, 1)],
    [(1.5, 28.0, 269.0, 188.7, 3, new) for new in (3, 9, 1)]
    + [(0.2, 1800.0, 7600.0, 4194.3, 16, 4), (0.2, 1800.0, 7600.0, 4194.3, 16, 32)]
    + [(3.0, 20.0, 50.0, 400.0, 4, 6), (-12.0, 9.0, 269.0, 188.7, 3, 9)],
)  # fmt: skip


def _cases(round_: int) -> list[Case]:
    return [Case(args, dict(zip(_NAMES, args, strict=True))) for args in _ROUNDS[round_]]


def predicted(t0_ms, bandwidth_gb_per_s, weight_mb, kv_mb, n_kv_heads, new_n_kv_heads) -> float:
    """Returns ms: MB divided by GB/s are ms."""
    return t0_ms + (weight_mb + kv_mb * new_n_kv_heads / n_kv_heads) / bandwidth_gb_per_s


def _wrong(rule: Callable) -> Callable:
    """Makes a function of the student's signature from a rule on t0, bandwidth, weights, cache, old and new heads."""

    def wrong(t0_ms, bandwidth_gb_per_s, weight_mb, kv_mb, n_kv_heads, new_n_kv_heads):
        return rule(t0_ms, bandwidth_gb_per_s, weight_mb, kv_mb, n_kv_heads, new_n_kv_heads)

    return wrong


_SCALED = "Everything was scaled. Weights and t0 don't know about KV heads."
_WEIGHTS_SCALED = (
    "The weights were scaled too. In this estimate they stay as they are; only the cache follows KV heads."
)
_T0_SCALED = "t0 was scaled too. It does not know about KV heads."
_NO_T0 = "t0 is missing: what the line leaves of a step beside its bytes."
_BELOW = "Your t0 never falls below zero. A line's may; take it as it is."
_NO_WEIGHTS = "The weights are missing. Each step reads them as well."
_NO_CACHE = "The cache is missing. Each step reads it as well."
_UPSIDE_DOWN = "Upside down: fewer heads, more time?"
_WHOLE = "You divided in whole numbers: 1 // 3 is 0, and the cache is gone."
_UNCHANGED = "The new number of KV heads makes no difference in your function."
_ONE_HEAD = "`kv_mb` is the cache of all `n_kv_heads` heads. Divide by them first."
_BINARY = "You counted in powers of 1,024. Here MB are 10⁶ bytes and GB 10⁹."
_ONLY_LESS = "Your cache can only shrink. With more KV heads it grows."
_UNITS = "MB divided by GB/s are milliseconds already."
_TWICE = "You counted K and V again. `kv_mb` holds both."
_MAX = "Weights and cache come through the same wire: add them."
_OLDER = "The older cache went out twice. What is left is the cache of the new KV heads."
_DIFFERENCE = "That is what changes. How long does the whole step take?"

_MISTAKES = tuple(
    Mistake(name, _wrong(rule), text)
    for name, rule, text in (
        ("all scaled", lambda t, bw, w, k, g, n: (t + (w + k) / bw) * n / g, _SCALED),
        ("bytes scaled", lambda t, bw, w, k, g, n: t + (w + k) * n / g / bw, _WEIGHTS_SCALED),
        ("t0 scaled", lambda t, bw, w, k, g, n: t * n / g + (w + k * n / g) / bw, _T0_SCALED),
        ("no t0", lambda t, bw, w, k, g, n: (w + k * n / g) / bw, _NO_T0),
        ("t0 at least 0", lambda t, bw, w, k, g, n: max(t, 0) + (w + k * n / g) / bw, _BELOW),
        ("size of t0", lambda t, bw, w, k, g, n: abs(t) + (w + k * n / g) / bw, _BELOW),
        ("only less", lambda t, bw, w, k, g, n: t + (w + k * min(1, n / g)) / bw, _ONLY_LESS),
        ("MiB", lambda t, bw, w, k, g, n: t + (w + k * n / g) * 2**20 / 1e6 / bw, _BINARY),
        ("GiB", lambda t, bw, w, k, g, n: t + (w + k * n / g) * 1e9 / 2**30 / bw, _BINARY),
        ("MiB and GiB", lambda t, bw, w, k, g, n: t + (w + k * n / g) * 1000 / 1024 / bw, _BINARY),
        ("no weights", lambda t, bw, w, k, g, n: t + k * n / g / bw, _NO_WEIGHTS),
        ("no cache", lambda t, bw, w, k, g, n: t + w / bw, _NO_CACHE),
        ("cache only", lambda t, bw, w, k, g, n: k * n / g / bw, f"{_NO_T0} {_NO_WEIGHTS}"),
        ("upside down", lambda t, bw, w, k, g, n: t + (w + k * g / n) / bw, _UPSIDE_DOWN),
        ("all upside down", lambda t, bw, w, k, g, n: (t + (w + k) / bw) * g / n, _UPSIDE_DOWN),
        ("whole numbers", lambda t, bw, w, k, g, n: t + (w + k * (n // g)) / bw, _WHOLE),
        ("whole numbers below", lambda t, bw, w, k, g, n: t + (w + k / (g // n)) / bw, _WHOLE),
        ("unchanged", lambda t, bw, w, k, g, n: t + (w + k) / bw, _UNCHANGED),
        ("one head", lambda t, bw, w, k, g, n: t + (w + k * n) / bw, _ONE_HEAD),
        ("divided by the new", lambda t, bw, w, k, g, n: t + (w + k / n) / bw, _ONE_HEAD),
        ("divided by the old", lambda t, bw, w, k, g, n: t + (w + k / g) / bw,
         "What happened to the new heads? This is one KV head, whatever was asked for."),
        ("seconds", lambda t, bw, w, k, g, n: (t + (w + k * n / g) / bw) / 1000,
         "These are seconds. Give milliseconds."),
        ("too many thousands", lambda t, bw, w, k, g, n: t + 1000 * (w + k * n / g) / bw, _UNITS),
        ("too few thousands", lambda t, bw, w, k, g, n: t + (w + k * n / g) / bw / 1000, _UNITS),
        ("times the bandwidth", lambda t, bw, w, k, g, n: t + (w + k * n / g) * bw,
         "Time is bytes divided by bandwidth."),
        ("K and V again", lambda t, bw, w, k, g, n: t + (w + 2 * k * n / g) / bw, _TWICE),
        ("maximum", lambda t, bw, w, k, g, n: t + max(w, k * n / g) / bw, _MAX),
        ("tokens per second", lambda t, bw, w, k, g, n: 1000 / (t + (w + k * n / g) / bw),
         "These are tokens per second. Give milliseconds."),
        ("what is saved", lambda t, bw, w, k, g, n: t + (w + k * (1 - n / g)) / bw,
         "You took what is saved in place of what is left."),
        ("only the difference", lambda t, bw, w, k, g, n: t + (w + k * (n - g) / g) / bw, _OLDER),
        ("rounded", lambda t, bw, w, k, g, n: t + (w + k * round(n / g)) / bw, _WHOLE),
        ("t0 in seconds", lambda t, bw, w, k, g, n: t / 1000 + (w + k * n / g) / bw, "t0 is in milliseconds already."),
        ("difference", lambda t, bw, w, k, g, n: k * (n - g) / g / bw, _DIFFERENCE),
        ("saving", lambda t, bw, w, k, g, n: k * (g - n) / g / bw, _DIFFERENCE),
        ("added", lambda t, bw, w, k, g, n: t + (w + k + k * n / g) / bw,
         "The older cache is gone: only the new one is read."),
    )
)  # fmt: skip


def _explain(case: Case, got: np.ndarray, index: tuple) -> str:
    right = predicted(*case.args)
    if np.isclose(got, right, rtol=0.01):
        return "Nearly right: was it rounded? Return the number as it is."
    t0_ms, bandwidth, weight_mb, *_ = case.args
    return f"Without any cache the step takes {t0_ms + weight_mb / bandwidth:.4g} ms."


WHATIF = Build(
    id="10.whatif",
    level="build ●●○ 8 min, core",
    cases=_cases,
    reference=predicted,
    names=_NAMES,
    axes="",
    mistakes=_MISTAKES,
    explain=_explain,
    result_type=float,
    tested="Tested on three models with more, fewer and as many KV heads, and on a line with t0 below zero.",
    notice="Notice: 18.5 ms become 17.6 with a third of the KV heads and 21.3 with three times as many, because 538 of "
    "584 MB are weights. Where the cache outweighs the weights, as in the case with 6 heads, a third less cache saves "
    "28% of the step.",
)
