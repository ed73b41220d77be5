"""Iterations on the examples, all iterates: gradient descent, plain, preprocessed, proximal; GD++; Newton's.

The last two use the curvature C = X^T X / n and act on each of its eigenvectors separately, so they are computed in its
eigenbasis. That keeps directions without data (n < d) at exactly 0, where the matrix form of Newton's iteration doubles
their rounding error each step.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.moments import Eigenbasis, Moments, eigenbasis, moments, of_examples
from lightning_icl.functional.estimators.shapes import OneOrEach, Path, PerRow, Weights, X, Y, per_row

__all__ = [
    "feature_scale", "fista_path", "gd_plus_plus_factors", "gd_plus_plus_path", "gradient_descent_path",
    "inverse_curvature", "ista_path", "iterative_hard_thresholding_path", "newton_path", "preprocess_then_gd_path",
    "preprocessed",
]  # fmt: skip


@of_examples
def preprocess_then_gd_path(m: Moments, n_steps: int, step_size: OneOrEach, power: float = 1.0) -> Path:
    """Gradient descent on features rescaled by |r_hat|^power (Chen et al. 2024; any power but 1 is ours).

    With r_hat = X^T y / n, D = diag(|r_hat|^power) and x~ = D x, iterates from u_0 = 0
    u_{t+1} = u_t - step_size (1/n) X~^T (X~ u_t - y), and returns w_t = D u_t for t = 0 .. n_steps, the
    weights in the original coordinates: (n_steps + 1, batch, dims). With power = 1 the sign of r_hat, which the
    paper's R_hat keeps, cancels in w_t. ``step_size`` is one number for all prompts or one per prompt, such as
    ``inverse_curvature(preprocessed(x, x, y, power))``.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import preprocess_then_gd_path
        >>> x, y = 2**0.5 * torch.eye(2)[None], 2**0.5 * torch.tensor([[4.0, 1.0]])
        >>> preprocess_then_gd_path(x, y, n_steps=1, step_size=0.05)[:, 0]  # the first step is step_size r_hat^3
        tensor([[0.0000, 0.0000],
                [3.2000, 0.0500]])
    """
    scale = feature_scale(m, power)
    return gradient_descent_path(m.rescaled(scale), n_steps, step_size).mul_(scale)


@of_examples
def gradient_descent_path(m: Moments, n_steps: int, step_size: OneOrEach) -> Path:
    """Gradient descent on (1/2n) ||y - X w||^2 from 0: preprocess-then-GD with unit feature weights.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import gradient_descent_path
        >>> x, y = 2**0.5 * torch.eye(2)[None], 2**0.5 * torch.tensor([[4.0, 1.0]])
        >>> gradient_descent_path(x, y, n_steps=2, step_size=0.5)[:, 0]  # half of what is left with each step
        tensor([[0.0000, 0.0000],
                [2.0000, 0.5000],
                [3.0000, 0.7500]])
    """
    return _proximal_path(m, n_steps, step_size, lambda w: w)


@of_examples
def ista_path(m: Moments, alpha: OneOrEach, n_steps: int, step_size: OneOrEach) -> Path:
    """Proximal gradient steps on (1/2n) ||y - X w||^2 + alpha ||w||_1 from 0, w_t for t = 0 .. n_steps.

    w_{t+1} = S(w_t - step_size (1/n) X^T (X w_t - y), step_size alpha) with S soft thresholding (Beck & Teboulle
    2009). The objective never grows with a step size of at most ``inverse_curvature(x)``. alpha = 0 is gradient
    descent. A K-layer network unrolled from it is the (untrained) LISTA of Gregor & LeCun 2010.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import ista_path
        >>> x, y = 2**0.5 * torch.eye(2)[None], 2**0.5 * torch.tensor([[4.0, 1.0]])
        >>> ista_path(x, y, alpha=1.5, n_steps=1, step_size=1.0)[-1]  # the lasso, in one step of an identity
        tensor([[2.5000, 0.0000]])
    """
    return _proximal_path(m, n_steps, step_size, _soft_thresholding(m, alpha, step_size))


@of_examples
def fista_path(m: Moments, alpha: OneOrEach, n_steps: int, step_size: OneOrEach) -> Path:
    """ISTA with momentum (Beck & Teboulle 2009, section 4): the objective's error falls as 1/t^2 instead of 1/t.

    Steps from v_t = w_t + (tau_t - 1) / tau_{t+1} (w_t - w_{t-1}) instead of w_t, tau_1 = 1,
    tau_{t+1} = (1 + sqrt(1 + 4 tau_t^2)) / 2.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import fista_path
        >>> x, y = 2**0.5 * torch.eye(2)[None], 2**0.5 * torch.tensor([[4.0, 1.0]])
        >>> fista_path(x, y, alpha=1.5, n_steps=1, step_size=1.0)[-1]  # the first step is ISTA's
        tensor([[2.5000, 0.0000]])
    """
    momenta, tau = [], 1.0
    for _ in range(n_steps):
        following = (1 + (1 + 4 * tau**2) ** 0.5) / 2
        momenta.append((tau - 1) / following)
        tau = following
    return _proximal_path(m, n_steps, step_size, _soft_thresholding(m, alpha, step_size), momenta)


@of_examples
def iterative_hard_thresholding_path(m: Moments, sparsity: int, n_steps: int, step_size: OneOrEach) -> Path:
    """Gradient steps on (1/2n) ||y - X w||^2 from 0, keeping the ``sparsity`` largest weights after each.

    w_{t+1} = H_s(w_t - step_size (1/n) X^T (X w_t - y)) for t = 0 .. n_steps (Blumensath & Davies 2009, in whose
    scaling step_size / n = 1). The loss never grows with a step size of at most ``inverse_curvature(x)``.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import iterative_hard_thresholding_path
        >>> x, y = 2**0.5 * torch.eye(2)[None], 2**0.5 * torch.tensor([[4.0, 1.0]])
        >>> iterative_hard_thresholding_path(x, y, sparsity=1, n_steps=1, step_size=1.0)[-1]
        tensor([[4.0000, 0.0000]])
    """
    n_dims = m.moment.shape[1]
    if not 1 <= sparsity <= n_dims:
        raise InputError(f"sparsity is {sparsity}, but it must lie between 1 and {n_dims}, the number of features.")

    def hard_thresholding(w: Weights) -> Weights:
        kept = w.abs().topk(sparsity, dim=1).indices
        return torch.zeros_like(w).scatter(1, kept, w.gather(1, kept))

    return _proximal_path(m, n_steps, step_size, hard_thresholding)


def _soft_thresholding(m: Moments, alpha: OneOrEach, step_size: OneOrEach) -> Callable[[Weights], Weights]:
    strength = per_row(alpha, m.moment)[:, None]
    if not (strength >= 0).all():
        raise InputError(f"alpha is {alpha}, but the strength of the penalty must be 0 or larger.")
    threshold = per_row(step_size, m.moment)[:, None] * strength
    return lambda w: w.sign() * (w.abs() - threshold).clamp(min=0)


def _proximal_path(
    m: Moments,
    n_steps: int,
    step_size: OneOrEach,
    proximal: Callable[[Weights], Weights],
    momenta: Sequence[float] | None = None,
) -> Path:
    """``proximal`` of gradient steps; a step's momentum says how far ahead of its result the next one starts."""
    check_steps(n_steps)
    step = per_row(step_size, m.moment)[:, None]
    w = ahead = torch.zeros_like(m.moment)
    path = [w]
    for momentum in momenta or [0.0] * n_steps:
        following = proximal(ahead - step * (torch.einsum("rij,rj->ri", m.gram, ahead) - m.moment))
        ahead = following + momentum * (following - w) if momentum else following
        w = following
        path.append(w)
    return torch.stack(path)


