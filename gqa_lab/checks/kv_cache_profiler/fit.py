"""10.fit: the line t = t0 + bytes / bandwidth through measured steps, without those that never left the CPU's cache."""

import warnings
from collections.abc import Callable

import numpy as np

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case, copied
from gqa_lab.checks.functions import Build

_CEILING = 40e9  # bytes per second
_SWEEPS = (  # name, MB, ms, measured ceiling in bytes per second
    (
        ("three points on a line", [100, 200, 400], [4.0, 7.0, 13.0], _CEILING),
        ("points beside a line", [50, 120, 200, 340, 500, 720], [3.9, 7.1, 9.6, 16.2, 21.4, 31.3], 24e9),
        ("a small cache that stayed near", [24, 150, 300, 600, 1200], [0.5, 5.5, 10.1, 20.7, 40.1], _CEILING),
        ("two such points, not in order", [640, 40, 64, 320, 96, 160], [23.2, 2.4, 1.4, 12.1, 2.3, 6.5], 35e9),
        ("a cache that is read more slowly than weights", [585, 632, 725, 913], [58.9, 64.3, 79.2, 110.4], 26e9),
    ),
    (
        ("three points on a line", [80, 160, 400], [2.5, 4.5, 10.5], 50e9),
        ("points beside a line", [60, 100, 210, 300, 450, 800], [3.2, 4.3, 7.6, 9.8, 14.9, 25.1], 36e9),
        ("a small cache that stayed near", [16, 100, 250, 500, 1000], [0.3, 3.9, 9.2, 17.1, 34.6], 42e9),
        ("two such points, not in order", [500, 30, 80, 250, 60, 125], [15.9, 1.9, 1.5, 8.6, 1.2, 4.6], 38e9),
        ("a cache that is read more slowly than weights", [720, 310, 400, 520], [93.1, 30.4, 42.2, 63.9], 30e9),
    ),
)


def _cases(round_: int) -> list[Case]:
    return [
        Case((np.array(mb) * 1e6, np.array(ms) / 1e3, ceiling), {"points": len(mb), "with": name})
        for name, mb, ms, ceiling in _SWEEPS[round_]
    ]


def honest(read_bytes: np.ndarray, seconds: np.ndarray, ceiling: float) -> np.ndarray:
    """Returns which points are no faster than the memory can be."""
    return read_bytes / seconds <= ceiling


