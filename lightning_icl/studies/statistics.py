"""Intervals over seeds, the independent replications of a study."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.risk import t_quantile


class SeedInterval(NamedTuple):
    """A mean over n seeds and its interval, in the units of the values."""

    mean: float
    low: float
    high: float
    n: int


def seed_interval(
    values: Sequence[float], level: float = 0.95, log: bool = False, least_spread: float = 0.0
) -> SeedInterval:
    """Student's interval of a mean over independent seeds, one value each.

        mean +- t s / sqrt(n),  t the (1 + level)/2 quantile of Student's law with n - 1 degrees of freedom,

    where s is the standard deviation of the n values with n - 1 in its denominator, or ``least_spread`` if that is
    larger. With ``log`` the same of their logarithms, taken back: the interval of the geometric mean, for ratios. One
    value alone has no spread, so its interval is without end (from 0 on with ``log``).
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level}, but it must lie between 0 and 1.")
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        raise InputError(f"values is {list(values)}, but an interval needs a number for each seed.")
    if not np.isfinite(x).all():
        raise InputError(f"values is {x.tolist()}, but an interval over seeds needs finite numbers.")
    if log and (x <= 0).any():
        raise InputError(f"values is {x.tolist()}, but a geometric mean needs numbers above 0.")
    x = np.log(x) if log else x
    n, mean = len(x), x.mean()
    half = t_quantile(n, level) * max(x.std(ddof=1), least_spread) / math.sqrt(n) if n > 1 else math.inf
    numbers = np.array([mean, mean - half, mean + half])
    with np.errstate(over="ignore"):  # two values at a high level: an interval up to infinity
        mean, low, high = (np.exp(numbers) if log else numbers).tolist()
    return SeedInterval(mean, low, high, n)


def bonferroni_level(level: float, n: int) -> float:
    """The level of each of n intervals of which, in at least ``level`` of all studies, none misses."""
    return 1 - (1 - level) / n
