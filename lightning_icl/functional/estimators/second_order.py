"""Iterations that use the curvature X^T X / n: GD++ and Newton's iteration for its inverse. All iterates.

Both act on each eigenvector of C = X^T X / n separately, so they are computed in its eigenbasis. That keeps directions
without data (n < d) at exactly 0, where the matrix form of Newton's iteration doubles their rounding error each step.
"""

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.estimators.descent import check_steps
from lightning_icl.functional.estimators.moments import Eigenbasis, Moments, eigenbasis, of_examples
from lightning_icl.functional.estimators.shapes import OneOrEach, Path, per_row

__all__ = ["gd_plus_plus_factors", "gd_plus_plus_path", "newton_path"]


@of_examples
def gd_plus_plus_path(m: Moments | Eigenbasis, n_steps: int, step_size: OneOrEach, gamma: OneOrEach) -> Path:
    """GD++ (von Oswald et al. 2023): every step descends, and transforms the inputs for the next one.

    As a layer of linear attention does both at once: step t adds a gradient step to every prediction,
    f_{t+1}(x) = f_t(x) + step_size (1/n) sum_i r_i <x_i, x> with r_i = y_i - f_t(x_i) what the label slots of the
    examples hold, and maps examples and queries alike to (I - gamma C_t) x, C_t = X_t^T X_t / n, x and X_t being the
    inputs as they stand. In the original coordinates these are P_t x with P_0 = I and
    P_{t+1} = (I - gamma P_t C P_t) P_t, a polynomial in C and so symmetric; hence f_t(x) = <w_t, x> with w_0 = 0 and
    w_{t+1} = w_t + step_size P_t^2 (X^T y / n - C w_t): gradient descent, plain in its first step, then with a
    preconditioner that flattens the spectrum. gamma = 0 is gradient descent.

    Needs gamma below 1 / lambda_max(C) to keep every direction; see ``inverse_curvature``.
    """
    check_steps(n_steps)
    curvature, moment, vectors, _ = eigenbasis(m)
    step, shrinkage = per_row(step_size, moment)[:, None], per_row(gamma, moment)[:, None]
    factors = gd_plus_plus_factors(curvature, step, shrinkage)
    path = [moment * factor for factor in itertools.islice(factors, n_steps + 1)]
    return torch.einsum("rij,trj->tri", vectors, torch.stack(path))


def gd_plus_plus_factors(
    curvature: Float[Tensor, "rows dims"], step: Tensor, gamma: Tensor | None = None
) -> Iterator[Float[Tensor, "*settings rows dims"]]:
    """c_0, c_1, ... without end: along an eigenvector with this curvature, w_t is c_t times X^T y / n.

    ``step`` and ``gamma`` may hold several settings, in axes before the rows; no gamma is gradient descent.
    """
    factor = curvature.new_zeros(torch.broadcast_shapes(curvature.shape, step.shape))
    kept, transform = 1 - step * curvature, torch.ones_like(factor)
    while True:
        yield factor
        if gamma is None:
            factor = torch.addcmul(step, kept, factor)
            continue
        squared = transform**2
        factor = factor + step * squared * (1 - curvature * factor)
        transform = (1 - gamma * curvature * squared) * transform


@of_examples
def newton_path(m: Moments | Eigenbasis, n_steps: int) -> Path:
    """Newton's iteration for the inverse of S = X^T X (Schulz 1933; Fu et al. 2023): w_t = M_t X^T y, t = 0 .. n_steps.

    M_0 = S / lambda_max(S)^2 and M_{t+1} = 2 M_t - M_t S M_t. Along an eigenvector of S with eigenvalue lambda the
    error is |1 - lambda mu_t| = (1 - (lambda / lambda_max)^2)^(2^t): it squares with each step, and after about
    2 log2(lambda_max / lambda) steps it vanishes. The limit is least squares (of smallest norm where n < d). Unlike
    the other paths this one does not start from 0: w_0 = M_0 X^T y.
    """
    check_steps(n_steps)
    curvature, moment, vectors, _ = eigenbasis(m)
    largest = curvature[:, -1:]
    inverse = torch.where(largest > 0, curvature / largest**2, 0.0)
    path = [inverse * moment]
    for _ in range(n_steps):
        inverse = inverse * (2 - curvature * inverse)
        path.append(inverse * moment)
    return torch.einsum("rij,trj->tri", vectors, torch.stack(path))
