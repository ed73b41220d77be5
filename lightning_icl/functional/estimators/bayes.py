"""Exact posterior means: what the best predictor that sees only the data answers. No transformer can beat them.

The law is y = X w + N(0, noise_std^2) with w drawn from a stated prior; each posterior comes with its log evidence
log p(y | X), so that a mixture of laws (noise levels, sparsities, priors) is ``mixed``.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators import subsets
from lightning_icl.functional.estimators.moments import Moments, of_examples
from lightning_icl.functional.estimators.shapes import OneOrEach, PerRow, Weights, per_row
from lightning_icl.functional.estimators.subsets import BLOCK, Supports

__all__ = ["Posterior", "gaussian_posterior", "mixed", "pool_posterior", "sign_posterior"]

ROUNDING_OF_Y = 1e-12  # of ||y||^2: residuals' squares are differences of such, and float32's labels no finer
ROUNDING_OF_X = 128 * torch.finfo(torch.float64).eps  # of ||x_j||^2: pivots are right to 1 / 128 of the least, or so


class Posterior(NamedTuple):
    """The posterior mean of w, and log p(y | X) (in float64: differences of large numbers decide).

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.functional.estimators import moments
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> LinearRegression(n_dims=2, noise_std=1.0).posterior(moments(x, y)).mean  # ridge at alpha = 1
        tensor([[2.0000, 0.5000]], dtype=torch.float64)
    """

    mean: Weights
    log_evidence: Float[Tensor, " rows"]

    def to(self, dtype: torch.dtype) -> "Posterior":
        """The mean in another dtype."""
        return self._replace(mean=self.mean.to(dtype))


@of_examples
def gaussian_posterior(
    m: Moments,
    supports: Supports,
    noise_std: OneOrEach,
    slab_std: float = 1.0,
    slab_mean: float = 0.0,
    block: int = BLOCK,
) -> Posterior:
    """E[w | X, y] where w is N(slab_mean, slab_std^2) on one of the ``supports``, uniformly drawn, and 0 elsewhere.

    The average over supports S of ridge fits with alpha = noise_std^2 / slab_std^2 (shrunk towards slab_mean),
    weighted by p(y | X, S). ``all_supports`` and ``group_supports`` list supports; one support of all features is
    ridge. More than 2^20 supports are refused. At most ``block`` pairs of a support and a row are in memory at once.

    ``noise_std`` is one number or one per prompt. Where it is below the larger of 1e-6 ||y|| and
    1.7e-7 max_j ||x_j|| sqrt(E ||w||^2), 0 included, it is taken as that, x_j being a column of X. Below the first,
    differences between the supports drown in the rounding of y; below the second, X_S^T X_S + alpha I has pivots that
    are rounding wherever a support has more features than there are points, or features alike. At the second the mean
    is right to about 1e-3 of its largest weight. With labels as large as the law expects, the first is the larger.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import all_supports, gaussian_posterior
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 0.0]])
        >>> gaussian_posterior(x, y, all_supports(2, 2), noise_std=1.0).mean  # one support: ridge at alpha = 1
        tensor([[2., 0.]])
        >>> gaussian_posterior(x, y, all_supports(2, 1), noise_std=1.0).mean  # the first of two, nearly surely
        tensor([[1.9640, 0.0000]])
    """
    if not 0 < slab_std < math.inf:
        raise InputError(f"slab_std is {slab_std}, but the spread of the weights must be a finite number above 0.")
    subsets.refuse_above_limit(len(supports), "supports")
    supports = subsets.checked_supports(supports, m)
    size = supports.shape[1]

    def of_block(sums: _Sums, chosen: slice) -> Posterior:
        alpha = sums.variance / slab_std**2
        gram = sums.gram.clone()
        gram.diagonal(dim1=0, dim2=1).add_(alpha[:, None])
        fits = subsets.ridge_on_supports(gram, sums.moment + slab_mean * alpha, supports[chosen])
        unexplained = sums.power + size * slab_mean**2 * alpha - fits.explained
        log_joint = sums.log_density(unexplained) - (fits.log_det - size * alpha.log()) / 2 - math.log(len(supports))
        share, log_evidence = _normalised(log_joint)
        columns = supports[chosen].T.flatten()
        mean = torch.zeros_like(sums.moment).index_add_(0, columns, (share * fits.weights).flatten(0, 1))
        return Posterior(mean.T, log_evidence)

    variance = _variance(m, noise_std, size * (slab_std**2 + slab_mean**2))
    return _in_blocks(m, variance, len(supports), subsets.pairs_at_once(block, size), of_block)


@of_examples
def sign_posterior(
    m: Moments, supports: Supports, noise_std: OneOrEach, magnitude: float = 1.0, block: int = BLOCK
) -> Posterior:
    """E[w | X, y] where w is +-``magnitude`` with random signs on one of the ``supports``, uniformly drawn.

    The average over all supports and sign patterns. ``noise_std`` as in ``gaussian_posterior``; more than 2^20
    supports x sign patterns are refused. At most ``block`` triples of support, pattern and row are in memory at once.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import all_supports, sign_posterior
        >>> x, y = torch.ones(1, 1, 1), torch.tensor([[0.5]])
        >>> sign_posterior(x, y, all_supports(1, 1), noise_std=1.0).mean, torch.tensor(0.5).tanh()
        (tensor([[0.4621]]), tensor(0.4621))
    """
    if not 0 < magnitude < math.inf:
        raise InputError(f"magnitude is {magnitude}, but the size of the weights must be a finite number above 0.")
    size = supports.shape[1]
    n_terms = len(supports) * 2**size
    subsets.refuse_above_limit(n_terms, f"supports x sign patterns ({len(supports):,} x 2^{size})")
    supports = subsets.checked_supports(supports, m)
    device = m.gram.device
    signs = 1.0 - 2.0 * (torch.arange(2**size, device=device)[:, None] >> torch.arange(size, device=device) & 1)
    signs = magnitude * signs.to(m.gram)
    first, second = torch.tensor([*combinations(range(size), 2)], device=device).long().view(-1, 2).T
    patterns = torch.cat([signs, signs[:, first] * signs[:, second], torch.ones_like(signs[:, :1])], 1)

    def of_block(sums: _Sums, chosen: slice) -> Posterior:
        columns = supports[chosen].T
        diagonal = magnitude**2 * sums.gram.diagonal(dim1=0, dim2=1).T[columns].sum(0)
        free_of_signs = sums.log_density(sums.power + diagonal) - math.log(n_terms)
        products = torch.cat([sums.moment[columns], -sums.gram[columns[first], columns[second]]]) / sums.variance
        log_joint = torch.einsum("pf,fsr->psr", patterns, torch.cat([products, free_of_signs[None]]))
        share, log_evidence = _normalised(log_joint.flatten(0, 1))
        weights = (signs.T @ share.reshape(len(signs), -1)).view(-1, share.shape[-1])
        mean = torch.zeros_like(sums.moment).index_add_(0, columns.flatten(), weights)
        return Posterior(mean.T, log_evidence)

    variance = _variance(m, noise_std, size * magnitude**2)
    return _in_blocks(m, variance, len(supports), max(1, block // 2**size), of_block)


@of_examples
def pool_posterior(
    m: Moments,
    pool: Float[Tensor, "tasks dims"],
    noise_std: OneOrEach,
    prior: Float[Tensor, " tasks"] | None = None,
    block: int = BLOCK,
) -> Posterior:
    """E[w | X, y] where w is one of the rows of ``pool``: the dMMSE estimator of Raventos et al. 2023.

    ``prior`` holds the weights of the tasks (they need not sum to 1), all equal if left out. ``noise_std`` as in
    ``gaussian_posterior``. At most ``block`` pairs of a task and a row are in memory at once.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import pool_posterior
        >>> x, y = torch.ones(1, 1, 1), torch.tensor([[0.5]])
        >>> pool = torch.tensor([[1.0], [-1.0]])
        >>> pool_posterior(x, y, pool, noise_std=1.0).mean, torch.tensor(0.5).tanh()
        (tensor([[0.4621]]), tensor(0.4621))
    """
    log_prior = _log_prior((torch.ones_like(pool[:, 0]) if prior is None else prior).to(m.gram))
    possible = log_prior > -math.inf
    tasks, log_prior = pool.to(m.gram)[possible], log_prior[possible]

    def of_block(sums: _Sums, chosen: slice) -> Posterior:
        w = tasks[chosen]
        quadratic = (w[:, :, None] * w[:, None]).flatten(1) @ sums.gram.flatten(0, 1)
        log_joint = sums.log_density(sums.power + quadratic - 2 * w @ sums.moment) + log_prior[chosen, None]
        share, log_evidence = _normalised(log_joint)
        return Posterior(share.T @ w, log_evidence)

    variance = _variance(m, noise_std, log_prior.exp() @ tasks.square().sum(1))
    return _in_blocks(m, variance, len(tasks), block, of_block)


def mixed(posteriors: Sequence[Posterior], prior: Sequence[float]) -> Posterior:
    """The posterior under a mixture of laws with ``prior`` weights: the evidence-weighted average of theirs.

    Such as a noise level drawn from a list: one posterior for each level, and how likely each level is.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import Posterior, mixed
        >>> one = Posterior(mean=torch.tensor([[1.0]]), log_evidence=torch.tensor([0.0]))
        >>> other = Posterior(mean=torch.tensor([[0.0]]), log_evidence=torch.tensor([0.0]))
        >>> mixed([one, other], prior=[3.0, 1.0]).mean
        tensor([[0.7500]])
    """
    if len(prior) != len(posteriors):
        raise InputError(f"prior has {len(prior)} weights, but there are {len(posteriors)} posteriors to mix.")
    log_prior = _log_prior(torch.tensor(prior, dtype=torch.float64, device=posteriors[0].mean.device))
    return _combined([Posterior(p.mean, p.log_evidence + log) for p, log in zip(posteriors, log_prior, strict=True)])


class _Sums(NamedTuple):
    """X^T X, X^T y, y^T y and n of some of the problems, rows last, and the variance of their noise."""

    gram: Float[Tensor, "dims dims rows"]
    moment: Float[Tensor, "dims rows"]
    power: PerRow
    n_points: PerRow
    variance: PerRow

    def log_density(self, squares: Float[Tensor, "*terms rows"]) -> Float[Tensor, "*terms rows"]:
        """log N(residual; 0, variance I) from the residual's sum of squares."""
        return -(squares / self.variance + self.n_points * (2 * math.pi * self.variance).log()) / 2