@of_examples
def feature_scale(m: Moments, power: float = 1.0) -> Weights:
    """|r_hat|^power with r_hat = X^T y / n, the feature weights of preprocess-then-GD.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import feature_scale
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, -1.0]])
        >>> feature_scale(x, y), feature_scale(x, y, power=0.0)
        (tensor([[2.0000, 0.5000]]), tensor([[1., 1.]]))
    """
    return m.moment.abs() ** power


def preprocessed(
    features: Float[Tensor, "batch rows dims"], x: X, y: Y, power: float = 1.0
) -> Float[Tensor, "batch rows dims"]:
    """|R_hat|^power applied to ``features`` (the examples or the queries), R_hat estimated from (x, y).

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import preprocessed
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, -1.0]])
        >>> preprocessed(torch.ones(1, 1, 2), x, y)
        tensor([[[2.0000, 0.5000]]])
    """
    return features * feature_scale(x, y, power)[:, None]


def inverse_curvature(x: X | Moments) -> PerRow:
    """1 / lambda_max(X^T X / n) of each problem: the largest step size at which no mode of the error changes sign.

    Gradient descent converges below twice that. 0 where x is 0 (then the gradient is 0 too). Of preprocessed features:
    ``inverse_curvature(m.rescaled(feature_scale(m, power)))``.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import inverse_curvature
        >>> inverse_curvature(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]))  # X^T X / n = diag(2, 1/2)
        tensor([0.5000])
    """
    m = x if isinstance(x, Moments) else moments(x, x[..., 0])  # the labels do not matter
    largest = torch.linalg.eigvalsh(m.gram)[:, -1]
    inverse = torch.where(largest > 0, 1 / largest, 0.0)
    return inverse if isinstance(x, Moments) else inverse.to(x.dtype)


