"""Least squares, plain, penalised by the squared norm, and told the support; from all examples or every prefix."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.moments import (
    Eigenbasis,
    Moments,
    eigenbasis,
    in_float64,
    of_examples,
    without_padding,
)
from lightning_icl.functional.estimators.shapes import OneOrEach, PerRow, Weights, X, Y, per_row

__all__ = [
    "averaging", "least_squares", "least_squares_prefixes", "oracle_least_squares", "oracle_least_squares_prefixes",
    "predictions", "ridge", "ridge_prefixes",
]  # fmt: skip

STRONG_RIDGE = 1e-6  # alpha / trace(X^T X) from which X^T X + alpha I is factorised without losing digits that count
FULL_RANK = 1e-5  # least singular value of X / its norm, from which X^T X can
ENTRIES_AT_ONCE = 2**22  # of masked prefixes, 32 MiB

PrefixWeights = Float[Tensor, "batch points dims"]


def predictions(
    w_hat: Float[Tensor, "*path batch dims"], x_query: Float[Tensor, "batch queries dims"]
) -> Float[Tensor, "*path batch queries"]:
    """<w_hat, x_q> for every query (and every iterate, where w_hat is a path).

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import predictions
        >>> predictions(torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0, 0.0], [1.0, 1.0]]]))
        tensor([[3., 3.]])
    """
    return torch.einsum("...bd,bqd->...bq", w_hat, x_query)


@of_examples
def averaging(m: Moments) -> Weights:
    """X^T y / n: least squares for those who take X^T X / n for the identity (Garg et al. 2022).

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import averaging
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> averaging(x, y)
        tensor([[2.0000, 0.5000]])
    """
    return m.moment


def singular_basis(x: X, y: Y, point_mask: Bool[Tensor, "batch points"] | None = None) -> Eigenbasis:
    """By the singular values of X, which keep the digits that X^T X loses; min(points, dims) directions."""
    if point_mask is not None:
        x, y = without_padding(x, y, point_mask)
    x, y = in_float64(x, y)
    n_points = x.new_full(x.shape[:1], x.shape[1])  # padding is zero: counted or not, it changes no fit
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    s = torch.where(s <= s[:, :1] * max(x.shape[1:]) * torch.finfo(s.dtype).eps, 0.0, s)
    moment = s * torch.einsum("bpr,bp->br", u, y)
    return Eigenbasis(s.square() / n_points[:, None], moment / n_points[:, None], vh.mT, n_points)


@partial(of_examples, statistics=singular_basis)
def ridge(m: Moments | Eigenbasis, alpha: OneOrEach) -> Weights:
    """Minimises ||y - X w||^2 + alpha ||w||^2 (scikit-learn's scaling, no intercept).

    From examples, by the singular values s of X as w = V diag(s / (s^2 + alpha)) U^T y, so alpha = 0 gives the
    minimum-norm least-squares solution also where X is rank-deficient. From moments, by
    (X^T X / n + alpha / n) w = X^T y / n; where alpha is tiny or 0, eigenvalues of X^T X that are rounding count as 0.
    X^T X has the square of X's condition number: start from examples where that matters.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import ridge
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> ridge(x, y, alpha=1.0)  # y / (1 + alpha), as X is the identity
        tensor([[2.0000, 0.5000]])
    """
    alpha = _strength(alpha, m.moment) / m.n_points
    if isinstance(m, Moments) and (alpha > STRONG_RIDGE * m.gram.diagonal(dim1=-2, dim2=-1).sum(-1)).all():
        penalised = m.gram + torch.diag_embed(alpha[:, None].expand_as(m.moment))
        return torch.cholesky_solve(m.moment[..., None], torch.linalg.cholesky(penalised))[..., 0]
    curvature, moment, vectors, _ = eigenbasis(m)
    inverse = torch.where(curvature > 0, 1 / (curvature + alpha[:, None]), 0.0)
    return torch.einsum("rij,rj->ri", vectors, inverse * moment)


def ridge_prefixes(x: X, y: Y, alpha: OneOrEach) -> PrefixWeights:
    """``ridge`` of the first k examples for k = 1 .. n, all from one factorisation a prompt.

    The leading k x k block of the Cholesky factor L of X X^T + alpha I is the factor of the first k examples. So with
    U = L^-1 X and z = L^-1 y, the weights X_k^T (X_k X_k^T + alpha I)^-1 y_k are sum_{i <= k} z_i U_i: a running sum.
    Where alpha is so small that this would lose digits, each prefix is solved by its singular values.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import ridge_prefixes
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> ridge_prefixes(x, y, alpha=1.0)  # from the first example, and from both
        tensor([[[2.0000, 0.0000],
                 [2.0000, 0.5000]]])
    """
    dtype, (x, y), alpha = y.dtype, in_float64(x, y), _strength(alpha, x)
    gram = x @ x.mT
    easy = alpha > STRONG_RIDGE * gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    w = torch.empty_like(x)
    factor = torch.linalg.cholesky(gram[easy] + torch.diag_embed(alpha[easy, None].expand_as(y[easy])))
    whitened = torch.linalg.solve_triangular(factor, torch.cat([x[easy], y[easy, :, None]], dim=-1), upper=False)
    w[easy] = (whitened[..., :-1] * whitened[..., -1:]).cumsum(1)
    if not easy.all():
        w[~easy] = _ridge_prefixes_by_svd(x[~easy], y[~easy], alpha[~easy])
    return w.to(dtype)


def _ridge_prefixes_by_svd(x: X, y: Y, alpha: PerRow) -> PrefixWeights:
    first = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device).tril()
    parts = max(1, ENTRIES_AT_ONCE // max(1, x.shape[1] * x[:1].numel()))
    fits = []
    for x_part, y_part, alpha_part in zip(x.split(parts), y.split(parts), alpha.split(parts), strict=True):
        x_seen, y_seen = x_part[:, None] * first[..., None], y_part[:, None] * first
        fits.append(ridge(x_seen.flatten(0, 1), y_seen.flatten(0, 1), alpha_part.repeat_interleave(x.shape[1])))
    return torch.cat(fits).view_as(x)


@partial(of_examples, statistics=singular_basis)
def least_squares(m: Moments | Eigenbasis) -> Weights:
    """Minimises ||y - X w||^2; among several minimisers, the one of smallest norm. As ``ridge`` at alpha = 0.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import least_squares
        >>> x, y = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[4.0, 1.0]])
        >>> least_squares(x, y)
        tensor([[4.0000, 0.5000]])
        >>> least_squares(x[:, :1], y[:, :1])  # of one example: the smallest norm
        tensor([[4., 0.]])
    """
    return ridge(m, 0.0)


def least_squares_prefixes(x: X, y: Y) -> PrefixWeights:
    """``least_squares`` of the first k examples for k = 1 .. n.

    Up to k = d from one factorisation X_d^T = Q R, as sum_{i <= k} z_i Q_i with z = R^-T y; beyond, from the normal
    equations with one step of correction (Bjorck 1987, corrected seminormal equations). A prompt too ill-conditioned
    for that is solved prefix by prefix from the singular values.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import least_squares_prefixes
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> least_squares_prefixes(x, y)  # from the first example, and from both
        tensor([[[4., 0.],
                 [4., 1.]]])
    """
    dtype, (x, y) = y.dtype, in_float64(x, y)
    n_wide = min(x.shape[1:])
    q, r = torch.linalg.qr(x[:, :n_wide].mT)
    # The least singular value of the first d rows bounds that of every prefix: before them, rows are left out, which
    # raises the least one of a wide matrix; after them, rows are added, which raises that of a tall one.
    easy = torch.linalg.svdvals(r)[:, -1] > FULL_RANK * torch.linalg.matrix_norm(x)
    z = torch.linalg.solve_triangular(r[easy].mT, y[easy, :n_wide, None], upper=False)
    wide = (q[easy].mT * z).cumsum(1)
    w = torch.empty_like(x)
    w[easy] = torch.cat([wide, _tall_least_squares_prefixes(x[easy], y[easy])], dim=1)
    if not easy.all():
        w[~easy] = _ridge_prefixes_by_svd(x[~easy], y[~easy], torch.zeros_like(y[~easy, 0]))
    return w.to(dtype)


def _tall_least_squares_prefixes(x: X, y: Y) -> Float[Tensor, "batch tall_prefixes dims"]:
    """The prefixes k = d + 1 .. n, where X_k has full rank."""
    tall = slice(x.shape[2], None)
    factor = torch.linalg.cholesky((x[..., :, None] * x[..., None, :]).cumsum(1)[:, tall])
    w = torch.cholesky_solve((x * y[..., None]).cumsum(1)[:, tall, :, None], factor)
    seen = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device).tril()[tall]
    residual = (y[:, None] - torch.einsum("bpd,bkd->bkp", x, w[..., 0])) * seen
    return (w + torch.cholesky_solve((residual @ x)[..., None], factor))[..., 0]


def oracle_least_squares(x: X, y: Y, support: Bool[Tensor, "batch dims"]) -> Weights:
    """Least squares restricted to the true support. An oracle: it sees what the other estimators must infer.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import oracle_least_squares
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> oracle_least_squares(x, y, support=torch.tensor([[True, False]]))
        tensor([[4., 0.]])
    """
    return _on_support(least_squares, x, y, support)


def oracle_least_squares_prefixes(x: X, y: Y, support: Bool[Tensor, "batch dims"]) -> PrefixWeights:
    """``oracle_least_squares`` of the first k examples for k = 1 .. n.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import oracle_least_squares_prefixes
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> oracle_least_squares_prefixes(x, y, support=torch.tensor([[False, True]]))
        tensor([[[0., 0.],
                 [0., 1.]]])
    """
    return _on_support(least_squares_prefixes, x, y, support)


def _on_support(
    estimate: Callable[[X, Y], Tensor], x: X, y: Y, support: Bool[Tensor, "batch dims"]
) -> Float[Tensor, "batch *points dims"]:
    """The estimate from the supported columns, which are fewer, and of full rank where all are supported."""
    n_kept = max(1, int(support.sum(-1).max()))
    kept = support.to(torch.int8).argsort(dim=-1, descending=True)[:, :n_kept]
    chosen = torch.eye(x.shape[2], dtype=x.dtype, device=x.device)[kept] * support[:, None]
    w_kept = estimate(torch.einsum("bpd,bkd->bpk", x, chosen), y)
    return torch.einsum("b...k,bkd->b...d", w_kept, chosen.to(w_kept))


def _strength(alpha: OneOrEach, like: Float[Tensor, "rows ..."]) -> PerRow:
    """alpha for each row of ``like``."""
    strength = per_row(alpha, like)
    fine = (strength >= 0) & strength.isfinite()
    if not fine.all():
        wrong = float(strength[~fine][0])
        raise InputError(f"alpha is {wrong}, but the ridge strength must be a finite number that is 0 or larger.")
    return strength
