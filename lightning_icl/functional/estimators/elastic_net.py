"""The elastic net: the lasso with a share of squared penalty, and with it a unique minimiser."""

import torch

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.lasso import CertifiedFit, lasso_fit, positive
from lightning_icl.functional.estimators.moments import Moments, OneOrEach, Weights, of_examples, per_row

__all__ = ["elastic_net", "elastic_net_fit"]


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
