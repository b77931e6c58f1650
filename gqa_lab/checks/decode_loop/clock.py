"""08.clock: a benchmark to repair, under a clock that does what it is told."""

import statistics
from collections.abc import Callable

import numpy as np

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case
from gqa_lab.checks.functions import Build

_NAMES = ("step", "clock", "n_steps", "n_warmup")
_WARM = "Warm-up is counted. The first steps compile, allocate and fill caches; run them, but don't time them."
_MEAN = "That is the mean: one hiccup moves it. What number would not notice a single slow step?"
_TWICE = "The clock is read twice before the step, or twice after it: no time passes between."
_FASTEST = "That is the fastest step. The task asks for the typical one, the median."
_SLOWEST = "That is the slowest step. The task asks for the typical one, the median."
_SUM = "That is the time of all steps together."
_OUTSIDE = "The warm-up runs inside the time and is missing from the count."
_MS = "These are milliseconds. The name ends in `_s`: give seconds."
_SECONDS = "The clock is in seconds already: you divided by 1,000 once too often."
_COLD = "No warm-up was run: the first steps that you timed are the slow ones."
_FIXED = "Right for 5 steps after 2. Use `n_steps` and `n_warmup`, whatever they are."
_LAST = "That is one step. Time `n_steps` of them."
_TRIMMED = "Without the slowest and the fastest, that is still a mean. The task asks for the median."
_MODE = "That is the most frequent time. Times that all differ have none; the task asks for the median."
_UNSORTED = "That is the step in the middle of the run. The median is in the middle of the sorted times."
_SORTED_FIRST = "You sorted before the warm-up was cut off: what you cut were the fastest steps."
_OUT_OF_N = "You cut the warm-up out of `n_steps`. It comes before them: `n_warmup` steps more."
_ONE_MORE = "That is one warm-up step more than `n_warmup`."
_ONE_FEWER = "That is one step fewer than `n_steps`."
_RATE = "That is steps per second. How long does one take?"


class Bench:
    """A step and a clock: the clock stands still but for the steps, each of which takes its time in seconds."""

    def __init__(self, durations: tuple[float, ...]):
        self.durations, self.now, self.n_steps = durations, 1000.0, 0

    def step(self) -> None:
        """Takes the next of the durations, the last one again when they are used up."""
        self.now += self.durations[min(self.n_steps, len(self.durations) - 1)]
        self.n_steps += 1

    def clock(self) -> float:
        """Returns the seconds of a clock that did not start at 0."""
        return self.now


def _cases(round_: int) -> list[Case]:
    drawn = (
        [((100, 100, 10, 10, 10, 50, 10), 5, 2), ((80, 70, 60, 20, 33, 41, 90, 90), 5, 3), ((9, 5, 8, 6), 3, 0)],
        [((300, 20, 25, 24, 200, 21), 5, 1), ((50, 40, 30, 20, 2, 3, 1), 3, 4), ((5, 4, 11), 1, 2)],
    )[round_]
    cases = []
    for ms, n_steps, n_warmup in drawn:
        seconds = tuple(x / 1000 for x in ms)
        sizes = {"n_steps": n_steps, "n_warmup": n_warmup, "steps_ms": list(ms)}
        cases.append(Case((seconds, "clock", n_steps, n_warmup), sizes))
    return cases


def _arguments(case: Case) -> list:
    durations, _, n_steps, n_warmup = case.args
    bench = Bench(durations)
    return [bench.step, bench.clock, n_steps, n_warmup]


def truth(durations, _, n_steps, n_warmup) -> float:
    """Returns the median of the steps after the warm-up, in seconds."""
    return statistics.median(durations[n_warmup : n_warmup + n_steps])


def _timed(step, clock, n: int) -> list[float]:
    times = []
    for _ in range(n):
        start = clock()
        step()
        times.append(clock() - start)
    return times


def _wrong(rule: Callable) -> Callable:
    """Makes a function of the student's signature from a rule on the times of all steps and the two numbers."""

    def wrong(step, clock, n_steps=5, n_warmup=2):
        return rule(_timed(step, clock, n_warmup + n_steps), n_steps, n_warmup)

    return wrong


