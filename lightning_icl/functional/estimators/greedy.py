"""Sparse estimators that decide one step at a time: orthogonal matching pursuit and iterative hard thresholding."""

import torch

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.descent import check_steps
from lightning_icl.functional.estimators.moments import Moments, OneOrEach, Path, of_examples, per_row
from lightning_icl.functional.estimators.subsets import least_squares_on

__all__ = ["iterative_hard_thresholding_path", "orthogonal_matching_pursuit"]

EXPLAINED = 1e-10  # |<x_j, residual>| below this share of ||x_j|| ||y|| is rounding


@of_examples
def orthogonal_matching_pursuit(m: Moments, n_nonzero: int) -> Path:
    """Adds the feature with the largest |<x_j, residual>|, refits by least squares, and so on: 0 .. n_nonzero features.

    Features are compared as they are, not scaled to unit norm, and without intercept, as scikit-learn does; of equal
    ones the first is taken. Once no feature correlates with the residual (the labels are explained, or the features
    left depend on those chosen), the remaining iterates repeat the last.
    """
    n_dims = m.moment.shape[1]
    if not 0 <= n_nonzero <= n_dims:
        raise InputError(f"n_nonzero is {n_nonzero}, but it must lie between 0 and {n_dims}, the number of features.")
    rounding = EXPLAINED * (m.gram.diagonal(dim1=1, dim2=2) * m.power[:, None]).sqrt()
    w = torch.zeros_like(m.moment)
    chosen = torch.zeros(len(w), 0, dtype=torch.long, device=w.device)
    path = [w]
    for _ in range(n_nonzero):
        correlation = (m.moment - torch.einsum("rij,rj->ri", m.gram, w)).abs()
        correlation = torch.where(correlation > rounding, correlation, 0.0).scatter(1, chosen, -1.0)
        largest, feature = correlation.max(1)
        chosen = torch.cat([chosen, feature[:, None]], 1)
        w = torch.where(largest[:, None] > 0, least_squares_on(m, chosen), w)
        path.append(w)
    return torch.stack(path)


@of_examples
def iterative_hard_thresholding_path(m: Moments, sparsity: int, n_steps: int, step_size: OneOrEach) -> Path:
    """Gradient steps on (1/2n) ||y - X w||^2 from 0, keeping the ``sparsity`` largest weights after each.

    w_{t+1} = H_s(w_t - step_size (1/n) X^T (X w_t - y)) for t = 0 .. n_steps (Blumensath & Davies 2009, in whose
    scaling step_size / n = 1). The loss never grows with a step size of at most ``inverse_curvature(x)``.
    """
    n_dims = m.moment.shape[1]
    if not 1 <= sparsity <= n_dims:
        raise InputError(f"sparsity is {sparsity}, but it must lie between 1 and {n_dims}, the number of features.")
    check_steps(n_steps)
    step, w = per_row(step_size, m.moment)[:, None], torch.zeros_like(m.moment)
    path = [w]
    for _ in range(n_steps):
        w = w - step * (torch.einsum("rij,rj->ri", m.gram, w) - m.moment)
        kept = w.abs().topk(sparsity, dim=1).indices
        w = torch.zeros_like(w).scatter(1, kept, w.gather(1, kept))
        path.append(w)
    return torch.stack(path)