def line(read_bytes: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """Returns t0 and the seconds per byte of the line of least squares."""
    from_mean = read_bytes - read_bytes.mean()
    slope = float(from_mean @ seconds / (from_mean @ from_mean))
    return float(seconds.mean() - slope * read_bytes.mean()), slope


def fit(read_bytes: np.ndarray, seconds: np.ndarray, ceiling: float) -> tuple[float, float]:
    """Returns t0 in seconds and the bandwidth in bytes per second."""
    kept = honest(read_bytes, seconds, ceiling)
    t0, slope = line(read_bytes[kept], seconds[kept])
    return t0, 1 / slope


def _pack(value: object) -> object:
    """Returns milliseconds and bytes per second; None for anything but two numbers."""
    if type(value) not in (tuple, list, np.ndarray) or len(value) != 2:
        return None
    if any(isinstance(x, bool) or not isinstance(x, int | float | np.number) for x in value):
        return None
    return np.array([float(value[0]) * 1e3, float(value[1])])


def _of(points: Callable, change: Callable) -> Callable:
    """Makes a wrong function of a choice of points and of what is computed from them."""

    def wrong(read_bytes, seconds, ceiling):
        kept = points(read_bytes, seconds, ceiling)
        return change(read_bytes[kept], seconds[kept])

    return wrong


def _all(read_bytes, seconds, ceiling):
    return np.ones(len(read_bytes), dtype=bool)


def _but_the_first(read_bytes, seconds, ceiling):
    return np.arange(len(read_bytes)) > 0


def _but_the_smallest(read_bytes, seconds, ceiling):
    return read_bytes > read_bytes.min()


def _but_the_fastest(read_bytes, seconds, ceiling):
    return read_bytes / seconds < (read_bytes / seconds).max()


def _the_flagged(read_bytes, seconds, ceiling):
    kept = honest(read_bytes, seconds, ceiling)
    return ~kept if (~kept).sum() > 1 else kept


def _polyfit_of_the_flagged(read_bytes, seconds, ceiling):
    """Raises as the student's does where nothing is flagged; one point alone gives a line, and a warning."""
    flagged = ~honest(read_bytes, seconds, ceiling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slope, t0 = np.polyfit(read_bytes[flagged], seconds[flagged], 1)
    return t0, 1 / slope


def _right(b, s):
    t0, slope = line(b, s)
    return t0, 1 / slope


def _capped(read_bytes, seconds, ceiling):
    t0, bytes_per_s = fit(read_bytes, seconds, ceiling)
    return t0, min(bytes_per_s, ceiling)


def _as_they_stand(b, s):
    slope = (s[-1] - s[0]) / (b[-1] - b[0])
    return s[0] - slope * b[0], 1 / slope


def _bytes_over_seconds(b, s):
    at_0, rate = line(s, b)
    return -at_0 / rate, rate


def _two(i: int, j: int) -> Callable:
    def through(b, s):
        order = np.argsort(b)
        (b1, s1), (b2, s2) = ((b[order[k]], s[order[k]]) for k in (i, j))
        slope = (s2 - s1) / (b2 - b1)
        return s1 - slope * b1, 1 / slope

    return through


_NEAR = "A small cache stayed in the CPU's cache: faster than the memory can be. Flag it, don't fit it."
_MEAN = "Mean of bytes / time, or another of these: the fixed cost hides in it."
_TOTAL = "All bytes over all seconds: the fixed cost of every step hides in it."
_ZERO = "A line through zero: a step without bytes would take no time. Let the line start at t0."
_PER_BYTE = "Your second number is seconds per byte. Turn it round."
_ORDER = "Hand back t0 first, then the bandwidth."
_UNITS = "Seconds and bytes per second: no milliseconds, no GB."
_ENDS = "You drew the line through two of the points. Measured points scatter: use all of them, by least squares."
_SIDEWAYS = "You fitted bytes over seconds. The seconds scatter, the bytes are known: fit seconds over bytes."
_BELOW = (
    "Your t0 never falls below zero. It may, where the bytes that grow are read more slowly than those that do not."
)
_CAPPED = "You cap the bandwidth at the ceiling. The ceiling sorts points out; the slope is what the others say."
_SHORTEST = "Your t0 is the shortest time. It still holds the reading of its own bytes."
_FIRST = "You leave out the first point, whatever it is. Compare bytes / seconds of each with the ceiling."
_SMALLEST = "You leave out the smallest, whatever it is. Compare bytes / seconds of each with the ceiling."
_FASTEST = "You leave out the fastest point, whatever it is. Compare bytes / seconds of each with the ceiling."
_MOVED = "You moved the fast points onto the ceiling. They say nothing about the memory: leave them out."
_KEPT = "You kept what is faster than the ceiling and dropped the rest: the other way round."

_RULES = (
    ("through zero", lambda b, s: (0.0, float(b @ b / (b @ s))), _ZERO),
    ("mean of rates", lambda b, s: (0.0, float((b / s).mean())), _MEAN),
    ("mean of rates, and a t0", lambda b, s: (line(b, s)[0], float((b / s).mean())), _MEAN),
    ("median of rates", lambda b, s: (0.0, float(np.median(b / s))), _MEAN),
    ("mean of times per byte", lambda b, s: (0.0, float(1 / np.mean(s / b))), _MEAN),
    ("largest rate", lambda b, s: (0.0, float(np.max(b / s))), _MEAN),
    ("last rate, and a t0", lambda b, s: (line(b, s)[0], float(b[-1] / s[-1])), _MEAN),
    ("all over all", lambda b, s: (0.0, float(b.sum() / s.sum())), _TOTAL),
    ("all over all, and a t0", lambda b, s: (line(b, s)[0], float(b.sum() / s.sum())), _TOTAL),
    ("seconds per byte", lambda b, s: line(b, s), _PER_BYTE),
    ("as polyfit hands it back", lambda b, s: line(b, s)[::-1], f"{_ORDER} {_PER_BYTE}"),
    ("order", lambda b, s: _right(b, s)[::-1], _ORDER),
    ("ms", lambda b, s: (1e3 * _right(b, s)[0], _right(b, s)[1]), _UNITS),
    ("GB/s", lambda b, s: (_right(b, s)[0], _right(b, s)[1] / 1e9), _UNITS),
    ("ms and GB/s", lambda b, s: (1e3 * _right(b, s)[0], _right(b, s)[1] / 1e9), _UNITS),
    ("MB/s", lambda b, s: (_right(b, s)[0], _right(b, s)[1] / 1e6), _UNITS),
    ("first and last", _two(0, -1), _ENDS),
    ("first and last, as they stand", _as_they_stand, _ENDS),
    ("the first two", _two(0, 1), _ENDS),
    ("the last two", _two(-2, -1), _ENDS),
    ("bytes over seconds", _bytes_over_seconds, _SIDEWAYS),
    ("shortest time", lambda b, s: (float(s.min()), _right(b, s)[1]), _SHORTEST),
    ("t0 in bytes", lambda b, s: (line(s, b)[0], _right(b, s)[1]),
     "Your t0 is in bytes: where is it on the other axis?"),
    ("t0 at least 0", lambda b, s: (max(0.0, _right(b, s)[0]), _right(b, s)[1]), _BELOW),
    ("size of t0", lambda b, s: (abs(_right(b, s)[0]), _right(b, s)[1]), _BELOW),
    ("t0 negative", lambda b, s: (-_right(b, s)[0], _right(b, s)[1]), "The sign of your t0 is turned."),
)  # fmt: skip
_MISTAKES = (
    Mistake("nothing flagged", _of(_all, _right), _NEAR),
    Mistake("the first left out", _of(_but_the_first, _right), _FIRST),
    Mistake("the smallest left out", _of(_but_the_smallest, _right), _SMALLEST),
    Mistake("the fastest left out", _of(_but_the_fastest, _right), _FASTEST),
    Mistake("moved onto the ceiling", lambda b, s, c: _right(b, np.maximum(s, b / c)), _MOVED),
    Mistake("the flagged kept", _of(_the_flagged, _right), _KEPT),
    Mistake("the flagged kept, nothing else", _polyfit_of_the_flagged, _KEPT),
    Mistake("bandwidth at most the ceiling", _capped, _CAPPED),
    *(Mistake(name, _of(honest, rule), text) for name, rule, text in _RULES),
    *(Mistake(f"{name}, nothing flagged", _of(_all, rule), text) for name, rule, text in _RULES),
)


def _what(case: Case, got: np.ndarray, index: tuple) -> str:
    read_bytes, seconds, ceiling = case.args
    n_fast = int((~honest(read_bytes, seconds, ceiling)).sum())
    beyond = f" {n_fast} of the points {'is' if n_fast == 1 else 'are'} faster than the ceiling." if n_fast else ""
    equal = " Least squares: all points that are left count alike." if len(read_bytes) > 3 else ""
    return f"It gave t0 = {got[0]:.4g} ms and {got[1] / 1e9:.4g} GB/s.{beyond}{equal}"


FIT = Build(
    id="10.fit",
    level="build ●●○ 10 min, core",
    cases=_cases,
    reference=lambda *args: _pack(fit(*args)),
    names=("read_bytes", "seconds", "ceiling_bytes_per_s"),
    axes="p",
    mistakes=_MISTAKES,
    arguments=copied,
    result_type=np.ndarray,
    pack=_pack,
    returns="two numbers, (t0_s, bytes_per_s)",
    explain=_what,
    tested="Tested on five sweeps: exact, scattered, with one point and with two that never left the CPU's cache, and "
    "one whose t0 lies below zero.",
    notice="Notice: the slope is what every further byte costs, t0 what the line then leaves of a step, below zero "
    "where further bytes cost more than those that stay. A mean of GB/s mixes the two.",
    tolerance=1e-6,
)
