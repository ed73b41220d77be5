"""Draws of mean 0 and variance 1, for features and for label noise."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

FeatureLaw = Literal["gaussian", "uniform", "rademacher", "student_t"]
NoiseLaw = Literal["gaussian", "laplace", "student_t"]


def unit_variance(law: FeatureLaw | NoiseLaw, shape: Sequence[int], generator: Generator, df: float) -> Tensor:
    """Independent draws of mean 0 and variance 1; ``df`` > 2 are the degrees of freedom of Student's t.

    Excess kurtosis: gaussian 0, uniform (on +-sqrt 3) -6/5, rademacher (+-1) -2, laplace 3, student_t 6 / (df - 4)
    where df > 4, else infinite.
    """
    size, device = tuple(shape), generator.device
    match law:
        case "gaussian":
            return torch.randn(size, generator=generator, device=device)
        case "uniform":
            return 3**0.5 * (2 * torch.rand(size, generator=generator, device=device) - 1)
        case "rademacher":
            return 2.0 * torch.randint(2, size, generator=generator, device=device) - 1
        case "laplace":  # the difference of two exponentials
            first, second = torch.empty(2, *size, device=device).exponential_(generator=generator)
            return (first - second) / 2**0.5
        case "student_t":
            return _student_t(size, generator, df)


def _student_t(shape: Sequence[int], generator: Generator, df: float) -> Tensor:
    """Student's t over its standard deviation, by the polar method of Bailey (Math. Comp. 62, 1994).

    t = sqrt(df (u^(-2/df) - 1)) cos(2 pi v) with u, v uniform, and Var t = df / (df - 2).
    """
    # float64, because the smallest u that can be drawn is where the tail is cut off.
    u, v = torch.rand(2, *shape, generator=generator, device=generator.device, dtype=torch.float64)
    radius = ((df - 2) * torch.expm1(-2 / df * torch.log1p(-u))).sqrt()
    return (radius * (2 * math.pi * v).cos()).to(torch.get_default_dtype())
