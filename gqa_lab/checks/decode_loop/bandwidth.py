"""08.bandwidth: from milliseconds to GB/s, to a share of what the machine reads, to the floor."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart

_WEIGHTS_ONLY = "The weights only. A step reads the cache as well."
_AS_PRINTED = "The weights only; a well-known benchmark prints exactly this. A step reads the cache as well."
_CACHE_ONLY = "The cache only. A step reads every weight, too."
_GIB = "Your bytes are in GiB, the machine's in GB: 1 GB is 10⁹ bytes, 1 GiB is 2³⁰."


def _draw(seed: int) -> dict:
    if seed == 0:
        return {"weights_mb": 538, "cache_mb": 46, "ms": 20, "machine_gb_per_s": 36}
    rng = np.random.default_rng((81, seed))
    for _ in count():
        weights, cache = int(rng.integers(200, 3000)), int(rng.integers(40, 1500))
        machine = int(rng.integers(20, 200))
        ms = round((weights + cache) / machine / float(rng.uniform(0.35, 0.85)))
        numbers = {"weights_mb": weights, "cache_mb": cache, "ms": ms, "machine_gb_per_s": machine}
        if ms >= 10 and cache > 0.08 * weights and tells_apart(numbers, _right, _wrong):
            return numbers


def _right(numbers: dict) -> dict:
    weights, cache, ms, machine = numbers.values()
    return {
        "gb_per_s": (weights + cache) / ms,
        "percent": 100 * (weights + cache) / ms / machine,
        "floor_ms": (weights + cache) / machine,
    }


def _wrong(numbers: dict) -> list[Mistake]:
    weights, cache, ms, machine = numbers.values()
    total = weights + cache
    return [
        Mistake("gb_per_s", weights / ms, _AS_PRINTED),
        Mistake("gb_per_s", cache / ms, _CACHE_ONLY),
        Mistake("gb_per_s", 1000 * total / ms, "That is MB per second. MB per ms *is* GB per s."),
        Mistake("gb_per_s", total / ms / 1000, "You divided by 1,000 once too often: MB per ms *is* GB per s."),
        Mistake("gb_per_s", ms / total, "Upside down: that is ms per MB."),
        Mistake("gb_per_s", 1000 / ms, "These are tokens per second. How many bytes does each of them read?"),
        Mistake("percent", 100 * weights / ms / machine, _WEIGHTS_ONLY),
        Mistake("percent", 100 * cache / ms / machine, _CACHE_ONLY),
        Mistake("percent", 100 * total * 1e9 / 2**30 / ms / machine, _GIB),
        Mistake("percent", 100 * machine * ms / total, "Upside down: nothing reads faster than the machine can."),
        Mistake("percent", total / ms / machine, "That is a share. In percent it is a hundred times that."),
        Mistake("percent", 100 - 100 * total / ms / machine, "That is what is lost. How much is reached?"),
        Mistake("percent", 100 * cache / total, "That is the cache's share of the bytes, not of the bandwidth."),
        Mistake("floor_ms", weights / machine, _WEIGHTS_ONLY),
        Mistake("floor_ms", cache / machine, _CACHE_ONLY),
        Mistake("floor_ms", total * 1e9 / 2**30 / machine, _GIB),
        Mistake("floor_ms", total / machine / 1000, "These are seconds. Give milliseconds."),
        Mistake("floor_ms", ms * ms * machine / total, "Upside down: a floor lies below what was measured."),
        Mistake("floor_ms", machine / total, "Upside down: divide the bytes by what is read in a second."),
        Mistake("floor_ms", ms, "That is what was measured. The floor is what reading alone would take."),
    ]


BANDWIDTH = Hand(
    id="08.bandwidth",
    level="by hand ●○○ 6 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "gb_per_s": "All bytes that a step reads, divided by its time. 1 GB is 10⁹ bytes, 1 MB 10⁶.",
        "percent": "Your GB per second, as a percentage of the machine's.",
        "floor_ms": "The same bytes at the machine's speed, in milliseconds.",
    },
    notice="Notice: a step cannot get below the floor, whatever code it is. What lies between is yours to find.",
)
