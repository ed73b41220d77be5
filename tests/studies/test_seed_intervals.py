"""Intervals over seeds: Student's law by another route, and how often they cover."""

import math
import statistics

import numpy as np
import pytest

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.risk import t_quantile
from lightning_icl.studies.statistics import bonferroni_level, seed_interval


def within(quantile, degrees):
    """Probability that |t| is at most the quantile, by Simpson's rule on Student's density."""
    x = np.linspace(0, quantile, 20_001)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    density = scale * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    weights = np.tile([2.0, 4.0], 10_001)[: len(x)]
    weights[0] = weights[-1] = 1
    return 2 * float((weights * density).sum()) * (x[1] - x[0]) / 3


@pytest.mark.parametrize("n", [2, 3, 5, 10, 40])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.9975])
def test_the_half_width_is_students(n, level):
    values = [math.sqrt(i) for i in range(n)]
    interval = seed_interval(values, level)
    error = statistics.stdev(values) / math.sqrt(n)
    assert within((interval.high - interval.mean) / error, n - 1) == pytest.approx(level, abs=1e-6)
    assert interval.mean == pytest.approx(statistics.fmean(values))
    assert interval.high - interval.mean == pytest.approx(interval.mean - interval.low)
    assert interval.n == n


@pytest.mark.parametrize("n", [3, 5, 10])
def test_it_agrees_with_the_intervals_over_prompts(n):
    values = [float(i) for i in range(n)]
    expected = t_quantile(n) * statistics.stdev(values) / math.sqrt(n)
    interval = seed_interval(values)
    assert interval.high - interval.mean == pytest.approx(expected, rel=0.01)  # as exact as t_quantile promises


def test_of_logarithms_it_is_that_of_the_geometric_mean():
    values = [0.5, 1.5, 4.0]
    interval = seed_interval(values, log=True)
    assert interval.mean == pytest.approx(statistics.geometric_mean(values))
    assert interval.high / interval.mean == pytest.approx(interval.mean / interval.low)
    assert math.log(interval.high) == pytest.approx(seed_interval([math.log(v) for v in values]).high)


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("log", [False, True])
def test_it_covers_at_its_level(n, log):
    draws, truth = 2000, 0.7
    x = truth + np.random.default_rng(n).standard_normal((draws, n))
    intervals = [seed_interval(values, log=log) for values in (np.exp(x) if log else x).tolist()]
    aim = math.exp(truth) if log else truth
    covered = np.mean([interval.low < aim < interval.high for interval in intervals])
    margin = 4 * math.sqrt(0.95 * 0.05 / draws)  # the normal quantile would miss by 3.2 % with n = 10
    assert covered == pytest.approx(0.95, abs=margin)


def test_of_intervals_at_bonferronis_level_hardly_any_misses_together():
    studies, n_parts, n = 500, 6, 4
    x = np.random.default_rng(0).standard_normal((studies, n_parts, n))
    level = bonferroni_level(0.9, n_parts)
    missed = [
        any(abs(i.mean) > i.high - i.mean for i in (seed_interval(v, level) for v in parts)) for parts in x.tolist()
    ]
    independent = 1 - (1 - 0.1 / n_parts) ** n_parts  # exact for independent parts, and below 0.1
    margin = 4 * math.sqrt(independent * (1 - independent) / studies)
    assert np.mean(missed) == pytest.approx(independent, abs=margin)


def test_one_seed_has_no_end_and_equal_seeds_no_width():
    assert seed_interval([2.5]) == (2.5, -math.inf, math.inf, 1)
    assert seed_interval([2.0], log=True) == pytest.approx((2.0, 0, math.inf, 1))
    assert seed_interval([2.0, 2.0]) == (2.0, 2.0, 2.0, 2)


def test_two_seeds_far_apart_at_a_high_level_reach_to_infinity():
    interval = seed_interval([1e-3, 1e3], bonferroni_level(0.95, 100), log=True)
    assert (interval.low, interval.high) == (0, math.inf)
    assert interval.mean == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ([], {}, "a number for each seed"),
        ([1.0, math.nan], {}, "nan"),
        ([1.0, math.inf], {}, "inf"),
        ([1.0, 0.0], {"log": True}, "above 0"),
        ([1.0, 2.0], {"level": 1.0}, "level is 1.0"),
        ([1.0, 2.0], {"level": 95.0}, "level is 95"),
    ],
)
def test_what_has_no_interval_is_refused(values, options, said):
    with pytest.raises(InputError, match=said):
        seed_interval(values, **options)