def _in_blocks(
    m: Moments, variance: Tensor, n_terms: int, block: int, of_block: Callable[[_Sums, slice], Posterior]
) -> Posterior:
    """Sums a joint density over ``n_terms`` terms for all rows, in blocks of terms x rows that bound the memory."""
    terms_at_once, rows_at_once = subsets.block_shape(n_terms, block)
    terms = [slice(first, first + terms_at_once) for first in range(0, n_terms, terms_at_once)]
    answer = Posterior(torch.empty_like(m.moment), torch.empty_like(m.power))
    for start in range(0, len(variance), rows_at_once):
        rows = slice(start, start + rows_at_once)
        part, n = m.rows(rows), m.n_points[rows]
        gram, moment = (part.gram.permute(1, 2, 0) * n).contiguous(), (part.moment.T * n).contiguous()
        sums = _Sums(gram, moment, part.power * n, n, variance[rows])
        parts = (of_block(sums, chosen) for chosen in terms)
        answer.mean[rows], answer.log_evidence[rows] = reduce(lambda *two: _combined(two), parts)
    return answer


def _normalised(log_joint: Float[Tensor, "terms rows"]) -> tuple[Float[Tensor, "terms rows"], Float[Tensor, " rows"]]:
    """The share of each term in the sum over terms, and the log of the sum. Overwrites its input."""
    highest = log_joint.amax(0)
    share = log_joint.sub_(highest).exp_()
    total = share.sum(0)
    return share.div_(total), highest + total.log()