def check_steps(n_steps: int) -> None:
    """Refuses a negative number of steps."""
    if n_steps < 0:
        raise InputError(f"n_steps is {n_steps}, but the number of steps must be 0 or larger.")


@of_examples
def gd_plus_plus_path(m: Moments | Eigenbasis, n_steps: int, step_size: OneOrEach, gamma: OneOrEach) -> Path:
    """GD++ (von Oswald et al. 2023): every step descends, and transforms the inputs for the next one.

    As a layer of linear attention does both at once: step t adds a gradient step to every prediction,
    f_{t+1}(x) = f_t(x) + step_size (1/n) sum_i r_i <x_i, x> with r_i = y_i - f_t(x_i) what the label slots of the
    examples hold, and maps examples and queries alike to (I - gamma C_t) x, C_t = X_t^T X_t / n, x and X_t being the
    inputs as they stand. In the original coordinates these are P_t x with P_0 = I and
    P_{t+1} = (I - gamma P_t C P_t) P_t, a polynomial in C and so symmetric; hence f_t(x) = <w_t, x> with w_0 = 0 and
    w_{t+1} = w_t + step_size P_t^2 (X^T y / n - C w_t): gradient descent, plain in its first step, then with a
    preconditioner that flattens the spectrum. gamma = 0 is gradient descent.

    Needs gamma below 1 / lambda_max(C) to keep every direction; see ``inverse_curvature``.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import gd_plus_plus_path, gradient_descent_path
        >>> x, y = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[4.0, 1.0]])
        >>> path = gd_plus_plus_path(x, y, n_steps=2, step_size=0.25, gamma=0.0)
        >>> torch.allclose(path, gradient_descent_path(x, y, n_steps=2, step_size=0.25))
        True
    """
    check_steps(n_steps)
    curvature, moment, vectors, _ = eigenbasis(m)
    step, shrinkage = per_row(step_size, moment)[:, None], per_row(gamma, moment)[:, None]
    factors = gd_plus_plus_factors(curvature, step, shrinkage)
    path = [moment * factor for factor in itertools.islice(factors, n_steps + 1)]
    return torch.einsum("rij,trj->tri", vectors, torch.stack(path))


def gd_plus_plus_factors(
    curvature: Float[Tensor, "rows dims"], step: Tensor, gamma: Tensor | None = None
) -> Iterator[Float[Tensor, "*settings rows dims"]]:
    """c_0, c_1, ... without end: along an eigenvector with this curvature, w_t is c_t times X^T y / n.

    ``step`` and ``gamma`` may hold several settings, in axes before the rows; no gamma is gradient descent.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import gd_plus_plus_factors
        >>> factors = gd_plus_plus_factors(torch.tensor([[1.0]]), torch.tensor([[0.5]]))
        >>> [round(next(factors).item(), 3) for _ in range(4)]  # towards 1 / curvature
        [0.0, 0.5, 0.75, 0.875]
    """
    factor = curvature.new_zeros(torch.broadcast_shapes(curvature.shape, step.shape))
    kept, transform = 1 - step * curvature, torch.ones_like(factor)
    while True:
        yield factor
        if gamma is None:
            factor = torch.addcmul(step, kept, factor)
            continue
        squared = transform**2
        factor = factor + step * squared * (1 - curvature * factor)
        transform = (1 - gamma * curvature * squared) * transform


@of_examples
def newton_path(m: Moments | Eigenbasis, n_steps: int) -> Path:
    """Newton's iteration for the inverse of S = X^T X (Schulz 1933; Fu et al. 2023): w_t = M_t X^T y, t = 0 .. n_steps.

    M_0 = S / lambda_max(S)^2 and M_{t+1} = 2 M_t - M_t S M_t. Along an eigenvector of S with eigenvalue lambda the
    error is |1 - lambda mu_t| = (1 - (lambda / lambda_max)^2)^(2^t): it squares with each step, and after about
    2 log2(lambda_max / lambda) steps it vanishes. The limit is least squares (of smallest norm where n < d). Unlike
    the other paths this one does not start from 0: w_0 = M_0 X^T y.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import least_squares, newton_path
        >>> x, y = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[4.0, 1.0]])
        >>> torch.allclose(newton_path(x, y, n_steps=10)[-1], least_squares(x, y))
        True
    """
    check_steps(n_steps)
    curvature, moment, vectors, _ = eigenbasis(m)
    largest = curvature[:, -1:]
    inverse = torch.where(largest > 0, curvature / largest**2, 0.0)
    path = [inverse * moment]
    for _ in range(n_steps):
        inverse = inverse * (2 - curvature * inverse)
        path.append(inverse * moment)
    return torch.einsum("rij,trj->tri", vectors, torch.stack(path))
