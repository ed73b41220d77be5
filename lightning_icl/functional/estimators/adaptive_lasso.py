"""The adaptive lasso: the lasso that spares the weights which a pilot estimate finds large."""

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.lasso import CertifiedFit, lasso_fit
from lightning_icl.functional.estimators.least_squares import ridge
from lightning_icl.functional.estimators.moments import Moments, OneOrEach, Weights, of_examples

__all__ = ["adaptive_lasso", "adaptive_lasso_fit"]


@of_examples
def adaptive_lasso(
    m: Moments,
    alpha: OneOrEach,
    gamma: float = 1.0,
    pilot_alpha: OneOrEach = 1.0,
    relative_gap: float = 1e-8,
) -> Weights:
    """Minimises (1/2n) ||y - X w||^2 + alpha sum_j |w_j| / |p_j|^gamma; p is the ridge estimate at ``pilot_alpha``.

    Zou 2006, with alpha = lambda_n / 2n of its objective. ``pilot_alpha`` is on ridge's scale; 0 makes the pilot
    least squares, as Zou's is, which needs more points than dims to be of use. w_j = 0 where p_j = 0.
    """
    return adaptive_lasso_fit(m, alpha, gamma, pilot_alpha, relative_gap).w


def adaptive_lasso_fit(
    m: Moments,
    alpha: OneOrEach,
    gamma: float = 1.0,
    pilot_alpha: OneOrEach = 1.0,
    relative_gap: float = 1e-8,
) -> CertifiedFit:
    """The lasso for v_j = w_j / |p_j|^gamma on the features x_j |p_j|^gamma (Zou 2006, section 3.5), and its gap."""
    if not gamma > 0:
        raise InputError(f"gamma is {gamma}, but the adaptive lasso needs a power above 0; 0 is the lasso.")
    scale = ridge(m, pilot_alpha).abs() ** gamma
    fit = lasso_fit(m.rescaled(scale), alpha, relative_gap)
    return fit._replace(w=fit.w * scale)