def _combined(posteriors: Sequence[Posterior]) -> Posterior:
    """The sum of joint densities p(y, law | X), each given as its posterior mean and log integral."""
    log_joint = torch.stack([p.log_evidence for p in posteriors])
    mean = torch.stack([p.mean for p in posteriors])
    return Posterior((log_joint.softmax(0).to(mean.dtype)[..., None] * mean).sum(0), log_joint.logsumexp(0))


def _variance(m: Moments, noise_std: OneOrEach, weight_square: float | Tensor) -> PerRow:
    """noise_std^2, or the floor that ``gaussian_posterior`` states, where ``weight_square`` is E ||w||^2."""
    noise = per_row(noise_std, m.power)
    if not ((noise >= 0) & noise.isfinite()).all():
        raise InputError(f"noise_std is {noise_std}, but it must be a finite number that is 0 or larger.")
    largest_column = m.gram.diagonal(dim1=1, dim2=2).amax(-1)
    floor = m.n_points * torch.maximum(ROUNDING_OF_Y * m.power, ROUNDING_OF_X * largest_column * weight_square)
    return torch.maximum(noise.square(), floor).clamp(min=1e-200)  # where x and y are 0


def _log_prior(prior: Float[Tensor, " laws"]) -> Float[Tensor, " laws"]:
    if not ((prior >= 0).all() and 0 < prior.sum() < math.inf):
        raise InputError(f"prior is {prior.tolist()}, but it must hold weights of 0 or more with a positive sum.")
    return (prior / prior.sum()).log()
