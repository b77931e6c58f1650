"""The line, by hand: t = t0 + bytes / bandwidth."""

import math

import pytest

from gqa_lab.profiler import fit_line, percentile

MB = [100e6, 200e6, 400e6]


def test_the_line_through_exact_points_is_exact():
    line = fit_line(MB, [0.004, 0.007, 0.013])
    assert line.t0_s == pytest.approx(0.001) and line.bytes_per_s == pytest.approx(1e8 / 0.003)
    assert line.residual_s == pytest.approx(0, abs=1e-12) and line.flagged == []
    assert line.seconds(0) == line.t0_s and line.seconds(400e6) == pytest.approx(0.013)


def test_noise_goes_half_up_and_half_down_and_is_the_residual():
    # 1, 2, 3 bytes in 2, 1, 3 s: slope 1/2, through the mean (2, 2); 1/2, -1, 1/2 s off it
    line = fit_line([1, 2, 3], [2, 1, 3])
    assert line.t0_s == pytest.approx(1) and line.bytes_per_s == pytest.approx(2)
    assert line.residual_s == pytest.approx(math.sqrt((0.25 + 1 + 0.25) / 3))


def test_a_line_may_begin_below_zero():
    assert fit_line([10, 20], [1, 3]).t0_s == pytest.approx(-1)


@pytest.mark.parametrize(("speed", "flagged"), [(1.09, []), (1.11, [1])])
def test_a_point_above_110_percent_of_the_ceiling_is_flagged_and_changes_nothing(speed, flagged):
    ceiling = 50e9
    n_bytes, seconds = [100e6, 150e6, 200e6, 400e6], [0.004, 150e6 / (speed * ceiling), 0.007, 0.013]
    line = fit_line(n_bytes, seconds, ceiling_bytes_per_s=ceiling)
    assert line.flagged == flagged
    assert (line.bytes_per_s == pytest.approx(1e8 / 0.003)) == bool(flagged)
    assert fit_line(n_bytes, seconds).flagged == []


@pytest.mark.parametrize(
    ("n_bytes", "seconds", "message"),
    [
        ([1, 2], [1], "n_bytes has 2 points and seconds has 1; they belong in pairs"),
        ([1, 2], [1, 0], "must be finite numbers greater than 0"),
        ([1, math.inf], [1, 2], "must be finite numbers greater than 0"),
        ([1, -2], [1, 2], "must be finite numbers greater than 0"),
        ([5, 5, 5], [1, 2, 3], "a line needs two different numbers of bytes"),
        ([], [], "a line needs two different numbers of bytes, and 0 of 0 points"),
        ([1, 2], [3, 3], "more bytes took no more time"),
        ([1, 2], [3, 2], "more bytes took no more time"),
    ],
)
def test_what_makes_no_line_is_refused(n_bytes, seconds, message):
    with pytest.raises(ValueError, match=message):
        fit_line(n_bytes, seconds)


def test_all_points_above_the_ceiling_make_no_line():
    with pytest.raises(ValueError, match="0 of 3 points lie below the ceiling"):
        fit_line(MB, [0.004, 0.007, 0.013], ceiling_bytes_per_s=1e9)


def test_a_percentile_is_a_value_that_was_measured():
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, p) for p in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert percentile([3.0, 1.0], 50) == 1.0 and percentile([3.0, 1.0], 51) == 3.0
    assert percentile([7.0], 99) == 7.0 and values[0] == 100


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_there_is_no_percentile_of_nothing_or_beyond_all(values, percent):
    with pytest.raises(ValueError, match="must be above 0 and at most 100, of at least one value"):
        percentile(values, percent)
