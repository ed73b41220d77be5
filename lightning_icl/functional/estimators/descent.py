"""Gradient descent on the examples, as they are or preprocessed: all iterates."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.moments import Moments, Path, Weights, X, Y, in_float64, moments

StepSize = float | Float[Tensor, " rows"]  # one for all problems, or one each


def preprocess_then_gd_path(x: X, y: Y, n_steps: int, step_size: StepSize, power: float = 1.0) -> Path:
    """Gradient descent on features rescaled by |r_hat|^power; PAPER.md section 7.

    With r_hat = X^T y / n, D = diag(|r_hat|^power) and x~ = D x, iterates from u_0 = 0
    u_{t+1} = u_t - step_size (1/n) X~^T (X~ u_t - y), and returns w_t = D u_t for t = 0 .. n_steps, the
    weights in the original coordinates: (n_steps + 1, batch, dims). With power = 1 the sign of r_hat, which the
    paper's R_hat keeps, cancels in w_t. ``step_size`` is one number for all prompts or one per prompt, such as
    ``inverse_curvature(preprocessed(x, x, y, power))``.
    """
    return preprocess_then_gd_path_from_moments(moments(x, y), n_steps, step_size, power).to(y.dtype)


def preprocess_then_gd_path_from_moments(m: Moments, n_steps: int, step_size: StepSize, power: float = 1.0) -> Path:
    """``preprocess_then_gd_path`` of each row of ``m``."""
    check_steps(n_steps)
    scale, step = m.moment.abs() ** power, as_column(step_size, m.moment)
    gram, moment = _scaled_gram(m, power), scale * m.moment
    u = torch.zeros_like(moment)
    path = [u]
    for _ in range(n_steps):
        u = u - step * (torch.einsum("rij,rj->ri", gram, u) - moment)
        path.append(u)
    return torch.stack(path).mul_(scale)


def gradient_descent_path(x: X, y: Y, n_steps: int, step_size: StepSize) -> Path:
    """Gradient descent on (1/2n) ||y - X w||^2 from 0: preprocess-then-GD with unit feature weights."""
    return preprocess_then_gd_path(x, y, n_steps, step_size, power=0.0)


def gradient_descent_path_from_moments(m: Moments, n_steps: int, step_size: StepSize) -> Path:
    """``gradient_descent_path`` of each row of ``m``."""
    return preprocess_then_gd_path_from_moments(m, n_steps, step_size, power=0.0)


def feature_scale(x: X, y: Y, power: float = 1.0) -> Weights:
    """|r_hat|^power with r_hat = X^T y / n, the feature weights of preprocess-then-GD."""
    return (torch.einsum("bpd,bp->bd", x, y) / x.shape[1]).abs() ** power


def preprocessed(
    features: Float[Tensor, "batch rows dims"], x: X, y: Y, power: float = 1.0
) -> Float[Tensor, "batch rows dims"]:
    """|R_hat|^power applied to ``features`` (the examples or the queries), R_hat estimated from (x, y)."""
    return features * feature_scale(x, y, power)[:, None]


def inverse_curvature(x: X) -> Float[Tensor, " batch"]:
    """1 / lambda_max(X^T X / n) of each prompt: the largest step size at which no mode of the error changes sign.

    Gradient descent converges below twice that. 0 where x is 0 (then the gradient is 0 too).
    """
    (features,) = in_float64(x)
    largest = torch.linalg.matrix_norm(features, ord=2).square() / x.shape[1]
    return torch.where(largest > 0, 1 / largest, 0.0).to(x.dtype)


def inverse_curvature_from_moments(m: Moments, power: float = 0.0) -> Float[Tensor, " rows"]:
    """``inverse_curvature`` of the features of each row of ``m``, rescaled by |r_hat|^power."""
    largest = torch.linalg.eigvalsh(_scaled_gram(m, power))[:, -1]
    return torch.where(largest > 0, 1 / largest, 0.0)


def as_column(value: StepSize, like: Float[Tensor, "rows dims"]) -> Float[Tensor, "rows 1"]:
    """A hyper-parameter, one number or one for each row of ``like``, as a column."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand(len(like))[:, None]


def check_steps(n_steps: int) -> None:
    """Refuses a negative number of steps."""
    if n_steps < 0:
        raise InputError(f"n_steps is {n_steps}, but the number of steps must be 0 or larger.")


def _scaled_gram(m: Moments, power: float) -> Float[Tensor, "rows dims dims"]:
    """X~^T X~ / n of the rescaled features."""
    scale = m.moment.abs() ** power
    return scale[:, :, None] * m.gram * scale[:, None]
