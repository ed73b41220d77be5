"""Gradient descent on the examples, as they are or preprocessed: all iterates."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.moments import Path, Weights, X, Y


def preprocess_then_gd_path(
    x: X, y: Y, n_steps: int, step_size: float | Float[Tensor, " batch"], power: float = 1.0
) -> Path:
    """Gradient descent on features rescaled by |r_hat|^power; PAPER.md section 7.

    With r_hat = X^T y / n, D = diag(|r_hat|^power) and x~ = D x, iterates from u_0 = 0
    u_{t+1} = u_t - step_size (1/n) X~^T (X~ u_t - y), and returns w_t = D u_t for t = 0 .. n_steps, the
    weights in the original coordinates: (n_steps + 1, batch, dims). With power = 1 the sign of r_hat, which the
    paper's R_hat keeps, cancels in w_t. ``step_size`` is one number for all prompts or one per prompt, such as
    ``inverse_curvature(preprocessed(x, x, y, power))``.
    """
    if n_steps < 0:
        raise InputError(f"n_steps is {n_steps}, but the number of steps must be 0 or larger.")
    features = preprocessed(x, x, y, power)
    gram = features.mT @ features / x.shape[1]
    moment = torch.einsum("bpd,bp->bd", features, y) / x.shape[1]
    step = torch.as_tensor(step_size, dtype=x.dtype, device=x.device).expand(x.shape[0])[:, None]
    u = torch.zeros_like(moment)
    path = [u]
    for _ in range(n_steps):
        u = u - step * (torch.einsum("bij,bj->bi", gram, u) - moment)
        path.append(u)
    return torch.stack(path) * feature_scale(x, y, power)


def gradient_descent_path(x: X, y: Y, n_steps: int, step_size: float | Float[Tensor, " batch"]) -> Path:
    """Gradient descent on (1/2n) ||y - X w||^2 from 0: preprocess-then-GD with unit feature weights."""
    return preprocess_then_gd_path(x, y, n_steps, step_size, power=0.0)


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
    largest = torch.linalg.matrix_norm(x, ord=2).square() / x.shape[1]
    return torch.where(largest > 0, 1 / largest, 0.0)
