"""Supports, all of a size or unions of groups; ridge on many of them at once; the best subset, and a greedy one."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.moments import Moments, of_examples
from lightning_icl.functional.estimators.shapes import Path, Weights

__all__ = ["all_supports", "best_subset", "group_supports", "orthogonal_matching_pursuit"]

Supports = Int[Tensor, "supports size"]

MAX_TERMS = 2**20  # supports (or supports x sign patterns) a prompt: .1 s each prompt on one CPU core at size 4
BLOCK = 2**16  # (support, prompt) pairs worked on at once: some 30 numbers each at size 4, 16 MB, near a CPU's cache
WRITTEN_OUT = 24  # size of a support up to which its factorisation is written out; beyond, torch's is faster
EXPLAINED = 1e-10  # |<x_j, residual>| below this share of ||x_j|| ||y|| is rounding
RANK_TOLERANCE = 1e-12  # eigenvalues of X^T X below this share of the largest count as 0


def all_supports(n_dims: int, sparsity: int, device: torch.device | str | None = None) -> Supports:
    """Every set of ``sparsity`` of the ``n_dims`` features, as increasing indices, in lexicographic order.

    Example:
        >>> from lightning_icl.functional.estimators import all_supports
        >>> all_supports(n_dims=3, sparsity=2)
        tensor([[0, 1],
                [0, 2],
                [1, 2]])
    """
    if not 1 <= sparsity <= n_dims:
        raise InputError(f"sparsity is {sparsity}, but it must lie between 1 and n_dims, which is {n_dims}.")
    refuse_above_limit(math.comb(n_dims, sparsity), f"supports of {sparsity} among {n_dims} features")
    supports = torch.arange(n_dims - sparsity + 1, device=device)[:, None]
    for n_left in reversed(range(1, sparsity)):
        n_next = n_dims - n_left - supports[:, -1]  # choices of the next index that leave room for those after it
        supports, first = supports.repeat_interleave(n_next, 0), (n_next.cumsum(0) - n_next).repeat_interleave(n_next)
        step = torch.arange(1, len(supports) + 1, device=device) - first
        supports = torch.cat([supports, (supports[:, -1] + step)[:, None]], 1)
    return supports


def group_supports(n_dims: int, group_size: int, n_groups: int, device: torch.device | str | None = None) -> Supports:
    """Every union of ``n_groups`` of the n_dims / group_size groups of consecutive features.

    Example:
        >>> from lightning_icl.functional.estimators import group_supports
        >>> group_supports(n_dims=4, group_size=2, n_groups=1)
        tensor([[0, 1],
                [2, 3]])
    """
    if not (group_size >= 1 and n_dims % group_size == 0):
        raise InputError(f"group_size is {group_size}, but it must divide n_dims, which is {n_dims}.")
    if not 1 <= n_groups <= n_dims // group_size:
        raise InputError(f"n_groups is {n_groups}, but it must lie between 1 and {n_dims // group_size}, all groups.")
    groups = all_supports(n_dims // group_size, n_groups, device)
    return (groups[..., None] * group_size + torch.arange(group_size, device=device)).flatten(1)


def refuse_above_limit(n_terms: int, terms: str) -> None:
    """Says no, before anything is enumerated, to a sum of more than MAX_TERMS terms a prompt."""
    if n_terms > MAX_TERMS:
        raise InputError(
            f"there are {n_terms:,} {terms}, above the limit of {MAX_TERMS:,} for each prompt; use the lasso, "
            "oracle_least_squares as a lower bound, or fewer features."
        )


def checked_supports(supports: Supports, m: Moments) -> Supports:
    """The supports beside the problems; refuses those that name a feature twice, or one that is not there."""
    ordered, n_dims = supports.sort(1).values, m.moment.shape[1]
    if supports.numel() == 0 or (ordered.diff(dim=1) <= 0).any() or ordered.min() < 0 or ordered.max() >= n_dims:
        raise InputError(f"supports must hold different features, 0 to {n_dims - 1}, in every row, and have a row.")
    return supports.to(m.gram.device)


class SupportFits(NamedTuple):
    """Minimisers of ||y - X_S u||^2 + alpha ||u||^2 for many supports S of many problems, A = X_S^T X_S + alpha I."""

    weights: Float[Tensor, "size supports rows"]
    explained: Float[Tensor, "supports rows"]  # u^T A u: y^T y minus the minimum
    log_det: Float[Tensor, "supports rows"]  # log |A|


def ridge_on_supports(
    gram: Float[Tensor, "dims dims rows"], moment: Float[Tensor, "dims rows"], supports: Supports
) -> SupportFits:
    """Solves A u = b for every support, given X^T X + alpha I and b = X^T y (the sums, not the means).

    A Cholesky factorisation written out over the few entries of a support, each step on all supports and problems at
    once: torch's batched one spends 1 to 2 us on a matrix of size 4, this one .1. Large supports are left to torch.
    """
    if supports.shape[1] > WRITTEN_OUT:
        return _ridge_on_large_supports(gram, moment, supports)
    n_dims, flat = len(moment), gram.flatten(0, 1)
    factor: list[list[Tensor]] = []  # A = L L^T, strictly lower part
    inverse: list[Tensor] = []  # 1 / L_ii
    z: list[Tensor] = []  # L z = b
    log_det = flat.new_zeros(len(supports), flat.shape[1])
    for i, column in enumerate(supports.T):
        row: list[Tensor] = []
        for j in range(i):
            entry = flat.index_select(0, column * n_dims + supports[:, j])
            for k in range(j):
                entry.addcmul_(row[k], factor[j][k], value=-1)
            row.append(entry.mul_(inverse[j]))
        pivot, target = flat.index_select(0, column * (n_dims + 1)), moment.index_select(0, column)
        for k in range(i):
            pivot.addcmul_(row[k], row[k], value=-1)
            target.addcmul_(row[k], z[k], value=-1)
        log_det += pivot.log()
        inverse.append(pivot.rsqrt_())
        z.append(target.mul_(inverse[i]))
        factor.append(row)
    explained = torch.stack(z).square().sum(0)
    for i in reversed(range(len(z))):  # L^T u = z, u in place of z
        for j in range(i + 1, len(z)):
            z[i].addcmul_(factor[j][i], z[j], value=-1)
        z[i].mul_(inverse[i])
    return SupportFits(torch.stack(z), explained, log_det)


def _ridge_on_large_supports(
    gram: Float[Tensor, "dims dims rows"], moment: Float[Tensor, "dims rows"], supports: Supports
) -> SupportFits:
    factor = torch.linalg.cholesky(gram[supports[:, :, None], supports[:, None]].movedim(-1, 1))
    target = moment[supports].mT[..., None]  # supports, rows, size, 1
    z = torch.linalg.solve_triangular(factor, target, upper=False)
    u = torch.linalg.solve_triangular(factor.mT, z, upper=True)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return SupportFits(u[..., 0].movedim(-1, 0), z.square().sum((-2, -1)), log_det)


@of_examples
def best_subset(m: Moments, sparsity: int, block: int = BLOCK) -> Weights:
    """Minimises ||y - X w||^2 over all w with at most ``sparsity`` non-zeros, by trying every support.

    Residuals that agree to about 1e-10 of ||y||^2, as where a few points fit exactly, are told apart by the smaller
    norm of the weights. At most ``block`` pairs of a support and a row are in memory at once.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import best_subset
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> best_subset(x, y, sparsity=1)
        tensor([[4., 0.]])
    """
    supports = all_supports(m.moment.shape[1], sparsity, m.gram.device)
    n_supports, n_rows = block_shape(len(supports), pairs_at_once(block, sparsity))
    chosen = []
    for start in range(0, len(m.power), n_rows):
        part = m.rows(slice(start, start + n_rows))
        alpha = 1e-10 * part.gram.diagonal(dim1=1, dim2=2).amax(-1).clamp(min=1e-200)
        gram = part.gram + alpha[:, None, None] * torch.eye(m.gram.shape[1], device=m.gram.device)
        gram, moment = gram.permute(1, 2, 0).contiguous(), part.moment.T.contiguous()
        parts = [ridge_on_supports(gram, moment, some).explained.max(0) for some in supports.split(n_supports)]
        winner = torch.stack([p.values for p in parts]).argmax(0)
        within = torch.stack([p.indices for p in parts]).gather(0, winner[None])[0]
        chosen.append(supports[winner * n_supports + within])
    return least_squares_on(m, torch.cat(chosen))


def pairs_at_once(block: int, size: int) -> int:
    """``block`` pairs of a support and a problem, or fewer of large supports, whose factors have size^2 / 2 entries."""
    return max(1, block // max(1, size**2 // 32))


def block_shape(n_terms: int, block: int) -> tuple[int, int]:
    """How many terms (supports) and rows (problems) to work on at once, rows enough for the loops over them."""
    terms_at_once = max(1, min(n_terms, block // 32))
    return terms_at_once, max(1, block // terms_at_once)


@of_examples
def orthogonal_matching_pursuit(m: Moments, n_nonzero: int) -> Path:
    """Adds the feature with the largest |<x_j, residual>|, refits by least squares, and so on: 0 .. n_nonzero features.

    Features are compared as they are, not scaled to unit norm, and without intercept, as scikit-learn does; of equal
    ones the first is taken. Once no feature correlates with the residual (the labels are explained, or the features
    left depend on those chosen), the remaining iterates repeat the last.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import orthogonal_matching_pursuit
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> orthogonal_matching_pursuit(x, y, n_nonzero=2)[:, 0]  # with 0, 1 and 2 features
        tensor([[0., 0.],
                [4., 0.],
                [4., 1.]])
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


def least_squares_on(m: Moments, support: Int[Tensor, "rows size"]) -> Weights:
    """Least squares (the one of smallest norm) on a support of each row."""
    columns = support[:, None].expand(-1, support.shape[1], -1)
    gram = m.gram.gather(1, support[..., None].expand(-1, -1, m.gram.shape[2])).gather(2, columns)
    inverse = torch.linalg.pinv(gram, rtol=RANK_TOLERANCE, hermitian=True)
    fitted = torch.einsum("rij,rj->ri", inverse, m.moment.gather(1, support))
    return torch.zeros_like(m.moment).scatter(1, support, fitted)
