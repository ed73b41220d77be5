"""The elastic net and the adaptive lasso: each is the lasso of other problems, and certified as the lasso is."""

import torch

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.lasso import CertifiedFit, lasso_fit, positive
from lightning_icl.functional.estimators.least_squares import ridge
from lightning_icl.functional.estimators.moments import Moments, of_examples
from lightning_icl.functional.estimators.shapes import OneOrEach, Weights, per_row

__all__ = ["adaptive_lasso", "adaptive_lasso_fit", "elastic_net", "elastic_net_fit"]


@of_examples
def elastic_net(m: Moments, alpha: OneOrEach, l1_ratio: float, relative_gap: float = 1e-8) -> Weights:
    """Minimises (1/2n) ||y - X w||^2 + alpha l1_ratio ||w||_1 + alpha (1 - l1_ratio)/2 ||w||^2 (scikit-learn's).

    Zou & Hastie 2005, without their final rescaling. Certified as the lasso is: see ``elastic_net_fit``.
    """
    return elastic_net_fit(m, alpha, l1_ratio, relative_gap).w


def elastic_net_fit(m: Moments, alpha: OneOrEach, l1_ratio: float, relative_gap: float = 1e-8) -> CertifiedFit:
    """The lasso at strength alpha l1_ratio of the examples and, below them, sqrt(n alpha (1 - l1_ratio)) I labelled 0.

    These add alpha (1 - l1_ratio) I to the Gram matrix and nothing else (Zou & Hastie 2005, Lemma 1). Primal and dual
    objective are the same as before, so the lasso's duality gap is the elastic net's.
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
    """
    return adaptive_lasso_fit(m, alpha, gamma, pilot_alpha, relative_gap).w


def adaptive_lasso_fit(
    m: Moments, alpha: OneOrEach, gamma: float = 1.0, pilot_alpha: OneOrEach = 1.0, relative_gap: float = 1e-8
) -> CertifiedFit:
    """The lasso for v_j = w_j / |p_j|^gamma on the features x_j |p_j|^gamma (Zou 2006, section 3.5), and its gap."""
    if not gamma > 0:
        raise InputError(f"gamma is {gamma}, but the adaptive lasso needs a power above 0; 0 is the lasso.")
    scale = ridge(m, pilot_alpha).abs() ** gamma
    fit = lasso_fit(m.rescaled(scale), alpha, relative_gap)
    return fit._replace(w=fit.w * scale)
