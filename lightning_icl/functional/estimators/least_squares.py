"""Least squares, plain, penalised by the squared norm, and told the support."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.moments import Weights, X, Y


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
