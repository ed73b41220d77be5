"""The lasso, its path, and what is a lasso of other problems; each answer with the duality gap that certifies it."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.homotopy import lasso_homotopy
from lightning_icl.functional.estimators.least_squares import ridge
from lightning_icl.functional.estimators.moments import Moments, of_examples
from lightning_icl.functional.estimators.shapes import OneOrEach, Path, PerRow, Weights, per_row

__all__ = [
    "CertifiedFit", "adaptive_lasso", "adaptive_lasso_fit", "elastic_net", "elastic_net_fit", "lasso",
    "lasso_duality_gap", "lasso_fit", "lasso_path", "lasso_path_fit",
]  # fmt: skip

Solver = Callable[[Moments, Weights, PerRow], Weights]

FISTA_ROUND = 50  # iterations between two looks at the duality gap
PIVOTS_PER_DIM = 50  # a path has one to three events per dimension; far more are a cycle among ties


class CertifiedFit(NamedTuple):
    """Weights, and the duality gap of each problem: how far its objective can at most be above the minimum.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import lasso_fit, moments
        >>> fit = lasso_fit(moments(torch.eye(2)[None], torch.tensor([[4.0, 1.0]])), alpha=0.75)
        >>> fit.w.shape, fit.gap.shape
        (torch.Size([1, 2]), torch.Size([1]))
    """

    w: Float[Tensor, "*path rows dims"]
    gap: Float[Tensor, "*path rows"]


@of_examples
def lasso(
    m: Moments, alpha: OneOrEach, relative_gap: float = 1e-8, max_iterations: int = 20_000, start: Weights | None = None
) -> Weights:
    """Minimises (1/2n) ||y - X w||^2 + alpha ||w||_1 (scikit-learn's scaling, no intercept).

    The duality gap of every problem is at most ``relative_gap`` times (1/2n) ||y||^2, or a ``RuntimeWarning`` says
    of how many it is not; see ``lasso_path_fit`` for how. ``start`` is an answer to try first, such as that of nearly
    the same problem: where it already has such a gap, it stands. Computed in float64, whose rounding lies below such
    gaps; in y's dtype if that is float32, the rounding of the weights alone leaves a gap of some 1e-7.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import lasso
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> lasso(x, y, alpha=0.75)  # |y| less n alpha = 1.5, or 0, as X is the identity
        tensor([[2.5000, 0.0000]])
    """
    return lasso_fit(m, alpha, relative_gap, max_iterations, start).w


@of_examples
def lasso_path(
    m: Moments, alphas: Sequence[float] | Tensor, relative_gap: float = 1e-8, max_iterations: int = 20_000
) -> Path:
    """The lasso at each of ``alphas``, in the order given, for little more than the price of the smallest alone.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import lasso_path
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> lasso_path(x, y, alphas=[0.25, 0.75])[:, 0]
        tensor([[3.5000, 0.5000],
                [2.5000, 0.0000]])
    """
    return lasso_path_fit(m, alphas, relative_gap, max_iterations).w


def lasso_fit(
    m: Moments, alpha: OneOrEach, relative_gap: float = 1e-8, max_iterations: int = 20_000, start: Weights | None = None
) -> CertifiedFit:
    """``lasso`` with its certificate.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import lasso_fit, moments
        >>> m = moments(torch.eye(2)[None], torch.tensor([[4.0, 1.0]]))
        >>> fit = lasso_fit(m, alpha=0.75)
        >>> fit.w, fit.gap < 1e-8
        (tensor([[2.5000, 0.0000]], dtype=torch.float64), tensor([True]))
    """
    fit = lasso_path_fit(m, per_row(alpha, m.moment)[None], relative_gap, max_iterations, start)
    return CertifiedFit(fit.w[0], fit.gap[0])


def lasso_path_fit(
    m: Moments,
    alphas: Sequence[float] | Tensor,
    relative_gap: float = 1e-8,
    max_iterations: int = 20_000,
    start: Weights | None = None,
) -> CertifiedFit:
    """The lasso of every problem at each of ``alphas``, (alphas,) for all problems alike or (alphas, rows).

    ``lasso_homotopy`` answers all strengths in one pass, exactly but for rounding. What is then above the gap is
    solved once more on the support and signs found, and if that does not do, by FISTA from there. ``max_iterations``
    bounds the pivots of the first and the iterations of the last.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import lasso_path_fit, moments
        >>> m = moments(torch.eye(2)[None], torch.tensor([[4.0, 1.0]]))
        >>> lasso_path_fit(m, alphas=[0.25, 0.75]).w.shape  # (strengths, problems, features)
        torch.Size([2, 1, 2])
    """
    alphas = positive(torch.as_tensor(alphas, dtype=m.power.dtype, device=m.power.device))
    alphas = (alphas if alphas.ndim == 2 else alphas[:, None]).expand(-1, len(m.power))
    tolerance = relative_gap * m.power / 2
    max_pivots = min(max_iterations, PIVOTS_PER_DIM * m.moment.shape[1])
    if start is None:
        w = lasso_homotopy(m, alphas, max_pivots)
    else:
        w = start.to(m.moment.dtype).expand(len(alphas), -1, -1).clone()
        unsolved = ~(lasso_duality_gap(m, w, alphas) <= tolerance).all(0)
        w[:, unsolved] = lasso_homotopy(m.rows(unsolved), alphas[:, unsolved], max_pivots)
    fit = CertifiedFit(w, lasso_duality_gap(m, w, alphas))
    for solve in (solved_on_support, partial(fista, relative_gap=relative_gap, max_iterations=max_iterations)):
        _resolve(fit, m, alphas, tolerance, solve)
    above = ~(fit.gap <= tolerance)  # a gap that is no number is above too
    if above.any():
        largest = float((fit.gap / (m.power / 2))[above].max())
        warnings.warn(
            f"{int(above.sum())} of {above.numel()} lasso problems are above the relative duality gap {relative_gap:g} "
            f"after {max_iterations} iterations; the largest is {largest:.1e}.",
            RuntimeWarning,
            stacklevel=2,
        )
    return fit


def positive(alpha: Tensor) -> Tensor:
    """``alpha``, refused where it is no finite number above 0."""
    fine = (alpha > 0) & alpha.isfinite()
    if not fine.all():
        wrong = float(alpha[~fine][0])
        raise InputError(f"alpha is {wrong}, but the lasso needs a finite strength above 0; use least_squares for 0.")
    return alpha


def _resolve(fit: CertifiedFit, m: Moments, alphas: Tensor, tolerance: PerRow, solve: Solver) -> None:
    """Tries ``solve`` on the problems whose gap is above the tolerance, or no number; ``fit`` keeps the lower gap."""
    level, row = (~(fit.gap <= tolerance)).nonzero(as_tuple=True)
    if len(row) == 0:
        return
    problems, alpha, before = m.rows(row), alphas[level, row], fit.gap[level, row]
    w = solve(problems, fit.w[level, row], alpha)
    gap = lasso_duality_gap(problems, w, alpha)
    better = (gap < before) | before.isnan()
    level, row = level[better], row[better]
    fit.w[level, row], fit.gap[level, row] = w[better], gap[better]


def solved_on_support(m: Moments, w: Weights, alpha: PerRow) -> Weights:
    """The solution of G_AA w_A = b_A - alpha s_A, with the support A and signs s of ``w``: no rounding built up."""
    active = w != 0
    gram = torch.where(active[:, :, None] & active[:, None, :], m.gram, torch.diag_embed((~active).to(w.dtype)))
    return torch.linalg.solve_ex(gram, torch.where(active, m.moment - alpha[:, None] * w.sign(), 0.0)).result


def fista(m: Moments, w: Weights, alpha: PerRow, relative_gap: float, max_iterations: int) -> Weights:
    """FISTA (Beck & Teboulle 2009) with the gradient restart of O'Donoghue & Candes 2015, until the gap is reached."""
    curvature = torch.linalg.eigvalsh(m.gram)[:, -1:]
    step = torch.where(curvature > 0, 1 / curvature, 1.0)  # without curvature any step leads to 0
    ahead, momentum, row, answer = w, torch.ones_like(step), torch.arange(len(w), device=w.device), w.clone()
    for done in range(0, max_iterations, FISTA_ROUND):
        for _ in range(min(FISTA_ROUND, max_iterations - done)):
            target = ahead - step * (torch.einsum("rij,rj->ri", m.gram, ahead) - m.moment)
            following = target.sign() * (target.abs() - alpha[:, None] * step).clamp(min=0)
            uphill = ((ahead - following) * (following - w)).sum(-1, keepdim=True) > 0
            grown = torch.where(uphill, 1.0, (1 + (1 + 4 * momentum**2).sqrt()) / 2)
            ahead = following + torch.where(uphill, 0.0, (momentum - 1) / grown) * (following - w)
            w, momentum = following, grown
        answer[row] = w
        above = lasso_duality_gap(m, w, alpha) > relative_gap * m.power / 2
        if not above.any():
            break
        # Conditioning varies over orders of magnitude between problems: go on with the unfinished ones alone.
        m, alpha, step = m.rows(above), alpha[above], step[above]
        w, ahead, momentum, row = w[above], ahead[above], momentum[above], row[above]
    return answer


@of_examples
def lasso_duality_gap(
    m: Moments, w: Float[Tensor, "*path rows dims"], alpha: float | Float[Tensor, "*path rows"]
) -> Float[Tensor, "*path rows"]:
    """Primal minus dual objective of the lasso at w: an upper bound on how far w is from optimal.

    Computed in float64 whatever the input. With k <= 1 scaling the residual r = y - X w into the feasible set
    ||k X^T r / n||_inf <= alpha of the dual, it is (1 - k)^2 r^T r / 2n + alpha ||w||_1 - k <X^T r / n, w>. Every term
    of that is 0 or larger, so that none cancels another.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import lasso_duality_gap, moments
        >>> m = moments(torch.eye(2)[None], torch.tensor([[4.0, 1.0]]))
        >>> best, zero = torch.tensor([[2.5, 0.0]]), torch.zeros(1, 2)
        >>> lasso_duality_gap(m, best, alpha=0.75), lasso_duality_gap(m, zero, alpha=0.75)
        (tensor([0.], dtype=torch.float64), tensor([1.6602], dtype=torch.float64))
    """
    w, alpha = w.to(m.moment), torch.as_tensor(alpha, dtype=m.power.dtype, device=m.power.device)
    correlation = m.moment - torch.einsum("rij,...rj->...ri", m.gram, w)
    residual_power = (m.power - ((m.moment + correlation) * w).sum(-1)).clamp(min=0)
    scale = alpha / torch.maximum(correlation.abs().amax(-1), alpha)
    unaligned = alpha[..., None] * w.abs() - scale[..., None] * correlation * w
    return (1 - scale) ** 2 * residual_power / 2 + unaligned.sum(-1)


@of_examples
def elastic_net(m: Moments, alpha: OneOrEach, l1_ratio: float, relative_gap: float = 1e-8) -> Weights:
    """Minimises (1/2n) ||y - X w||^2 + alpha l1_ratio ||w||_1 + alpha (1 - l1_ratio)/2 ||w||^2 (scikit-learn's).

    Zou & Hastie 2005, without their final rescaling. Certified as the lasso is: see ``elastic_net_fit``.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import elastic_net
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> elastic_net(x, y, alpha=0.5, l1_ratio=0.5)  # (|y| - n alpha/2) / (1 + n alpha/2)
        tensor([[2.3333, 0.3333]])
    """
    return elastic_net_fit(m, alpha, l1_ratio, relative_gap).w


def elastic_net_fit(m: Moments, alpha: OneOrEach, l1_ratio: float, relative_gap: float = 1e-8) -> CertifiedFit:
    """The lasso at strength alpha l1_ratio of the examples and, below them, sqrt(n alpha (1 - l1_ratio)) I labelled 0.

    These add alpha (1 - l1_ratio) I to the Gram matrix and nothing else (Zou & Hastie 2005, Lemma 1). Primal and dual
    objective are the same as before, so the lasso's duality gap is the elastic net's.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import elastic_net_fit, moments
        >>> m = moments(torch.eye(2)[None], torch.tensor([[4.0, 1.0]]))
        >>> elastic_net_fit(m, alpha=0.5, l1_ratio=0.5).gap < 1e-8
        tensor([True])
    """
    if not 0 < l1_ratio <= 1:
        raise InputError(f"l1_ratio is {l1_ratio}, but it must lie above 0 and be at most 1; 0 is ridge at n * alpha.")
    strength = positive(per_row(alpha, m.moment))
    ridge = torch.diag_embed((strength * (1 - l1_ratio))[:, None].expand_as(m.moment))
    return lasso_fit(m._replace(gram=m.gram + ridge), strength * l1_ratio, relative_gap)


@of_examples
def adaptive_lasso(
    m: Moments, alpha: OneOrEach, gamma: float = 1.0, pilot_alpha: OneOrEach = 1.0, relative_gap: float = 1e-8
) -> Weights:
    """Minimises (1/2n) ||y - X w||^2 + alpha sum_j |w_j| / |p_j|^gamma; p is the ridge estimate at ``pilot_alpha``.

    Zou 2006, with alpha = lambda_n / 2n of its objective. ``pilot_alpha`` is on ridge's scale; 0 makes the pilot
    least squares, as Zou's is, which needs more points than dims to be of use. w_j = 0 where p_j = 0.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import adaptive_lasso
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> adaptive_lasso(x, y, alpha=0.75)  # y_1 less 1.5 / 2, the pilot being y / 2; y_2 less 1.5 / 0.5, so 0
        tensor([[3.2500, 0.0000]])
    """
    return adaptive_lasso_fit(m, alpha, gamma, pilot_alpha, relative_gap).w


def adaptive_lasso_fit(
    m: Moments, alpha: OneOrEach, gamma: float = 1.0, pilot_alpha: OneOrEach = 1.0, relative_gap: float = 1e-8
) -> CertifiedFit:
    """The lasso for v_j = w_j / |p_j|^gamma on the features x_j |p_j|^gamma (Zou 2006, section 3.5), and its gap.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import adaptive_lasso_fit, moments
        >>> m = moments(torch.eye(2)[None], torch.tensor([[4.0, 1.0]]))
        >>> adaptive_lasso_fit(m, alpha=0.75).gap < 1e-8
        tensor([True])
    """
    if not gamma > 0:
        raise InputError(f"gamma is {gamma}, but the adaptive lasso needs a power above 0; 0 is the lasso.")
    scale = ridge(m, pilot_alpha).abs() ** gamma
    fit = lasso_fit(m.rescaled(scale), alpha, relative_gap)
    return fit._replace(w=fit.w * scale)
