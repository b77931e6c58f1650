"""Numbers made of measured numbers: percentiles, and the line t = t0 + bytes / bandwidth. No clock, no torch."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LIMIT = 1.1
"""Above 110% of a measured ceiling it is a cache that was read, or a wrong count; below, the ceiling's own noise."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The line t = t0_s + bytes / bytes_per_s."""

    t0_s: float  # what it leaves of a step beside its bytes; below zero where those that grew cost more than the others
    bytes_per_s: float  # how fast further bytes are read
    residual_s: float  # root of the mean squared distance of the fitted points from the line
    flagged: list[int]  # positions of points above the ceiling, which were not fitted

    def seconds(self, n_bytes: int | float) -> float:
        """Returns what the line says a step takes that reads so many bytes."""
        return self.t0_s + n_bytes / self.bytes_per_s


def fit_line(
    n_bytes: Sequence[int | float], seconds: Sequence[int | float], *, ceiling_bytes_per_s: int | float | None = None
) -> Fit:
    """Returns the least-squares line through measured points, without those that no memory can have given.

    The slope is the time of one more byte. The mean of bytes / seconds is another number: it hides t0 in itself.

    Args:
        n_bytes: bytes that each step reads.
        seconds: what it took.
        ceiling_bytes_per_s: the measured read bandwidth. A point above 110% of it was read from a cache, or counted
            wrongly: it is flagged, not fitted.

    Raises:
        ValueError: for fewer than two different numbers of bytes that can be fitted, and where more bytes took no
            more time.

    Example:
        >>> line = fit_line([100e6, 200e6, 400e6], [0.004, 0.007, 0.013])
        >>> round(line.t0_s * 1000, 3), round(line.bytes_per_s / 1e9, 1)      # ms, GB/s
        (1.0, 33.3)
    """
    if len(n_bytes) != len(seconds):
        raise ValueError(f"n_bytes has {len(n_bytes)} points and seconds has {len(seconds)}; they belong in pairs")
    if not all(math.isfinite(x) and x > 0 for x in [*n_bytes, *seconds]):
        raise ValueError("n_bytes and seconds must be finite numbers greater than 0")
    limit = math.inf if ceiling_bytes_per_s is None else LIMIT * ceiling_bytes_per_s
    points = list(zip(n_bytes, seconds, strict=True))
    flagged = [i for i, (x, t) in enumerate(points) if x > limit * t]
    points = [point for i, point in enumerate(points) if i not in flagged]
    if len({x for x, _ in points}) < 2:
        raise ValueError(
            f"a line needs two different numbers of bytes, and {len(points)} of {len(n_bytes)} points lie below the "
            "ceiling; measure more contexts, or longer ones"
        )
    slope, t0_s = statistics.linear_regression(*zip(*points, strict=True))
    if slope <= 0:
        raise ValueError("more bytes took no more time: noise decides; take longer contexts or more tokens")
    residual_s = math.sqrt(statistics.fmean((t - t0_s - slope * x) ** 2 for x, t in points))
    return Fit(t0_s=t0_s, bytes_per_s=1 / slope, residual_s=residual_s, flagged=flagged)


def percentile(values: Sequence[float], percent: int | float) -> float:
    """Returns the smallest of the values that at least so many percent do not exceed (the nearest rank).

    Never a number between two measurements; of fewer than 100 values, the 99th is the largest.

    Raises:
        ValueError: for no values, and a percentage outside (0, 100].

    Example:
        >>> percentile([5.0, 1.0, 4.0, 2.0, 3.0], 50), percentile([5.0, 1.0, 4.0, 2.0, 3.0], 90)
        (3.0, 5.0)
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"percent ({percent}) must be above 0 and at most 100, of at least one value")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]
