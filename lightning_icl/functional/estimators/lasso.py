"""The lasso, by FISTA with a duality-gap certificate."""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.descent import inverse_curvature
from lightning_icl.functional.estimators.moments import Weights, X, Y

FISTA_ROUND = 50  # iterations between two looks at the duality gap


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
