"""Reference estimators of linear weights: (x, y, ...) -> w_hat, batched over prompts.

Every one takes x (batch, points, dims) and y (batch, points) and returns w_hat (batch, dims); gradient descent returns
the whole path. The prediction is ``predictions(w_hat, x_query)``. n counts every row of x, so pass unpadded prompts.
"""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_icl.functional.errors import InputError

X = Float[Tensor, "batch points dims"]
Y = Float[Tensor, "batch points"]
Weights = Float[Tensor, "batch dims"]
Path = Float[Tensor, "iterates batch dims"]

FISTA_ROUND = 50  # iterations between two looks at the duality gap


def predictions(
    w_hat: Float[Tensor, "*path batch dims"], x_query: Float[Tensor, "batch queries dims"]
) -> Float[Tensor, "*path batch queries"]:
    """<w_hat, x_q> for every query (and every iterate, where w_hat is a path)."""
    return torch.einsum("...bd,bqd->...bq", w_hat, x_query)


def ridge(x: X, y: Y, alpha: float) -> Weights:
    """Minimises ||y - X w||^2 + alpha ||w||^2 (scikit-learn's scaling, no intercept).

    Computed from the singular values s of X as w = V diag(s / (s^2 + alpha)) U^T y, so alpha = 0 gives the
    minimum-norm least-squares solution also where X is rank-deficient.
    """
    if not alpha >= 0:
        raise InputError(f"alpha is {alpha}, but the ridge strength must be 0 or larger.")
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    negligible = s <= s[:, :1] * max(x.shape[1:]) * torch.finfo(s.dtype).eps
    shrunk = torch.where(negligible, 0.0, s / torch.where(negligible, 1.0, s**2 + alpha))
    return torch.einsum("brd,br,bpr,bp->bd", vh, shrunk, u, y)


def least_squares(x: X, y: Y) -> Weights:
    """Minimises ||y - X w||^2; among several minimisers, the one of smallest norm."""
    return ridge(x, y, alpha=0.0)


def oracle_least_squares(x: X, y: Y, support: Bool[Tensor, "batch dims"]) -> Weights:
    """Least squares restricted to the true support. An oracle: it sees what the other estimators must infer."""
    return least_squares(x * support[:, None], y)


def lasso(
    x: X,
    y: Y,
    alpha: float,
    relative_gap: float = 1e-8,
    max_iterations: int = 200_000,
    start: Weights | None = None,
) -> Weights:
    """Minimises (1/2n) ||y - X w||^2 + alpha ||w||_1 (scikit-learn's scaling, no intercept).

    FISTA (Beck & Teboulle 2009) with the gradient restart of O'Donoghue & Candes 2015, until every problem's
    duality gap is at most ``relative_gap`` times (1/2n) ||y||^2. A ``RuntimeWarning`` says how many are above it
    if ``max_iterations`` (in rounds of 50) pass first. ``start`` is where to begin, such as the solution of a nearby
    alpha; zero if left out. Computed in float64, whose rounding lies below such gaps; returned in y's dtype.
    """
    if not alpha > 0:
        raise InputError(f"alpha is {alpha}, but the lasso needs a strength above 0; use least_squares for 0.")
    dtype, x, y = y.dtype, x.double(), y.double()
    tolerance = relative_gap * (y.square().sum(-1) / (2 * y.shape[1]))
    w = torch.zeros_like(x[:, 0]) if start is None else start.double()
    gram = x.mT @ x / x.shape[1]
    moment = torch.einsum("bpd,bp->bd", x, y) / x.shape[1]
    step = inverse_curvature(x)[:, None]
    # Conditioning varies over orders of magnitude between prompts: go on with the unfinished ones alone.
    unfinished = torch.arange(len(w), device=w.device)
    state = FistaState(w, w, torch.ones_like(w[:, :1]))
    w = w.clone()
    for _ in range(0, max_iterations, FISTA_ROUND):
        state = _fista(gram[unfinished], moment[unfinished], step[unfinished], alpha, state)
        w[unfinished] = state.w
        gap = lasso_duality_gap(x[unfinished], y[unfinished], state.w, alpha)
        open_ones = gap > tolerance[unfinished]
        unfinished, state = unfinished[open_ones], FistaState._make(part[open_ones] for part in state)
        if len(unfinished) == 0:
            return w.to(dtype)
    warnings.warn(
        f"lasso stopped after {max_iterations} iterations with {len(unfinished)} of {len(w)} problems above the "
        f"relative duality gap {relative_gap:g}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return w.to(dtype)


class FistaState(NamedTuple):
    """The iterate, the extrapolated point ahead of it, and the momentum t_k."""

    w: Tensor
    ahead: Tensor
    momentum: Tensor


def _fista(gram: Tensor, moment: Tensor, step: Tensor, alpha: float, state: FistaState) -> FistaState:
    """FISTA_ROUND iterations on every problem, given X^T X / n, X^T y / n and the step size of each."""
    w, ahead, momentum = state
    for _ in range(FISTA_ROUND):
        target = ahead - step * (torch.einsum("bij,bj->bi", gram, ahead) - moment)
        w_next = target.sign() * (target.abs() - alpha * step).clamp(min=0)
        next_momentum = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        uphill = ((ahead - w_next) * (w_next - w)).sum(-1, keepdim=True) > 0
        next_momentum = torch.where(uphill, 1.0, next_momentum)
        ahead = w_next + torch.where(uphill, 0.0, (momentum - 1) / next_momentum) * (w_next - w)
        w, momentum = w_next, next_momentum
    return FistaState(w, ahead, momentum)


def lasso_duality_gap(x: X, y: Y, w: Weights, alpha: float) -> Float[Tensor, " batch"]:
    """Primal minus dual objective of the lasso at w: an upper bound on how far w is from optimal.

    The dual point is the residual y - X w scaled into the feasible set ||X^T theta / n||_inf <= alpha.
    """
    n_points = x.shape[1]
    residual = y - torch.einsum("bpd,bd->bp", x, w)
    correlation = torch.einsum("bpd,bp->bd", x, residual).abs().amax(-1) / n_points
    theta = residual * (alpha / correlation.clamp(min=alpha))[:, None]
    primal = residual.square().sum(-1) / (2 * n_points) + alpha * w.abs().sum(-1)
    dual = ((theta * y).sum(-1) - theta.square().sum(-1) / 2) / n_points
    return primal - dual


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
