"""Proximal gradient descent on the lasso's objective, plain and with momentum: all iterates."""

import torch

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.descent import check_steps
from lightning_icl.functional.estimators.moments import Moments, OneOrEach, Path, of_examples, per_row

__all__ = ["fista_path", "ista_path"]


@of_examples
def ista_path(m: Moments, alpha: OneOrEach, n_steps: int, step_size: OneOrEach) -> Path:
    """Proximal gradient steps on (1/2n) ||y - X w||^2 + alpha ||w||_1 from 0, w_t for t = 0 .. n_steps.

    w_{t+1} = S(w_t - step_size (1/n) X^T (X w_t - y), step_size alpha) with S soft thresholding (Beck & Teboulle
    2009). The objective never grows with a step size of at most ``inverse_curvature(x)``. alpha = 0 is gradient
    descent. A K-layer network unrolled from it is the (untrained) LISTA of Gregor & LeCun 2010.
    """
    check_steps(n_steps)
    return _proximal_path(m, alpha, step_size, [0.0] * n_steps)


@of_examples
def fista_path(m: Moments, alpha: OneOrEach, n_steps: int, step_size: OneOrEach) -> Path:
    """ISTA with momentum (Beck & Teboulle 2009, section 4): the objective's error falls as 1/t^2 instead of 1/t.

    Steps from v_t = w_t + (tau_t - 1) / tau_{t+1} (w_t - w_{t-1}) instead of w_t, tau_1 = 1,
    tau_{t+1} = (1 + sqrt(1 + 4 tau_t^2)) / 2.
    """
    check_steps(n_steps)
    momenta, tau = [], 1.0
    for _ in range(n_steps):
        following = (1 + (1 + 4 * tau**2) ** 0.5) / 2
        momenta.append((tau - 1) / following)
        tau = following
    return _proximal_path(m, alpha, step_size, momenta)


def _proximal_path(m: Moments, alpha: OneOrEach, step_size: OneOrEach, momenta: list[float]) -> Path:
    """One step for each momentum, which says how far ahead of its result the next one starts."""
    step, strength = per_row(step_size, m.moment)[:, None], per_row(alpha, m.moment)[:, None]
    if not (strength >= 0).all():
        raise InputError(f"alpha is {alpha}, but the strength of the penalty must be 0 or larger.")
    w = ahead = torch.zeros_like(m.moment)
    path = [w]
    for momentum in momenta:
        target = ahead - step * (torch.einsum("rij,rj->ri", m.gram, ahead) - m.moment)
        following = target.sign() * (target.abs() - step * strength).clamp(min=0)
        ahead = following + momentum * (following - w)
        w = following
        path.append(w)
    return torch.stack(path)
