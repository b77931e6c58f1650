"""How often a function reads and writes K and V, counted exactly by running it at four sizes.

The bytes of an operation are a·S·D + b·S + c·D + e: what is as large as K or V grows with S·D, scores with S,
queries with D. The difference of differences over two S and two D leaves `a` alone, whatever else is done.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gqa_lab.checks import sandbox
from gqa_lab.checks.cases import SIZES, Case, qkv
from gqa_lab.traffic import TrafficMeter

_GROWN = {"S": 18, "D": 12}
_WAYS = ("bytes_read", "bytes_written")


@dataclass(frozen=True)
class KVTraffic:
    """Traffic of the size of K and V in one call on case B.

    Attributes:
        kv_bytes: bytes of K and V together.
        read: how many times as much was read.
        written: how many times as much was written.
        table: the operations that did it, as lines of text.
    """

    kv_bytes: int
    read: float
    written: float
    table: str


def measure(function: Callable, arguments: Callable[[Case], list]) -> KVTraffic | str | None:
    """Returns the traffic of `function(q, k, v)`; a sentence if it hangs; None where the meter cannot see.

    The function has run before, so an error that comes only now is the meter's own: a tensor subclass, say.
    """
    with TrafficMeter():
        torch.ones(1) + 1  # the first operation under a meter imports much of torch: not the student's time
    deadline = time.monotonic() + sandbox.DEADLINE_S
    meters = {}
    for s in (SIZES[1]["S"], _GROWN["S"]):
        for d in (SIZES[1]["D"], _GROWN["D"]):
            args = arguments(qkv(SIZES[1] | {"S": s, "D": d}, 2))
            with TrafficMeter() as meter:
                run = sandbox.run(function, args, {}, deadline)
            if isinstance(run.error, sandbox.TimeUp):
                return run.trouble()
            if run.error is not None:
                return None
            meters[s, d] = meter.operations
    return _traffic(list(meters.values()))


def _traffic(runs: list[list]) -> KVTraffic:
    small = runs[0]
    b, g, s, d = (SIZES[1][letter] for letter in "BGSD")
    kv_bytes = 2 * b * g * s * d * 8
    grown = kv_bytes * (_GROWN["S"] / s - 1) * (_GROWN["D"] / d - 1)
    names = [[op.name for op in run] for run in runs]
    if any(other != names[0] for other in names):  # a loop over tokens: only the sums can be compared
        read, written = ([sum(getattr(op, way) for op in run) for run in runs] for way in _WAYS)
        return KVTraffic(kv_bytes, _mixed(read) / grown, _mixed(written) / grown, _table(small))
    each = [[_mixed([getattr(op, way) for op in ops]) / grown for way in _WAYS] for ops in zip(*runs, strict=True)]
    guilty = [op for op, (_, written) in zip(small, each, strict=True) if written > 0.01]
    readers = [op for op, (read, _) in zip(small, each, strict=True) if read > 0.01]
    read, written = (sum(column) for column in zip(*each, strict=True)) if each else (0.0, 0.0)
    return KVTraffic(kv_bytes, read, written, _table(guilty or readers))


def _mixed(values: list[int]) -> int:
    """Difference of differences of values at (s, d), (s, D), (S, d), (S, D)."""
    return values[3] - values[2] - values[1] + values[0]


def _table(operations: list, n_rows: int = 8) -> str:
    rows = [f"  {'operation':<24}{'bytes read':>12}{'bytes written':>15}"]
    rows += [f"  {op.name[:23]:<24}{op.bytes_read:>12,}{op.bytes_written:>15,}" for op in operations[:n_rows]]
    more = [f"  … and {len(operations) - n_rows} more"] if len(operations) > n_rows else []
    return "\n".join(rows + more)