MISTAKES = tuple(
    Mistake(name, _wrong(rule), text)
    for name, rule, text in (
        ("mean of all", lambda t, n, w: sum(t) / len(t), _WARM),
        ("median of all", lambda t, n, w: statistics.median(t), _WARM),
        ("mean", lambda t, n, w: sum(t[w:]) / n, _MEAN),
        ("no time", lambda t, n, w: 0.0, _TWICE),
        ("fastest", lambda t, n, w: min(t[w:]), _FASTEST),
        ("slowest", lambda t, n, w: max(t[w:]), _SLOWEST),
        ("sum", lambda t, n, w: sum(t[w:]), _SUM),
        ("sum of all", lambda t, n, w: sum(t), _SUM),
        ("warm-up in the time", lambda t, n, w: sum(t) / n, _OUTSIDE),
        ("milliseconds", lambda t, n, w: 1000 * statistics.median(t[w:]), _MS),
        ("milliseconds, mean", lambda t, n, w: 1000 * sum(t[w:]) / n, _MS),
        ("already seconds", lambda t, n, w: statistics.median(t[w:]) / 1000, _SECONDS),
        ("already seconds, mean", lambda t, n, w: sum(t[w:]) / n / 1000, _SECONDS),
        ("cold", lambda t, n, w: statistics.median(t[:n]), _COLD),
        ("cold mean", lambda t, n, w: sum(t[:n]) / n, _COLD),
        ("last", lambda t, n, w: t[-1], _LAST),
        ("first after the warm-up", lambda t, n, w: t[w], _LAST),
        ("trimmed mean", lambda t, n, w: statistics.mean(sorted(t[w:])[1:-1]), _TRIMMED),
        ("mode", lambda t, n, w: statistics.mode(t[w:]), _MODE),
        ("unsorted", lambda t, n, w: t[w:][n // 2], _UNSORTED),
        ("sorted first", lambda t, n, w: statistics.median(sorted(t)[w:]), _SORTED_FIRST),
        ("warm-up out of n_steps", lambda t, n, w: statistics.median(t[w:n]), _OUT_OF_N),
        ("one step fewer", lambda t, n, w: statistics.median(t[w:-1] or t), _ONE_FEWER),
        ("one step fewer, upper", lambda t, n, w: statistics.median_high(t[w:-1] or t), _ONE_FEWER),
        ("one step fewer, lower", lambda t, n, w: statistics.median_low(t[w:-1] or t), _ONE_FEWER),
        ("rate", lambda t, n, w: 1 / statistics.median(t[w:]), _RATE),
    )
) + (
    Mistake("5 after 2", lambda step, clock, n_steps=5, n_warmup=2: statistics.median(_timed(step, clock, 7)[2:]),
            _FIXED),
    Mistake("5 steps", lambda step, clock, n_steps=5, n_warmup=2: statistics.median(
        _timed(step, clock, n_warmup + 5)[n_warmup:]), _FIXED),
    Mistake("after 2", lambda step, clock, n_steps=5, n_warmup=2: statistics.median(
        _timed(step, clock, 2 + n_steps)[2:]), _FIXED),
    Mistake("one warm-up more", lambda step, clock, n_steps=5, n_warmup=2: statistics.median(
        _timed(step, clock, n_warmup + 1 + n_steps)[n_warmup + 1 :]), _ONE_MORE),
)  # fmt: skip


def _explain(case: Case, got: np.ndarray, index: tuple) -> str:
    if 0 < got < 1e-4:
        return "A step takes milliseconds here. Was something divided by 1,000, or another clock read than `clock`?"
    return "The clock is in seconds, stands still outside the steps, and did not start at 0."


def _steps_too_many(function: Callable) -> str | None:
    """Says if another number of steps was run than asked for, or if the numbers have no defaults."""
    bench = Bench((1.0,))
    function(bench.step, bench.clock, n_steps=3, n_warmup=2)
    if bench.n_steps != 5:
        return f"Right numbers. But `n_steps=3, n_warmup=2` ran {bench.n_steps} steps; 5 were asked for."
    try:
        function(bench.step, bench.clock)
    except TypeError:
        return "Right numbers. But `n_steps=5, n_warmup=2` are missing from the first line."
    return None


CLOCK = Build(
    id="08.clock",
    level="expose ●●○ 8 min, further",
    cases=_cases,
    reference=truth,
    names=_NAMES,
    axes="",
    mistakes=MISTAKES,
    tested="Tested with three benches of slow first steps and hiccups, then with others.",
    notice="Notice: the first token of an answer has its own name and its own clock, time to first token. A warm-up "
    "that is counted mixes the two.",
    arguments=_arguments,
    by_keyword=2,
    explain=_explain,
    beyond=_steps_too_many,
    result_type=float,
)
