"""Gradient descent on the examples, as they are or preprocessed: all iterates."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.moments import (
    Moments,
    OneOrEach,
    Path,
    PerRow,
    Weights,
    X,
    Y,
    moments,
    of_examples,
    per_row,
)

__all__ = ["feature_scale", "gradient_descent_path", "inverse_curvature", "preprocess_then_gd_path", "preprocessed"]


@of_examples
def preprocess_then_gd_path(m: Moments, n_steps: int, step_size: OneOrEach, power: float = 1.0) -> Path:
    """Gradient descent on features rescaled by |r_hat|^power; PAPER.md section 7.

    With r_hat = X^T y / n, D = diag(|r_hat|^power) and x~ = D x, iterates from u_0 = 0
    u_{t+1} = u_t - step_size (1/n) X~^T (X~ u_t - y), and returns w_t = D u_t for t = 0 .. n_steps, the
    weights in the original coordinates: (n_steps + 1, batch, dims). With power = 1 the sign of r_hat, which the
    paper's R_hat keeps, cancels in w_t. ``step_size`` is one number for all prompts or one per prompt, such as
    ``inverse_curvature(preprocessed(x, x, y, power))``.
    """
    scale = feature_scale(m, power)
    return gradient_descent_path(m.rescaled(scale), n_steps, step_size).mul_(scale)


@of_examples
def gradient_descent_path(m: Moments, n_steps: int, step_size: OneOrEach) -> Path:
    """Gradient descent on (1/2n) ||y - X w||^2 from 0: preprocess-then-GD with unit feature weights."""
    check_steps(n_steps)
    step, w = per_row(step_size, m.moment)[:, None], torch.zeros_like(m.moment)
    path = [w]
    for _ in range(n_steps):
        w = w - step * (torch.einsum("rij,rj->ri", m.gram, w) - m.moment)
        path.append(w)
    return torch.stack(path)


@of_examples
def feature_scale(m: Moments, power: float = 1.0) -> Weights:
    """|r_hat|^power with r_hat = X^T y / n, the feature weights of preprocess-then-GD."""
    return m.moment.abs() ** power


def preprocessed(
    features: Float[Tensor, "batch rows dims"], x: X, y: Y, power: float = 1.0
) -> Float[Tensor, "batch rows dims"]:
    """|R_hat|^power applied to ``features`` (the examples or the queries), R_hat estimated from (x, y)."""
    return features * feature_scale(x, y, power)[:, None]


def inverse_curvature(x: X | Moments) -> PerRow:
    """1 / lambda_max(X^T X / n) of each problem: the largest step size at which no mode of the error changes sign.

    Gradient descent converges below twice that. 0 where x is 0 (then the gradient is 0 too). Of preprocessed features:
    ``inverse_curvature(m.rescaled(feature_scale(m, power)))``.
    """
    m = x if isinstance(x, Moments) else moments(x, x[..., 0])  # the labels do not matter
    largest = torch.linalg.eigvalsh(m.gram)[:, -1]
    inverse = torch.where(largest > 0, 1 / largest, 0.0)
    return inverse if isinstance(x, Moments) else inverse.to(x.dtype)


def check_steps(n_steps: int) -> None:
    """Refuses a negative number of steps."""
    if n_steps < 0:
        raise InputError(f"n_steps is {n_steps}, but the number of steps must be 0 or larger.")
