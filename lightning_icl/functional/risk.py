"""How far a prediction is from the noise-free target."""

import math
from collections.abc import Callable
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor


def squared_errors(
    prediction: Float[Tensor, "*batch queries"], f_query: Float[Tensor, "*batch queries"]
) -> Float[Tensor, "*batch"]:
    """Squared error of each prompt, averaged over its queries, in float64.

    The prompt is the unit of every standard error here: queries of one prompt share its examples, so they
    are not independent.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.risk import squared_errors
        >>> squared_errors(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(2, 2))  # one number a prompt
        tensor([5., 0.], dtype=torch.float64)
    """
    return (prediction.double() - f_query.double()).square().mean(dim=-1)


def excess_risk(
    prediction: Float[Tensor, "batch queries"], f_query: Float[Tensor, "batch queries"]
) -> Float[Tensor, ""]:
    """Mean of (prediction - f_query)^2 over prompts and queries, in float64.

    Against the noise-free target this has the same expectation as risk - sigma^2 and a lower variance.
    Units: squared label units.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.risk import excess_risk
        >>> excess_risk(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(2, 2))
        tensor(2.5000, dtype=torch.float64)
    """
    return squared_errors(prediction, f_query).mean()


def mean_and_standard_error(
    values: Float[Tensor, "batch *rest"],
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """Mean over the first axis and its standard error, std / sqrt(batch), which is NaN for a batch of one.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.risk import mean_and_standard_error
        >>> mean_and_standard_error(torch.tensor([1.0, 2.0, 3.0, 4.0]))  # 1.291 / sqrt(4)
        (tensor(2.5000), tensor(0.6455))
    """
    return values.mean(dim=0), values.std(dim=0, correction=1) / values.shape[0] ** 0.5


def jackknife_errors(
    values: Float[Tensor, "batch *rest"], statistic: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Standard errors of functions of the mean over the first axis, by leaving each of its n entries out in turn.

    ``statistic`` maps means (n, *rest), of which the i-th leaves entry i out, to any number of tensors (n, ...) theta;
    their errors are sqrt((n - 1)/n sum_i (theta_i - mean theta)^2) (Tukey 1958). NaN for n = 1.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.risk import jackknife_errors
        >>> jackknife_errors(torch.tensor([1.0, 2.0, 3.0, 4.0]), lambda means: (means,))  # of the mean itself
        (tensor(0.6455),)
    """
    n = values.shape[0]
    left_out = (n * values.mean(dim=0) - values) / (n - 1)
    return tuple(((n - 1) * theta.var(dim=0, correction=0)).sqrt() for theta in statistic(left_out))


@cache
def t_quantile(n: int, level: float = 0.95) -> float:
    """The quantile t of Student's law for a mean of n values by which mean +- t errors is an interval of that level.

    Bisection on its distribution; without end for n = 1.

    Example:
        >>> from lightning_icl.functional.risk import t_quantile
        >>> round(t_quantile(3), 3), round(t_quantile(1000), 3)
        (4.303, 1.962)
    """
    if n < 2:
        return math.inf
    degrees = min(n, 10_000) - 1  # of more, within .02 % of the normal law's
    low, high = 0.0, 2.0
    while _student_within(high, degrees) < level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, degrees) < level else (low, middle)
    return high


def _student_within(t: float, degrees: int) -> float:
    """P(|T| <= t) of Student's law (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = term * (degrees > 1)
    for k in range(2 + odd, degrees, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def joint_quantile(n_intervals: int) -> float:
    """The z for ``n_intervals`` intervals, value +- z errors, that all hold at once with 95 % or more (Bonferroni).

    Example:
        >>> from lightning_icl.functional.risk import joint_quantile
        >>> round(joint_quantile(1), 2), round(joint_quantile(8), 2)
        (1.96, 2.73)
    """
    return NormalDist().inv_cdf(1 - 0.025 / n_intervals)


def mean_interval(mean: Float[Tensor, "*rest"], error: Float[Tensor, "*rest"], n: int) -> Float[Tensor, "bounds *rest"]:
    """The 95 % interval of a mean of ``n`` values, lower bound first: mean +- t times its standard error.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.risk import mean_interval
        >>> mean_interval(torch.tensor(2.5), torch.tensor(0.1), n=1000)
        tensor([2.3038, 2.6962])
    """
    return torch.stack([mean - t_quantile(n) * error, mean + t_quantile(n) * error])


class Measured(NamedTuple):
    """Numbers with their standard errors and 95 % intervals over prompts, lower bound first."""

    value: Float[Tensor, "*rest"]
    error: Float[Tensor, "*rest"]
    interval: Float[Tensor, "bounds *rest"]


def measured_mean(values: Float[Tensor, "batch *rest"]) -> Measured:
    """The mean over prompts, the first axis, with the interval of Student's t.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.risk import measured_mean
        >>> measured_mean(torch.tensor([1.0, 2.0, 3.0, 4.0])).interval
        tensor([0.4457, 4.5543])
    """
    mean, error = mean_and_standard_error(values)
    return Measured(mean, error, mean_interval(mean, error, len(values)))


class Interval(NamedTuple):
    """A number and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def mean_with_interval(values: Float[Tensor, " batch"]) -> Interval:
    """The mean over prompts.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.risk import mean_with_interval
        >>> mean_with_interval(torch.tensor([2.0, 2.0, 2.0]))
        Interval(value=2.0, low=2.0, high=2.0)
    """
    mean = measured_mean(values)
    return Interval(float(mean.value), *mean.interval.tolist())


def paired_ratio(values: Float[Tensor, " batch"], others: Float[Tensor, " batch"]) -> Interval:
    """mean(values) / mean(others) on the same prompts; its interval is that of its logarithm, by the jackknife.

    On the log scale because risks have long tails above.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.risk import paired_ratio
        >>> errors = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> ratio = paired_ratio(2 * errors, errors)  # always twice as large, so that the interval is a point
        >>> round(ratio.value, 3), round(ratio.low, 3), round(ratio.high, 3)
        (2.0, 2.0, 2.0)
    """
    both = torch.stack([values, others], dim=1)
    (log_error,) = jackknife_errors(both, lambda means: ((means[:, 0] / means[:, 1]).log(),))
    ratio = values.mean() / others.mean()
    return Interval(float(ratio), *mean_interval(ratio.log(), log_error, len(values)).exp().tolist())


def bootstrap_weights(n: int, draws: int, generator: Generator) -> Float[Tensor, "draws n"]:
    """How often each of n prompts is in each resample of n, over n: times values, the resampled means.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.risk import bootstrap_weights
        >>> weights = bootstrap_weights(5, draws=3, generator=torch.Generator().manual_seed(0))
        >>> weights.shape, weights.sum(dim=1)
        (torch.Size([3, 5]), tensor([1., 1., 1.], dtype=torch.float64))
    """
    drawn = torch.randint(n, (draws, n), generator=generator, device=generator.device)
    ones = torch.ones(draws, n, dtype=torch.float64, device=generator.device)
    return torch.zeros_like(ones).scatter_add_(1, drawn, ones) / n


def bootstrap_half_width(moved: Float[Tensor, "draws *rest"]) -> Float[Tensor, "*rest"]:
    """Half of the symmetric bootstrap's 95 % interval, from how far each resample moved the estimate.

    Resamples without a value are left out.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.risk import bootstrap_half_width
        >>> bootstrap_half_width(torch.linspace(-1, 1, 2001))
        tensor(0.9500)
    """
    return moved.abs().nanquantile(0.95, dim=0)


def bootstrap_interval(
    estimate: Float[Tensor, "*rest"], resampled: Float[Tensor, "draws *rest"]
) -> Float[Tensor, "bounds *rest"]:
    """The symmetric bootstrap's 95 % interval, lower bound first: estimate +- the 95 % quantile of |resampled - it|.

    (Hall 1988.) What resampling adds on one side, as it does to the largest of several shares, widens this interval on
    both, so it holds for a biased statistic where the percentile interval does not.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.risk import bootstrap_interval
        >>> bootstrap_interval(torch.tensor(3.0), 3 + torch.linspace(-1, 1, 2001))
        tensor([2.0500, 3.9500])
    """
    half = bootstrap_half_width(resampled - estimate)
    return torch.stack([estimate - half, estimate + half])
